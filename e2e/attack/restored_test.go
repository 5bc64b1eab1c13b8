package attack

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/pager"
	"github.com/soulbox-dev/soulbox/nomad-driver/node"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// TestRestored does what TestKernel does, in sandboxes before and after a checkpoint: what held must hold.
func TestRestored(t *testing.T) {
	criu := sandboxtest.CRIU(t)
	a := newArena(t, func(c *node.Config) { c.CRIUPath = criu })
	t.Run("S10", func(t *testing.T) {
		j := a.judge(t, "S10", "the kernel's surface after a checkpoint is what it was before")
		defer j.end()
		for _, p := range profiles {
			sb := a.create(t, profile(p))
			surface := func() []string {
				answers := []string{"cgroup " + a.ok(t, sb.ID, "root", "cat", "/proc/self/cgroup")}
				for _, id := range []string{"K01", "K02", "K03", "K04", "K05", "K06", "K07", "K08", "K09", "K10", "K11", "K13", "K14", "K18", "K19", "F07", "F08", "F09"} {
					// A restored PID 1 is in the Landlock domain of the others: what refuses its death is that it is an init.
					out := strings.ReplaceAll(a.ok(t, sb.ID, "root", "intruder", id), "\tstill here\n", "\tEPERM\n")
					for line := range strings.Lines(out) {
						answers = append(answers, id+" "+line)
					}
				}
				return answers
			}
			before := surface()
			a.toDiskAndBack(t, sb.ID)
			after := surface()
			must.Len(t, len(before), after)
			closed := 0
			for i := range after {
				// The memory of a restored PID 1 belongs to the host's user namespace: more of its /proc entries are closed.
				if strings.HasPrefix(before[i], "K14") && before[i] != after[i] {
					must.StrHasSuffix(t, "\tEACCES\n", after[i])
					closed++
					continue
				}
				must.Eq(t, before[i], after[i])
			}
			j.inside(p, fmt.Sprintf("%d attempts again after a checkpoint", len(before)), fmt.Sprintf("as before, or refused (%d)", closed))
			a.destroy(t, sb.ID)
		}
	})
	t.Run("S12", func(t *testing.T) {
		j := a.judge(t, "S12", "against who brings memory after a restore, while it comes")
		defer j.end()
		if err := pager.Probe(); err != nil {
			t.Skipf("memory does not come later on this kernel: %v", err)
		}
		// 96 MiB of it: three times what has to be there for memory to come later.
		const mib = 3 * checkpoint.LazyLeast >> 20
		holds := func(id api.SandboxID, round int) {
			a.ok(t, id, "user", "/bin/bash", "-c", waitFor("/tmp/holds."+strconv.Itoa(round)))
		}
		hoarder := func(memory int64, more ...string) api.SandboxID {
			sb := a.create(t, func(r *nodeapi.CreateRequest) { r.Limits.MemoryBytes = memory })
			a.start(t, sb.ID, "user", append([]string{"intruder", "restored", strconv.Itoa(mib)}, more...)...)
			holds(sb.ID, 1)
			return sb.ID
		}

		id := hoarder(512 << 20)
		for round := 1; round <= 3; round++ {
			holds(id, round)
			a.toDiskAndBack(t, id)
			said := a.ok(t, id, "user", "/bin/bash", "-c", waitFor("/tmp/said."+strconv.Itoa(round))+"; cat /tmp/said."+strconv.Itoa(round))
			pages := mib << 20 / os.Getpagesize()
			j.inside("default", fmt.Sprintf("fork, discard, move, unmap and close %d MiB", mib), said)
			must.Eq(t, fmt.Sprintf("wrong 0, whole copies 20 of 20, moved %d of %[1]d, errors 0, userfaultfds 0", pages/8), strings.TrimSpace(said))
			a.healthy(t, j, "memory that comes later")
			used := a.stats(t, id).MemoryBytes
			j.host(used > mib<<20/2 && used < 512<<20, "what came is counted as the sandbox's own: %d MiB", used>>20)
			a.ok(t, id, "user", "touch", "/tmp/next."+strconv.Itoa(round))
			a.noServer(t, j, id)
		}
		a.ends(t, j, id)

		id = hoarder(512 << 20)
		a.toDiskAndBack(t, id)
		j.inside("default", "is destroyed while memory comes", "destroyed")
		a.ends(t, j, id)
		a.noServer(t, j, id)

		id = hoarder(160<<20, "grow")
		a.toDiskAndBack(t, id)
		var got nodeapi.Sandbox
		until(t, "the sandbox to end", func() bool {
			var err error
			got, err = a.node.Get(t.Context(), id)
			must.NoError(t, err)
			return got.State == nodeapi.StateStopped
		})
		j.inside("default", fmt.Sprintf("%d MiB more than its limit while memory comes", 2*mib-160), fmt.Sprintf("%+v", *got.Exit))
		j.host(got.Exit.OOM, "it ended for want of memory, and nobody else did")
		a.healthy(t, j, "no memory left")
		a.noServer(t, j, id)
		a.ends(t, j, id)
	})
}

// toDiskAndBack takes a sandbox through a checkpoint. Where it has much memory that is still on its way when this returns.
func (a *arena) toDiskAndBack(t *testing.T, id api.SandboxID) {
	t.Helper()
	_, err := a.node.Pause(t.Context(), id, nodeapi.PauseRequest{Depth: nodeapi.DepthCheckpointed, Wait: true})
	must.NoError(t, err)
	_, err = a.node.Resume(t.Context(), id, nodeapi.ResumeRequest{})
	must.NoError(t, err)
}

// waitFor is a shell's wait for a file.
func waitFor(path string) string {
	return "for i in $(seq 3000); do [ -e " + path + " ] && break; sleep 0.02; done; [ -e " + path + " ]"
}

// noServer waits for the end of what brings a sandbox's memory, and of its images.
func (a *arena) noServer(t *testing.T, j *judgement, id api.SandboxID) {
	t.Helper()
	until(t, "the images to go", func() bool {
		_, err := os.Stat(filepath.Join(a.dir, "s/checkpoints", string(id)))
		return os.IsNotExist(err)
	})
	until(t, "the page server to end", func() bool { return len(a.pageServers(t)) == 0 })
	j.host(true, "its page server and its images are gone")
}

// pageServers are those that the node of this process has started.
func (a *arena) pageServers(t *testing.T) (pids []int) {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*")
	must.NoError(t, err)
	for _, dir := range procs {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !slices.Contains(strings.Split(string(line), "\x00"), checkpoint.PagesArg) {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue // it has ended
		}
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		pid, err := strconv.Atoi(filepath.Base(dir))
		must.NoError(t, err)
		if f[1] == strconv.Itoa(os.Getpid()) {
			pids = append(pids, pid)
		}
	}
	return pids
}
