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
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

const mib = 1 << 20

func groupFile(t *testing.T, h *sandboxtest.Host, id api.SandboxID, v1, v2 string) string {
	t.Helper()
	path := filepath.Join("/sys/fs/cgroup", h.Parent, string(id), v2)
	if h.Cgroups.Version() == 1 {
		controller, file, _ := strings.Cut(v1, "/")
		path = filepath.Join("/sys/fs/cgroup", controller, h.Parent, string(id), file)
	}
	b, err := os.ReadFile(path)
	must.NoError(t, err)
	return strings.TrimSpace(string(b))
}

// TestSetLimits_changesARunningSandbox reads the kernel's own files.
func TestSetLimits_changesARunningSandbox(t *testing.T) {
	h := sandboxtest.NewHost(t)
	c := h.Config()
	c.Limits = sandbox.Limits{CPUMillis: 500, CPUWeight: 100, MemoryBytes: 256 * mib, PIDs: 64}
	s := h.Create(t, c)
	must.NoError(t, s.SetLimits(sandbox.Limits{CPUMillis: 250, CPUWeight: 200, MemoryBytes: 128 * mib, PIDs: 48}))
	for _, f := range []struct{ v1, v2, want1, want2 string }{
		{"cpu/cpu.cfs_quota_us", "cpu.max", "25000", "25000 100000"},
		{"cpu/cpu.shares", "cpu.weight", "2048", "200"},
		{"memory/memory.limit_in_bytes", "memory.max", strconv.Itoa(128 * mib), strconv.Itoa(128 * mib)},
		{"pids/pids.max", "pids.max", "48", "48"},
	} {
		want := f.want2
		if h.Cgroups.Version() == 1 {
			want = f.want1
		}
		must.Eq(t, want, groupFile(t, h, c.ID, f.v1, f.v2), must.Sprint(f.v1))
	}
	// It goes on as before: null can still be opened, too.
	must.Eq(t, "ok\n", sandboxtest.Shell(t, s, "", "echo x > /dev/null && echo ok"))
	must.ErrorContains(t, s.SetLimits(sandbox.Limits{NoFile: 100}), "nofile")
	must.ErrorContains(t, s.SetLimits(sandbox.Limits{PIDs: 1}), "pids")
	must.ErrorIs(t, s.SetLimits(sandbox.Limits{DiskBytes: 64 * mib}), disk.ErrUnsupported)
	must.ErrorContains(t, s.SetLimits(sandbox.Limits{IOWriteBytes: -7}), "io_write_bytes")
}

func TestSetLimits_memoryBelowUseIsRefused(t *testing.T) {
	h := sandboxtest.NewHost(t)
	c := h.Config()
	c.Limits.MemoryBytes = 256 * mib
	s := h.Create(t, c)
	sandboxtest.Shell(t, s, "", "head -c 100000000 /dev/zero > /dev/shm/f 2>/dev/null; head -c 60000000 /dev/zero > /tmp/f")
	must.ErrorIs(t, s.SetLimits(sandbox.Limits{MemoryBytes: 16 * mib}), cgroup.ErrBelowUse)
	must.Eq(t, "alive\n", sandboxtest.Shell(t, s, "", "echo alive"))
	must.NoError(t, s.SetLimits(sandbox.Limits{MemoryBytes: 512 * mib}))
}

