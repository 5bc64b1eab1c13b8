package pid1

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

const childEnv = "PID1_TEST_CHILD"

// TestMain makes the test binary its own PID 1 where the environment says so.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	os.Unsetenv(childEnv)
	os.Exit(beGuest())
}

// beGuest is what happens in the new namespaces: a minimal world, then Run. Its files are the listener, the exit record,
// the Boot values and where to report to.
func beGuest() int {
	report := os.NewFile(6, "report")
	say := func(format string, args ...any) { fmt.Fprintf(report, format, args...) }
	var boot guest.Boot
	if err := json.NewDecoder(os.NewFile(5, "boot")).Decode(&boot); err != nil {
		say("boot: %v", err)
		return 1
	}
	etc := os.Getenv("PID1_TEST_ETC")
	os.Unsetenv("PID1_TEST_ETC")
	for _, m := range []struct {
		src, dst, kind string
		flags          uintptr
		data           string
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"},
		{"/dev/pts/ptmx", "/dev/ptmx", "", unix.MS_BIND, ""},
		{filepath.Join(etc, "passwd"), "/etc/passwd", "", unix.MS_BIND, ""},
		{filepath.Join(etc, "group"), "/etc/group", "", unix.MS_BIND, ""},
	} {
		if err := unix.Mount(m.src, m.dst, m.kind, m.flags, m.data); err != nil {
			say("mount %s: %v", m.dst, err)
			return 1
		}
	}
	return Run(Config{
		Boot: &boot, Listener: os.NewFile(3, "listener"), Exit: os.NewFile(4, "exit"), Version: "test",
		Started: func(main guest.ProcessID, err error) {
			if err != nil {
				say("%v", err)
			} else {
				say("ok %d", main)
			}
			report.Close()
		},
	})
}

// testGuest is a PID 1 in pid and mount namespaces of its own.
type testGuest struct {
	*guest.Client
	t      *testing.T
	dir    string // a directory that everybody may enter; dir/user belongs to the user of that name
	home   string // dir/user
	cmd    *exec.Cmd
	main   guest.ProcessID
	exited chan struct{}
}

const testUID = 4321

func startGuest(t *testing.T, boot guest.Boot) *testGuest {
	t.Helper()
	g, err := tryGuest(t, boot)
	must.NoError(t, err)
	return g
}

func tryGuest(t *testing.T, boot guest.Boot) (*testGuest, error) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pid1-")
	must.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must.NoError(t, os.Chmod(dir, 0o755))
	home := filepath.Join(dir, "user")
	must.NoError(t, os.Mkdir(home, 0o755))
	must.NoError(t, os.Chown(home, testUID, testUID))
	passwd := "root:x:0:0:root:/root:/bin/bash\n" +
		fmt.Sprintf("user:x:%d:%d::%s:/bin/bash\n", testUID, testUID, home) +
		"homeless:x:4322:4322::/nonexistent:/bin/sh\n"
	must.NoError(t, os.WriteFile(filepath.Join(dir, "passwd"), []byte(passwd), 0o644))
	group := fmt.Sprintf("root:x:0:\nuser:x:%d:\nextra:x:777:other,user\n", testUID)
	must.NoError(t, os.WriteFile(filepath.Join(dir, "group"), []byte(group), 0o644))

	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	must.NoError(t, err)
	defer l.Close()
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	lf, err := l.(*net.UnixListener).File()
	must.NoError(t, err)
	defer lf.Close()
	exit, err := os.Create(filepath.Join(dir, "exit"))
	must.NoError(t, err)
	defer exit.Close()
	bootR, bootW, err := os.Pipe()
	must.NoError(t, err)
	defer bootR.Close()
	repR, repW, err := os.Pipe()
	must.NoError(t, err)
	defer repR.Close()

	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=1", "PID1_TEST_ETC="+dir)
	cmd.ExtraFiles = []*os.File{lf, exit, bootR, repW}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	boot.SandboxID = "test"
	must.NoError(t, cmd.Start())
	repW.Close()
	g := &testGuest{Client: guest.NewClient(socket), t: t, dir: dir, home: home, cmd: cmd, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(g.exited)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-g.exited
	})
	must.NoError(t, json.NewEncoder(bootW).Encode(boot))
	bootW.Close()
	var buf [4096]byte
	n := 0
	for {
		k, err := repR.Read(buf[n:])
		n += k
		if err != nil {
			break
		}
	}
	if _, err := fmt.Sscanf(string(buf[:n]), "ok %d", &g.main); err != nil {
		return nil, fmt.Errorf("guest: %s", buf[:n])
	}
	return g, nil
}

// ctx ends long after every test should have, and before the test binary gives up.
func (g *testGuest) ctx() context.Context {
	ctx, cancel := context.WithTimeout(g.t.Context(), 60*time.Second)
	g.t.Cleanup(cancel)
	return ctx
}

// sh starts a shell command attached.
func (g *testGuest) sh(script string, set ...func(*guest.Start)) *guest.Stream {
	g.t.Helper()
	s := guest.Start{Argv: []string{"/bin/sh", "-c", script}}
	for _, f := range set {
		f(&s)
	}
	st, err := g.StartAttached(g.ctx(), s)
	must.NoError(g.t, err)
	g.t.Cleanup(func() { st.Close() })
	return st
}

// code waits for the guest's own end.
func (g *testGuest) code() int {
	g.t.Helper()
	select {
	case <-g.exited:
	case <-time.After(30 * time.Second):
		g.t.Fatal("the guest has not ended")
	}
	return g.cmd.ProcessState.ExitCode()
}

func (g *testGuest) record() guest.ExitRecord {
	g.t.Helper()
	b, err := os.ReadFile(filepath.Join(g.dir, "exit"))
	must.NoError(g.t, err)
	var r guest.ExitRecord
	must.NoError(g.t, json.Unmarshal(b, &r))
	must.Eq(g.t, byte('\n'), b[len(b)-1])
	return r
}

// until polls ok.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never came true: %s", what)
}

// failure returns what the guest said of a failure.
func failure(t *testing.T, err error) *frame.ErrorBody {
	t.Helper()
	var body *frame.ErrorBody
	if !errors.As(err, &body) {
		t.Fatalf("got error %v, want one of the guest", err)
	}
	return body
}
