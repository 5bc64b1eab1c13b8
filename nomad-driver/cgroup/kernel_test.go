package cgroup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// inside runs a shell script in the group of a v2 directory from its first instruction on.
func inside(t *testing.T, dir, script string) (string, error) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// v2Root returns where cgroup v2 is mounted: alone, or beside v1.
func v2Root(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err == nil {
			return dir
		}
	}
	t.Skip("cgroup v2 is not mounted")
	return ""
}

func TestGuardDevices_holdsBelowTheGuardedGroup(t *testing.T) {
	parent := filepath.Join(v2Root(t), "soulbox-devtest-"+strconv.Itoa(os.Getpid()))
	group := filepath.Join(parent, "g")
	if err := errors.Join(os.Mkdir(parent, 0o755), os.Mkdir(group, 0o755)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Rmdir(group), unix.Rmdir(parent)); err != nil {
			t.Error(err)
		}
	})
	for range 2 { // the second replaces the first
		if err := guardDevices(parent, devices); err != nil {
			if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
				t.Skip(err)
			}
			t.Fatal(err)
		}
	}
	// Devices of the same numbers as /dev's, made where nothing is mounted nodev.
	dir := t.TempDir()
	for name, d := range map[string]struct {
		kind       uint32
		major, min uint32
	}{
		"null": {unix.S_IFCHR, 1, 3}, "zero": {unix.S_IFCHR, 1, 5}, "urandom": {unix.S_IFCHR, 1, 9},
		"kmsg": {unix.S_IFCHR, 1, 11}, "mem": {unix.S_IFCHR, 1, 1}, "loop": {unix.S_IFBLK, 7, 0}, "block13": {unix.S_IFBLK, 1, 3},
	} {
		if err := unix.Mknod(filepath.Join(dir, name), d.kind|0o666, int(unix.Mkdev(d.major, d.min))); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name, script string
		ok           bool
	}{
		{"null is written", "echo x > null", true},
		{"zero is read", "head -c 1 zero >/dev/null", true},
		{"urandom is read", "head -c 1 urandom >/dev/null", true},
		{"terminals", "exec 3<>/dev/ptmx", true},
		{"kmsg", "exec 3< kmsg", false},
		{"physical memory", "exec 3< mem", false},
		{"a disk", "exec 3< loop", false},
		{"a block device with the numbers of null", "exec 3< block13", false},
		{"a new node, even of null", "mknod new c 1 3", false},
		{"a new disk node", "mknod new b 7 0", false},
		{"a pipe", "mknod pipe p", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := inside(t, group, "cd "+dir+" && "+tt.script)
			if tt.ok && err != nil || !tt.ok && (err == nil || !strings.Contains(out, "Operation not permitted") && !strings.Contains(out, "not permitted")) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	if out, err := exec.Command("sh", "-c", "exec 3< "+dir+"/kmsg").CombinedOutput(); err != nil {
		t.Errorf("a process of another group is refused: %v: %s", err, out)
	}
}

func TestTree_guardsDevicesOfItsGroups(t *testing.T) {
	m := newKernel(t)
	newGroup(t, m, Limits{})
	how, err := m.Devices()
	if err != nil {
		t.Skip(err)
	}
	if want := map[int]string{1: "devices controller", 2: "bpf"}[m.Version()]; how != want {
		t.Errorf("devices are guarded by %q, want %q", how, want)
	}
}

// TestV1_groupsTakeOverTheDevicesOfTheParent reads the lists of groups below a new parent, one that is found again, and one that had
// groups before.
func TestV1_groupsTakeOverTheDevicesOfTheParent(t *testing.T) {
	for _, c := range []struct {
		name    string
		before  func(t *testing.T, dir string)
		guarded bool
	}{
		{"new", func(*testing.T, string) {}, true},
		{"found again", func(t *testing.T, dir string) {
			must.NoError(t, os.Mkdir(dir, 0o755))
			must.NoError(t, errors.Join(write(dir, "devices.deny", "a"), allowDevices(dir, devices)))
			must.NoError(t, os.Mkdir(dir+"/before", 0o755))
		}, true},
		{"with less than the list", func(t *testing.T, dir string) {
			must.NoError(t, os.Mkdir(dir, 0o755))
			must.NoError(t, write(dir, "devices.deny", "a"))
		}, true},
		{"with groups of all devices", func(t *testing.T, dir string) { must.NoError(t, os.MkdirAll(dir+"/before", 0o755)) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newKernel(t)
			h, ok := m.h.(*v1)
			if !ok || h.dirs["devices"] == "" {
				t.Skip("no devices controller of v1: one program guards all groups of v2")
			}
			dir := filepath.Join(h.dirs["devices"], m.parent)
			c.before(t, dir)
			t.Cleanup(func() { _ = os.Remove(dir + "/before") })
			g := newGroup(t, m, Limits{})
			list, err := read(filepath.Join(h.dirs["devices"], g.rel), "devices.list")
			must.NoError(t, err)
			extra, ok := beyondDevices(string(list))
			must.True(t, ok && len(extra) == 0, must.Sprint(string(list)))
			must.Eq(t, c.guarded, h.guarded.Load())
		})
	}
}

// TestGuardDevices_aGroupBelowHasItsOwn is about the program of v2, which works beside the controllers of v1 too.
func TestGuardDevices_aGroupBelowHasItsOwn(t *testing.T) {
	parent := filepath.Join(v2Root(t), "soulbox-owntest-"+strconv.Itoa(os.Getpid()))
	group, other := filepath.Join(parent, "g"), filepath.Join(parent, "other")
	must.NoError(t, errors.Join(os.Mkdir(parent, 0o755), os.Mkdir(group, 0o755), os.Mkdir(other, 0o755)))
	t.Cleanup(func() { must.NoError(t, errors.Join(unix.Rmdir(group), unix.Rmdir(other), unix.Rmdir(parent))) })
	if err := guardDevices(parent, devices); err != nil {
		t.Skip(err)
	}
	must.NoError(t, guardDevices(group, allowed([]Device{{1, 11, "r"}})))
	kmsg, null := filepath.Join(t.TempDir(), "kmsg"), filepath.Join(t.TempDir(), "null")
	must.NoError(t, errors.Join(unix.Mknod(kmsg, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 11))), unix.Mknod(null, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))))
	for _, tt := range []struct {
		name, group, script string
		ok                  bool
	}{
		{"its own is read", group, "exec 3< " + kmsg, true},
		{"and not written", group, "exec 3>> " + kmsg, false},
		{"what all have", group, "exec 3<> " + null, true},
		{"its neighbour has it not", other, "exec 3< " + kmsg, false},
	} {
		out, err := inside(t, tt.group, tt.script)
		must.Eq(t, tt.ok, err == nil, must.Sprint(tt.name, ": ", out))
	}
}

