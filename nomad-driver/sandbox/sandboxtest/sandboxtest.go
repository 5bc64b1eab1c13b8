// Package sandboxtest is what tests need to run real sandboxes: soulbox-init, a small root file system made from the host's
// own programs, directories and control groups of their own, and a look at the host for what was left behind.
//
// It owns nothing beyond a test. Only tests import it.
package sandboxtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// built is what all tests of a process share, made at first use in a directory that Main removes.
var built struct {
	sync.Mutex
	dir   string
	init  string
	lower string
}

// Main runs the tests of a package and removes what they shared. Use it as TestMain.
func Main(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		if err := os.RemoveAll(built.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// shared makes the shared directory. It is not in the way of other users' tests and readable by sandboxes' ids.
func shared() (string, error) {
	if built.dir != "" {
		return built.dir, nil
	}
	dir, err := os.MkdirTemp("", "sbx")
	if err != nil {
		return "", err
	}
	built.dir = dir
	return dir, os.Chmod(dir, 0o755)
}

// RequireRoot skips a test where it cannot work: sandboxes need root.
func RequireRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root")
	}
}

// Init returns the path of soulbox-init: in SOULBOX_BIN where that is set, else built once.
func Init(tb testing.TB) string {
	tb.Helper()
	built.Lock()
	defer built.Unlock()
	if dir := os.Getenv("SOULBOX_BIN"); dir != "" && built.init == "" {
		path, err := filepath.Abs(filepath.Join(dir, "soulbox-init"))
		if err != nil {
			tb.Fatal(err)
		}
		built.init = path
	}
	if built.init == "" {
		dir, err := shared()
		if err != nil {
			tb.Fatal(err)
		}
		path := filepath.Join(dir, "soulbox-init")
		if err := Build(path, "github.com/soulbox-dev/soulbox/nomad-driver/cmd/soulbox-init"); err != nil {
			tb.Fatal(err)
		}
		built.init = path
	}
	return built.init
}

// Build builds a static Go program.
func Build(path, pkg string, tags ...string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-tags", strings.Join(tags, ","), "-ldflags", "-s -w", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return os.Chmod(path, 0o755)
}

// programs are the host's programs that a test root has, where the host has them.
var programs = []string{
	"bash", "sh", "cat", "ls", "id", "true", "false", "sleep", "stat", "mkdir", "mkfifo", "mknod", "touch", "rm", "ln", "dd", "head", "tail",
	"env", "echo", "chmod", "chown", "mount", "unshare", "hostname", "grep", "readlink", "wc", "sync", "kill", "mv", "find", "sed", "seq", "tr",
	"base64", "sha256sum",
}

// Lower makes a small root file system, once, and returns its directory. Nobody may write in it.
//
// It has the users root, user (uid 1000) and /home/user, /etc, /tmp, a world-readable file /etc/marker with the text
// "template", and /bin/setuid-id, a copy of id(1) with the setuid bit.
func Lower(tb testing.TB) string {
	tb.Helper()
	built.Lock()
	defer built.Unlock()
	if built.lower == "" {
		dir, err := shared()
		if err != nil {
			tb.Fatal(err)
		}
		lower := filepath.Join(dir, "lower")
		if err := MakeLower(lower); err != nil {
			tb.Fatal(err)
		}
		built.lower = lower
	}
	return built.lower
}

