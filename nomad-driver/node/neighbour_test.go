package node

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// An attack runs in one sandbox, to harm its neighbour.
type attack struct {
	name, script string
	// seen checks that the kernel has stopped it where it should, and that the API says so.
	seen func(nodeapi.Stats) bool
}

var attacks = []attack{
	{"fork", `bomb() { bomb | bomb & }; while :; do bomb; done`, func(s nodeapi.Stats) bool { return s.ForksDenied > 0 }},
	{"memory", `while :; do bash -c 'x=x; while :; do x=$x$x; done'; done`, func(s nodeapi.Stats) bool { return s.OOMKills > 0 }},
	{"disk", `while :; do dd if=/dev/zero of=$HOME/big bs=1M count=256 conv=fsync; done`, nil},
	{"inodes", `cd; for d in $(seq 100); do mkdir $d; for f in $(seq 500); do : > $d/$f; done; done; while :; do :; done`, nil},
	{"descriptors", `exec $HOME/bomb`, nil},
	{"deaf", `trap '' $(seq 1 64); while :; do :; done`, nil},
}

// only chooses one attack, for a profile of the machine under it: go test -run=^$ -bench=Neighbour -benchtime=1x -attack=descriptors,
// with perf record -a -g beside it.
var only = flag.String("attack", "", "the one attack of BenchmarkNeighbour to wage")

// confine has the daemon leave attackers on all cores, for a look at what confinement is worth.
var confine = flag.String("confine", ConfineAuto, "the setting confine of the daemon of BenchmarkNeighbour")

const (
	neighbourExecs = 900
	// Between the starts of two execs is at least neighbourRhythm, and neighbourPause times what one takes on this machine: a neighbour that works,
	// not one that floods, and not one that waits for its own quota of the processor.
	neighbourRhythm = 10 * time.Millisecond
	neighbourPause  = 4
)

// BenchmarkNeighbour attacks from one sandbox and measures execs in another: before and after the attack, which is idle, and
// under it. It reports p99s and their ratio, the slowest answer of the daemon meanwhile, and how long the slowest destroy of an
// attacker took. The floor is the same attack on a program in a control group of the same limits, without SoulBox, right after it. Each round has
// hundreds of execs of its own; a p99 of several rounds is one of all of them together.
func BenchmarkNeighbour(b *testing.B) {
	config := filepath.Join(shortDir(b), "node.hcl")
	must.NoError(b, os.WriteFile(config, []byte("confine = \""+*confine+"\"\n"), 0o600))
	d := startDaemon(b, "-config", config)
	bomb := filepath.Join(shortDir(b), "bomb")
	must.NoError(b, sandboxtest.Build(bomb, "./testdata/bomb/main.go"))
	program, err := os.ReadFile(bomb)
	must.NoError(b, err)
	neighbour := d.create(func(r *nodeapi.CreateRequest) { r.Limits = neighbourLimits })
	plain := newPlainGround(b, program)
	times := map[string]*neighbourTimes{}
	for b.Loop() {
		for _, a := range attacks {
			if *only != "" && a.name != *only {
				continue
			}
			t := times[a.name]
			if t == nil {
				t = &neighbourTimes{}
				times[a.name] = t
			}
			a.measure(b, d, neighbour, program, t)
			idle, attacked := plain.measure(b, a)
			t.floorIdle, t.floorAttacked = append(t.floorIdle, idle...), append(t.floorAttacked, attacked...)
		}
	}
	b.ReportMetric(0, "ns/op")
	for name, t := range times {
		t.report(b, name)
	}
}

// neighbourTimes are what all rounds of one attack came to.
type neighbourTimes struct {
	idle, attacked, floorIdle, floorAttacked []time.Duration
	slowest, destroy                         time.Duration
	ends                                     int64
	throttled                                uint64
}

func (t *neighbourTimes) report(b *testing.B, name string) {
	b.ReportMetric(quantile(t.idle, .5), name+"-idle-p50-µs")
	b.ReportMetric(quantile(t.idle, .99), name+"-idle-p99-µs")
	b.ReportMetric(quantile(t.attacked, .5), name+"-p50-µs")
	b.ReportMetric(quantile(t.attacked, .99), name+"-p99-µs")
	b.ReportMetric(quantile(t.attacked, .99)/quantile(t.idle, .99), name+"-x-idle")
	b.ReportMetric(quantile(t.floorIdle, .99), name+"-floor-idle-p99-µs")
	b.ReportMetric(quantile(t.floorAttacked, .99), name+"-floor-p99-µs")
	b.ReportMetric(quantile(t.floorAttacked, .99)/quantile(t.floorIdle, .99), name+"-floor-x-idle")
	b.ReportMetric(float64(t.slowest.Microseconds()), name+"-node-slowest-µs")
	b.ReportMetric(float64(t.destroy.Microseconds()), name+"-destroy-µs")
	b.ReportMetric(float64(t.ends), name+"-ends")
	b.ReportMetric(float64(t.throttled), name+"-throttled")
}

var neighbourLimits = nodeapi.Limits{CPUMillis: 1000, MemoryBytes: 256 << 20, PIDs: 256}

