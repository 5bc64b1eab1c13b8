package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// DialTimeout bounds how long a client waits for a guest to accept and to answer a request that has no business taking
// long: a guest that runs, but does not answer, is treated as one that failed.
const DialTimeout = 10 * time.Second

// ErrBadAnswer is wrapped by every error that says that a guest broke the protocol. The guest is not to be trusted then;
// the connection is closed already.
var ErrBadAnswer = errors.New("guest broke the protocol")

// Client asks the PID 1 of one sandbox. It holds no connection between calls, so there is nothing to close and a restarted
// node makes a new one. It may be used from any goroutine.
//
// Failures that the guest reports are *frame.ErrorBody with one of the Code* words. Every call ends with ctx.
type Client struct {
	socket string
	gate   *gate
}

// NewClient returns a client of the guest that listens on the unix socket at path. The node chose that path; it is never
// taken from a sandbox.
func NewClient(path string) *Client { return &Client{socket: path, gate: &gate{}} }

// Socket returns the path of the guest's socket.
func (c *Client) Socket() string { return c.socket }

// Info asks what the guest is.
func (c *Client) Info(ctx context.Context) (Info, error) {
	r, err := c.call(ctx, Request{Op: OpInfo})
	if err != nil {
		return Info{}, err
	}
	if r.Info == nil {
		return Info{}, missing(OpInfo, "info")
	}
	return *r.Info, nil
}

// Start starts a process without joining it. Its output is kept (RingBytes of each stream) for a later Attach.
func (c *Client) Start(ctx context.Context, s Start) (ProcessInfo, error) {
	s.Attach, s.KillOnDetach = false, false
	return c.process(ctx, Request{Op: OpStart, Start: &s})
}

// StartAttached starts a process and joins it from its first byte on. The process waits while the stream is not read:
// nothing is lost. ctx bounds the start only; close the stream to leave, which ends the process where s.KillOnDetach is set.
func (c *Client) StartAttached(ctx context.Context, s Start) (*Stream, error) {
	s.Attach = true
	return c.stream(ctx, Request{Op: OpStart, Start: &s})
}

// Attach joins a process that runs or has ended. What left the ring before it could be read is reported by Dropped frames.
// ctx bounds the joining only.
func (c *Client) Attach(ctx context.Context, a Attach) (*Stream, error) {
	return c.stream(ctx, Request{Op: OpAttach, Attach: &a})
}

// Signal sends a signal to a process or its group.
func (c *Client) Signal(ctx context.Context, s SignalRequest) error {
	_, err := c.call(ctx, Request{Op: OpSignal, Signal: &s})
	return err
}

// Stdin writes to, or closes, the stdin or terminal of a process. It returns when the process's pipe has taken the bytes.
func (c *Client) Stdin(ctx context.Context, s StdinRequest) error {
	_, err := c.call(ctx, Request{Op: OpStdin, Stdin: &s})
	return err
}

// Resize sets the size of a process's terminal.
func (c *Client) Resize(ctx context.Context, pid ProcessID, size frame.Size) error {
	_, err := c.call(ctx, Request{Op: OpResize, Resize: &ResizeRequest{PID: pid, Size: size}})
	return err
}

// Wait returns what is known of a process once it has ended: Exit is set.
func (c *Client) Wait(ctx context.Context, pid ProcessID) (ProcessInfo, error) {
	p, err := c.process(ctx, Request{Op: OpWait, Wait: &WaitRequest{PID: pid}})
	if err == nil && p.Exit == nil {
		return ProcessInfo{}, missing(OpWait, "process.exit")
	}
	return p, err
}

// List returns all processes that PID 1 started and still remembers, in the order of their start.
func (c *Client) List(ctx context.Context) ([]ProcessInfo, error) {
	return parts(ctx, c, Request{Op: OpList}, MaxProcesses, func(r Response) []ProcessInfo { return r.Processes })
}

