package pid1

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// fakeBackend answers without touching anything, and fails where it is handed what check should have refused.
type fakeBackend struct{ t *testing.T }

func (b fakeBackend) need(ok bool, what string) {
	if !ok {
		b.t.Errorf("backend called with a bad %s", what)
	}
}

func (b fakeBackend) info() guest.Info { return guest.Info{} }
func (b fakeBackend) start(c *conn, s *guest.Start) {
	b.need(len(s.Argv) > 0 && s.Argv[0] != "" && len(s.Argv) <= guest.MaxArgs && len(s.Tag) <= guest.MaxTag, "start")
	answer(c, guest.Response{Process: &guest.ProcessInfo{PID: 2}}, nil)
}
func (b fakeBackend) attach(c *conn, a *guest.Attach) {
	b.need(a.PID > 1, "attach")
	answer(c, guest.Response{Process: &guest.ProcessInfo{PID: a.PID}}, nil)
}
func (b fakeBackend) signalTo(r *guest.SignalRequest) error {
	b.need(r.PID > 1 && r.Signal > 0 && r.Signal <= maxSignal, "signal")
	return nil
}
func (b fakeBackend) stdin(_ *conn, r *guest.StdinRequest) error {
	b.need(r.PID > 1, "stdin")
	return nil
}
func (b fakeBackend) resizeTo(r *guest.ResizeRequest) error {
	b.need(r.PID > 1, "resize")
	return nil
}
func (b fakeBackend) wait(_ *conn, pid guest.ProcessID) (*guest.ProcessInfo, error) {
	b.need(pid > 1, "wait")
	return &guest.ProcessInfo{PID: pid}, nil
}
func (b fakeBackend) list() []guest.ProcessInfo { return make([]guest.ProcessInfo, 3) }
func (b fakeBackend) lookupUser(spec string) (*guest.UserInfo, error) {
	u, err := (accounts{}).lookup(spec, "")
	return &u, err
}
func (b fakeBackend) setEnv([]string) {}

func (b fakeBackend) renew(r *guest.Renew) { b.need(r.SandboxID != "", "renew") }
func (b fakeBackend) shutdown(p *guest.ShutdownParams) error {
	b.need(p.Grace >= 0 && p.Signal >= 0 && p.Signal <= maxSignal, "shutdown")
	return nil
}
func (b fakeBackend) path(r *guest.FileRequest) error {
	_, err := checkPath("file.path", r.Path, guest.UserInfo{Home: "/"})
	return err
}
func (b fakeBackend) open(r *guest.FileRequest) (opened, error) {
	if err := b.path(r); err != nil {
		return opened{}, err
	}
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return opened{fd: fd}, err
}
func (b fakeBackend) stat(r *guest.FileRequest) (guest.FileInfo, error) {
	return guest.FileInfo{}, b.path(r)
}
func (b fakeBackend) readDir(r *guest.FileRequest) ([]guest.FileInfo, error) {
	return make([]guest.FileInfo, 5), b.path(r)
}
func (b fakeBackend) entry(r *guest.FileRequest) (guest.Entry, error) {
	return guest.Entry{}, b.path(r)
}
func (b fakeBackend) walk(r *guest.FileRequest) ([]guest.Entry, error) {
	return make([]guest.Entry, 5), b.path(r)
}
func (b fakeBackend) read(r *guest.FileRequest) ([]byte, error) { return []byte("x"), b.path(r) }
func (b fakeBackend) watch(c *conn, w *guest.WatchRequest) {
	b.need(w != nil, "watch")
	answer(c, guest.Response{}, nil)
}
func (b fakeBackend) mkdir(r *guest.FileRequest) (guest.FileInfo, error) {
	return guest.FileInfo{}, b.path(r)
}
func (b fakeBackend) remove(r *guest.FileRequest) error             { return b.path(r) }
func (b fakeBackend) rename(r *guest.FileRequest) (replaced, error) { return -1, b.path(r) }
func (b fakeBackend) symlink(r *guest.FileRequest) error            { return b.path(r) }

