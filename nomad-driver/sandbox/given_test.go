package sandbox_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// fakeDevice makes a node of FUSE's number, which every group but those that are given it is denied, and which does nothing when it is opened.
func fakeDevice(t *testing.T, dir string, mode uint32) string {
	t.Helper()
	node := filepath.Join(dir, "fake")
	must.NoError(t, unix.Mknod(node, unix.S_IFCHR|mode, int(unix.Mkdev(10, 229))))
	must.NoError(t, os.Chmod(node, os.FileMode(mode)))
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		t.Skipf("this kernel has no device for the test: %v", err)
	}
	must.NoError(t, f.Close())
	return node
}

func TestGiven_isTheSandboxsAlone(t *testing.T) {
	h := sandboxtest.NewHost(t)
	dir := t.TempDir()
	node := fakeDevice(t, dir, 0o666)
	libs := filepath.Join(dir, "libs")
	must.NoError(t, os.Mkdir(libs, 0o755))
	must.NoError(t, os.WriteFile(filepath.Join(libs, "driver.so"), []byte("driver\n"), 0o644))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "one"), []byte("one\n"), 0o644))

	before := h.Create(t, h.Config())
	c := h.Config()
	c.Given = sandbox.Given{
		Devices: []sandbox.Device{{Host: node, Path: "/dev/gpu0", Access: "rw"}, {Host: node, Path: "/dev/caps/gpu1", Access: "rw"}},
		Mounts:  []sandbox.Mount{{Host: libs, Path: "/opt/vendor/lib"}, {Host: filepath.Join(dir, "one"), Path: "/etc/vendor/one"}},
	}
	s := h.Create(t, c)
	after := h.Create(t, h.Config())
	for _, tt := range []struct{ name, script, want string }{
		{"the device is there", "stat -c '%F %t:%T' /dev/gpu0 /dev/caps/gpu1", "character special file a:e5\ncharacter special file a:e5\n"},
		{"and opens", "(exec 3<>/dev/gpu0) && (exec 3<>/dev/caps/gpu1) && echo open", "open\n"},
		{"its driver is there", "cat /opt/vendor/lib/driver.so /etc/vendor/one", "driver\none\n"},
		{"read-only", "touch /opt/vendor/lib/x 2>/dev/null; echo x 2>/dev/null >/etc/vendor/one; cat /etc/vendor/one; ls /opt/vendor/lib", "one\ndriver.so\n"},
	} {
		for _, user := range []string{"root", "user"} {
			must.Eq(t, tt.want, sandboxtest.Shell(t, s, user, tt.script+" || true"), must.Sprint(user, ": ", tt.name))
		}
	}
	// The neighbours have no node of it. Nor could they open one: their groups are denied its number.
	for name, n := range map[string]*sandbox.Sandbox{"made before": before, "made after": after} {
		must.Eq(t, "no\n", sandboxtest.Shell(t, n, "", "ls /dev/gpu0 /dev/caps /opt/vendor >/dev/null 2>&1 && echo yes || echo no"), must.Sprint(name))
	}
	must.NoError(t, os.WriteFile(filepath.Join(libs, "new"), nil, 0o644))
	must.Eq(t, "driver.so\nnew\n", sandboxtest.Shell(t, s, "", "ls /opt/vendor/lib"), must.Sprint("it is the host's folder, no copy"))
}

func TestGiven_refusesWhatItMustNotGive(t *testing.T) {
	h := sandboxtest.NewHost(t)
	dir := t.TempDir()
	closed := fakeDevice(t, dir, 0o660)
	must.NoError(t, os.Symlink("/dev/null", filepath.Join(dir, "link")))
	for _, tt := range []struct {
		name  string
		given sandbox.Given
		want  string
	}{
		{"a file as a device", sandbox.Given{Devices: []sandbox.Device{{Host: "/etc/passwd", Path: "/dev/x", Access: "r"}}}, "no character device"},
		{"a link", sandbox.Given{Devices: []sandbox.Device{{Host: filepath.Join(dir, "link"), Path: "/dev/x", Access: "r"}}}, "no character device"},
		{"nothing", sandbox.Given{Devices: []sandbox.Device{{Host: filepath.Join(dir, "none"), Path: "/dev/x", Access: "r"}}}, "no such file"},
		{"one that nobody may open", sandbox.Given{Devices: []sandbox.Device{{Host: closed, Path: "/dev/x", Access: "rw"}}}, "0660"},
		{"outside /dev", sandbox.Given{Devices: []sandbox.Device{{Host: "/dev/null", Path: "/etc/x", Access: "r"}}}, "not below /dev"},
		{"up", sandbox.Given{Devices: []sandbox.Device{{Host: "/dev/null", Path: "/dev/../etc/x", Access: "r"}}}, "clean"},
		{"of no access", sandbox.Given{Devices: []sandbox.Device{{Host: "/dev/null", Path: "/dev/x", Access: "m"}}}, "access"},
		{"twice", sandbox.Given{Devices: []sandbox.Device{{Host: "/dev/null", Path: "/dev/x", Access: "r"}, {Host: "/dev/zero", Path: "/dev/x", Access: "r"}}}, "twice"},
		{"over /proc", sandbox.Given{Mounts: []sandbox.Mount{{Host: "/etc", Path: "/proc/sys"}}}, "below /proc"},
		{"a device as a mount", sandbox.Given{Mounts: []sandbox.Mount{{Host: "/dev/null", Path: "/mnt/x"}}}, "neither a file nor a folder"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := h.Config()
			c.Given = tt.given
			s, err := sandbox.Create(t.Context(), c)
			if err == nil {
				sandboxtest.Release(t, s)
			}
			must.ErrorContains(t, err, tt.want)
			must.False(t, strings.Contains(err.Error(), "left"), must.Sprint(err))
		})
	}
	// A template whose links lead elsewhere is obeyed nowhere.
	c := h.Config()
	lower := filepath.Join(dir, "lower")
	must.NoError(t, sandboxtest.MakeLower(lower))
	must.NoError(t, os.Symlink("/etc", filepath.Join(lower, "vendor")))
	c.Lower = lower
	c.Given = sandbox.Given{Mounts: []sandbox.Mount{{Host: "/usr", Path: "/vendor/lib"}}}
	s, err := sandbox.Create(t.Context(), c)
	if err == nil {
		sandboxtest.Release(t, s)
	}
	must.ErrorContains(t, err, "no link")
}