// MakeLower makes the file system of Lower at dir, which must not exist.
func MakeLower(dir string) error {
	for _, d := range []string{"bin", "etc", "root", "home/user", "proc", "dev", "tmp", "run", "var", "usr", ".soulbox"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Symlink("../bin", filepath.Join(dir, "usr/bin")); err != nil {
		return err
	}
	for path, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n",
		"etc/group":  "root:x:0:\ntty:x:5:\nuser:x:1000:\nnogroup:x:65534:\n",
		"etc/marker": "template\n",
		// As an imported template has them, for the default host name.
		"etc/hostname":    sandbox.DefaultHostname + "\n",
		"etc/hosts":       "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 " + sandbox.DefaultHostname + "\n",
		"etc/resolv.conf": "# no name server\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := os.Chown(filepath.Join(dir, "home/user"), 1000, 1000); err != nil {
		return err
	}
	for _, name := range programs {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if err := copyProgram(path, dir, filepath.Join("bin", name)); err != nil {
			return err
		}
	}
	id, err := exec.LookPath("id")
	if err != nil {
		return err
	}
	if err := copyProgram(id, dir, "bin/setuid-id"); err != nil {
		return err
	}
	return os.Chmod(filepath.Join(dir, "bin/setuid-id"), 0o4755|os.ModeSetuid)
}

// copyProgram copies a program and the libraries that ldd(1) names for it.
func copyProgram(path, root, name string) error {
	if err := CopyFile(path, filepath.Join(root, name), 0o755); err != nil {
		return err
	}
	out, err := exec.Command("ldd", path).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil // static
	}
	if err != nil {
		return err
	}
	for line := range bytes.Lines(out) {
		for _, f := range strings.Fields(string(line)) {
			if !strings.HasPrefix(f, "/") {
				continue
			}
			to := filepath.Join(root, f)
			if _, err := os.Stat(to); err == nil {
				continue
			}
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				return err
			}
			if err := CopyFile(f, to, 0o755); err != nil {
				return err
			}
		}
	}
	return nil
}

// CopyFile copies a regular file.
func CopyFile(from, to string, mode os.FileMode) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close(), os.Chmod(to, mode))
}

// Host is a place for sandboxes of one test.
type Host struct {
	StateDir, RunDir string
	Cgroups          *cgroup.Tree
	Init             *sandbox.InitBinary
	Lower            string
	Parent           string // of the control groups
	ids              atomic.Uint32
}

// NewHost makes one, and checks at the end of the test that nothing of it is left on the machine.
func NewHost(tb testing.TB) *Host {
	tb.Helper()
	return NewHostIn(tb, "")
}

// NewHostIn makes one whose directories are in dir; empty is the default for temporary files.
func NewHostIn(tb testing.TB, dir string) *Host {
	tb.Helper()
	RequireRoot(tb)
	base, err := os.MkdirTemp(dir, "sbh") // t.TempDir's paths are too long for sockets
	if err != nil {
		tb.Fatal(err)
	}
	init, err := sandbox.OpenInit(Init(tb))
	if err != nil {
		tb.Fatal(err)
	}
	parent := "soulbox-test-" + filepath.Base(base)
	cgroups, err := cgroup.Detect("/sys/fs/cgroup", parent)
	if err != nil {
		tb.Fatal(err)
	}
	h := &Host{StateDir: base + "/s", RunDir: base + "/r", Cgroups: cgroups, Init: init, Lower: Lower(tb), Parent: parent}
	before := Look(tb, base, cgroups)
	tb.Cleanup(func() {
		Look(tb, base, cgroups).Compare(tb, before)
		if err := errors.Join(init.Close(), cgroups.Close(), os.RemoveAll(base)); err != nil {
			tb.Error(err)
		}
	})
	return h
}

// Config returns the configuration of a sandbox with a new id, an id range that no other of this Host has, and no limits.
func (h *Host) Config() sandbox.Config {
	return sandbox.Config{
		ID: api.NewSandboxID(), Lower: h.Lower, StateDir: h.StateDir, RunDir: h.RunDir,
		IDBase: 1<<20 + h.ids.Add(1)*sandbox.IDRange, Cgroups: h.Cgroups, Init: h.Init,
	}
}

// Create creates a sandbox and releases it at the end of the test.
func (h *Host) Create(tb testing.TB, c sandbox.Config) *sandbox.Sandbox {
	tb.Helper()
	s, err := sandbox.Create(tb.Context(), c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { Release(tb, s) })
	return s
}
