package node

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

func TestDiskLooks_takeTurnsWithinTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boxes := map[api.SandboxID]instance{}
		fakes := map[api.SandboxID]*fakeInstance{}
		for _, id := range []api.SandboxID{"a", "b", "c", "d"} {
			fakes[id] = &fakeInstance{lookTakes: 10 * time.Millisecond}
			boxes[id] = fakes[id]
		}
		looks := func() (n int) {
			for _, f := range fakes {
				n += f.looks
			}
			return n
		}
		var d diskLooks
		d.round(boxes, 15*time.Millisecond)
		must.Eq(t, 2, looks())
		time.Sleep(time.Second)
		d.round(boxes, 15*time.Millisecond)
		for id, f := range fakes {
			must.Eq(t, 1, f.looks, must.Sprint(id))
			must.Eq(t, 4096, d.last(id).usage.Bytes)
			must.True(t, d.last(id).exact)
		}
		d.round(boxes, 0)
		must.Eq(t, 5, looks(), must.Sprint("one at least"))

		d.count("b", disk.Usage{Bytes: 7})
		delete(boxes, "a")
		before := fakes["b"].looks
		for range 5 {
			time.Sleep(time.Second)
			d.round(boxes, time.Second)
		}
		must.Eq(t, before, fakes["b"].looks, must.Sprint("a limiter counts it"))
		must.Eq(t, 7, d.last("b").usage.Bytes)
		must.Eq(t, diskLook{}, d.last("a"), must.Sprint("it is gone"))
	})
}

func TestSamples_areOfTheirLimitsOrTheMachine(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	req := createRequest()
	req.Limits = nodeapi.Limits{CPUMillis: 500, MemoryBytes: 64 << 20}
	sb, err := n.client.Create(t.Context(), req)
	must.NoError(t, err)
	none, err := n.client.Samples(t.Context(), sb.ID, time.Time{}, time.Time{})
	must.NoError(t, err)
	must.SliceEmpty(t, none)

	inst := n.rt.instance(sb.ID)
	inst.mu.Lock()
	inst.usage = sandbox.Usage{
		Usage: cgroup.Usage{CPUNanos: 1e9, MemoryBytes: 5, MemoryCache: 6, PIDs: 3, DiskRead: 7, DiskWritten: 8}, NetIn: 9, NetOut: 10,
	}
	inst.mu.Unlock()
	n.sampler.Sample()
	all, err := n.client.Samples(t.Context(), sb.ID, time.Now().Add(-time.Minute), time.Now())
	must.NoError(t, err)
	must.Len(t, 1, all)
	size, _, err := diskSpace(n.cfg.StateDir)
	must.NoError(t, err)
	must.Eq(t, nodeapi.Sample{
		Time: all[0].Time, CPUNanos: 1e9, CPUMillis: 500, MemoryBytes: 5, MemoryCache: 6, MemoryTotal: 64 << 20,
		DiskRead: 7, DiskWritten: 8, DiskUsed: 4096, DiskTotal: uint64(size), NetIn: 9, NetOut: 10, Processes: 3,
	}, all[0])
	latest, err := n.client.Latest(t.Context(), []api.SandboxID{sb.ID, api.NewSandboxID()})
	must.NoError(t, err)
	must.Eq(t, map[api.SandboxID]nodeapi.Sample{sb.ID: all[0]}, latest)

	inst.mu.Lock()
	inst.usage.CPUNanos, inst.usage.Disk = 3e9, &disk.Usage{Bytes: 11, Limits: disk.Limits{Bytes: 12}}
	inst.mu.Unlock()
	n.sampler.Sample()
	latest, err = n.client.Latest(t.Context(), []api.SandboxID{sb.ID})
	must.NoError(t, err)
	must.Eq(t, 11, latest[sb.ID].DiskUsed)
	must.Eq(t, 12, latest[sb.ID].DiskTotal)
	must.Positive(t, latest[sb.ID].CPUPercent)
	text := n.prometheus(t)
	must.StrContains(t, text, "\nsoulbox_node_sandboxes_cpu_seconds_total 2\n")
	must.StrContains(t, text, "\nsoulbox_node_sandboxes_sampled 1\n")

	must.NoError(t, n.client.Delete(t.Context(), sb.ID))
	_, err = n.client.Samples(t.Context(), sb.ID, time.Time{}, time.Time{})
	must.True(t, api.IsNotFound(err))
	n.sampler.Sample()
	must.StrContains(t, n.prometheus(t), "\nsoulbox_node_sandboxes_sampled 0\n")
}

