package node

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/google/nftables"
	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/network"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

var soak = flag.Int("soak", 0, "how many sandboxes TestSoak creates and destroys; 0 leaves it out")

// TestSoak creates and destroys sandboxes of every kind of end, many at a time, and looks at what the daemon and the machine
// have more than after the first hundred.
func TestSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("opt in with -soak N, or make soak N=10000")
	}
	must.GreaterEq(t, 200, *soak, must.Sprint("-soak"))
	config := filepath.Join(shortDir(t), "node.hcl")
	must.NoError(t, os.WriteFile(config, []byte("sample_interval = \"200ms\"\nsample_window = \"1m\"\n"), 0o600))
	d := startDaemon(t, "-config", config)
	warm := min(1100, *soak/10) // pools, caches and connections are there afterwards, and of a long run the events that a node keeps
	d.lives(t, warm)
	before := d.holdings(t)
	begin := time.Now()
	for done := warm; done < *soak; {
		n := min(250, *soak-done)
		d.lives(t, n)
		done += n
		d.noLeftovers()
		t.Logf("after %6d, %.0f a second:%s", done, float64(done-warm)/time.Since(begin).Seconds(), compared(before, d.holdings(t)))
	}
	after := d.holdings(t)
	for deadline := time.Now().Add(30 * time.Second); len(grown(before, after)) > 0 && time.Now().Before(deadline); after = d.holdings(t) {
		time.Sleep(100 * time.Millisecond) // what the kernel ends in the background
	}
	t.Logf("at the end:%s", compared(before, after))
	must.SliceEmpty(t, grown(before, after))
}