// TestTree_aDeviceIsOneGroupsOwn is about groups that were there before, those that come after, and a tree that is found later.
func TestTree_aDeviceIsOneGroupsOwn(t *testing.T) {
	m := newKernel(t)
	if how, err := m.Devices(); err != nil {
		t.Skip(how, err)
	}
	kmsg := filepath.Join(t.TempDir(), "kmsg")
	must.NoError(t, unix.Mknod(kmsg, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 11))))
	make := func(m *Tree, name string, own ...Device) *Group {
		g, err := m.Create(name, Limits{}, own...)
		must.NoError(t, err)
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			must.NoError(t, errors.Join(g.Kill(ctx), g.Remove(ctx)))
		})
		return g
	}
	opens := func(g *Group, how string) bool {
		dir := t.TempDir()
		must.NoError(t, errors.Join(unix.Mkfifo(dir+"/go", 0o600), unix.Mkfifo(dir+"/said", 0o600)))
		// It is in the group before it is let go.
		run(t, g, "sh", "-c", "cd "+dir+"; read x < go; if (exec 3"+how+kmsg+") 2>&-; then echo yes; else echo no; fi > said")
		must.NoError(t, os.WriteFile(dir+"/go", []byte("\n"), 0))
		said, err := os.ReadFile(dir + "/said")
		must.NoError(t, err)
		return string(said) == "yes\n"
	}
	before, own, after := make(m, "before"), make(m, "own", Device{1, 11, "r"}), make(m, "after")
	later, err := Detect("/sys/fs/cgroup", m.parent)
	must.NoError(t, err)
	last := make(later, "last")
	must.True(t, opens(own, "<"), must.Sprint("it is its own"))
	must.False(t, opens(own, ">>"), must.Sprint("it is for reading"))
	for name, g := range map[string]*Group{"one from before": before, "one from after": after, "one of a tree found later": last} {
		must.False(t, opens(g, "<"), must.Sprint(name))
	}
}