func TestSamples_badRequests(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	path := "/v1/sandboxes/" + string(sb.ID) + "/metrics"
	for _, tc := range []struct {
		path   string
		status int
		want   string
	}{
		{path + "?start=yesterday", http.StatusBadRequest, "start"},
		{path + "?end=5", http.StatusBadRequest, "end"},
		{path + "?start=2026-01-02T00:00:00Z&end=2026-01-01T00:00:00Z", http.StatusBadRequest, "before start"},
		{"/v1/sandboxes/" + string(api.NewSandboxID()) + "/metrics", http.StatusNotFound, ""},
		{"/v1/metrics/latest", http.StatusBadRequest, "ids"},
		{"/v1/metrics/latest?ids=../x", http.StatusBadRequest, "ids"},
		{"/v1/metrics/latest?ids=" + strings.Repeat("a,", nodeapi.MaxLatest), http.StatusBadRequest, "1001"},
	} {
		status, e := n.raw(t, http.MethodGet, tc.path, "")
		must.Eq(t, tc.status, status, must.Sprint(tc.path))
		must.StrContains(t, e.Message, tc.want)
	}
}

// prometheus returns what a Prometheus server would scrape.
func (n *testNode) prometheus(t *testing.T) string {
	t.Helper()
	w := &recorder{}
	must.NoError(t, n.getMetrics(w, nil))
	return w.String()
}

type recorder struct{ strings.Builder }

func (*recorder) Header() http.Header { return http.Header{} }
func (*recorder) WriteHeader(int)     {}

var _ io.Writer = (*recorder)(nil)

// A loaded sandbox on the real kernel: its samples say what the kernel's own files say.
func TestReal_samplesSayWhatTheKernelSays(t *testing.T) {
	config := filepath.Join(shortDir(t), "node.hcl")
	must.NoError(t, os.WriteFile(config, []byte("sample_interval = \"100ms\"\nsample_window = \"1m\"\n"), 0o600))
	d := startDaemon(t, "-config", config, "-network", "off")
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Limits = nodeapi.Limits{MemoryBytes: 256 << 20, CPUMillis: 1500} })
	upper := filepath.Join(d.dir, "s/sandboxes", string(sb.ID), "upper")

	host := "sbt" + strconv.Itoa(os.Getpid())
	wire := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: host}, PeerName: "eth0", PeerNamespace: netlink.NsPid(sb.PID)}
	must.NoError(t, netlink.LinkAdd(wire))
	t.Cleanup(func() { _ = netlink.LinkDel(wire) }) // it goes with the sandbox
	must.NoError(t, netlink.LinkSetUp(wire))
	must.NoError(t, exec.Command("nsenter", "-t", strconv.Itoa(sb.PID), "-n", "ip", "link", "set", "eth0", "up").Run())

	_, err := d.client.Start(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"bash", "-c", "while :; do :; done"}}})
	must.NoError(t, err)
	_, code := d.exec(sb, "bash", "-c", "mkdir ~/d && head -c 20000000 /dev/zero > ~/d/big && ln ~/d/big ~/second && for i in $(seq 100); do echo $i > ~/d/$i; done")
	must.Eq(t, 0, code)
	// Not every file system can; then nothing is read and written directly, and the kernel's file says so too.
	d.exec(sb, "bash", "-c", "dd if=/dev/zero of=$HOME/direct bs=1M count=3 oflag=direct; dd if=$HOME/direct of=/dev/null bs=1M iflag=direct")

	group := func(file string) string {
		paths, err := filepath.Glob("/sys/fs/cgroup/*/" + d.parent + "/" + string(sb.ID) + "/" + file)
		must.NoError(t, err)
		if len(paths) == 0 {
			paths = []string{"/sys/fs/cgroup/" + d.parent + "/" + string(sb.ID) + "/" + file}
		}
		b, err := os.ReadFile(paths[0])
		must.NoError(t, err)
		return string(b)
	}
	before := kernelView(t, group, host, upper)
	asked := time.Now()
	var s nodeapi.Sample
	waitUntil(t, "a sample that knows all of it", func() bool {
		latest, err := d.client.Latest(t.Context(), []api.SandboxID{sb.ID})
		must.NoError(t, err)
		s = latest[sb.ID]
		// A loop runs in it. On a busy machine it may not have had its turn since the sample before.
		return s.Time.After(asked.Add(time.Second)) && s.DiskUsed == before.disk && s.CPUPercent > 10
	})
	after := kernelView(t, group, host, upper)
	t.Logf("kernel before: %+v", before)
	t.Logf("sample:        %+v", s)
	t.Logf("kernel after:  %+v", after)

	between := func(what string, low, v, high uint64) {
		t.Helper()
		must.True(t, low <= v && v <= high, must.Sprintf("%s: %d is not between %d and %d", what, v, low, high))
	}
	between("cpu", before.cpu, s.CPUNanos, after.cpu)
	const batch = 1 << 20 // that the kernel charges at a time, on each core
	between("memory", min(before.memory, after.memory)-min(batch, before.memory), s.MemoryBytes, max(before.memory, after.memory)+batch)
	between("cache", min(before.cache, after.cache), s.MemoryCache, max(before.cache, after.cache))
	must.Eq(t, 256<<20, s.MemoryTotal)
	must.Eq(t, 1500, s.CPUMillis)
	if before.io != unknown {
		between("direct io", before.io, s.DiskRead+s.DiskWritten, after.io)
	}
	between("received", before.netIn, s.NetIn, after.netIn)
	between("sent", before.netOut, s.NetOut, after.netOut)
	between("processes", min(before.pids, after.pids), s.Processes, max(before.pids, after.pids))
	must.Eq(t, after.disk, s.DiskUsed)
	must.False(t, s.DiskPartial)
	must.Greater(t, 20_000_000, s.DiskUsed)

	all, err := d.client.Samples(t.Context(), sb.ID, asked, s.Time)
	must.NoError(t, err)
	must.SliceNotEmpty(t, all)
	must.Eq(t, s, all[len(all)-1])
	for i, one := range all {
		must.False(t, one.Time.Before(asked))
		if i > 0 {
			must.GreaterEq(t, all[i-1].CPUNanos, one.CPUNanos)
		}
	}
}

