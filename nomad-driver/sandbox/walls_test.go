package sandbox_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

func landlockABI(t *testing.T) int {
	t.Helper()
	abi, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		t.Skip("no landlock: ", errno)
	}
	return int(abi)
}

// TestLandlock_holdsWhereTheOtherWallsAreGone gives root of a sandbox every capability and every system call.
func TestLandlock_holdsWhereTheOtherWallsAreGone(t *testing.T) {
	abi := landlockABI(t)
	if abi < 2 {
		t.Skip("landlock of a version that cannot move files")
	}
	h := sandboxtest.NewHost(t)
	for _, tt := range []struct {
		name, script string
		abi          int
	}{
		{"mount", "mount -t tmpfs none /tmp", 2},
		{"write to /proc/sys after a remount", "mount -o remount,bind,rw /proc/sys", 2},
		{"bind", "mount --bind /etc /tmp", 2},
		// The node 0:0 is the only one that takes no capability of the host: overlayfs marks with it what is deleted, and opening it fails.
		// Landlock of Debian's Linux 6.1 (version 2) refuses others to a process of the domain, and takes this one for no device.
		{"make a device", "mknod /tmp/dev c 0 0", 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if abi < tt.abi {
				t.Skipf("landlock of version %d, want %d", abi, tt.abi)
			}
			for _, landlock := range []bool{false, true} {
				sandbox.Without(t, sandbox.Walls{Seccomp: true, Capabilities: true, Landlock: !landlock})
				s := h.Create(t, h.Config())
				out := sandboxtest.Shell(t, s, "", tt.script+" 2>&1; echo $?")
				if got := !strings.HasSuffix("\n"+out, "\n0\n"); got != landlock {
					t.Errorf("with landlock %v: %q ends with %s", landlock, tt.script, out)
				}
			}
		})
	}
}

// TestLandlock_leavesOrdinaryWorkAlone does what the rules are about, as far as it is allowed.
func TestLandlock_leavesOrdinaryWorkAlone(t *testing.T) {
	h := sandboxtest.NewHost(t)
	for _, profile := range []string{sandbox.ProfileDefault, sandbox.ProfileStrict} {
		c := h.Config()
		c.Boot.Profile = profile
		s := h.Create(t, c)
		pipe := "mkfifo /tmp/p && { echo z > /tmp/p & cat /tmp/p; }"
		if profile == sandbox.ProfileStrict { // whose filter refuses named ones
			pipe = "echo z | cat"
		}
		for _, tt := range []struct{ name, script, want string }{
			{"move between directories", "mkdir -p /a/b /c; echo x > /a/b/f; mv /a/b/f /c/g; mv /a/b /c; ln /c/g /a/h 2>&1; cat /a/h 2>&1; ls /c", "x\nb\ng\n"},
			{"new top level", "mkdir /workspace; echo y > /workspace/f; cat /workspace/f", "y\n"},
			{"pipes", pipe, "z\n"},
			{"signals between users", "sleep 100 & kill $!; wait $! 2>/dev/null; echo $?", "143\n"},
		} {
			must.Eq(t, tt.want, sandboxtest.Shell(t, s, "", tt.script), must.Sprint(profile, ": ", tt.name))
		}
		// Two processes that were started one after the other are of one domain: they see each other's entries in /proc.
		p, err := s.Guest().Start(t.Context(), guest.Start{Argv: []string{"/bin/sleep", "1000"}, User: "user"})
		must.NoError(t, err)
		pid := strconv.Itoa(int(p.PID))
		must.Eq(t, "/bin/sleep\n", sandboxtest.Shell(t, s, "user", "readlink /proc/"+pid+"/exe; true"))
		must.Eq(t, "0\n", sandboxtest.Shell(t, s, "user", "kill "+pid+"; echo $?"))
		if landlockABI(t) >= 6 {
			must.Eq(t, "1\n", sandboxtest.Shell(t, s, "", "kill -TERM 1 2>/dev/null; echo $?"), must.Sprint("PID 1 is outside"))
		}
		// A terminal takes its ioctls.
		out, err := sandboxtest.Exec(t.Context(), s, guest.Start{Argv: []string{"/bin/bash", "-c", "stty size < /dev/tty 2>/dev/null || test -t 0; echo $?"}, TTY: true})
		must.NoError(t, err)
		must.StrContains(t, out.Stdout, "0")
	}
}

