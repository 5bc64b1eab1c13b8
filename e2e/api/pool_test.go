package api

import (
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core"
)

// fill makes a pool and waits until it is full.
func (s *stack) fill(t testing.TB, n int) {
	t.Helper()
	_, err := s.client.CreatePool(t.Context(), api.NewPool{Name: "quick", PoolSpec: api.PoolSpec{
		Template: ptr("base"), Min: &n, WarmUp: &[]string{"echo warm > /tmp/warm"},
	}})
	must.NoError(t, err)
	s.refilled(t, n)
}

func (s *stack) refilled(t testing.TB, n int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		p, err := s.client.Pool(t.Context(), "quick")
		must.NoError(t, err)
		if p.Status.Ready >= n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the pool is not full: %+v", p.Status)
		}
	}
}

func TestPool_sandboxesThatAreThereBeforeTheyAreAskedFor(t *testing.T) {
	s := newStack(t)
	s.fill(t, 3)
	before := time.Now()
	sb, err := s.client.CreateSandbox(t.Context(), api.CreateRequest{
		Template: "base", Timeout: ptr[int64](120), Env: map[string]string{"GREETING": "hello"}, Metadata: map[string]string{"a": "b"},
	})
	must.NoError(t, err)
	must.True(t, sb.Warm)
	must.Eq(t, "hello "+string(sb.ID)+" warm\n", s.sh(t, sb.ID, "echo $GREETING $(hostname) $(cat /tmp/warm)"))
	must.Eq(t, map[string]string{"a": "b"}, sb.Metadata)
	must.False(t, sb.StartedAt.Before(before.Add(-time.Second)), must.Sprint("it begins with its create, not with its slot"))
	must.True(t, sb.EndAt.Sub(before) > 100*time.Second && sb.EndAt.Sub(before) < 140*time.Second)
	s.refilled(t, 3)

	t.Run("a herd", func(t *testing.T) {
		var mu sync.Mutex
		var ids []api.SandboxID
		warm := 0
		var wg sync.WaitGroup
		for range 12 {
			wg.Go(func() {
				sb, err := s.client.CreateSandbox(t.Context(), api.CreateRequest{Template: "base"})
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Errorf("create: %v", err)
					return
				}
				ids = append(ids, sb.ID)
				if sb.Warm {
					warm++
				}
			})
		}
		wg.Wait()
		slices.Sort(ids)
		must.Eq(t, 12, len(slices.Compact(ids)), must.Sprint("each has his own"))
		must.GreaterEq(t, 3, warm)
		for _, id := range ids {
			must.Eq(t, string(id)+"\n", s.sh(t, id, "hostname"))
		}
		p, err := s.client.Pool(t.Context(), "quick")
		must.NoError(t, err)
		must.Eq(t, uint64(13), p.Status.Hits+p.Status.Misses)
	})
	must.NoError(t, s.client.DeletePool(t.Context(), "quick"))
	must.Eq(t, "hello\n", s.sh(t, sb.ID, "echo $GREETING"), must.Sprint("who came from it goes on"))
}

// BenchmarkPool is a create that finds a slot of a pool: alone, with a first exec, and fifty at once. Refills go on outside the measured time.
func BenchmarkPool(b *testing.B) {
	core.HoldGC() // as the service does
	s := newStack(b)
	s.fill(b, 50)
	f, err := os.CreateTemp("", "sbf")
	must.NoError(b, err)
	defer os.Remove(f.Name())
	defer f.Close()
	var creates, firsts, herds, syncs []time.Duration
	create := func() (api.SandboxID, time.Duration) {
		begin := time.Now()
		sb, err := s.client.CreateSandbox(b.Context(), api.CreateRequest{Template: "base"})
		took := time.Since(begin)
		must.NoError(b, err)
		must.True(b, sb.Warm)
		return sb.ID, took
	}
	for b.Loop() {
		begin := time.Now()
		_, err := f.WriteAt(make([]byte, 4096), 0)
		must.NoError(b, errors.Join(err, unix.Fdatasync(int(f.Fd()))))
		syncs = append(syncs, time.Since(begin))
		begin = time.Now()
		id, took := create()
		creates = append(creates, took)
		_, err = s.client.Run(b.Context(), id, api.ExecRequest{Argv: []string{"/bin/true"}}, nil, nil, nil)
		firsts = append(firsts, time.Since(begin))
		must.NoError(b, err)
		must.NoError(b, s.client.DeleteSandbox(b.Context(), id))
		s.refilled(b, 50)
	}
	for range 4 {
		var mu sync.Mutex
		var ids []api.SandboxID
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				id, took := create()
				mu.Lock()
				defer mu.Unlock()
				ids, herds = append(ids, id), append(herds, took)
			})
		}
		wg.Wait()
		for _, id := range ids {
			must.NoError(b, s.client.DeleteSandbox(b.Context(), id))
		}
		s.refilled(b, 50)
	}
	p, err := s.client.Pool(b.Context(), "quick")
	must.NoError(b, err)
	must.NoError(b, s.client.DeletePool(b.Context(), "quick"))
	report(b, "create-", creates, syncs)
	report(b, "first-", firsts, nil)
	report(b, "herd-", herds, nil)
	b.ReportMetric(p.Status.Refill*1e6, "refill-µs")
	b.ReportMetric(0, "ns/op")
}
