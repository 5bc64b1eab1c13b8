package cgroup

import (
	"context"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// newKernel detects the real control groups, with a parent of this test's own.
func newKernel(t *testing.T) *Tree {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	m, err := Detect("/sys/fs/cgroup", "soulbox-cgtest-"+strconv.Itoa(os.Getpid()))
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func newGroup(t *testing.T, m *Tree, l Limits) *Group {
	t.Helper()
	g, err := m.Create("g", l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
			t.Error(err)
		}
	})
	return g
}

// run starts a program in a group, by the way in that both versions have for a process that lives already.
func run(t *testing.T, g *Group, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	for _, dir := range g.dirs() {
		if err := writeInt(dir, "cgroup.procs", int64(cmd.Process.Pid)); err != nil {
			t.Fatal(err)
		}
	}
	return cmd
}

func TestGroup_limitsAndCountsOnThisKernel(t *testing.T) {
	m := newKernel(t)
	g := newGroup(t, m, Limits{CPUMillis: 250, CPUWeight: 50, MemoryBytes: 64 << 20, PIDs: 20})
	run(t, g, "sh", "-c", "while :; do :; done")
	deadline := time.Now().Add(10 * time.Second)
	var s Stats
	for s.Throttled == 0 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
		var err error
		if s, err = g.Stats(); err != nil {
			t.Fatal(err)
		}
	}
	if s.CPUNanos == 0 || s.Throttled == 0 || s.PIDs != 1 || s.MemoryLimit != 64<<20 {
		t.Errorf("stats are %+v", s)
	}
	for _, name := range []string{"cpu_nanos", "memory_bytes", "pids", "oom_kills", "throttled_periods"} {
		if !slices.Contains(s.Measured, name) {
			t.Errorf("%s was not measured", name)
		}
	}
	// Up and down again, which needs two orders on v1.
	for _, bytes := range []int64{256 << 20, 32 << 20} {
		if err := g.SetLimits(Limits{MemoryBytes: bytes}); err != nil {
			t.Fatal(err)
		}
		if s, err := g.Stats(); err != nil || s.MemoryLimit != uint64(bytes) {
			t.Errorf("limit is %d, %v, want %d", s.MemoryLimit, err, bytes)
		}
	}
}

func TestGroup_freezesAndKills(t *testing.T) {
	m := newKernel(t)
	g := newGroup(t, m, Limits{})
	run(t, g, "sh", "-c", "while :; do sleep 0.001; done")
	if err := errors.Join(g.Freeze(t.Context()), g.Thaw(t.Context()), g.Freeze(t.Context())); err != nil {
		t.Fatal(err)
	}
	if err := g.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Processes(); err != nil || len(pids) != 0 {
		t.Errorf("processes %v, %v", pids, err)
	}
}

func TestGroup_thatIsGoneIsNoErrorToRemoveAndKill(t *testing.T) {
	m := newKernel(t)
	g, err := m.Open("never")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(g.Kill(t.Context()), g.Remove(t.Context())); err != nil {
		t.Error(err)
	}
	if _, err := g.OOMKills(); !errors.Is(err, ErrNotExist) {
		t.Errorf("counters of a group that is gone: %v", err)
	}
	if err := g.SetLimits(Limits{PIDs: 5}); !errors.Is(err, ErrNotExist) {
		t.Errorf("limits of a group that is gone: %v", err)
	}
}

func TestTree_listsAndRefusesDuplicates(t *testing.T) {
	m := newKernel(t)
	newGroup(t, m, Limits{})
	if names, err := m.List(); err != nil || !slices.Equal(names, []string{"g"}) {
		t.Errorf("list is %v, %v", names, err)
	}
	if _, err := m.Create("g", Limits{}); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second group of the name: %v", err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "../x", "a\nb"} {
		if _, err := m.Open(name); err == nil {
			t.Errorf("name %q was taken", name)
		}
	}
	if _, err := Detect("/sys/fs/cgroup", "../x"); err == nil {
		t.Error("a parent outside was taken")
	}
}

// TestTree_leavesAnothersHalfGroup finds the name taken in the last hierarchy only, as after a crash.
func TestTree_leavesAnothersHalfGroup(t *testing.T) {
	m := newKernel(t)
	newGroup(t, m, Limits{}) // which makes the parents
	g, err := m.Open("half")
	if err != nil {
		t.Fatal(err)
	}
	dirs := g.dirs()
	last := dirs[len(dirs)-1]
	if err := os.Mkdir(last, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Create("half", Limits{}); !errors.Is(err, os.ErrExist) {
		t.Errorf("created: %v", err)
	}
	for _, dir := range dirs[:len(dirs)-1] {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("left behind: %s", dir)
		}
	}
	if err := os.Remove(last); err != nil {
		t.Error(err)
	}
}

