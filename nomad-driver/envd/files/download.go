package files

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/handover"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/place"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// maxRanges is how many ranges of a file one request may ask for.
const maxRanges = 16

// source is a file to be sent.
type source struct {
	content io.ReadSeeker
	close   func() error
	modTime time.Time
	etag    string // with its quotes; empty: none
	size    int64
	mode    os.FileMode // permission bits
}

func (h handler) download(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	q := r.URL.Query()
	u, err := place.As(ctx, scope.Of(ctx), q.Get("username"))
	if err != nil {
		return err
	}
	p, err := u.Path(q.Get("path"))
	if err != nil {
		return err
	}
	if n := strings.Count(r.Header.Get("Range"), ","); n >= maxRanges || len(r.Header.Values("Range")) > 1 {
		return fail(http.StatusRequestedRangeNotSatisfiable, "more than %d ranges", maxRanges)
	}
	src, err := openSource(ctx, u, p)
	if err != nil {
		return err
	}
	defer src.close()
	w.Header().Set("Vary", "Accept-Encoding")
	how := encoding(r.Header)
	if partial(r.Header) && how != "" {
		if how = "identity"; !takesIdentity(r.Header) {
			how = ""
		}
	}
	if how == "" {
		return fail(http.StatusNotAcceptable, "no acceptable encoding found, supported: gzip, identity")
	}
	name := path.Base(p)
	w.Header().Set("Content-Disposition", disposition(name))
	w.Header().Set(ModeHeader, strconv.FormatUint(uint64(src.mode), 8))
	out := &sender{ResponseWriter: w, rc: http.NewResponseController(w), idle: h.IdleTimeout, direct: plainTCP(r)}
	defer func() { _ = out.rc.SetWriteDeadline(time.Time{}) }()
	if how != "gzip" && handover.Welcome(r) {
		out.giveTo = r
		defer out.begin()
	}
	if how == "gzip" {
		return sendCompressed(out, r, name, src)
	}
	if src.etag != "" {
		w.Header().Set("Etag", src.etag)
	}
	http.ServeContent(out, r, name, src.modTime, src.content)
	return nil
}

// partial reports whether a request is for a part of a file, or for it only on a condition.
func partial(h http.Header) bool {
	for _, name := range []string{"Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"} {
		if h.Get(name) != "" {
			return true
		}
	}
	return false
}

func disposition(name string) string {
	if d := mime.FormatMediaType("inline", map[string]string{"filename": name}); d != "" {
		return d
	}
	return "inline"
}

// openSource has a file opened as the user. Where its content depends on who reads, it is read inside.
func openSource(ctx context.Context, u place.User, p string) (*source, error) {
	f, err := openRegular(ctx, u, p, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		_ = f.Close()
		return nil, err
	}
	if !onDisk(fs.Type) {
		_ = f.Close()
		b, err := u.Sandbox.Guest.ReadSmall(ctx, u.Request(p))
		if err != nil {
			return nil, &pathError{p, err}
		}
		return &source{content: bytes.NewReader(b), close: func() error { return nil }, size: int64(len(b)), mode: 0o444}, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		_ = f.Close()
		return nil, err
	}
	return &source{
		content: f, close: f.Close, modTime: time.Unix(st.Mtim.Unix()), size: st.Size, mode: os.FileMode(st.Mode & 0o777),
		etag: fmt.Sprintf(`"%x-%x-%x"`, st.Ino, st.Size, st.Mtim.Nano()),
	}, nil
}

// onDisk reports whether the files of a file system have a size and a content that is the same for every reader. For those
// of the kernel's own file systems that is not so: read by the node they would tell what root of the host may know.
func onDisk(kind int64) bool {
	switch uint32(kind) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEBUGFS_MAGIC,
		unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.DEVPTS_SUPER_MAGIC, unix.NSFS_MAGIC:
		return false
	}
	return true
}

