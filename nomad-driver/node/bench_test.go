package node

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	prommetrics "github.com/soulbox-dev/soulbox/nomad-driver/metrics"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/store"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// Each benchmark measures a floor in the same run, with the same rhythm, and reports p50, p99 and the ratio of the medians.

// quantile returns the q-quantile of sorted durations in microseconds.
func quantile(d []time.Duration, q float64) float64 {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return float64(d[min(len(d)-1, int(float64(len(d))*q))].Nanoseconds()) / 1000
}

func report(b *testing.B, d, floor []time.Duration) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(quantile(d, .5), "p50-µs")
	b.ReportMetric(quantile(d, .99), "p99-µs")
	b.ReportMetric(quantile(floor, .5), "floor-p50-µs")
	b.ReportMetric(quantile(d, .5)/quantile(floor, .5), "x-floor")
}

// floorNamespaces is the kernel's own time for a process in namespaces as a sandbox has, from its start to its end.
func floorNamespaces(b *testing.B) time.Duration {
	b.Helper()
	d, err := sandboxtest.Floor()
	must.NoError(b, err)
	return d
}

// BenchmarkCreateNetwork is POST /v1/sandboxes by a node without the networks of sandboxes and by one with them, with and without
// checkpoints: one after the other in the same run, so that all meet the same machine.
func BenchmarkCreateNetwork(b *testing.B) {
	w := networktest.New(b)
	var daemons []*daemon
	var names []string
	for _, mode := range []string{"off", "on"} {
		for _, engine := range []string{"", "criu"} {
			args := []string{"-network", mode, "-criu", "/nonexistent"}
			if engine != "" {
				args[3] = sandboxtest.CRIU(b)
			}
			daemons, names = append(daemons, startDaemonIn(b, w.Host, args...)), append(names, strings.TrimSuffix(mode+"-"+engine, "-"))
		}
	}
	took := make([][]time.Duration, len(daemons))
	steps := make([][]time.Duration, len(daemons))
	for b.Loop() {
		for i, d := range daemons {
			req := createRequest()
			start := time.Now()
			sb, err := d.client.Create(b.Context(), req)
			took[i] = append(took[i], time.Since(start))
			must.NoError(b, err)
			for _, s := range sb.Steps {
				if s.Name == "network" {
					steps[i] = append(steps[i], time.Duration(s.Nanos))
				}
			}
			must.NoError(b, d.client.Delete(b.Context(), sb.ID))
		}
	}
	b.ReportMetric(0, "ns/op")
	for i, name := range names {
		b.ReportMetric(quantile(took[i], .5), name+"-p50-µs")
		b.ReportMetric(quantile(took[i], .99), name+"-p99-µs")
		if len(steps[i]) > 0 {
			b.ReportMetric(quantile(steps[i], .5), name+"-wait-p50-µs")
		}
	}
}

// BenchmarkCreate is POST /v1/sandboxes to the answer, its steps, and the DELETE of each after it.
func BenchmarkCreate(b *testing.B) {
	d := startDaemon(b)
	var create, destroy, floor, floorEnd []time.Duration
	steps := map[string][]time.Duration{}
	var names []string
	for b.Loop() {
		floor = append(floor, floorNamespaces(b))
		end, err := sandboxtest.FloorEnd()
		must.NoError(b, err)
		floorEnd = append(floorEnd, end)
		req := createRequest()
		start := time.Now()
		sb, err := d.client.Create(b.Context(), req)
		create = append(create, time.Since(start))
		must.NoError(b, err)
		for _, s := range sb.Steps {
			if steps[s.Name] == nil {
				names = append(names, s.Name)
			}
			steps[s.Name] = append(steps[s.Name], time.Duration(s.Nanos))
		}
		start = time.Now()
		must.NoError(b, d.client.Delete(b.Context(), sb.ID))
		destroy = append(destroy, time.Since(start))
	}
	report(b, create, floor)
	b.ReportMetric(quantile(destroy, .5), "destroy-p50-µs")
	b.ReportMetric(quantile(destroy, .99), "destroy-p99-µs")
	b.ReportMetric(quantile(floorEnd, .5), "destroy-floor-p50-µs")
	for i, name := range names { // numbered, since the testing package sorts them
		b.ReportMetric(quantile(steps[name], .5), fmt.Sprintf("step-%02d-%s-p50-µs", i, name))
		b.ReportMetric(quantile(steps[name], .99), fmt.Sprintf("step-%02d-%s-p99-µs", i, name))
	}
}