// kernel is what the kernel's files say, read by other means than the node's.
type kernel struct{ cpu, memory, cache, io, pids, netIn, netOut, disk uint64 }

// unknown marks what kernelView does not read.
const unknown = 1<<64 - 1

func kernelView(t *testing.T, group func(string) string, wire, upper string) kernel {
	t.Helper()
	number := func(s string) uint64 {
		t.Helper()
		n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 64)
		must.NoError(t, err)
		return n
	}
	file := func(path string) string {
		t.Helper()
		b, err := os.ReadFile(path)
		must.NoError(t, err)
		return string(b)
	}
	// field is a value of a table of lines "key value".
	field := func(table, key string) uint64 {
		t.Helper()
		for line := range strings.Lines(table) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == key {
				return number(f[1])
			}
		}
		t.Fatalf("no %s in %s", key, table)
		return 0
	}
	var k kernel
	m, err := cgroup.Detect("/sys/fs/cgroup", "any")
	must.NoError(t, err)
	if m.Version() == 1 {
		k.cpu, k.memory = number(group("cpuacct.usage")), number(group("memory.usage_in_bytes"))-field(group("memory.stat"), "total_inactive_file")
		k.cache = field(group("memory.stat"), "total_cache")
		k.io = field(group("blkio.throttle.io_service_bytes"), "Total")
	} else {
		k.cpu, k.memory = field(group("cpu.stat"), "usage_usec")*1000, number(group("memory.current"))-field(group("memory.stat"), "inactive_file")
		k.cache = field(group("memory.stat"), "file")
		k.io = unknown // io.stat is a line of pairs, which its parser's test covers
	}
	k.pids = number(group("pids.current"))
	// The other end of the wire has sent what this one has received.
	k.netIn, k.netOut = number(file("/sys/class/net/"+wire+"/statistics/tx_bytes")), number(file("/sys/class/net/"+wire+"/statistics/rx_bytes"))
	out, err := exec.Command("du", "-s", "--block-size=512", upper).Output()
	must.NoError(t, err)
	own, err := exec.Command("stat", "-c", "%b", upper).Output()
	must.NoError(t, err)
	blocks, _, _ := strings.Cut(string(out), "\t")
	k.disk = (number(blocks) - number(string(own))) * 512
	return k
}