// FuzzConversation hands the server any bytes as a conversation. It must answer with frames, and end.
func FuzzConversation(f *testing.F) {
	request := func(v any) []byte {
		var b frameBytes
		_ = frame.WriteJSON(&b, frame.Request, v)
		return b
	}
	f.Add(request(guest.Request{Version: 1, Op: guest.OpInfo}))
	f.Add(request(guest.Request{Version: 1, Op: guest.OpStart, Start: &guest.Start{Argv: []string{"sh"}, Env: []string{"A=b"}}}))
	f.Add(request(guest.Request{Version: 1, Op: guest.OpOpen, File: &guest.FileRequest{Path: "~/x"}}))
	f.Add(request(guest.Request{Version: 1, Op: guest.OpReadDir, File: &guest.FileRequest{Path: "/"}}))
	f.Add(request(guest.Request{Version: 1, Op: guest.OpShutdown, Shutdown: &guest.ShutdownParams{Grace: -1}}))
	f.Add(request(guest.Request{Version: 9, Op: "x"}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{0, 0, 0, 1, 99, 'x'})
	f.Fuzz(func(t *testing.T, in []byte) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		c, err := newConn(fds[0])
		if err != nil {
			t.Fatal(err)
		}
		s := newServer(fakeBackend{t}, nil)
		done := make(chan struct{})
		go func() {
			s.converse(c, s.enter(c))
			close(done)
		}()
		peer, err := net.FileConn(os.NewFile(uintptr(fds[1]), "peer"))
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		peer.SetDeadline(time.Now().Add(10 * time.Second))
		go func() {
			_, _ = peer.Write(in)
			_ = peer.(*net.UnixConn).CloseWrite()
		}()
		fr := frame.NewReader(peer)
		for {
			a, err := fr.Read()
			if err != nil {
				break
			}
			switch a.Type {
			case frame.Response:
				var r guest.Response
				if err := json.Unmarshal(a.Payload, &r); err != nil {
					t.Errorf("answer %s: %v", a.Payload, err)
				}
			case frame.Error:
				var e frame.ErrorBody
				if err := json.Unmarshal(a.Payload, &e); err != nil || e.Code == "" || e.Message == "" {
					t.Errorf("error %s: %v", a.Payload, err)
				}
			default:
				t.Errorf("answer of type %d", a.Type)
			}
		}
		<-done
	})
}

func FuzzAccounts(f *testing.F) {
	f.Add([]byte("root:x:0:0:root:/root:/bin/sh\nu:x:1:2::/home/u:\n"), []byte("g:x:5:u,v\n"), "u:g")
	f.Add([]byte("a:b:c\n:::::::\nx:x:-1:99999999999::::\n#c:x:1:1::/:\n"), []byte(":::\n"), "1")
	f.Add([]byte("5:x:6:6::relative:relative\n"), []byte{}, "5")
	f.Fuzz(func(t *testing.T, passwd, group []byte, spec string) {
		a := accounts{passwd: passwd, group: group}
		u, err := a.lookup(spec, "")
		if err != nil {
			return
		}
		if u.UID >= idRange || u.GID >= idRange || len(u.Groups) > maxGroups {
			t.Errorf("%q is %+v", spec, u)
		}
		if u.Home == "" || u.Home[0] != '/' || u.Shell == "" || u.Shell[0] != '/' {
			t.Errorf("%q is %+v", spec, u)
		}
		n := a.names()
		_ = n.user(u.UID) + n.group(u.GID)
	})
}

// FuzzRing compares a ring with the stream that went through it.
func FuzzRing(f *testing.F) {
	f.Add([]byte{1, 200, 255, 3, 255, 255, 255})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var r ring
		var next uint32 // the stream is a count, four bytes at a time
		for i, op := range ops[:min(len(ops), 200)] {
			want := (int(op) + 1) * 1024
			keep := r.end
			if i%3 == 0 {
				keep = r.start
			}
			full := r.full(keep)
			buf := r.space(want, keep)
			if full != (buf == nil) {
				t.Fatalf("full says %v, space gave %d bytes", full, len(buf))
			}
			before := r.start
			n := len(buf) &^ 3
			for k := 0; k < n; k += 4 {
				binary.BigEndian.PutUint32(buf[k:], next)
				next++
			}
			r.commit(n)
			if keep == before && r.start != before {
				t.Fatalf("kept bytes were given up: start %d, was %d", r.start, before)
			}
			if r.end-r.start > ringMax || len(r.buf) > ringMax {
				t.Fatalf("holds %d bytes in %d", r.end-r.start, len(r.buf))
			}
			if i == len(ops)/2 {
				r.trim()
			}
			at := (r.start + 3) &^ 3
			out := make([]byte, r.end-at)
			if k := r.read(out, at); k != len(out) {
				t.Fatalf("read %d of %d", k, len(out))
			}
			for k := 0; k+4 <= len(out); k += 4 {
				if got := binary.BigEndian.Uint32(out[k:]); uint64(got)*4 != at+uint64(k) {
					t.Fatalf("at %d is %d", at+uint64(k), got)
				}
			}
		}
	})
}

var _ io.Writer = (*frameBytes)(nil)
