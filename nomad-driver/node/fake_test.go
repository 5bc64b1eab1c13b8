package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/store"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// fakeRuntime is a machine in memory. It outlives the nodes that use it, as a machine does.
type fakeRuntime struct {
	mu        sync.Mutex
	instances map[api.SandboxID]*fakeInstance
	creates   int
	swept     []api.SandboxID
	// hook runs inside Create, before the sandbox exists.
	hook     func(ctx context.Context, c sandbox.Config) error
	sweepErr error
	openErr  error
	guest    *fakeGuest
}

func newFakeRuntime() *fakeRuntime {
	return &fakeRuntime{instances: map[api.SandboxID]*fakeInstance{}, guest: &fakeGuest{}}
}

func (r *fakeRuntime) Create(ctx context.Context, c sandbox.Config) (instance, error) {
	r.mu.Lock()
	r.creates++
	hook := r.hook
	r.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, c); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	i := &fakeInstance{
		rt: r, config: c, done: make(chan struct{}),
		ref: sandbox.Ref{Version: 1, ID: c.ID, BootID: "boot", PID: 4711, StartTime: 1, IDBase: c.IDBase},
	}
	if c.Boot.Main != nil {
		i.main = 2
	}
	r.instances[c.ID] = i
	return i, nil
}

func (r *fakeRuntime) Open(ref sandbox.Ref) (instance, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.openErr != nil {
		return nil, r.openErr
	}
	if i, ok := r.instances[ref.ID]; ok {
		return i, nil
	}
	done := make(chan struct{})
	close(done)
	return &fakeInstance{rt: r, ref: ref, done: done, exit: sandbox.Exit{Rebooted: ref.BootID != "boot"}}, nil
}

func (r *fakeRuntime) Sweep(_ context.Context, keep func(api.SandboxID) bool) ([]api.SandboxID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sweepErr != nil {
		return nil, r.sweepErr
	}
	var removed []api.SandboxID
	for id := range r.instances {
		if !keep(id) {
			removed = append(removed, id)
			delete(r.instances, id)
		}
	}
	r.swept = append(r.swept, removed...)
	return removed, nil
}

func (r *fakeRuntime) ids() []api.SandboxID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.instances))
}

func (r *fakeRuntime) instance(id api.SandboxID) *fakeInstance {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.instances[id]
}

// fakeInstance is a sandbox of a fakeRuntime.
type fakeInstance struct {
	rt     *fakeRuntime
	config sandbox.Config
	ref    sandbox.Ref
	main   guest.ProcessID

	mu         sync.Mutex
	done       chan struct{}
	exit       sandbox.Exit
	releaseErr error
	deaf       bool // ignores Shutdown
	limits     []sandbox.Limits
	limitErr   error // of the next SetLimits
	usage      sandbox.Usage
	looks      int // at its disk
	lookTakes  time.Duration
}

func (i *fakeInstance) Ref() sandbox.Ref      { return i.ref }
func (i *fakeInstance) Guest() guestClient    { return &instanceGuest{i.rt.guest, i} }
func (i *fakeInstance) Steps() []guest.Step   { return []guest.Step{{Name: "all", Nanos: 1}} }
func (i *fakeInstance) Main() guest.ProcessID { return i.main }
func (i *fakeInstance) Done() <-chan struct{} { return i.done }
func (i *fakeInstance) Detach() error         { return nil }

// Dial finds all ports closed.
func (i *fakeInstance) Dial(_ context.Context, port int) (net.Conn, error) {
	return nil, fmt.Errorf("port %d: %w", port, sandbox.ErrPortClosed)
}

func (i *fakeInstance) DialPacket(_ context.Context, port int) (net.Conn, error) {
	return nil, fmt.Errorf("port %d: %w", port, sandbox.ErrPortClosed)
}

func (i *fakeInstance) Stats() (cgroup.Stats, error) {
	return cgroup.Stats{PIDs: 3, Measured: []string{"pids"}}, nil
}

