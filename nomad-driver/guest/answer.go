package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// readResponse reads and checks the answer to a request. What an error frame says comes back as *frame.ErrorBody; every
// other failure wraps ErrBadAnswer or is the connection's own.
func readResponse(r *frame.Reader) (Response, error) {
	var resp Response
	switch err := r.ReadJSON(frame.Response, &resp); {
	case err == nil:
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Response{}, fmt.Errorf("guest closed the connection without an answer: %w", io.ErrUnexpectedEOF)
	default:
		var body *frame.ErrorBody
		var netErr net.Error
		if errors.As(err, &body) || errors.As(err, &netErr) {
			return Response{}, err
		}
		return Response{}, fmt.Errorf("%w: %w", ErrBadAnswer, err)
	}
	if p := resp.Process; p != nil && p.PID <= 0 {
		return Response{}, fmt.Errorf("%w: process id %d", ErrBadAnswer, p.PID)
	}
	return resp, nil
}

// parts reads a list, which comes in several Response frames where it is long.
func parts[T any](ctx context.Context, c *Client, req Request, limit int, of func(Response) []T) ([]T, error) {
	v, err := c.dial(ctx, req)
	if err != nil {
		return nil, err
	}
	fr := frame.NewReader(v.conn)
	var all []T
	for {
		r, err := readResponse(fr)
		if err != nil {
			return nil, v.fail(err)
		}
		part := of(r)
		if len(all)+len(part) > limit {
			return nil, v.fail(fmt.Errorf("%w: a list of more than %d", ErrBadAnswer, limit))
		}
		all = append(all, part...)
		if !r.More {
			break
		}
		if len(part) == 0 {
			return nil, v.fail(fmt.Errorf("%w: empty part of a list", ErrBadAnswer))
		}
	}
	v.stop()
	v.conn.Close()
	return all, nil
}

// open receives an answer with a descriptor.
func (c *Client) open(ctx context.Context, f FileRequest) (*os.File, FileInfo, error) {
	v, err := c.dial(ctx, Request{Op: OpOpen, File: &f})
	if err != nil {
		return nil, FileInfo{}, err
	}
	fds := &fdReader{conn: v.conn}
	defer fds.close()
	r, err := readResponse(frame.NewReader(fds))
	if err != nil {
		return nil, FileInfo{}, v.fail(err)
	}
	if r.File == nil {
		return nil, FileInfo{}, v.fail(missing(OpOpen, "file"))
	}
	fd, err := fds.take()
	if err != nil {
		return nil, FileInfo{}, v.fail(err)
	}
	v.stop()
	v.conn.Close()
	if err := checkOpened(fd, f.Flags); err != nil {
		unix.Close(fd)
		return nil, FileInfo{}, fmt.Errorf("guest %s: %w", OpOpen, err)
	}
	return os.NewFile(uintptr(fd), f.Path), *r.File, nil
}

// checkOpened makes sure that a descriptor from a sandbox cannot hold its reader up or be more than was asked for.
func checkOpened(fd, flags int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("fstat of the received descriptor: %w", err)
	}
	if k := st.Mode & unix.S_IFMT; k != unix.S_IFREG && k != unix.S_IFDIR {
		return fmt.Errorf("%w: descriptor is neither a regular file nor a directory (mode %#o)", ErrBadAnswer, st.Mode)
	}
	got, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("flags of the received descriptor: %w", err)
	}
	if got&unix.O_PATH != 0 || got&unix.O_ACCMODE != flags&unix.O_ACCMODE {
		return fmt.Errorf("%w: descriptor has flags %#x, asked for %#x", ErrBadAnswer, got, flags)
	}
	// Neither direct nor non-blocking nor signal-driven input and output shall be left over from inside.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&unix.O_APPEND); err != nil {
		return fmt.Errorf("set flags of the received descriptor: %w", err)
	}
	return nil
}

// fdReader reads a connection and keeps the descriptors that come with the bytes, close-on-exec.
type fdReader struct {
	conn *net.UnixConn
	fds  []int
	err  error
}

// maxFDs is how many descriptors one read takes in; the kernel discards those beyond. Two are enough to see that there
// is one too many.
const maxFDs = 2

func (r *fdReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	oob := make([]byte, unix.CmsgSpace(maxFDs*4))
	n, oobn, flags, _, err := r.conn.ReadMsgUnix(p, oob)
	if oobn > 0 {
		r.keep(oob[:oobn])
	}
	switch {
	case err != nil:
		return n, err
	case flags&unix.MSG_CTRUNC != 0, len(r.fds) > 1:
		r.err = fmt.Errorf("%w: more than one descriptor", ErrBadAnswer)
		return 0, r.err
	case n == 0 && len(p) > 0:
		return 0, io.EOF
	}
	return n, nil
}

func (r *fdReader) keep(oob []byte) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		r.err = fmt.Errorf("%w: control message: %w", ErrBadAnswer, err)
		return
	}
	for i := range msgs {
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			r.fds = append(r.fds, fds...)
		}
	}
}

// take hands out the one descriptor.
func (r *fdReader) take() (int, error) {
	if len(r.fds) != 1 {
		return -1, fmt.Errorf("%w: %d descriptors, want one", ErrBadAnswer, len(r.fds))
	}
	fd := r.fds[0]
	r.fds = nil
	return fd, nil
}

func (r *fdReader) close() {
	for _, fd := range r.fds {
		unix.Close(fd)
	}
	r.fds = nil
}
