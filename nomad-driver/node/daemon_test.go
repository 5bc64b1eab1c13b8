package node

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// Helpers for tests on the real kernel: a daemon in a process of its own.

func TestMain(m *testing.M) { sandboxtest.Main(m) }

// daemonOnce and killedOnce are the builds of the daemon: as it is released, and as it can be killed at its steps.
var daemonOnce, killedOnce sync.Once

func daemonBinary(t testing.TB) string { return built(t, &daemonOnce, "nomad-driver-soulbox") }

func built(t testing.TB, once *sync.Once, name string, tags ...string) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(sandboxtest.Init(t)), name) // removed with it
	once.Do(func() {
		must.NoError(t, sandboxtest.Build(path, "github.com/soulbox-dev/soulbox/nomad-driver/cmd/nomad-driver-soulbox", tags...))
	})
	return path
}

// daemon is a real node on this machine, in directories and control groups of its own.
type daemon struct {
	t      testing.TB
	dir    string
	parent string
	binary string
	args   []string
	netns  *os.File // network namespace that it runs in; nil: the machine's
	cmd    *exec.Cmd
	log    *logBuffer
	client *nodeapi.Client
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startDaemon starts a daemon with the template "base". At the end of the test everything must be gone from the machine.
func startDaemon(t testing.TB, args ...string) *daemon {
	t.Helper()
	return startDaemonIn(t, nil, args...)
}

// startDaemonIn starts one in a network namespace.
func startDaemonIn(t testing.TB, netns *os.File, args ...string) *daemon {
	t.Helper()
	return startDaemonOf(t, daemonBinary(t), netns, args...)
}

func startDaemonOf(t testing.TB, binary string, netns *os.File, args ...string) *daemon {
	t.Helper()
	sandboxtest.RequireRoot(t)
	dir := shortDir(t)
	d := &daemon{t: t, dir: dir, parent: "soulbox-test-" + filepath.Base(dir), binary: binary, args: args, netns: netns, log: &logBuffer{}}
	d.client = nodeapi.NewUnix(dir + "/r/node.sock")
	t.Cleanup(d.cleanup)
	d.start()
	_, err := d.client.ImportTemplate(t.Context(), "base", lowerTar(t))
	must.NoError(t, err)
	return d
}

func (d *daemon) start() {
	d.t.Helper()
	d.cmd = exec.Command(d.binary, append([]string{"node",
		"-state-dir", d.dir + "/s", "-run-dir", d.dir + "/r", "-init", sandboxtest.Init(d.t), "-cgroup-parent", d.parent,
	}, d.args...)...)
	d.cmd.Stderr = d.log
	if d.netns == nil {
		must.NoError(d.t, d.cmd.Start())
	} else {
		must.NoError(d.t, networktest.In(d.netns, d.cmd.Start))
	}
	waitUntil(d.t, "daemon", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		n, err := d.client.Node(ctx)
		if d.cmd.ProcessState == nil && err != nil && unix.Kill(d.cmd.Process.Pid, 0) != nil {
			d.t.Fatalf("daemon ended:\n%s", d.log)
		}
		return err == nil && n.PID == d.cmd.Process.Pid
	})
}

// kill kills the daemon with SIGKILL.
func (d *daemon) kill() {
	d.t.Helper()
	must.NoError(d.t, d.cmd.Process.Kill())
	_ = d.cmd.Wait()
	d.client.Close()
}

func (d *daemon) cleanup() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if d.cmd == nil {
		return
	}
	if d.cmd.ProcessState != nil {
		d.start()
	}
	defer func() { // also where a look at the leftovers ends the test
		d.client.Close()
		_ = d.cmd.Process.Signal(unix.SIGTERM)
		if err := d.cmd.Wait(); err != nil {
			d.t.Errorf("daemon: %v", err)
		}
		if strings.Contains(d.log.String(), "panic") {
			d.t.Errorf("daemon panicked")
		}
		removeGroups(d.parent)
		if d.t.Failed() {
			d.t.Logf("daemon's log:\n%s", d.log)
		}
	}()
	list, err := d.client.List(ctx)
	if err != nil {
		d.t.Error(err)
	}
	for _, sb := range list {
		if err := d.client.Delete(ctx, sb.ID); err != nil {
			d.t.Error(err)
		}
	}
	d.noLeftovers()
}