func (a attack) measure(b *testing.B, d *daemon, neighbour nodeapi.Sandbox, bomb []byte, t *neighbourTimes) {
	b.Helper()
	rhythm := d.rhythm(b, neighbour)
	throttled := d.throttled(b, neighbour)
	idle, _ := d.execs(b, neighbour, neighbourExecs/2, rhythm)
	w := a.wage(b, d, bomb)
	// It is under way when the kernel has stopped it once, or where that shows nowhere, after a second.
	begin := time.Now()
	waitUntil(b, "effect of the attack "+a.name, func() bool {
		if a.seen == nil || w.ends.Load() > 0 {
			return time.Since(begin) > time.Second
		}
		id, _ := w.current.Load().(api.SandboxID)
		s, err := d.client.Stats(b.Context(), id) // fails between two attackers
		return err == nil && a.seen(s)
	})
	attacked, slowest := d.execs(b, neighbour, neighbourExecs, rhythm)
	must.NoError(b, exec.Command("/bin/true").Run()) // the host has processes, memory and descriptors left
	destroy := w.stop(b)
	after, _ := d.execs(b, neighbour, neighbourExecs/2, rhythm)
	t.idle, t.attacked = append(append(t.idle, idle...), after...), append(t.attacked, attacked...)
	t.slowest, t.destroy = max(t.slowest, slowest), max(t.destroy, destroy)
	t.ends += w.ends.Load()
	t.throttled += d.throttled(b, neighbour) - throttled
}

// war is an attack that does not stop when the kernel ends an attacker for lack of memory: the next one takes its place.
type war struct {
	current atomic.Value // api.SandboxID of the attacker
	ends    atomic.Int64 // attackers that the kernel has ended
	cancel  context.CancelFunc
	done    chan error
	destroy time.Duration // of the last attacker; set before done
}

func (a attack) wage(b *testing.B, d *daemon, bomb []byte) *war {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	w := &war{cancel: cancel, done: make(chan error, 1)}
	go func() {
		for {
			if err := w.attack(ctx, a, d, bomb); err != nil || ctx.Err() != nil {
				w.done <- err
				return
			}
		}
	}()
	return w
}

// attack is the life of one attacker, which is destroyed where ctx ends before it has ended.
func (w *war) attack(ctx context.Context, a attack, d *daemon, bomb []byte) error {
	whole := context.WithoutCancel(ctx)
	req := createRequest()
	req.User, req.Limits = "user", neighbourLimits
	sb, err := d.client.Create(whole, req)
	if err != nil {
		return err
	}
	w.current.Store(sb.ID)
	_, err = d.client.WriteFile(whole, sb.ID, "/home/user/bomb", bytes.NewReader(bomb), nodeapi.FileOptions{Mode: 0o755})
	if err == nil {
		_, err = d.client.Start(whole, sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"/bin/bash", "-c", a.script}}})
	}
	if err != nil {
		return err
	}
	if ended, err := d.client.Wait(ctx, sb.ID); err == nil {
		w.ends.Add(1)
		if ended.Exit == nil || !ended.Exit.OOM {
			return fmt.Errorf("the attacker has ended by itself, and not for lack of memory: %+v", ended.Exit)
		}
	}
	begin := time.Now()
	err = d.client.Delete(whole, sb.ID)
	w.destroy = time.Since(begin)
	return err
}

// stop ends the war and returns how long the destroy of the last attacker took.
func (w *war) stop(b *testing.B) time.Duration {
	b.Helper()
	w.cancel()
	must.NoError(b, <-w.done)
	return w.destroy
}

// rhythm returns how far apart execs of a neighbour are on this machine.
func (d *daemon) rhythm(b *testing.B, sb nodeapi.Sandbox) time.Duration {
	b.Helper()
	took, _ := d.execs(b, sb, 20, neighbourRhythm)
	slices.Sort(took)
	return max(neighbourRhythm, neighbourPause*took[len(took)/2])
}

// throttled returns in how many periods the sandbox has waited for its own quota.
func (d *daemon) throttled(b *testing.B, sb nodeapi.Sandbox) uint64 {
	b.Helper()
	s, err := d.client.Stats(b.Context(), sb.ID)
	must.NoError(b, err)
	return s.Throttled
}

// execs runs /bin/true in a sandbox n times, in an even rhythm, and asks the daemon for itself between them. It returns how
// long each took, and the daemon's slowest answer.
func (d *daemon) execs(b *testing.B, sb nodeapi.Sandbox, n int, rhythm time.Duration) (took []time.Duration, slowest time.Duration) {
	b.Helper()
	tick := time.NewTicker(rhythm)
	defer tick.Stop()
	for range n {
		<-tick.C
		ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
		start := time.Now()
		exit, err := d.client.Run(ctx, sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"/bin/true"}}}, nil, nil, nil)
		took = append(took, time.Since(start))
		must.NoError(b, err)
		must.Eq(b, 0, exit.Code)
		start = time.Now()
		_, err = d.client.Node(ctx)
		must.NoError(b, err)
		slowest = max(slowest, time.Since(start))
		cancel()
	}
	return took, slowest
}