// TestV2_protectionAddsUp needs real control groups of version 2 with the memory controller.
func TestV2_protectionAddsUp(t *testing.T) {
	m := newKernel(t)
	if m.Version() != 2 {
		t.Skip("cgroup v1: a soft limit needs no parent")
	}
	parent := filepath.Join(m.h.roots()[0], m.parent)
	want := func(bytes uint64) {
		t.Helper()
		if low, err := readUint(parent, "memory.low"); err != nil || low != bytes {
			t.Errorf("the parent protects %d, %v, want %d", low, err, bytes)
		}
	}
	a, err := m.Create("a", Limits{MemoryLow: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.Create("b", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want(16 << 20)
	if err := b.SetLimits(Limits{MemoryLow: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	want(24 << 20)
	// The next process knows of what there is.
	m2, err := Detect("/sys/fs/cgroup", m.parent)
	if err != nil {
		t.Fatal(err)
	}
	a2, err := m2.Open("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := a2.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(8 << 20)
	b2, err := m2.Open("b")
	if err != nil {
		t.Fatal(err)
	}
	if err := b2.SetLimits(Limits{MemoryLow: Unlimited}); err != nil {
		t.Fatal(err)
	}
	want(0)
	if err := errors.Join(b2.Remove(t.Context()), a.Remove(t.Context())); err != nil {
		t.Error(err)
	}
}

// TestGroup_limitsIO writes past the page cache, which both versions count, and looks at the least time that it may take.
func TestGroup_limitsIO(t *testing.T) {
	m := newKernel(t)
	dir := t.TempDir()
	disk, err := Disk(dir)
	if errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	g := newGroup(t, m, Limits{})
	err = g.SetLimits(Limits{IO: IOLimits{Device: disk, WriteBytes: 2 << 20, ReadOps: 500}})
	if errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	write := func() time.Duration {
		t.Helper()
		cmd := exec.Command("sh", "-c", "read go; exec dd if=/dev/zero of="+dir+"/f bs=256k count=16 oflag=direct conv=fsync")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for _, d := range g.dirs() {
			if err := writeInt(d, "cgroup.procs", int64(cmd.Process.Pid)); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		_, werr := in.Write([]byte("go\n"))
		if err := errors.Join(werr, cmd.Wait()); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	if d := write(); d < time.Second { // 4 MiB at 2 MiB a second, the first slice of which is free
		t.Errorf("4 MiB took %v", d)
	}
	if err := g.SetLimits(Limits{IO: IOLimits{Device: disk, WriteBytes: Unlimited}}); err != nil {
		t.Fatal(err)
	}
	file := map[int]string{1: "blkio/" + g.rel + "/blkio.throttle.write_bps_device", 2: g.rel + "/io.max"}[m.Version()]
	if b, err := os.ReadFile("/sys/fs/cgroup/" + file); err != nil || strings.Contains(string(b), strconv.Itoa(2<<20)) {
		t.Errorf("the limit is still there: %s, %v", b, err)
	}
}

func TestGroup_countsWhatItRefuses(t *testing.T) {
	m := newKernel(t)
	g := newGroup(t, m, Limits{PIDs: 2})
	run(t, g, "sh", "-c", "while :; do sh -c 'sleep 0.01 & sleep 0.01 & wait' 2>/dev/null; done")
	deadline := time.Now().Add(10 * time.Second)
	for {
		n, err := g.ForksDenied()
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no fork was refused")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestGroup_memoryLimitBelowUse(t *testing.T) {
	m := newKernel(t)
	g := newGroup(t, m, Limits{MemoryBytes: 256 << 20})
	run(t, g, "sh", "-c", "sleep 0.2; { head -c 100000000 /dev/zero; sleep 100; } | tail -c 100000000 > /dev/null")
	deadline := time.Now().Add(20 * time.Second)
	for {
		s, err := g.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if s.MemoryBytes > 90<<20 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("uses %d bytes", s.MemoryBytes)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := g.SetLimits(Limits{MemoryBytes: 16 << 20}); !errors.Is(err, ErrBelowUse) {
		t.Errorf("got %v", err)
	}
}

// TestOOMEvents_tell checks v1's way to learn of a group out of memory.
func TestOOMEvents_tell(t *testing.T) {
	m := newKernel(t)
	g := newGroup(t, m, Limits{MemoryBytes: 16 << 20})
	events, err := g.OOMEvents()
	if err != nil {
		t.Fatal(err)
	}
	if events == nil {
		if m.Version() != 2 {
			t.Error("no events")
		}
		return
	}
	defer events.Close()
	run(t, g, "sh", "-c", "sleep 0.2; dd if=/dev/zero of=/dev/null bs=100M count=1")
	if err := events.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := events.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		if n, err := g.OOMKills(); err != nil || n > 0 {
			if err != nil {
				t.Error(err)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing was killed")
		}
		time.Sleep(time.Millisecond)
	}
}