func (i *fakeInstance) Usage() (sandbox.Usage, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.usage, nil
}

func (i *fakeInstance) DiskUsed(b disk.Budget) (disk.Usage, bool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.looks++
	time.Sleep(i.lookTakes) // virtual time
	return disk.Usage{Bytes: int64(i.looks) * 4096}, int64(b.Entries) > 0, nil
}

func (i *fakeInstance) SetLimits(l sandbox.Limits) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.limits = append(i.limits, l)
	err := i.limitErr
	i.limitErr = nil
	return err
}

func (i *fakeInstance) Exit() sandbox.Exit {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.exit
}

// end ends the sandbox; only the first call counts.
func (i *fakeInstance) end(e sandbox.Exit) {
	i.mu.Lock()
	defer i.mu.Unlock()
	select {
	case <-i.done:
	default:
		i.exit = e
		close(i.done)
	}
}

func (i *fakeInstance) Kill(context.Context) error {
	i.end(sandbox.Exit{Waited: true, Signal: 9, Code: 137})
	return nil
}

func (i *fakeInstance) Release(ctx context.Context) error {
	_ = i.Kill(ctx)
	i.mu.Lock()
	err := i.releaseErr
	i.mu.Unlock()
	if err != nil {
		return err
	}
	i.rt.mu.Lock()
	defer i.rt.mu.Unlock()
	delete(i.rt.instances, i.ref.ID)
	return nil
}

// instanceGuest is fakeGuest for one sandbox.
type instanceGuest struct {
	*fakeGuest
	i *fakeInstance
}

func (g *instanceGuest) Shutdown(_ context.Context, p guest.ShutdownParams) error {
	g.i.mu.Lock()
	deaf := g.i.deaf
	g.i.mu.Unlock()
	if !deaf {
		g.i.end(sandbox.Exit{Record: exitRecord(g.i.ref.ID, guest.ReasonShutdown, 128+p.Signal, p.Signal)})
	}
	return nil
}

func exitRecord(id api.SandboxID, reason string, code, signal int) *guest.ExitRecord {
	return &guest.ExitRecord{
		Version: 1, SandboxID: string(id), Reason: reason, Code: code, Signal: signal, EndedAt: time.Now().UTC().Format(time.RFC3339Nano),
	}
}

// fakeGuest is a guest whose files are those below a directory. Users and rights are not played.
type fakeGuest struct {
	root    string
	list    []guest.ProcessInfo
	signals []guest.SignalRequest
	env     []string
	mu      sync.Mutex
}

func (g *fakeGuest) Info(context.Context) (guest.Info, error) {
	return guest.Info{Version: "test", Protocol: 1, Processes: 1}, nil
}

func (g *fakeGuest) SetEnv(_ context.Context, env []string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.env = append(g.env, env...)
	return nil
}

func (g *fakeGuest) LookupUser(_ context.Context, user string) (guest.UserInfo, error) {
	return guest.UserInfo{Name: user, UID: 1000, GID: 1000, Home: "/home/" + user, Shell: "/bin/bash"}, nil
}

func (g *fakeGuest) Start(_ context.Context, s guest.Start) (guest.ProcessInfo, error) {
	return guest.ProcessInfo{PID: 7, Argv: s.Argv}, nil
}

func (g *fakeGuest) Signal(_ context.Context, r guest.SignalRequest) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.signals = append(g.signals, r)
	return nil
}

func (g *fakeGuest) Stdin(context.Context, guest.StdinRequest) error { return nil }

func (g *fakeGuest) StartAttached(context.Context, guest.Start) (*guest.Stream, error) {
	return nil, &frame.ErrorBody{Code: guest.CodeBadCommand, Message: "no such program"}
}

func (g *fakeGuest) Attach(context.Context, guest.Attach) (*guest.Stream, error) {
	return nil, &frame.ErrorBody{Code: guest.CodeNoProcess, Message: "no such process"}
}