// newFake makes a directory that looks like cgroup v2, whose groups get the files of one.
func newFake(t *testing.T, controllers string) (*Tree, string) {
	t.Helper()
	root := t.TempDir()
	files := map[string]string{
		"cgroup.subtree_control": "", "cgroup.procs": "", "cgroup.freeze": "0", "cgroup.kill": "",
		"cgroup.events":   "populated 0\nfrozen 0\n",
		"cpu.max":         "max 100000",
		"cpu.weight":      "100",
		"cpu.stat":        "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_periods 3\nnr_throttled 2\nthrottled_usec 5\n",
		"memory.max":      "max",
		"memory.swap.max": "max", "memory.oom.group": "0",
		"memory.current": "1000", "memory.peak": "2000",
		"memory.stat":   "anon 1\nfile 300\ninactive_file 200\n",
		"memory.events": "low 0\noom 1\noom_kill 3\n",
		"pids.max":      "max", "pids.current": "4",
	}
	fill := func(dir string) error {
		var errs []error
		for name, text := range files {
			errs = append(errs, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
		}
		return errors.Join(errs...)
	}
	if err := errors.Join(fill(root), os.WriteFile(filepath.Join(root, "cgroup.controllers"), []byte(controllers), 0o600)); err != nil {
		t.Fatal(err)
	}
	m, err := Detect(root, "soulbox")
	if err != nil {
		t.Fatal(err)
	}
	m.mkdir = func(path string) error {
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		return fill(path)
	}
	return m, filepath.Join(root, "soulbox", "g")
}

func TestV2_writesLimitsAndReadsCounters(t *testing.T) {
	m, dir := newFake(t, "cpuset cpu memory pids\n")
	if m.Version() != 2 {
		t.Fatalf("version %d", m.Version())
	}
	g, err := m.Create("g", Limits{CPUMillis: 1500, CPUWeight: 200, MemoryBytes: 1 << 20, PIDs: 99})
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"cpu.max": "150000 100000", "cpu.weight": "200", "memory.max": "1048576", "memory.swap.max": "0",
		"memory.oom.group": "1", "pids.max": "99",
	} {
		if b, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(b) != want {
			t.Errorf("%s is %q, %v, want %q", file, b, err, want)
		}
	}
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	s.Time, s.Measured = time.Time{}, nil
	want := Stats{
		CPUNanos: 10_000, UserNanos: 6000, SystemNanos: 4000, Throttled: 2, ThrottledNs: 5000, MemoryBytes: 800, MemoryCache: 300,
		MemoryMax: 2000, MemoryLimit: 1 << 20, PIDs: 4, OOMKills: 3,
	}
	if !equal(s, want) {
		t.Errorf("stats are %+v, want %+v", s, want)
	}
	e, err := g.Entry()
	if err != nil || e.Dir == nil || len(e.Tasks) != 0 {
		t.Errorf("entry is %+v, %v", e, err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

func equal(a, b Stats) bool {
	a.Measured, b.Measured = nil, nil
	return a.CPUNanos == b.CPUNanos && a.UserNanos == b.UserNanos && a.SystemNanos == b.SystemNanos && a.Throttled == b.Throttled &&
		a.ThrottledNs == b.ThrottledNs && a.MemoryBytes == b.MemoryBytes && a.MemoryCache == b.MemoryCache && a.MemoryMax == b.MemoryMax &&
		a.MemoryLimit == b.MemoryLimit && a.PIDs == b.PIDs && a.OOMKills == b.OOMKills
}

func TestV2_missingFilesAreNotMeasured(t *testing.T) {
	m, dir := newFake(t, "cpu memory pids\n")
	g, err := m.Create("g", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(filepath.Join(dir, "memory.peak")), os.Remove(filepath.Join(dir, "memory.swap.max"))); err != nil {
		t.Fatal(err)
	}
	s, err := g.Stats()
	if err != nil || slices.Contains(s.Measured, "memory_max_bytes") || s.MemoryLimit != 0 {
		t.Errorf("stats are %+v, %v", s, err)
	}
	if err := g.SetLimits(Limits{MemoryBytes: 5000}); err != nil {
		t.Errorf("a kernel without swap: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "pids.max")); err != nil {
		t.Fatal(err)
	}
	if err := g.SetLimits(Limits{PIDs: 5}); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "pids.max") {
		t.Errorf("a limit without its controller: %v", err)
	}
}

func TestDetect_needsControlGroups(t *testing.T) {
	if _, err := Detect(t.TempDir(), "soulbox"); err == nil {
		t.Error("an empty directory was taken")
	}
}

func FuzzFiles(f *testing.F) {
	f.Add("oom_kill 3\nunder_oom 0\n")
	f.Add("max\n")
	f.Add("\n \n=\x00")
	f.Fuzz(func(t *testing.T, text string) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readTable(dir, "f"); err != nil {
			t.Error(err)
		}
		if v, err := readUint(dir, "f"); err != nil && v != 0 && v != math.MaxUint64 {
			t.Errorf("%d with %v", v, err)
		}
	})
}