// TestFilter_refusesDeviceNodes is about all of them, also the one that takes no capability, in the places where nothing else refuses it.
func TestFilter_refusesDeviceNodes(t *testing.T) {
	h := sandboxtest.NewHost(t)
	s := h.Create(t, h.Config())
	for _, dir := range []string{"/tmp", "/dev", "/dev/shm", "/home"} {
		out := sandboxtest.Shell(t, s, "", "cd "+dir+"; for n in 'c 0 0' 'b 0 0' 'c 1 3'; do mknod x $n 2>&1; ls x 2>/dev/null; done; mknod p p && rm p")
		must.Eq(t, strings.Repeat("mknod: x: Operation not permitted\n", 3), out, must.Sprint(dir))
	}
}

// TestStrict_isComplete looks at what the strict profile has beyond the default one.
func TestStrict_isComplete(t *testing.T) {
	h := sandboxtest.NewHost(t)
	c := h.Config()
	c.Boot.Profile = sandbox.ProfileStrict
	s := h.Create(t, c)
	pid := strconv.Itoa(s.Ref().PID)
	b, err := os.ReadFile("/proc/" + pid + "/status")
	must.NoError(t, err)
	must.StrContains(t, string(b), "NoNewPrivs:\t1")
	var pending unix.Rlimit
	must.NoError(t, unix.Getrlimit(unix.RLIMIT_SIGPENDING, &pending))
	for _, tt := range []struct{ name, user, script, want string }{
		{"no_new_privs", "user", "grep NoNewPrivs /proc/self/status | tr -d '\\t'", "NoNewPrivs:1\n"},
		{"nothing but processes in /proc", "", "ls /proc | grep -v -x '[0-9]*' | tr '\\n' ' '", "self thread-self "},
		{"others' processes are not there", "user", "ls -d /proc/1 2>/dev/null; echo $?", "2\n"},
		{"no device nodes", "", "mknod /tmp/n c 1 3 2>/dev/null; mknod /tmp/p p 2>/dev/null; ls /tmp", ""},
		{"file size", "", "ulimit -f", strconv.Itoa(1<<30) + "\n"},
		{"core size", "", "ulimit -c", "0\n"},
		{"real-time priority", "", "ulimit -r", "0\n"},
		{"pending signals", "", "ulimit -i", strconv.FormatUint(min(16384, pending.Max), 10) + "\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			must.Eq(t, tt.want, sandboxtest.Shell(t, s, tt.user, tt.script))
		})
	}
}

// TestInit_isReadOnlyAndTellsNothing looks from the host at the mounts of PID 1.
func TestInit_isReadOnlyAndTellsNothing(t *testing.T) {
	h := sandboxtest.NewHost(t)
	s := h.Create(t, h.Config())
	b, err := os.ReadFile("/proc/" + strconv.Itoa(s.Ref().PID) + "/mountinfo")
	must.NoError(t, err)
	must.StrNotContains(t, string(b), "soulbox-init", must.Sprint("the binary's path on the host"))
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[4] == guest.InitPath {
			must.Eq(t, "/init", f[3])
			must.StrHasPrefix(t, "ro", f[5])
			must.StrContains(t, line, " - tmpfs soulbox ro", must.Sprint("of a file system that is read-only as a whole"))
			return
		}
	}
	t.Error("the init binary is not mounted")
}

func TestInit_copyOutlivesTheFileAndNobodyElseSeesIt(t *testing.T) {
	h := sandboxtest.NewHost(t)
	path := filepath.Join(t.TempDir(), "soulbox-init")
	must.NoError(t, sandboxtest.CopyFile(sandboxtest.Init(t), path, 0o755))
	before, err := os.ReadFile("/proc/self/mountinfo")
	must.NoError(t, err)
	init, err := sandbox.OpenInit(path)
	must.NoError(t, err)
	after, err := os.ReadFile("/proc/self/mountinfo")
	must.NoError(t, err)
	must.Eq(t, string(before), string(after))
	must.NoError(t, os.Remove(path))
	c := h.Config()
	c.Init = init
	s := h.Create(t, c)
	must.NoError(t, init.Close())
	must.Eq(t, "goes on\n", sandboxtest.Shell(t, s, "", "echo goes on"))
	c = h.Config()
	c.Init = init
	_, err = sandbox.Create(t.Context(), c)
	must.ErrorIs(t, err, os.ErrClosed)
}