// BenchmarkExec is an exec of /bin/true over the node's socket, from the call to its exit code. The floor is the same
// program started on the host.
func BenchmarkExec(b *testing.B) {
	d := startDaemon(b)
	sb := d.create()
	var run, floor []time.Duration
	for b.Loop() {
		start := time.Now()
		must.NoError(b, exec.Command("/bin/true").Run())
		floor = append(floor, time.Since(start))
		start = time.Now()
		exit, err := d.client.Run(b.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"/bin/true"}}}, nil, nil, nil)
		run = append(run, time.Since(start))
		must.NoError(b, err)
		must.Eq(b, 0, exit.Code)
	}
	report(b, run, floor)
}

// BenchmarkHundred makes 100 sandboxes at once and reports how many a second on each core. The floor makes the same
// namespaces, also 100 at once.
func BenchmarkHundred(b *testing.B) {
	d := startDaemon(b)
	const count = 100
	var rates, floors []float64
	for b.Loop() {
		rates = append(rates, perCore(count, func(int) {
			_, err := d.client.Create(b.Context(), createRequest())
			must.NoError(b, err)
		}))
		list, err := d.client.List(b.Context())
		must.NoError(b, err)
		perCore(len(list), func(i int) { must.NoError(b, d.client.Delete(b.Context(), list[i].ID)) })
		floors = append(floors, perCore(count, func(int) { floorNamespaces(b) }))
	}
	slices.Sort(rates)
	slices.Sort(floors)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(rates[len(rates)/2], "creates/s/core")
	b.ReportMetric(rates[0], "worst-creates/s/core")
	b.ReportMetric(floors[len(floors)/2], "floor/s/core")
	b.ReportMetric(floors[len(floors)/2]/rates[len(rates)/2], "x-floor")
}