// lives makes n sandboxes, 2 a core at a time, and ends each in another way.
func (d *daemon) lives(t *testing.T, n int) {
	t.Helper()
	var wg sync.WaitGroup
	next := make(chan int)
	errs := make(chan error, 2*goruntime.NumCPU())
	for range cap(errs) {
		wg.Go(func() {
			for i := range next {
				if err := d.life(t.Context(), i); err != nil {
					select {
					case errs <- fmt.Errorf("sandbox %d: %w", i, err):
					default:
					}
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
}

func (d *daemon) life(ctx context.Context, i int) error {
	req := createRequest()
	req.User = "user"
	req.Limits = nodeapi.Limits{MemoryBytes: 64 << 20, PIDs: 64}
	switch i % 5 {
	case 1:
		req.Main = &guest.Start{Argv: []string{"bash", "-c", "sleep 1000 & sleep 1000 & trap '' TERM; wait"}}
	case 2:
		req.Main = &guest.Start{Argv: []string{"bash", "-c", "exit 3"}}
	}
	sb, err := d.client.Create(ctx, req)
	if err != nil {
		return err
	}
	switch i % 5 {
	case 0:
		_, err = d.client.Run(ctx, sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"bash", "-c", "echo x > ~/file; (sleep 100 &)"}}}, nil, nil, nil)
	case 2:
		_, err = d.client.Wait(ctx, sb.ID)
	case 3:
		if _, err = d.client.SetDeadline(ctx, sb.ID, time.Now().Add(20*time.Millisecond)); err == nil {
			_, err = d.client.Wait(ctx, sb.ID)
		}
	case 4:
		_, err = d.client.Stop(ctx, sb.ID, nodeapi.StopRequest{Timeout: time.Second})
	}
	if err != nil {
		return err
	}
	return d.client.Delete(ctx, sb.ID)
}

// A holding is one thing that a daemon or its machine has a number of.
type holding struct {
	name string
	n    int
	// leeway is how much more of it is no leak: a pool's, the runtime's, the collector's. Others work on the machine: where a figure is all of
	// theirs too, it is for the reader, and has none.
	leeway int
	others bool
}

func (d *daemon) holdings(t *testing.T) []holding {
	t.Helper()
	pid := d.cmd.Process.Pid
	proc := "/proc/" + strconv.Itoa(pid)
	glob := func(patterns ...string) (n int) {
		t.Helper()
		for _, pattern := range patterns {
			paths, err := filepath.Glob(pattern)
			must.NoError(t, err)
			n += len(paths)
		}
		return n
	}
	read := func(path string) string {
		t.Helper()
		b, err := os.ReadFile(path)
		must.NoError(t, err)
		return string(b)
	}
	// column is a number in the line that begins with a word, 0 where there is none.
	column := func(text, word string, n int) int {
		for line := range strings.Lines(text) {
			if f := strings.Fields(line); len(f) > n && f[0] == word {
				v, err := strconv.Atoi(f[n])
				must.NoError(t, err)
				return v
			}
		}
		return 0
	}
	private, err := sandboxtest.PrivateKiB(pid)
	must.NoError(t, err)
	owner := network.OwnerOf(d.dir + "/s")
	return []holding{
		{"files of the daemon", glob(proc + "/fd/*"), 8, false},
		{"  of which network namespaces", namespacesOpen(t, proc), 8, false},
		{"threads of the daemon", glob(proc + "/task/*"), 8, false},
		{"goroutines of the daemon", column(d.prometheus(t), "soulbox_node_runtime_num_goroutines", 1), 16, false},
		{"private memory of the daemon, KiB", private, 16 << 10, false},
		{"resident memory of the daemon, KiB", column(read(proc+"/status"), "VmRSS:", 1), 16 << 10, false},
		{"folders of sandboxes", glob(d.dir+"/s/sandboxes/*", d.dir+"/r/sandboxes/*"), 0, false},
		{"control groups", glob("/sys/fs/cgroup/*/"+d.parent+"/*/cgroup.procs", "/sys/fs/cgroup/"+d.parent+"/*/cgroup.procs"), 0, false},
		{"ranges of ids", column(d.prometheus(t), "soulbox_node_id_ranges", 1), 0, false},
		{"mounts", strings.Count(read("/proc/self/mountinfo"), d.dir), 0, false},
		{"links", linksOf(t, "sb"+owner), 8, false},
		{"addresses of lo", addressesOfLo(t), 0, true},
		{"nftables tables", tablesOf(t, "soulbox-"+owner), 0, false},
		{"control groups of memory, dying ones too", column(read("/proc/cgroups"), "memory", 2), 0, true},
		{"processes", glob("/proc/[0-9]*"), 0, true},
		{"slabs of the kernel, MiB", column(read("/proc/meminfo"), "Slab:", 1) >> 10, 0, true},
	}
}

// grown lists what there is more of than before.
func grown(before, after []holding) (names []string) {
	for i, h := range after {
		if !h.others && h.n > before[i].n+h.leeway {
			names = append(names, strings.TrimSpace(h.name))
		}
	}
	return names
}

// compared shows two looks beside each other.
func compared(before, after []holding) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\n\tbefore\tafter\tmore is a leak from")
	for i, h := range after {
		bound := strconv.Itoa(h.leeway + 1)
		if h.others {
			bound = "- (others' too)"
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\n", h.name, before[i].n, h.n, bound)
	}
	_ = w.Flush() // into memory
	return b.String()
}

// prometheus returns what a Prometheus server would scrape.
func (d *daemon) prometheus(t *testing.T) string {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", d.dir+"/r/node.sock")
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://node/v1/metrics")
	must.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	return string(b)
}

// namespacesOpen counts the namespaces among a process's descriptors.
func namespacesOpen(t *testing.T, proc string) (n int) {
	t.Helper()
	entries, err := os.ReadDir(proc + "/fd")
	must.NoError(t, err)
	for _, e := range entries {
		if link, err := os.Readlink(proc + "/fd/" + e.Name()); err == nil && strings.HasPrefix(link, "net:") {
			n++
		}
	}
	return n
}

func linksOf(t *testing.T, prefix string) (n int) {
	t.Helper()
	links, err := netlink.LinkList()
	if !errors.Is(err, netlink.ErrDumpInterrupted) { // others make links meanwhile
		must.NoError(t, err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, prefix) {
			n++
		}
	}
	return n
}

func addressesOfLo(t *testing.T) int {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	must.NoError(t, err)
	list, err := netlink.AddrList(lo, unix.AF_INET)
	must.NoError(t, err)
	return len(list)
}

func tablesOf(t *testing.T, name string) (n int) {
	t.Helper()
	c, err := nftables.New()
	must.NoError(t, err)
	list, err := c.ListTables()
	if err != nil {
		t.Log("tables are not looked at: ", err)
		return 0
	}
	for _, table := range list {
		if table.Name == name {
			n++
		}
	}
	return n
}
