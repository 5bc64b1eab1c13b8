package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// coresOf returns the cores that a process may run on.
func coresOf(t *testing.T, pid int) (cores []int) {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(pid, &set); errors.Is(err, unix.ESRCH) {
		return nil
	} else if err != nil {
		t.Fatal(err)
	}
	for c := range 1024 {
		if set.IsSet(c) {
			cores = append(cores, c)
		}
	}
	return cores
}

func TestGroup_confines(t *testing.T) {
	m := newKernel(t)
	all, err := m.Cores()
	if errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	must.NoError(t, err)
	if len(all) < 2 {
		t.Skip("one core")
	}
	g := newGroup(t, m, Limits{})
	run(t, g, "sh", "-c", "while sleep 0.02; do :; done")
	last := all[len(all)-1:]
	seen := map[int]bool{}
	// on waits until two processes more than before have been seen, all of which may run on those cores alone.
	on := func(want []int) {
		t.Helper()
		for fresh, deadline := 0, time.Now().Add(20*time.Second); fresh < 2; {
			if time.Now().After(deadline) {
				t.Fatal("nothing starts any more")
			}
			pids, err := g.Processes()
			must.NoError(t, err)
			for _, pid := range pids {
				if cores := coresOf(t, pid); cores != nil {
					must.Eq(t, want, cores, must.Sprint("process ", pid))
				}
				if !seen[pid] {
					seen[pid] = true
					fresh++
				}
			}
			time.Sleep(time.Millisecond)
		}
		now, err := g.Confined()
		must.NoError(t, err)
		if slices.Equal(want, all) {
			must.SliceEmpty(t, now)
		} else {
			must.Eq(t, want, now)
		}
	}
	on(all)
	must.NoError(t, g.Confine(last))
	on(last)
	pids, err := g.Processes()
	must.NoError(t, err)
	var elsewhere unix.CPUSet
	elsewhere.Set(all[0])
	must.ErrorIs(t, unix.SchedSetaffinity(pids[0], &elsewhere), unix.EINVAL) // the kernel refuses even root to leave
	must.NoError(t, g.Confine(all[:1]))
	on(all[:1])
	// The next process finds it so, and can end it.
	again, err := Detect("/sys/fs/cgroup", m.parent)
	must.NoError(t, err)
	same, err := again.Open("g")
	must.NoError(t, err)
	now, err := same.Confined()
	must.NoError(t, err)
	must.Eq(t, all[:1], now)
	must.NoError(t, same.Confine(nil))
	on(all)
	if b, err := os.ReadFile("/proc/self/cgroup"); err == nil && strings.Contains(string(b), m.parent) {
		t.Error("this process is in the parent")
	}
}

// TestGroup_madeWithoutCpuset is one of an earlier version.
func TestGroup_madeWithoutCpuset(t *testing.T) {
	m := newKernel(t)
	h, ok := m.h.(*v1)
	if !ok || h.dirs["cpuset"] == "" {
		t.Skip("no cpuset controller of v1")
	}
	g := newGroup(t, m, Limits{})
	must.NoError(t, os.Remove(filepath.Join(h.dirs["cpuset"], g.rel)))
	must.ErrorIs(t, g.Confine([]int{0}), ErrUnsupported)
	_, err := g.Confined()
	must.ErrorIs(t, err, ErrUnsupported)
	gone, err := m.Open("gone")
	must.NoError(t, err)
	must.ErrorIs(t, gone.Confine([]int{0}), ErrNotExist)
}

func TestGroup_tellsOfItsMemoryAndItsTimeInTheKernel(t *testing.T) {
	m := newKernel(t)
	const limit = 16 << 20
	g := newGroup(t, m, Limits{MemoryBytes: limit})
	meter, err := g.Meter()
	must.NoError(t, err)
	defer func() { must.NoError(t, meter.Close()) }()
	file := filepath.Join(t.TempDir(), "file")
	run(t, g, "sh", "-c", "sleep 0.2; dd if=/dev/zero of="+file+" bs=1M count=64; sleep 100")
	// The page cache fills the limit, but for what the kernel takes ahead on each core.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		kernel, err := g.KernelNanos()
		must.NoError(t, err)
		charged, err := g.Charged()
		must.NoError(t, err)
		same, err := meter.Charged()
		must.NoError(t, err)
		must.LessEq(t, limit, same)
		if kernel > 0 && charged > limit*3/4 {
			break
		}
		must.True(t, time.Now().Before(deadline), must.Sprint(charged, " bytes, ", kernel, " ns in the kernel"))
	}
	must.NoError(t, g.Kill(t.Context()))
	must.NoError(t, g.Remove(t.Context()))
	for _, read := range []func() (uint64, error){g.Charged, meter.Charged, g.KernelNanos} {
		_, err = read()
		must.ErrorIs(t, err, ErrNotExist)
	}
}

func TestParseCores(t *testing.T) {
	for _, c := range []struct {
		list string
		want []int
	}{{"", nil}, {"0", []int{0}}, {"0-3,8", []int{0, 1, 2, 3, 8}}, {"1,3", []int{1, 3}}} {
		got, err := parseCores(c.list)
		must.NoError(t, err)
		must.Eq(t, c.want, got)
		again, err := parseCores(formatCores(got))
		must.NoError(t, err)
		must.Eq(t, got, again)
	}
	for _, list := range []string{"x", "3-1", "-", "1-", "0-99999999", "1;2"} {
		_, err := parseCores(list)
		must.Error(t, err, must.Sprint(list))
	}
}
