package pid1

import (
	"encoding/json"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

const (
	// maxConns is how many conversations go on at the same time; further ones are told to come back.
	maxConns = 1024
	// maxListeners is how many more there may be that only listen along: the log has one for each process, and shall not take the
	// places of those who work with the processes.
	maxListeners = 1024
	// requestWait is how long a connection may take to say what it wants.
	requestWait = 10 * time.Second
)

// backend does what requests ask for. It is the supervisor; tests of the dispatcher have one that touches nothing. Requests
// have passed check. The methods with a conn answer by themselves; the others' results are sent by the dispatcher. All may
// be called from many goroutines at once.
type backend interface {
	info() guest.Info
	start(c *conn, s *guest.Start)
	attach(c *conn, a *guest.Attach)
	signalTo(r *guest.SignalRequest) error
	stdin(c *conn, r *guest.StdinRequest) error
	resizeTo(r *guest.ResizeRequest) error
	wait(c *conn, pid guest.ProcessID) (*guest.ProcessInfo, error)
	list() []guest.ProcessInfo
	lookupUser(spec string) (*guest.UserInfo, error)
	shutdown(p *guest.ShutdownParams) error
	renew(r *guest.Renew)
	setEnv(env []string)
	fileOps
}

// fileOps are the file operations of a backend.
type fileOps interface {
	open(*guest.FileRequest) (opened, error)
	stat(*guest.FileRequest) (guest.FileInfo, error)
	readDir(*guest.FileRequest) ([]guest.FileInfo, error)
	mkdir(*guest.FileRequest) (guest.FileInfo, error)
	remove(*guest.FileRequest) error
	rename(*guest.FileRequest) (replaced, error)
	symlink(*guest.FileRequest) error
	entry(*guest.FileRequest) (guest.Entry, error)
	walk(*guest.FileRequest) ([]guest.Entry, error)
	read(*guest.FileRequest) ([]byte, error)
	watch(*conn, *guest.WatchRequest)
}

// server accepts conversations.
type server struct {
	b     backend
	idle  func() // called when the last conversation has ended
	mu    sync.Mutex
	left  *sync.Cond // conns has become smaller
	conns int        // of every kind, and those that have not said yet what they want
	open  map[*conn]struct{}
	lis   []*os.File // listened on: one, but where a node went in the midst of renew
	bare  bool       // PID 1 lets itself be looked at, for a checkpoint

	talks, listeners int
}

func newServer(b backend, idle func()) *server {
	s := &server{b: b, idle: idle, open: make(map[*conn]struct{})}
	s.left = sync.NewCond(&s.mu)
	return s
}

// serve accepts connections until the listener is closed. It owns f.
func (s *server) serve(f *os.File) {
	s.listens(f)
	s.accept(f)
}

func (s *server) listens(f *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lis = append(s.lis, f)
}

func (s *server) accept(f *os.File) {
	defer f.Close()
	rc, err := f.SyscallConn()
	if err != nil {
		return
	}
	for {
		fd := -1
		var aerr error
		err := rc.Read(func(l uintptr) bool {
			fd, _, aerr = unix.Accept4(int(l), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return aerr != unix.EAGAIN
		})
		if err != nil {
			return
		}
		switch aerr {
		case nil:
		case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS:
			time.Sleep(10 * time.Millisecond) // there is nothing to wait for that tells when there is one again
			continue
		default:
			continue
		}
		c, err := newConn(fd)
		if err != nil {
			continue
		}
		go s.converse(c, s.enter(c))
	}
}

// enter counts a conversation and returns how many there are. It is called in the order in which clients came.
func (s *server) enter(c *conn) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns++
	s.open[c] = struct{}{}
	s.cover()
	return s.conns
}

// converse has one conversation, the nth under way.
func (s *server) converse(c *conn, n int) {
	defer func() {
		c.f.Close() // before it counts as gone: a checkpoint relies on that
		s.mu.Lock()
		s.conns--
		delete(s.open, c)
		last := s.conns == 0
		s.left.Broadcast()
		s.mu.Unlock()
		if last && s.idle != nil {
			s.idle()
		}
	}()
	if n > maxConns+maxListeners {
		c.fail(tooMany())
		return
	}
	c.f.SetDeadline(time.Now().Add(requestWait))
	var req guest.Request
	if err := frame.NewReader(c.f).ReadJSON(frame.Request, &req); err != nil {
		c.fail(fail(guest.CodeBadRequest, "request: %v", err))
		return
	}
	c.f.SetDeadline(time.Time{})
	if err := check(&req); err != nil {
		c.fail(failBody(err))
		return
	}
	leave, ok := s.admit(&req)
	defer leave()
	if !ok {
		c.fail(tooMany())
		return
	}
	s.dispatch(c, &req)
}

// admit counts a conversation whose request is known among its kind, until leave is called, and reports whether there is a place.
func (s *server) admit(req *guest.Request) (leave func(), ok bool) {
	count, most := &s.talks, maxConns
	if req.Op == guest.OpAttach && req.Attach.Lossy {
		count, most = &s.listeners, maxListeners
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	*count++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		*count--
	}, *count <= most
}

func tooMany() *frame.ErrorBody {
	return fail(guest.CodeLimit, "more than %d conversations with this guest, or %d that listen along", maxConns, maxListeners)
}

// drainConns waits until no conversation is left, at most for d.
func (s *server) drainConns(d time.Duration) {
	deadline := time.Now().Add(d)
	t := time.AfterFunc(d, func() {
		s.mu.Lock()
		s.left.Broadcast()
		s.mu.Unlock()
	})
	defer t.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.conns > 0 && time.Now().Before(deadline) {
		s.left.Wait()
	}
}

// dispatch has a checked request done.
func (s *server) dispatch(c *conn, req *guest.Request) {
	var resp guest.Response
	var err error
	switch req.Op {
	case guest.OpInfo:
		i := s.b.info()
		resp.Info = &i
	case guest.OpStart:
		s.b.start(c, req.Start)
		return
	case guest.OpAttach:
		s.b.attach(c, req.Attach)
		return
	case guest.OpSignal:
		err = s.b.signalTo(req.Signal)
	case guest.OpStdin:
		err = s.b.stdin(c, req.Stdin)
	case guest.OpResize:
		err = s.b.resizeTo(req.Resize)
	case guest.OpWait:
		resp.Process, err = s.b.wait(c, req.Wait.PID)
	case guest.OpList:
		sendParts(c, s.b.list(), func(part []guest.ProcessInfo) guest.Response { return guest.Response{Processes: part} })
		return
	case guest.OpLookupUser:
		resp.User, err = s.b.lookupUser(req.User)
	case guest.OpShutdown:
		err = s.b.shutdown(req.Shutdown)
	case guest.OpPark:
		err = s.park(c)
	case guest.OpSetEnv:
		s.b.setEnv(req.Env)
	case guest.OpRenew:
		s.renew(c, req.Renew)
		return
	default:
		s.dispatchFile(c, req)
		return
	}
	answer(c, resp, err)
}

func (s *server) dispatchFile(c *conn, req *guest.Request) {
	var resp guest.Response
	var i guest.FileInfo
	var err error
	switch req.Op {
	case guest.OpOpen:
		sendOpened(c, s.b, req.File)
		return
	case guest.OpReadDir:
		list, err := s.b.readDir(req.File)
		if err != nil {
			c.fail(failBody(err))
			return
		}
		sendParts(c, list, func(part []guest.FileInfo) guest.Response { return guest.Response{Files: part} })
		return
	case guest.OpWalk:
		list, err := s.b.walk(req.File)
		if err != nil {
			c.fail(failBody(err))
			return
		}
		sendParts(c, list, func(part []guest.Entry) guest.Response { return guest.Response{Entries: part} })
		return
	case guest.OpWatch:
		s.b.watch(c, req.Watch)
		return
	case guest.OpEntry:
		var e guest.Entry
		e, err = s.b.entry(req.File)
		resp.Entry = &e
	case guest.OpRead:
		resp.Data, err = s.b.read(req.File)
	case guest.OpStat:
		i, err = s.b.stat(req.File)
		resp.File = &i
	case guest.OpMkdir:
		i, err = s.b.mkdir(req.File)
		resp.File = &i
	case guest.OpRemove:
		err = s.b.remove(req.File)
	case guest.OpRename:
		var old replaced
		old, err = s.b.rename(req.File)
		defer old.release() // after the answer
	case guest.OpSymlink:
		err = s.b.symlink(req.File)
	}
	answer(c, resp, err)
}

func answer(c *conn, resp guest.Response, err error) {
	if err != nil {
		c.fail(failBody(err))
		return
	}
	resp.Version = guest.ProtocolVersion
	_ = frame.WriteJSON(c.f, frame.Response, resp)
}

// sendParts sends a list in as many Response frames as it takes.
func sendParts[T any](c *conn, list []T, wrap func([]T) guest.Response) {
	for first := true; first || len(list) > 0; first = false {
		n := min(len(list), 1000)
		var body []byte
		for ; ; n = max(n/4, 1) {
			resp := wrap(list[:n])
			resp.Version, resp.More = guest.ProtocolVersion, n < len(list)
			var err error
			if body, err = json.Marshal(resp); err != nil {
				c.fail(fail(guest.CodeInternal, "encode the answer: %v", err))
				return
			}
			if len(body) <= frame.MaxPayload || n <= 1 {
				break
			}
		}
		if frame.Write(c.f, frame.Response, body) != nil {
			return
		}
		list = list[n:]
	}
}

func sendOpened(c *conn, b backend, req *guest.FileRequest) {
	o, err := b.open(req)
	if err != nil {
		c.fail(failBody(err))
		return
	}
	defer unix.Close(o.fd)
	body, err := json.Marshal(guest.Response{Version: guest.ProtocolVersion, File: &o.info})
	if err != nil {
		c.fail(fail(guest.CodeInternal, "encode the answer: %v", err))
		return
	}
	var msg frameBytes
	if err := frame.Write(&msg, frame.Response, body); err != nil {
		c.fail(fail(guest.CodeInternal, "%v", err))
		return
	}
	_ = c.sendFD(msg, o.fd)
}

// frameBytes takes a frame down.
type frameBytes []byte

func (b *frameBytes) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}
