package sandbox_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

func TestMain(m *testing.M) {
	if os.Getenv(swapEnv) != "" {
		if err := swapAndCreate(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(copierEnv) != "" {
		if err := copyAndHang(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if os.Getenv(creatorEnv) != "" {
		os.Exit(createAndHang())
	}
	sandboxtest.Main(m)
}

func TestCreate_hasNamespacesOfItsOwn(t *testing.T) {
	h := sandboxtest.NewHost(t)
	a, b := h.Create(t, h.Config()), h.Create(t, h.Config())
	for _, ns := range []string{"user", "pid", "mnt", "net", "uts", "ipc", "cgroup"} {
		seen := make(map[string]string)
		for name, pid := range map[string]string{"host": "self", "a": strconv.Itoa(a.Ref().PID), "b": strconv.Itoa(b.Ref().PID)} {
			link, err := os.Readlink("/proc/" + pid + "/ns/" + ns)
			if err != nil {
				t.Fatal(err)
			}
			if other, ok := seen[link]; ok {
				t.Errorf("%s namespace: %s and %s share %s", ns, name, other, link)
			}
			seen[link] = name
		}
		// Every thread of PID 1 is in the same.
		threads, err := filepath.Glob("/proc/" + strconv.Itoa(a.Ref().PID) + "/task/*/ns/" + ns)
		if err != nil || len(threads) == 0 {
			t.Fatal("no threads", err)
		}
		for _, th := range threads {
			if link, err := os.Readlink(th); err != nil || seen[link] != "a" {
				t.Errorf("%s is %s, %v", th, link, err)
			}
		}
	}
}

func TestCreate_mapsIDs(t *testing.T) {
	h := sandboxtest.NewHost(t)
	c := h.Config()
	s := h.Create(t, c)
	want := []string{"0", strconv.Itoa(int(c.IDBase)), "65536"}
	for _, f := range []string{"uid_map", "gid_map"} {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(s.Ref().PID) + "/" + f)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Fields(string(b)); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%s is %v, want %v", f, got, want)
		}
	}
	if got := sandboxtest.Shell(t, s, "", "id -u; id -G; stat -c %u:%g /etc/marker /home/user"); got != "0\n0\n0:0\n1000:1000\n" {
		t.Errorf("root sees %q", got)
	}
	if got := sandboxtest.Shell(t, s, "user", "id -u; echo x > /home/user/f"); got != "1000\n" {
		t.Errorf("user sees %q", got)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(h.StateDir, string(c.ID), "upper/home/user/f"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Uid != c.IDBase+1000 {
		t.Errorf("the user's file belongs to %d on the host, want %d", st.Uid, c.IDBase+1000)
	}
}

// TestCreate_dropsCapabilities looks at every thread of PID 1 and at what it starts.
func TestCreate_dropsCapabilities(t *testing.T) {
	h := sandboxtest.NewHost(t)
	s := h.Create(t, h.Config())
	const caps = "00000000800404fb"
	if got := strconv.FormatUint(sandbox.Capabilities, 16); got != strings.TrimLeft(caps, "0") {
		t.Fatalf("capabilities are %s", got)
	}
	check := func(who, status, want string) {
		t.Helper()
		for line := range strings.Lines(status) {
			f := strings.Fields(line)
			if len(f) != 2 {
				continue
			}
			switch f[0] {
			case "CapPrm:", "CapEff:":
				if f[1] != want {
					t.Errorf("%s: %s %s, want %s", who, f[0], f[1], want)
				}
			case "CapBnd:":
				if f[1] != caps {
					t.Errorf("%s: %s %s, want %s", who, f[0], f[1], caps)
				}
			case "CapInh:", "CapAmb:":
				if f[1] != "0000000000000000" {
					t.Errorf("%s: %s %s, want none", who, f[0], f[1])
				}
			case "Seccomp:":
				if f[1] != "2" {
					t.Errorf("%s: no filter", who)
				}
			case "NoNewPrivs:":
				if f[1] != "0" {
					t.Errorf("%s: no_new_privs in the default profile", who)
				}
			}
		}
	}
	threads, err := filepath.Glob("/proc/" + strconv.Itoa(s.Ref().PID) + "/task/*/status")
	if err != nil || len(threads) < 2 {
		t.Fatalf("%d threads, %v", len(threads), err)
	}
	for _, th := range threads {
		b, err := os.ReadFile(th)
		if err != nil {
			t.Fatal(err)
		}
		check(th, string(b), caps)
	}
	check("root", sandboxtest.Shell(t, s, "", "cat /proc/self/status"), caps)
	check("user", sandboxtest.Shell(t, s, "user", "cat /proc/self/status"), "0000000000000000")
}

func TestProfiles_decideAboutSetuid(t *testing.T) {
	h := sandboxtest.NewHost(t)
	for _, tt := range []struct{ profile, want string }{
		{sandbox.ProfileDefault, "0\n"},
		{sandbox.ProfileStrict, "1000\n"},
	} {
		t.Run(tt.profile, func(t *testing.T) {
			c := h.Config()
			c.Boot.Profile = tt.profile
			s := h.Create(t, c)
			if got := sandboxtest.Shell(t, s, "user", "setuid-id -u"); got != tt.want {
				t.Errorf("a setuid program runs as %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCreate_hidesTheHost(t *testing.T) {
	h := sandboxtest.NewHost(t)
	s := h.Create(t, h.Config())
	mounts := sandboxtest.Shell(t, s, "", "cat /proc/self/mounts")
	t.Log(mounts)
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if strings.Contains(line, h.StateDir) || strings.Contains(line, h.RunDir) {
			t.Errorf("a mount tells of the host: %s", line)
		}
		options := strings.Split(f[3], ",")
		if f[1] != "/" && !slices.Contains(options, "nosuid") {
			t.Errorf("mount without nosuid: %s", line)
		}
		// Devices are the only things in /dev, and what hides a masked file is /dev/null.
		if !strings.HasPrefix(f[1], "/dev") && f[2] != "devtmpfs" && !slices.Contains(options, "nodev") {
			t.Errorf("mount without nodev: %s", line)
		}
	}
	var hard unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &hard); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, script, want string }{
		{"processes", "cd /proc && ls -d 1 2>/dev/null", "1\n"},
		{"own root of the cgroup tree", "grep -c -v ':/$' /proc/self/cgroup; true", "0\n"},
		{"descriptors", "ls /proc/self/fd | wc -l", "4\n"}, // three, and that of ls
		{"init is not readable", "for f in environ maps mem auxv; do cat /proc/1/$f 2>/dev/null && echo $f; done; for l in exe cwd root fd/0 fd/4 ns/mnt; do readlink /proc/1/$l; done; true", ""},
		{"init is not writable", "echo x 2>/dev/null > /.soulbox/init; echo $?", "1\n"},
		{"no keyboard", "ls /dev/ | tr '\\n' ' '", "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero "},
		{"masked file", "for f in kcore keys timer_list interrupts kmsg kallsyms; do test ! -e /proc/$f || cat /proc/$f; done", ""},
		{"read-only sysctl", "echo 1 2>/dev/null > /proc/sys/kernel/core_pattern; echo $?", "1\n"},
		{"read-only sysrq", "echo b 2>/dev/null > /proc/sysrq-trigger; echo $?", "1\n"},
		{"no sysfs", "ls /sys 2>/dev/null | wc -l", "0\n"},
		{"mount refused", "mount -t tmpfs none /tmp 2>/dev/null; echo $?", "32\n"},
		{"unshare refused", "unshare -U true 2>/dev/null; echo $?", "1\n"},
		{"hostname", "hostname; cat /etc/hostname", "soulbox\nsoulbox\n"},
		{"loopback", "cat /proc/net/if_inet6 | wc -l", "1\n"},
		{"core limit", "ulimit -c", "0\n"},
		{"descriptor limit", "ulimit -n", strconv.FormatUint(min(sandbox.DefaultNoFile, hard.Max), 10) + "\n"},
		{"devices work", "head -c 5 /dev/zero | wc -c; echo x > /dev/null && head -c 3 /dev/urandom | wc -c", "5\n3\n"},
		{"shm and tmp are anybody's", "stat -c %a /tmp /dev/shm", "1777\n1777\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := sandboxtest.Shell(t, s, "", tt.script); got != tt.want {
				t.Errorf("%s: %q, want %q", tt.script, got, tt.want)
			}
		})
	}
}

func TestTemplate_neverChanges(t *testing.T) {
	h := sandboxtest.NewHost(t)
	a := h.Create(t, h.Config())
	sandboxtest.Shell(t, a, "", "echo mine > /etc/marker; rm /bin/false; chmod 777 /etc; mkdir /new")
	if b, err := os.ReadFile(filepath.Join(h.Lower, "etc/marker")); err != nil || string(b) != "template\n" {
		t.Errorf("the template's file is %q, %v", b, err)
	}
	b := h.Create(t, h.Config())
	if got := sandboxtest.Shell(t, b, "", "cat /etc/marker; ls -d /new 2>/dev/null; stat -c %a /etc; ls /bin/false"); got != "template\n755\n/bin/false\n" {
		t.Errorf("the next sandbox sees %q", got)
	}
}

func TestCreate_failsWithoutATrace(t *testing.T) {
	h := sandboxtest.NewHost(t)
	link := filepath.Join(t.TempDir(), "lower")
	if err := sandboxtest.MakeLower(link); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(filepath.Join(link, "dev")), os.Symlink("/", filepath.Join(link, "dev"))); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(*sandbox.Config)
		want   string // in the error
		code   string // of the guest's error
	}{
		{"template missing", func(c *sandbox.Config) { c.Lower = "/nowhere" }, "/nowhere", ""},
		{"command missing", func(c *sandbox.Config) { c.Boot.Main = &guest.Start{Argv: []string{"/bin/nope"}} }, "nope", guest.CodeBadCommand},
		{"cwd missing", func(c *sandbox.Config) { c.Boot.Main = &guest.Start{Argv: []string{"/bin/true"}, Cwd: "/nope"} }, "nope", guest.CodeBadCwd},
		{"user missing", func(c *sandbox.Config) { c.Boot.Main = &guest.Start{Argv: []string{"/bin/true"}, User: "nope"} }, "nope", guest.CodeUnknownUser},
		{"dev is a link", func(c *sandbox.Config) { c.Lower = link }, "/dev", "boot_failed"},
		{"profile", func(c *sandbox.Config) { c.Boot.Profile = "loose" }, "loose", ""},
		{"negative pids", func(c *sandbox.Config) { c.Limits.PIDs = -1 }, "pids", ""},
		{"memory of a byte", func(c *sandbox.Config) { c.Limits.MemoryBytes = 1 }, "memory_bytes", ""},
		{"cpu beyond all", func(c *sandbox.Config) { c.Limits.CPUMillis = 1 << 62 }, "cpu_millis", ""},
		{"host name with odd bytes", func(c *sandbox.Config) { c.Boot.Hostname = "a\nb" }, "hostname", ""},
		{"id of the host", func(c *sandbox.Config) { c.IDBase = 0 }, "id base", ""},
		{"sandbox id", func(c *sandbox.Config) { c.ID = "../../x" }, "sandbox id", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := h.Config()
			tt.change(&c)
			before := sandboxtest.Look(t, filepath.Dir(h.StateDir), h.Cgroups)
			s, err := sandbox.Create(t.Context(), c)
			if err == nil {
				sandboxtest.Release(t, s)
				t.Fatal("it was created")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not name %q", err, tt.want)
			}
			var body *frame.ErrorBody
			if tt.code != "" && (!errors.As(err, &body) || body.Code != tt.code) {
				t.Errorf("error %v has not the code %q", err, tt.code)
			}
			sandboxtest.Look(t, filepath.Dir(h.StateDir), h.Cgroups).Compare(t, before)
		})
	}
}
