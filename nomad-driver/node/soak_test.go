package node

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
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
	const warm = 100 // pools, caches and connections are there afterwards
	d.lives(t, warm)
	before := d.holdings(t)
	t.Logf("after %6d: %s", warm, before)
	begin := time.Now()
	for done := warm; done < *soak; {
		n := min(1000, *soak-done)
		d.lives(t, n)
		done += n
		d.noLeftovers()
		t.Logf("after %6d: %s, %.0f a second", done, d.holdings(t), float64(done-warm)/time.Since(begin).Seconds())
	}
	var after holdings
	deadline := time.Now().Add(30 * time.Second)
	for {
		after = d.holdings(t)
		if !after.more(before) || time.Now().After(deadline) {
			break
		}
		time.Sleep(100 * time.Millisecond) // what the kernel ends in the background
	}
	t.Logf("at the end:   %s", after)
	must.False(t, after.more(before), must.Sprintf("before: %s\nafter:  %s", before, after))
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

// holdings are what a daemon and its machine hold.
type holdings struct {
	files, threads, privateKiB            int // of the daemon
	cgroups, memcgs, mounts, procs, slabs int // of the machine; memcgs counts dying ones too, slabs are MiB
}

func (h holdings) String() string {
	return fmt.Sprintf("daemon %d files, %d threads, %d KiB; machine %d groups (%d of memory, dying ones too), %d mounts, %d processes, %d MiB of slabs",
		h.files, h.threads, h.privateKiB, h.cgroups, h.memcgs, h.mounts, h.procs, h.slabs)
}

// more reports whether h holds more of what must not grow. Others work on the machine: its own figures are for the reader,
// except those that belong to this test.
func (h holdings) more(before holdings) bool {
	const files, threads, kib = 8, 8, 16 << 10 // a pool's, the runtime's, the collector's leeway
	return h.files > before.files+files || h.threads > before.threads+threads || h.privateKiB > before.privateKiB+kib ||
		h.cgroups > before.cgroups || h.mounts > before.mounts
}

func (d *daemon) holdings(t *testing.T) holdings {
	t.Helper()
	pid := d.cmd.Process.Pid
	glob := func(pattern string) []string {
		t.Helper()
		paths, err := filepath.Glob(pattern)
		must.NoError(t, err)
		return paths
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
	proc := "/proc/" + strconv.Itoa(pid)
	return holdings{
		files: len(glob(proc + "/fd/*")), threads: len(glob(proc + "/task/*")), privateKiB: private,
		cgroups: len(glob("/sys/fs/cgroup/*/"+d.parent+"/*/cgroup.procs")) + len(glob("/sys/fs/cgroup/"+d.parent+"/*/cgroup.procs")),
		memcgs:  column(read("/proc/cgroups"), "memory", 2),
		mounts:  strings.Count(read("/proc/self/mountinfo"), d.dir),
		procs:   len(glob("/proc/[0-9]*")), slabs: column(read("/proc/meminfo"), "Slab:", 1) >> 10,
	}
}