func (g *fakeGuest) Resize(context.Context, guest.ProcessID, frame.Size) error { return nil }
func (g *fakeGuest) List(context.Context) ([]guest.ProcessInfo, error)         { return g.list, nil }

// host returns where a path of the sandbox is on the host. Like the guest it does not follow the last element.
func (g *fakeGuest) host(p string) string { return filepath.Join(g.root, path.Clean("/"+p)) }

func guestErr(err error) error {
	for code, is := range map[string]error{
		guest.CodeNotFound: unix.ENOENT, guest.CodeExists: unix.EEXIST, guest.CodeNotDir: unix.ENOTDIR, guest.CodeIsDir: unix.EISDIR,
		guest.CodeLoop: unix.ELOOP, guest.CodePermission: unix.EACCES,
	} {
		if errors.Is(err, is) {
			return &frame.ErrorBody{Code: code, Message: err.Error()}
		}
	}
	return err
}

func (g *fakeGuest) info(p string) (guest.FileInfo, error) {
	p = path.Clean("/" + p)
	fi, err := os.Lstat(g.host(p))
	if err != nil {
		return guest.FileInfo{}, guestErr(err)
	}
	info := guest.FileInfo{Name: path.Base(p), Path: p, Type: "other", Size: fi.Size(), Mode: uint32(fi.Mode().Perm()), ModTime: fi.ModTime()}
	switch {
	case fi.Mode().IsRegular():
		info.Type = typeFile
	case fi.IsDir():
		info.Type = typeDir
	case fi.Mode()&os.ModeSymlink != 0:
		info.Type = typeSymlink
		info.Target, err = os.Readlink(g.host(p))
	}
	return info, err
}

func (g *fakeGuest) Open(_ context.Context, r guest.FileRequest) (*os.File, guest.FileInfo, error) {
	if r.Parents {
		if err := os.MkdirAll(path.Dir(g.host(r.Path)), 0o755); err != nil {
			return nil, guest.FileInfo{}, guestErr(err)
		}
	}
	f, err := os.OpenFile(g.host(r.Path), r.Flags|syscall.O_NONBLOCK, os.FileMode(r.Mode))
	if err != nil {
		return nil, guest.FileInfo{}, guestErr(err)
	}
	info, err := g.info(r.Path)
	return f, info, err
}

func (g *fakeGuest) Stat(_ context.Context, r guest.FileRequest) (guest.FileInfo, error) {
	return g.info(r.Path)
}

func (g *fakeGuest) ReadDir(_ context.Context, r guest.FileRequest) ([]guest.FileInfo, error) {
	entries, err := os.ReadDir(g.host(r.Path))
	if err != nil {
		return nil, guestErr(err)
	}
	var out []guest.FileInfo
	for _, e := range entries {
		info, err := g.info(path.Join(r.Path, e.Name()))
		if err != nil {
			return nil, err
		}
		out = append(out, info)
	}
	return out, nil
}

func (g *fakeGuest) Mkdir(_ context.Context, r guest.FileRequest) (guest.FileInfo, error) {
	mode := r.Mode
	set(&mode, 0o755)
	if err := os.MkdirAll(g.host(r.Path), os.FileMode(mode)); err != nil {
		return guest.FileInfo{}, guestErr(err)
	}
	return g.info(r.Path)
}

func (g *fakeGuest) Remove(_ context.Context, r guest.FileRequest) error {
	return guestErr(os.RemoveAll(g.host(r.Path)))
}

func (g *fakeGuest) Rename(_ context.Context, r guest.FileRequest) error {
	return guestErr(os.Rename(g.host(r.Path), g.host(r.Target)))
}

func (g *fakeGuest) Symlink(_ context.Context, r guest.FileRequest) error {
	return guestErr(os.Symlink(r.Target, g.host(r.Path)))
}

func (g *fakeGuest) Shutdown(context.Context, guest.ShutdownParams) error { return nil }