// TestOOM_endsTheSandboxAsOne loses one process to the kernel, which is not PID 1's main one.
func TestOOM_endsTheSandboxAsOne(t *testing.T) {
	h := sandboxtest.NewHost(t)
	c := h.Config()
	c.Limits.MemoryBytes = 64 * mib
	s := h.Create(t, c)
	_, err := s.Guest().Start(t.Context(), guest.Start{Argv: []string{"/bin/sleep", "1000"}})
	must.NoError(t, err)
	_, err = s.Guest().Start(t.Context(), guest.Start{Argv: []string{"/bin/bash", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1"}})
	must.NoError(t, err)
	awaitDone(t, s)
	must.True(t, s.Exit().OOM)
	must.Nil(t, s.Exit().Record)
}

// TestOOM_isSeenByTheNextDaemon loses the process while nobody watches.
func TestOOM_isSeenByTheNextDaemon(t *testing.T) {
	h := sandboxtest.NewHost(t)
	c := h.Config()
	c.Limits.MemoryBytes = 64 * mib
	s, err := sandbox.Create(t.Context(), c)
	must.NoError(t, err)
	ref, g := letGo(t, s), s.Guest()
	_, err = g.Start(t.Context(), guest.Start{Argv: []string{"/bin/bash", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1"}})
	must.NoError(t, err)
	group, err := h.Cgroups.Open(string(c.ID))
	must.NoError(t, err)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		n, err := group.OOMKills()
		must.NoError(t, err)
		if n > 0 {
			break
		}
		must.True(t, time.Now().Before(deadline), must.Sprint("nothing was killed"))
	}
	again, err := sandbox.Open(ref, h.Cgroups)
	must.NoError(t, err)
	t.Cleanup(func() { sandboxtest.Release(t, again) })
	awaitDone(t, again)
	must.True(t, again.Exit().OOM)
}

func TestExit_tellsOfRefusedProcesses(t *testing.T) {
	h := sandboxtest.NewHost(t)
	c := h.Config()
	c.Limits.PIDs = 40
	c.Boot.Main = &guest.Start{Argv: []string{"/bin/bash", "-c", "for i in {1..60}; do sleep 30 & done 2>/dev/null; exit 3"}}
	s := h.Create(t, c)
	awaitDone(t, s)
	must.True(t, s.Exit().PIDLimit)
}

// mayFixOOMOrder reports whether this process has CAP_SYS_RESOURCE, which some containers take from their root.
func mayFixOOMOrder(t *testing.T) bool {
	t.Helper()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	must.NoError(t, unix.Capget(&hdr, &data[0]))
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// letGo leaves a sandbox to the next daemon, which this process plays as well: it is still the parent, and reaps.
func letGo(t *testing.T, s *sandbox.Sandbox) sandbox.Ref {
	t.Helper()
	must.NoError(t, s.Detach())
	t.Cleanup(func() {
		if _, err := unix.Wait4(s.Ref().PID, nil, 0, nil); err != nil {
			t.Error(err)
		}
	})
	return s.Ref()
}

func TestQoS_ordersSandboxes(t *testing.T) {
	h := sandboxtest.NewHost(t)
	last := -1
	for _, q := range []struct {
		class          sandbox.QoS
		weight         int64
		low, soft, adj string
	}{
		{sandbox.Guaranteed, 400, strconv.Itoa(64 * mib), strconv.Itoa(64 * mib), "100"},
		{sandbox.Burstable, 100, "0", strconv.Itoa(32 * mib), "500"},
		{sandbox.BestEffort, 10, "0", strconv.Itoa(mib), "900"},
	} {
		t.Run(string(q.class), func(t *testing.T) {
			c := h.Config()
			c.QoS, c.Limits.MemoryBytes = q.class, 64*mib
			s := h.Create(t, c)
			must.Eq(t, q.weight, q.class.CPUWeight(100))
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", s.Ref().PID))
			must.NoError(t, err)
			must.Eq(t, q.adj, strings.TrimSpace(string(b)))
			// Whoever runs inside has it too, and cannot get out of its place in the order where the node may say so.
			lowered := q.adj
			if !mayFixOOMOrder(t) {
				lowered = "0"
			}
			must.Eq(t, q.adj+"\n"+lowered+"\n", sandboxtest.Shell(t, s, "", "cat /proc/self/oom_score_adj; echo 0 2>/dev/null > /proc/self/oom_score_adj; cat /proc/self/oom_score_adj"))
			adj, err := strconv.Atoi(q.adj)
			must.NoError(t, err)
			must.Greater(t, last, adj)
			last = adj
			if h.Cgroups.Version() == 1 {
				must.Eq(t, q.soft, groupFile(t, h, c.ID, "memory/memory.soft_limit_in_bytes", ""))
			} else {
				must.Eq(t, q.low, groupFile(t, h, c.ID, "", "memory.low"))
			}
		})
	}
	c := h.Config()
	c.QoS = "vip"
	_, err := sandbox.Create(t.Context(), c)
	must.ErrorContains(t, err, "vip")
}

// diskLimiters returns those that work where sandboxes of h are.
func diskLimiters(t *testing.T, h *sandboxtest.Host) []disk.Limiter {
	t.Helper()
	must.NoError(t, os.MkdirAll(h.StateDir, 0o711))
	var all []disk.Limiter
	for _, name := range []string{disk.Quota, disk.Image, disk.Tmpfs} {
		l, err := disk.Choose(h.StateDir, name)
		if errors.Is(err, disk.ErrUnsupported) {
			t.Logf("%s: %v", name, err)
			continue
		}
		must.NoError(t, err)
		all = append(all, l)
	}
	return all
}

func TestDiskLimit_boundsWhatASandboxWrites(t *testing.T) {
	h := sandboxtest.NewHost(t)
	for _, l := range diskLimiters(t, h) {
		t.Run(l.Name(), func(t *testing.T) {
			c := h.Config()
			c.Disk, c.Limits.DiskBytes, c.Limits.DiskInodes = l, 64*mib, 1024
			s := h.Create(t, c)
			out := sandboxtest.Shell(t, s, "", "head -c 200000000 /dev/zero 2>/dev/null > /big; stat -c %s /big; rm /big; head -c 1000000 /dev/zero > /small && echo room")
			size, rest, _ := strings.Cut(out, "\n")
			n, err := strconv.Atoi(size)
			must.NoError(t, err)
			must.Between(t, 16*mib, n, 64*mib)
			must.Eq(t, "room\n", rest)
			made := sandboxtest.Shell(t, s, "", "mkdir /many; cd /many; for i in $(seq 5000); do : > f$i || break; done 2>/dev/null; ls | wc -l")
			files, err := strconv.Atoi(strings.TrimSpace(made))
			must.NoError(t, err)
			must.Between(t, 200, files, 1024)
			st, err := s.Stats()
			must.NoError(t, err)
			must.SliceContains(t, st.Measured, "disk_bytes")
			must.Between(t, 1, st.DiskBytes, 64*mib)
			u, err := s.Usage()
			must.NoError(t, err)
			must.NotNil(t, u.Disk)
			must.Eq(t, st.DiskLimit, uint64(u.Disk.Limits.Bytes))
			must.Between(t, 1, u.Disk.Bytes, 64*mib)
			must.Between(t, uint64(files), st.DiskInodes, 1100)
			// A file that is larger than all there is cannot be said to be there, either.
			must.Eq(t, "153\n0\n", sandboxtest.Shell(t, s, "", "rm -r /many; dd if=/dev/zero of=/sparse bs=1 count=1 seek=10T 2>/dev/null; echo $?; stat -c %s /sparse"),
				must.Sprint("128 and SIGXFSZ"))
			sandboxtest.Release(t, s)
		})
	}
}

// TestDiskLimit_isFoundAgain opens, sweeps and fails sandboxes that have one.
func TestDiskLimit_isFoundAgain(t *testing.T) {
	h := sandboxtest.NewHost(t)
	for _, l := range diskLimiters(t, h) {
		t.Run(l.Name(), func(t *testing.T) {
			limited := func() sandbox.Config {
				c := h.Config()
				c.Disk, c.Limits.DiskBytes = l, 32*mib
				return c
			}
			t.Run("opened", func(t *testing.T) {
				s, err := sandbox.Create(t.Context(), limited())
				must.NoError(t, err)
				again, err := sandbox.Open(letGo(t, s), h.Cgroups)
				must.NoError(t, err)
				defer sandboxtest.Release(t, again)
				st, err := again.Stats()
				must.NoError(t, err)
				must.SliceContains(t, st.Measured, "disk_limit_bytes")
				err = again.SetLimits(sandbox.Limits{DiskBytes: 64 * mib})
				if l.Name() == disk.Image {
					must.ErrorIs(t, err, disk.ErrUnsupported)
				} else {
					must.NoError(t, err)
				}
			})
			t.Run("swept", func(t *testing.T) {
				c := limited()
				s, err := sandbox.Create(t.Context(), c)
				must.NoError(t, err)
				letGo(t, s)
				removed, err := sandbox.Sweep(t.Context(), h.StateDir, h.RunDir, h.Cgroups, func(api.SandboxID) bool { return false })
				must.NoError(t, err)
				must.SliceContains(t, removed, c.ID)
			})
			t.Run("swept before there was a sandbox", func(t *testing.T) {
				dir := filepath.Join(h.StateDir, string(api.NewSandboxID()))
				must.NoError(t, os.Mkdir(dir, 0o700))
				must.NoError(t, l.Prepare(dir, disk.Limits{Bytes: 32 * mib}))
				_, err := sandbox.Sweep(t.Context(), h.StateDir, h.RunDir, h.Cgroups, func(api.SandboxID) bool { return false })
				must.NoError(t, err)
			})
			t.Run("failed", func(t *testing.T) {
				c := limited()
				c.Boot.Main = &guest.Start{Argv: []string{"/bin/nope"}}
				_, err := sandbox.Create(t.Context(), c)
				must.ErrorContains(t, err, "nope")
			})
			entries, err := os.ReadDir(h.StateDir)
			must.NoError(t, err)
			must.SliceEmpty(t, entries)
		})
	}
	c := h.Config()
	c.Limits.DiskBytes = 32 * mib
	_, err := sandbox.Create(t.Context(), c)
	must.ErrorContains(t, err, "disk limiter")
}

// TestCreate_smallQuotaHoldsAfterTheBoot reads the quota of a running sandbox from its group: while PID 1 boots it is larger.
func TestCreate_smallQuotaHoldsAfterTheBoot(t *testing.T) {
	h := sandboxtest.NewHost(t)
	for _, millis := range []int64{sandbox.MinCPUMillis, 50, 999, 1000, 1500} {
		c := h.Config()
		c.Limits.CPUMillis = millis
		s := h.Create(t, c)
		quota := strconv.FormatInt(millis*100, 10)
		want := quota + " 100000"
		if h.Cgroups.Version() == 1 {
			want = quota
		}
		must.Eq(t, want, groupFile(t, h, c.ID, "cpu/cpu.cfs_quota_us", "cpu.max"))
		must.Eq(t, millis < 1000, slices.ContainsFunc(s.Steps(), func(st guest.Step) bool { return st.Name == "quota" }))
	}
}