// LookupUser finds a user of the sandbox by name or number; empty means the default user.
func (c *Client) LookupUser(ctx context.Context, user string) (UserInfo, error) {
	r, err := c.call(ctx, Request{Op: OpLookupUser, User: user})
	if err != nil {
		return UserInfo{}, err
	}
	if r.User == nil {
		return UserInfo{}, missing(OpLookupUser, "user")
	}
	return *r.User, nil
}

// SetEnv gives the processes that start from now on more environment, KEY=value each. It takes precedence over what they had.
func (c *Client) SetEnv(ctx context.Context, env []string) error {
	_, err := c.call(ctx, Request{Op: OpSetEnv, Env: env})
	return err
}

// Shutdown ends the sandbox. It returns when the guest has taken the order, not when it has ended.
func (c *Client) Shutdown(ctx context.Context, p ShutdownParams) error {
	_, err := c.call(ctx, Request{Op: OpShutdown, Shutdown: &p})
	return err
}

// Open opens a file as a user of the sandbox, inside the sandbox, and returns the descriptor together with what the guest
// says of the file. The descriptor is checked to be a regular file or a directory opened for what was asked. The content
// is still the sandbox's: it may shrink while it is read.
func (c *Client) Open(ctx context.Context, f FileRequest) (*os.File, FileInfo, error) {
	return c.open(ctx, f)
}

// Stat tells what a path is. A symlink is not followed: FileInfo.Target says where it points.
func (c *Client) Stat(ctx context.Context, f FileRequest) (FileInfo, error) {
	return c.file(ctx, Request{Op: OpStat, File: &f})
}

// ReadDir lists a directory in lexical order, at most MaxDirEntries.
func (c *Client) ReadDir(ctx context.Context, f FileRequest) ([]FileInfo, error) {
	list, err := parts(ctx, c, Request{Op: OpReadDir, File: &f}, MaxDirEntries, func(r Response) []FileInfo { return r.Files })
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		if e.Name == "" || e.Name == "." || e.Name == ".." || strings.ContainsAny(e.Name, "/\x00") {
			return nil, fmt.Errorf("guest %s: %w: directory entry %.80q", OpReadDir, ErrBadAnswer, e.Name)
		}
	}
	return list, nil
}

// Mkdir makes a directory. With Parents, missing parents are made too and one that exists is no error.
func (c *Client) Mkdir(ctx context.Context, f FileRequest) (FileInfo, error) {
	return c.file(ctx, Request{Op: OpMkdir, File: &f})
}

// Remove removes a file or a whole directory. A path that does not exist is no error.
func (c *Client) Remove(ctx context.Context, f FileRequest) error {
	_, err := c.call(ctx, Request{Op: OpRemove, File: &f})
	return err
}

// Rename renames f.Path to f.Target, replacing what is there as rename(2) does.
func (c *Client) Rename(ctx context.Context, f FileRequest) error {
	_, err := c.call(ctx, Request{Op: OpRename, File: &f})
	return err
}

// Symlink makes f.Path a symlink to f.Target. The target is stored as it is given.
func (c *Client) Symlink(ctx context.Context, f FileRequest) error {
	_, err := c.call(ctx, Request{Op: OpSymlink, File: &f})
	return err
}

func (c *Client) process(ctx context.Context, req Request) (ProcessInfo, error) {
	r, err := c.call(ctx, req)
	if err != nil {
		return ProcessInfo{}, err
	}
	if r.Process == nil {
		return ProcessInfo{}, missing(req.Op, "process")
	}
	return *r.Process, nil
}

func (c *Client) file(ctx context.Context, req Request) (FileInfo, error) {
	r, err := c.call(ctx, req)
	if err != nil {
		return FileInfo{}, err
	}
	if r.File == nil {
		return FileInfo{}, missing(req.Op, "file")
	}
	return *r.File, nil
}

func missing(op Op, field string) error {
	return fmt.Errorf("guest %s: %w: answer without %q", op, ErrBadAnswer, field)
}