// fakeTemplates has one template, "base".
type fakeTemplates struct {
	mu     sync.Mutex
	leases int
}

var baseTemplate = nodeapi.Template{Name: "base", Digest: "sha256:" + strings.Repeat("a", 64), User: "user"}

func (f *fakeTemplates) Lookup(name string) (nodeapi.Template, error) {
	if name == baseTemplate.Name || name == baseTemplate.Digest {
		return baseTemplate, nil
	}
	return nodeapi.Template{}, store.ErrNotFound
}

func (f *fakeTemplates) Acquire(name string) (*lease, error) {
	t, err := f.Lookup(name)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leases++
	var once sync.Once
	return &lease{Template: t, Root: "/", Release: func() {
		once.Do(func() { f.mu.Lock(); f.leases--; f.mu.Unlock() })
	}}, nil
}

func (f *fakeTemplates) held() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leases
}

func (f *fakeTemplates) List() []nodeapi.Template { return []nodeapi.Template{baseTemplate} }
func (f *fakeTemplates) Import(_ context.Context, name string, r io.Reader, _ store.ImportOptions) (nodeapi.Template, error) {
	_, err := io.Copy(io.Discard, r)
	return nodeapi.Template{Name: name, Digest: baseTemplate.Digest}, err
}
func (f *fakeTemplates) Export(_ context.Context, _ string, w io.Writer) error {
	_, err := io.WriteString(w, "tar")
	return err
}
func (f *fakeTemplates) Name(name, digest string) (nodeapi.Template, error) {
	return nodeapi.Template{Name: name, Digest: digest}, nil
}
func (f *fakeTemplates) MakeOwn(context.Context, string, string) (bool, error)  { return false, nil }
func (f *fakeTemplates) AcquireOwn(_, name string) (*lease, error)              { return f.Acquire(name) }
func (f *fakeTemplates) Owned() []nodeapi.OwnTemplate                           { return nil }
func (f *fakeTemplates) RemoveOwn(context.Context, nodeapi.OwnTemplate) error   { return nil }
func (f *fakeTemplates) Remove(context.Context, string) error                   { return nil }
func (f *fakeTemplates) Prune(context.Context, time.Duration) ([]string, error) { return nil, nil }
func (f *fakeTemplates) Close() error                                           { return nil }

// testNode is a node on a fake machine.
type testNode struct {
	*Node
	rt        *fakeRuntime
	templates *fakeTemplates
	client    *nodeapi.Client
	stop      func()
}

// shortDir returns a temporary directory whose path leaves room for the name of a socket.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sbn")
	must.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func testConfig(dir string) Config {
	return Config{StateDir: dir + "/s", RunDir: dir + "/r", DiskReserve: -1, Version: "test", Name: "n"}
}

// startNode starts a node on rt; nil makes a new machine. It ends with the test, or with stop.
func startNode(t testing.TB, cfg Config, rt *fakeRuntime) *testNode {
	t.Helper()
	if rt == nil {
		rt = newFakeRuntime()
	}
	ft := &fakeTemplates{}
	cfg.runtime, cfg.templates = rt, ft
	n, err := New(cfg)
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	tn := &testNode{Node: n, rt: rt, templates: ft, client: nodeapi.NewUnix(n.cfg.Socket)}
	tn.stop = sync.OnceFunc(func() {
		tn.client.Close()
		cancel()
		must.NoError(t, <-ended)
	})
	t.Cleanup(tn.stop)
	waitUntil(t, "socket", func() bool { _, err := os.Stat(n.cfg.Socket); return err == nil })
	return tn
}

// waitUntil polls until cond holds.
func waitUntil(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); { // for a test that hangs: machines may be busy
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func createRequest() nodeapi.CreateRequest {
	return nodeapi.CreateRequest{ID: api.NewSandboxID(), Template: "base", Owner: nodeapi.Owner{Kind: "test"}}
}