// removeGroups removes the empty parents of a test's control groups.
func removeGroups(parent string) {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + parent)
	for _, d := range append(dirs, "/sys/fs/cgroup/"+parent) {
		_ = unix.Rmdir(d)
	}
}

// noLeftovers looks on the host for anything of sandboxes that are gone.
func (d *daemon) noLeftovers() {
	d.t.Helper()
	for _, pattern := range []string{d.dir + "/s/sandboxes/*", d.dir + "/r/sandboxes/*", d.dir + "/r/logs/*", d.dir + "/s/records/*"} {
		left, err := filepath.Glob(pattern)
		must.NoError(d.t, err)
		must.SliceEmpty(d.t, left)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + d.parent + "/*", "/sys/fs/cgroup/" + d.parent + "/*"} {
		left, err := filepath.Glob(pattern)
		must.NoError(d.t, err)
		for _, g := range left {
			fi, err := os.Stat(g)
			if err == nil && fi.IsDir() {
				d.t.Errorf("left behind: %s", g)
			}
		}
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	must.NoError(d.t, err)
	must.False(d.t, strings.Contains(string(b), d.dir), must.Sprint("a mount is left"))
	kids, err := os.ReadFile("/proc/" + strconv.Itoa(d.cmd.Process.Pid) + "/task/" + strconv.Itoa(d.cmd.Process.Pid) + "/children")
	must.NoError(d.t, err)
	for _, pid := range strings.Fields(string(kids)) {
		argv, err := os.ReadFile("/proc/" + pid + "/cmdline")
		if err == nil && strings.Contains(string(argv), "\x00swrk\x00") {
			continue // a CRIU that stands ready is no sandbox's
		}
		d.t.Errorf("left behind: process %s, %q", pid, argv)
	}
}

// exec runs a command in a sandbox and returns its output and exit code.
func (d *daemon) exec(id nodeapi.Sandbox, argv ...string) (string, int) {
	d.t.Helper()
	var out bytes.Buffer
	exit, err := d.client.Run(d.t.Context(), id.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: argv}}, nil, &out, &out)
	must.NoError(d.t, err)
	return out.String(), exit.Code
}

func (d *daemon) create(set ...func(*nodeapi.CreateRequest)) nodeapi.Sandbox {
	d.t.Helper()
	req := createRequest()
	req.User = "user"
	for _, f := range set {
		f(&req)
	}
	sb, err := d.client.Create(d.t.Context(), req)
	must.NoError(d.t, err)
	return sb
}

// lowerTar packs the test root file system.
var lowerBytes = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "sbl")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, err
	}
	if err := sandboxtest.MakeLower(root); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	err = filepath.Walk(root, func(path string, fi os.FileInfo, err error) error {
		if err != nil || path == root {
			return err
		}
		link := ""
		if fi.Mode()&os.ModeSymlink != 0 {
			link, _ = os.Readlink(path)
		}
		h, err := tar.FileInfoHeader(fi, link)
		if err != nil {
			return err
		}
		h.Name, _ = filepath.Rel(root, path)
		if err := tw.WriteHeader(h); err != nil || !fi.Mode().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(tw, f)
		return err
	})
	if err == nil {
		err = tw.Close()
	}
	return b.Bytes(), err
})

func lowerTar(t testing.TB) io.Reader {
	t.Helper()
	b, err := lowerBytes()
	must.NoError(t, err)
	return bytes.NewReader(b)
}