// conversation is one connection, from its request to its response. It ends with ctx until settled is called.
type conversation struct {
	conn *net.UnixConn
	stop func() bool
	ctx  context.Context
	op   Op
}

func (c *Client) dial(ctx context.Context, req Request) (*conversation, error) {
	leave, err := c.gate.enter(req.Op)
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", req.Op, err)
	}
	defer leave()
	d := net.Dialer{Timeout: DialTimeout}
	nc, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", req.Op, err)
	}
	conn, ok := nc.(*net.UnixConn)
	if !ok {
		nc.Close()
		return nil, fmt.Errorf("guest %s: %s is no unix socket", req.Op, c.socket)
	}
	v := &conversation{conn: conn, ctx: ctx, op: req.Op}
	// A deadline in the past unblocks a read or write that is under way, which closing from here would do as well, but
	// closing leaves the error's cause to chance.
	v.stop = context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	if req.Op != OpWait {
		// Nothing but OpWait may take long to answer. Where ctx ends before, it has already said so when the read fails.
		conn.SetDeadline(time.Now().Add(answerTimeout(req)))
		if ctx.Err() != nil { // it ended between AfterFunc and SetDeadline
			conn.SetDeadline(time.Unix(1, 0))
		}
	}
	req.Version = ProtocolVersion
	if err := frame.WriteJSON(conn, frame.Request, req); err != nil {
		return nil, v.fail(err)
	}
	return v, nil
}

// answerTimeout is how long a guest may take to answer. Work whose length the caller decides gets more.
func answerTimeout(req Request) time.Duration {
	switch req.Op {
	case OpRemove, OpStdin, OpReadDir, OpWalk:
		return 10 * time.Minute
	default:
		return 3 * DialTimeout
	}
}

// settled takes ctx's hand off the connection, which lives on as a stream.
func (v *conversation) settled() error {
	if !v.stop() {
		return v.fail(v.ctx.Err())
	}
	if err := v.conn.SetDeadline(time.Time{}); err != nil {
		return v.fail(err)
	}
	return nil
}

// fail closes the connection and says why the conversation failed: ctx's reason before all others.
func (v *conversation) fail(err error) error {
	v.stop()
	v.conn.Close()
	var body *frame.ErrorBody
	switch cause := context.Cause(v.ctx); {
	case errors.As(err, &body):
		return checkError(body)
	case cause != nil:
		err = cause
	}
	return fmt.Errorf("guest %s: %w", v.op, err)
}

// checkError bounds what a guest says of a failure, before it reaches logs and answers.
func checkError(b *frame.ErrorBody) *frame.ErrorBody {
	const maxCode, maxMessage = 64, 4096
	if b.Code == "" || len(b.Code) > maxCode {
		b.Code = CodeInternal
	}
	for i := range len(b.Code) {
		if c := b.Code[i]; (c < 'a' || c > 'z') && c != '_' {
			b.Code = CodeInternal
			break
		}
	}
	if len(b.Message) > maxMessage {
		b.Message = b.Message[:maxMessage]
	}
	return b
}

// call has one request answered.
func (c *Client) call(ctx context.Context, req Request) (Response, error) {
	v, err := c.dial(ctx, req)
	if err != nil {
		return Response{}, err
	}
	r, err := readResponse(frame.NewReader(v.conn))
	if err != nil {
		return Response{}, v.fail(err)
	}
	v.stop()
	v.conn.Close()
	return r, nil
}

// stream has a request answered and keeps the connection as an attachment.
func (c *Client) stream(ctx context.Context, req Request) (*Stream, error) {
	v, err := c.dial(ctx, req)
	if err != nil {
		return nil, err
	}
	r, err := readResponse(frame.NewReader(v.conn))
	if err != nil {
		return nil, v.fail(err)
	}
	if r.Process == nil {
		return nil, v.fail(missing(req.Op, "process"))
	}
	if err := v.settled(); err != nil {
		return nil, err
	}
	return newStream(v.conn, *r.Process), nil
}