// openRegular has a regular file opened. FIFOs, devices and sockets are refused inside, without waiting for anybody.
func openRegular(ctx context.Context, u place.User, p string, flags int) (*os.File, error) {
	req := u.Request(p)
	req.Flags = flags
	f, _, err := u.Sandbox.Guest.Open(ctx, req)
	switch {
	case place.Is(err, guest.CodeNotDir):
		return nil, fail(http.StatusNotFound, "%s", place.Missing(p))
	case err != nil:
		return nil, &pathError{p, err}
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fail(http.StatusBadRequest, "path '%s' is not a regular file", p)
		if fi.IsDir() {
			err = fail(http.StatusBadRequest, "%s", place.IsDirectory(p))
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// sendCompressed sends a whole file compressed. Its tag is weak: the bytes sent are not those of the file.
func sendCompressed(w *sender, r *http.Request, name string, src *source) error {
	h := w.Header()
	kind := mime.TypeByExtension(path.Ext(name))
	if kind == "" {
		var start [512]byte
		n, _ := io.ReadFull(src.content, start[:])
		if _, err := src.content.Seek(0, io.SeekStart); err != nil {
			return err
		}
		kind = http.DetectContentType(start[:n])
	}
	h.Set("Content-Type", kind)
	h.Set("Content-Encoding", "gzip")
	if src.etag != "" {
		h.Set("Etag", "W/"+src.etag)
		h.Set("Last-Modified", src.modTime.UTC().Format(http.TimeFormat))
	}
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	z, ok := compressors.Get().(*gzip.Writer)
	if !ok {
		return errBroken
	}
	defer compressors.Put(z)
	z.Reset(w)
	// As far as the file went when it was opened: one that grows must not keep the client for ever.
	n, err := io.Copy(struct{ io.Writer }{z}, io.LimitReader(src.content, src.size))
	if err == nil && n < src.size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errBroken, err)
	}
	return nil
}

var compressors = sync.Pool{New: func() any {
	z, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed) // the level is a valid one
	return z
}}

// plainTCP reports whether the kernel can send a file to the client by itself.
func plainTCP(r *http.Request) bool {
	addr, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	_, tcp := addr.(*net.TCPAddr)
	return tcp && r.TLS == nil && r.ProtoMajor == 1
}

// sender gives up on a client that takes nothing for the idle time.
type sender struct {
	http.ResponseWriter
	rc     *http.ResponseController
	idle   time.Duration
	direct bool

	giveTo *http.Request // takes the file itself, where it is worth it; nil: nobody does
	status int           // of an answer to giveTo that has not begun: it depends on what follows; 0: none waits
}

// WriteHeader implements http.ResponseWriter.
func (s *sender) WriteHeader(status int) {
	if s.giveTo != nil {
		s.status = status
		return
	}
	s.ResponseWriter.WriteHeader(status)
}

// begin begins an answer that waits. Its bytes are sent.
func (s *sender) begin() {
	s.giveTo = nil
	if s.status != 0 {
		s.ResponseWriter.WriteHeader(s.status)
		s.status = 0
	}
}

// give hands the file over that n bytes of are to be sent, and reports whether it did: then the answer is complete.
func (s *sender) give(r io.Reader, n int64) (bool, error) {
	f, ok := r.(*os.File)
	if !ok || s.giveTo == nil || s.status == 0 || n < handover.MinBytes {
		return false, nil
	}
	first, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return false, err
	}
	to, status := s.giveTo, s.status
	s.giveTo, s.status = nil, 0
	return true, handover.Offer(s.ResponseWriter, to, status, f, first, n)
}

const (
	sendPiece  = 8 << 20 // bytes that the kernel sends at once
	bufferSize = 256 << 10
)

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

func (s *sender) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func (s *sender) Write(p []byte) (int, error) {
	s.begin()
	if err := s.rc.SetWriteDeadline(time.Now().Add(s.idle)); err != nil {
		return 0, err
	}
	return s.ResponseWriter.Write(p)
}

// ReadFrom copies a file to the client: by sendfile(2) where the connection is one that the kernel can send to, else with
// a buffer that is larger than the server's own.
func (s *sender) ReadFrom(r io.Reader) (total int64, err error) {
	if l, ok := r.(*io.LimitedReader); ok {
		if done, err := s.give(l.R, l.N); done || err != nil {
			return l.N, err
		}
	}
	s.begin()
	if from, ok := s.ResponseWriter.(io.ReaderFrom); ok && s.direct {
		left := int64(1<<63 - 1)
		if l, ok := r.(*io.LimitedReader); ok {
			r, left = l.R, l.N
		}
		for left > 0 {
			if err := s.rc.SetWriteDeadline(time.Now().Add(s.idle)); err != nil {
				return total, err
			}
			want := min(left, sendPiece)
			n, err := from.ReadFrom(io.LimitReader(r, want))
			total, left = total+n, left-n
			if err != nil || n < want {
				return total, err
			}
		}
		return total, nil
	}
	buf, ok := buffers.Get().(*[]byte)
	if !ok {
		return 0, errBroken
	}
	defer buffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{s}, struct{ io.Reader }{r}, *buf)
}
