package node

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// confinedTo returns the cores that the kernel has a sandbox on; nil: all.
func (d *daemon) confinedTo(id api.SandboxID) []int {
	d.t.Helper()
	tree, err := cgroup.Detect("/sys/fs/cgroup", d.parent)
	must.NoError(d.t, err)
	g, err := tree.Open(string(id))
	must.NoError(d.t, err)
	cores, err := g.Confined()
	must.NoError(d.t, err)
	return cores
}

// strainingSandbox starts one that fills its page cache again and again while the file go is there.
func (d *daemon) strainingSandbox() nodeapi.Sandbox {
	d.t.Helper()
	sb := d.create(func(r *nodeapi.CreateRequest) {
		r.Limits = nodeapi.Limits{CPUMillis: 1000, MemoryBytes: 64 << 20}
		r.Main = &guest.Start{Argv: []string{"bash", "-c", "cd /home/user; touch go; while :; do while [ -e go ]; do dd if=/dev/zero of=f bs=1M count=256; done 2>/dev/null; sleep 0.05; done"}}
	})
	waitUntil(d.t, "confinement", func() bool { return d.confinedTo(sb.ID) != nil })
	return sb
}

func (d *daemon) relax(sb nodeapi.Sandbox) {
	d.t.Helper()
	_, code := d.exec(sb, "rm", "/home/user/go")
	must.Eq(d.t, 0, code)
}

func confinementTest(t *testing.T) (all []int) {
	t.Helper()
	sandboxtest.RequireRoot(t)
	tree, err := cgroup.Detect("/sys/fs/cgroup", "soulbox-test-cores")
	must.NoError(t, err)
	all, err = tree.Cores()
	if errors.Is(err, cgroup.ErrUnsupported) {
		t.Skip(err)
	}
	must.NoError(t, err)
	if len(all) < 2 {
		t.Skip("one core: there is nothing to confine to")
	}
	return all
}

func TestReal_aStrainedSandboxIsConfined(t *testing.T) {
	all := confinementTest(t)
	d := startDaemon(t)
	calm := d.create()
	sb := d.strainingSandbox()
	last := all[len(all)-1]
	must.Eq(t, []int{last}, d.confinedTo(sb.ID))
	must.Nil(t, d.confinedTo(calm.ID))
	// Also what starts in it now, which sees no more of its group than before.
	out, _ := d.exec(sb, "bash", "-c", "grep Cpus_allowed_list /proc/self/status; cat /proc/self/cgroup")
	must.StrContains(t, out, "Cpus_allowed_list:\t"+strconv.Itoa(last)+"\n")
	for line := range strings.Lines(out) {
		if i := strings.LastIndexByte(line, ':'); strings.Count(line, ":") == 2 {
			must.Eq(t, "/\n", line[i+1:])
		}
	}
	book, err := d.client.Logbook(t.Context(), sb.ID, nodeapi.LogQuery{})
	must.NoError(t, err)
	said := ""
	for _, e := range book {
		if e.Fields["memory_limit_bytes"] == strconv.Itoa(64<<20) {
			said = e.Message
		}
	}
	must.StrContains(t, said, "kept on 1 of "+strconv.Itoa(len(all))+" cores")
	text := d.prometheus(t)
	must.StrContains(t, text, "soulbox_node_confined 1\n")
	must.StrContains(t, text, "soulbox_node_confinements 1\n")

	// Nobody is there to see the end of the strain; the next daemon does.
	d.kill()
	must.Eq(t, []int{last}, d.confinedTo(sb.ID))
	d.start()
	d.relax(sb)
	waitUntil(t, "the end of it", func() bool { return d.confinedTo(sb.ID) == nil })
	out, _ = d.exec(sb, "grep", "Cpus_allowed_list", "/proc/self/status")
	must.StrNotContains(t, out, "Cpus_allowed_list:\t"+strconv.Itoa(last)+"\n")
	must.StrContains(t, d.prometheus(t), "soulbox_node_confined 0\n")
}

func TestReal_confinementIsSwitchedOff(t *testing.T) {
	confinementTest(t)
	d := startDaemon(t)
	sb := d.strainingSandbox()
	d.kill()
	config := filepath.Join(d.dir, "node.hcl")
	must.NoError(t, os.WriteFile(config, []byte("confine = \"off\"\n"), 0o600))
	d.args = []string{"-config", config}
	d.start()
	waitUntil(t, "the end of the confinement", func() bool { return d.confinedTo(sb.ID) == nil })
}

func TestReal_aConfinedSandboxIsCheckpointed(t *testing.T) {
	confinementTest(t)
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t))
	sb := d.strainingSandbox()
	d.relax(sb)
	must.NotNil(t, d.confinedTo(sb.ID))
	_, err := d.client.Pause(t.Context(), sb.ID, pauseTo(nodeapi.DepthCheckpointed))
	must.NoError(t, err)
	d.noGroups()
	_, err = d.client.Resume(t.Context(), sb.ID, nodeapi.ResumeRequest{})
	must.NoError(t, err)
	must.Nil(t, d.confinedTo(sb.ID))
	_, code := d.exec(sb, "touch", "/home/user/go")
	must.Eq(t, 0, code)
	waitUntil(t, "its confinement again", func() bool { return d.confinedTo(sb.ID) != nil })
}

// noGroups looks for control groups of sandboxes.
func (d *daemon) noGroups() {
	d.t.Helper()
	tree, err := cgroup.Detect("/sys/fs/cgroup", d.parent)
	must.NoError(d.t, err)
	names, err := tree.List()
	must.NoError(d.t, err)
	must.SliceEmpty(d.t, names)
}