// perCore calls do n times, on 16 goroutines, and returns how many calls a second a core has done.
func perCore(n int, do func(i int)) float64 {
	var wg sync.WaitGroup
	next := make(chan int)
	start := time.Now()
	for range 16 {
		wg.Go(func() {
			for i := range next {
				do(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	return float64(n) / time.Since(start).Seconds() / float64(goruntime.NumCPU())
}

// BenchmarkIdleMemory reports what 50 idle sandboxes cost each: private memory of PID 1, and what the daemon grew by. The
// floor is the smallest Go program that waits.
func BenchmarkIdleMemory(b *testing.B) {
	d := startDaemon(b)
	const count = 50
	var each, grown, floors []float64
	for b.Loop() {
		floor := waiter(b)
		before := private(b, d.cmd.Process.Pid)
		var pids []int
		for range count {
			pids = append(pids, d.create().PID)
		}
		time.Sleep(1500 * time.Millisecond) // idle is what is measured
		total := 0
		for _, pid := range pids {
			total += private(b, pid)
		}
		each = append(each, float64(total)/count)
		grown = append(grown, float64(private(b, d.cmd.Process.Pid)-before)/count)
		floors = append(floors, floor)
		list, err := d.client.List(b.Context())
		must.NoError(b, err)
		for _, sb := range list {
			must.NoError(b, d.client.Delete(b.Context(), sb.ID))
		}
	}
	b.ReportMetric(0, "ns/op")
	slices.Sort(each)
	slices.Sort(floors)
	b.ReportMetric(each[len(each)/2], "init-private-KiB")
	b.ReportMetric(each[len(each)-1], "init-private-max-KiB")
	b.ReportMetric(grown[0], "daemon-growth-KiB") // the first time: later it uses again what it has
	b.ReportMetric(floors[len(floors)/2], "floor-KiB")
}

// waiter returns the private memory, in KiB, of a static Go program that does nothing but wait, while another of it runs, with
// which it shares what sandboxes share with each other.
func waiter(b *testing.B) float64 {
	b.Helper()
	dir := shortDir(b)
	src, bin := filepath.Join(dir, "main.go"), filepath.Join(dir, "waiter")
	code := "package main\n\nimport \"syscall\"\n\nfunc main() {\n\tprintln()\n\tsyscall.Read(0, make([]byte, 1))\n}\n"
	must.NoError(b, os.WriteFile(src, []byte(code), 0o600))
	must.NoError(b, sandboxtest.Build(bin, src))
	run := func() *exec.Cmd {
		cmd := exec.Command(bin)
		in, err := cmd.StdinPipe()
		must.NoError(b, err)
		out, err := cmd.StderrPipe()
		must.NoError(b, err)
		must.NoError(b, cmd.Start())
		b.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
		_, err = out.Read(make([]byte, 1)) // it runs
		must.NoError(b, err)
		return cmd
	}
	run()
	return float64(private(b, run().Process.Pid))
}

// private returns the private memory of a process in KiB.
func private(b *testing.B, pid int) int {
	b.Helper()
	n, err := sandboxtest.PrivateKiB(pid)
	must.NoError(b, err)
	return n
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

const transfer = 64 << 20

// BenchmarkFiles uploads and downloads 64 MiB and compares with a copy of as many bytes over a plain unix-socket HTTP
// server.
func BenchmarkFiles(b *testing.B) {
	d := startDaemon(b)
	sb := d.create()
	floorURL, floorClient := floorServer(b)
	var up, down, floor []time.Duration
	for b.Loop() {
		start := time.Now()
		_, err := d.client.WriteFile(b.Context(), sb.ID, "/home/user/big", io.LimitReader(zeros{}, transfer), nodeapi.FileOptions{})
		must.NoError(b, err)
		up = append(up, time.Since(start))
		start = time.Now()
		body, _, err := d.client.ReadFile(b.Context(), sb.ID, "/home/user/big", nodeapi.FileOptions{})
		must.NoError(b, err)
		n, err := io.Copy(io.Discard, body)
		must.NoError(b, err)
		must.Eq(b, transfer, n)
		must.NoError(b, body.Close())
		down = append(down, time.Since(start))
		start = time.Now()
		resp, err := floorClient.Get(floorURL)
		must.NoError(b, err)
		_, err = io.Copy(io.Discard, resp.Body)
		must.NoError(b, err)
		must.NoError(b, resp.Body.Close())
		floor = append(floor, time.Since(start))
	}
	b.ReportMetric(0, "ns/op")
	rate := func(d []time.Duration) float64 { return transfer / quantile(d, .5) } // bytes a µs: MB/s
	b.ReportMetric(rate(up), "up-MB/s")
	b.ReportMetric(rate(down), "down-MB/s")
	b.ReportMetric(rate(floor), "floor-MB/s")
	b.ReportMetric(100*rate(up)/rate(floor), "up-%")
	b.ReportMetric(100*rate(down)/rate(floor), "down-%")
}

func floorServer(b *testing.B) (string, *http.Client) {
	b.Helper()
	path := filepath.Join(shortDir(b), "s")
	l, err := net.Listen("unix", path)
	must.NoError(b, err)
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.CopyBuffer(w, io.LimitReader(zeros{}, transfer), make([]byte, 64<<10))
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	b.Cleanup(func() { _ = srv.Close(); <-done })
	return "http://floor/", &http.Client{Transport: &http.Transport{
		ReadBufferSize: 64 << 10, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
}

// BenchmarkSample takes samples of 500 real sandboxes, each with a process that waits and 50 files, and reports what share of
// a core they take at the default interval. It is this process's own time, the kernel's for it included. The floor is the kernel's own: the same
// files, open already, each read with one call.
func BenchmarkSample(b *testing.B) {
	sandboxtest.RequireRoot(b)
	dir := shortDir(b)
	parent := "soulbox-test-" + filepath.Base(dir)
	n, err := New(Config{
		StateDir: dir + "/s", RunDir: dir + "/r", InitPath: sandboxtest.Init(b), CgroupParent: parent, Version: "0.0.1",
		SampleInterval: time.Hour, SampleWindow: time.Hour, // this benchmark's calls only
	})
	must.NoError(b, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		must.NoError(b, <-done)
		removeGroups(parent)
	})
	_, err = n.templates.Import(b.Context(), "base", lowerTar(b), store.ImportOptions{})
	must.NoError(b, err)
	const wanted, patience = 500, time.Minute // fewer on a machine that is too slow, and the figure is scaled
	count := manyIdle(b, n, wanted, patience)
	n.cfg.SampleInterval = DefaultSampleInterval // for the share of looks at disks
	n.sampler.Sample()
	// A round is the readings, which grow with the sandboxes, and the looks at disks, which stop at their share of the time.
	scale := float64(wanted) / float64(count)
	files := sampledFiles(b, n, parent)
	var rounds, looks, floor []time.Duration
	buf := make([]byte, 8192)
	for b.Loop() {
		before := ownTime(b)
		for _, fd := range files {
			_, err := unix.Pread(fd, buf, 0)
			must.NoError(b, err)
		}
		floor = append(floor, time.Duration(scale*float64(ownTime(b)-before)))
		before = ownTime(b)
		n.targets()
		look := ownTime(b) - before
		before = ownTime(b)
		n.sampler.Sample()
		reading := max(ownTime(b)-before-look, 0)
		look = min(time.Duration(scale*float64(look)), DefaultSampleInterval/diskShare+diskLookTime)
		rounds, looks = append(rounds, time.Duration(scale*float64(reading))+look), append(looks, look)
	}
	b.ReportMetric(float64(count), "sandboxes")
	b.ReportMetric(float64(len(files)), "descriptors")
	share := 100 / float64(DefaultSampleInterval.Microseconds())
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(quantile(rounds, .5)*share, "p50-%")
	b.ReportMetric(quantile(rounds, .99)*share, "p99-%")
	b.ReportMetric(quantile(looks, .5)*share, "disk-p50-%")
	b.ReportMetric(quantile(floor, .5)*share, "floor-p50-%")
	b.ReportMetric(float64(n.cfg.SampleWindow/DefaultSampleInterval)*float64(unsafe.Sizeof(prommetrics.Sample{}))/1024, "window-KiB")
}

// sampledFiles opens the files that a round of samples reads.
func sampledFiles(b *testing.B, n *Node, parent string) (open []int) {
	b.Helper()
	var paths []string
	for _, name := range []string{
		"cpuacct/%s/*/cpuacct.usage", "memory/%s/*/memory.usage_in_bytes", "memory/%s/*/memory.stat", "pids/%s/*/pids.current",
		"blkio/%s/*/blkio.throttle.io_service_bytes", // version 1
		"%s/*/cpu.stat", "%s/*/memory.current", "%s/*/memory.stat", "%s/*/pids.current", "%s/*/io.stat", // version 2
	} {
		found, err := filepath.Glob("/sys/fs/cgroup/" + fmt.Sprintf(name, parent))
		must.NoError(b, err)
		paths = append(paths, found...)
	}
	for _, sb := range n.List() {
		paths = append(paths, fmt.Sprintf("/proc/%d/net/dev", sb.PID))
	}
	for _, path := range paths {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must.NoError(b, err)
		b.Cleanup(func() { must.NoError(b, unix.Close(fd)) })
		open = append(open, fd)
	}
	return open
}

// manyIdle makes sandboxes with a few files each, in which a shell waits, and returns how many there are after patience at most.
func manyIdle(b *testing.B, n *Node, wanted int, patience time.Duration) int {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	var begun, made atomic.Int64
	var wg sync.WaitGroup
	for range 2 * goruntime.NumCPU() {
		wg.Go(func() {
			for ctx.Err() == nil && begun.Add(1) <= int64(wanted) {
				req := createRequest()
				req.Main = &guest.Start{Argv: []string{"bash", "-c", "for i in $(seq 50); do echo $i > ~/$i; done; read"}, Stdin: true}
				sb, _, err := n.Create(b.Context(), req)
				if err != nil {
					b.Error(err)
					return
				}
				b.Cleanup(func() { must.NoError(b, n.Delete(context.Background(), sb.ID)) })
				last := filepath.Join(n.cfg.StateDir, "sandboxes", string(sb.ID), "upper/home/user/50")
				for _, err = os.Stat(last); err != nil && ctx.Err() == nil; _, err = os.Stat(last) {
					time.Sleep(5 * time.Millisecond) // it writes its files, and is idle after that
				}
				if err == nil {
					made.Add(1)
				}
			}
		})
	}
	wg.Wait()
	must.Positive(b, made.Load())
	return len(n.List())
}

// ownTime is the processor time of this process.
func ownTime(b *testing.B) time.Duration {
	b.Helper()
	var r unix.Rusage
	must.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &r))
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
