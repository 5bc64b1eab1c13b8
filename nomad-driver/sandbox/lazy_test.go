package sandbox_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// lazyEngine returns an engine that can leave memory out, or skips the test.
func lazyEngine(t *testing.T) *checkpoint.Engine {
	t.Helper()
	e := engine(t)
	if err := e.Lazy(); err != nil {
		t.Skip(err)
	}
	return e
}

// remembers is a shell with 8 MB of its own in one variable, which for each line that it is sent copies it, forks with it, and tells its sum.
const remembers = `mkfifo /tmp/go /tmp/came
x=$(head -c 6000000 /dev/urandom | base64 -w0)
while :; do
	read c < /tmp/go
	y=$x$c
	{ echo -n "$x" | sha256sum; echo -n "$y" | wc -c; } > /tmp/came
done`

// startAsked starts a shell such as remembers and returns what it answers.
func startAsked(t *testing.T, s *sandbox.Sandbox, script string) (ask func(*sandbox.Sandbox) string) {
	t.Helper()
	_, err := s.Guest().Start(t.Context(), guest.Start{Argv: []string{"/bin/bash", "-c", script}})
	must.NoError(t, err)
	sandboxtest.Shell(t, s, "", "for i in $(seq 3000); do [ -p /tmp/came ] && exit 0; sleep 0.01; done; exit 1")
	return func(s *sandbox.Sandbox) string {
		t.Helper()
		return sandboxtest.Shell(t, s, "", "echo more > /tmp/go; cat /tmp/came")
	}
}

// Memory that comes later is what it was, for who waits for it, for who is forked meanwhile, and for the next checkpoint.
func TestRestore_memoryComesLater(t *testing.T) {
	e := lazyEngine(t)
	h := sandboxtest.NewHost(t)
	c := h.Config()
	c.NodeOwned = !sandbox.CanDump()
	s, err := sandbox.Create(t.Context(), c)
	must.NoError(t, err)
	defer func() { sandboxtest.Release(t, s) }()
	ask := startAsked(t, s, remembers)
	want := ask(s)
	must.StrContains(t, want, "8000004")
	// What holds the shell, and what it has open.
	const held = `for p in /proc/[0-9]*; do grep -q "[u]random" $p/cmdline && break; done
grep -E "^(Seccomp|NoNewPrivs|Cap|TracerPid|Uid|Gid|Groups|Sig|Shd)" $p/status; ls -l $p/fd | sed "s/.* [0-9:]* \([0-9]* ->\)/\1/"; ls -l $p/ns | sed "s/.* //"; cat $p/cgroup`
	before := sandboxtest.Shell(t, s, "", held)
	must.StrContains(t, before, "Seccomp:\t2")

	for round := range 2 {
		dir := sandbox.CheckpointDir(filepath.Join(filepath.Dir(h.StateDir), fmt.Sprint("c", round)))
		d := takeDown(t, e, s, dir)
		r, err := sandbox.Restore(t.Context(), sandbox.RestoreConfig{
			Config: c, Engine: e, Dir: dir, Dump: d, Lazy: &sandbox.Lazy{Dir: string(dir) + "/pages", Least: 1 << 20},
		})
		must.NoError(t, err)
		s = r
		must.NotNil(t, s.Pages())
		must.NoError(t, s.Wake(t.Context(), nil))
		must.Eq(t, want, ask(s))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		must.NoError(t, s.Pages().Wait(ctx))
		cancel()
		must.Eq(t, want, ask(s))
		must.Eq(t, namesOut(before), namesOut(sandboxtest.Shell(t, s, "", held)))
		t.Log("faults: ", s.Pages().Faults())
	}
}

// namesOut takes the numbers of namespaces out.
func namesOut(s string) string { return regexp.MustCompile(`:\[\d+\]`).ReplaceAllString(s, "") }

// BenchmarkRestore_line finds from which size on it pays that memory comes later: the first answer of a shell with so much of it, both ways.
func BenchmarkRestore_line(b *testing.B) {
	e, err := checkpoint.Open(b.Context(), sandboxtest.CRIU(b))
	must.NoError(b, err)
	h := sandboxtest.NewHost(b)
	for _, mib := range []int{8, 16, 32, 64, 128} {
		b.Run(fmt.Sprint(mib, "MiB"), func(b *testing.B) {
			c := h.Config()
			c.NodeOwned = !sandbox.CanDump()
			s, err := sandbox.Create(b.Context(), c)
			must.NoError(b, err)
			defer func() { sandboxtest.Release(b, s) }()
			_, err = s.Guest().Start(b.Context(), guest.Start{Argv: []string{"/bin/bash", "-c",
				fmt.Sprintf("x=$(head -c %d /dev/zero | tr '\\0' x); mkfifo /tmp/ready; read c < /tmp/ready", mib<<20)}})
			must.NoError(b, err)
			sandboxtest.Shell(b, s, "", "for i in $(seq 3000); do [ -p /tmp/ready ] && exit 0; sleep 0.01; done; exit 1")
			var took [2]time.Duration
			n := 0
			for b.Loop() {
				for i := range took {
					dir := sandbox.CheckpointDir(filepath.Join(filepath.Dir(h.StateDir), fmt.Sprint("b", mib, "-", n, "-", i)))
					d := takeDown(b, e, s, dir)
					rc := sandbox.RestoreConfig{Config: c, Engine: e, Dir: dir, Dump: d}
					if i == 1 {
						rc.Lazy = &sandbox.Lazy{Dir: string(dir) + "/pages", Least: 1}
					}
					begin := time.Now()
					r, err := sandbox.Restore(b.Context(), rc)
					must.NoError(b, err)
					s = r
					must.NoError(b, s.Wake(b.Context(), nil))
					sandboxtest.Shell(b, s, "", "true")
					took[i] += time.Since(begin)
					if s.Pages() != nil {
						must.NoError(b, s.Pages().Wait(b.Context()))
					}
					must.NoError(b, os.RemoveAll(string(dir)))
				}
				n++
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(took[0].Microseconds())/float64(n), "at-once-µs")
			b.ReportMetric(float64(took[1].Microseconds())/float64(n), "later-µs")
		})
	}
}

// takeDown takes a sandbox to disk.
func takeDown(t testing.TB, e *checkpoint.Engine, s *sandbox.Sandbox, dir sandbox.CheckpointDir) checkpoint.Dump {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must.NoError(t, s.Park(ctx))
	must.NoError(t, s.Freeze(ctx))
	obstacles, err := s.Uncheckpointable()
	must.NoError(t, err)
	must.Len(t, 0, obstacles)
	d, err := s.Checkpoint(ctx, startDump(t, e), dir, sandbox.CheckpointOptions{})
	must.NoError(t, err)
	must.NoError(t, s.End(ctx))
	return d
}
