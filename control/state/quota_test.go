package state

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

// quotaScript is the part of script about quotas.
func quotaScript() []Command {
	return []Command{
		&QuotaPut{Quota: Quota{Tenant: Everywhere, Limits: map[string]int64{"sandboxes": 100, "api_calls_per_second": 1000}, UpdatedAt: at(20), UpdatedBy: "key:0123456789abcdef"}},
		&QuotaPut{Quota: Quota{Tenant: DefaultTenant, Limits: map[string]int64{"sandboxes": 2, "cpu_millis": Unlimited}, UpdatedAt: at(21)}},
		&QuotaPut{Quota: Quota{Tenant: "nobody", Limits: map[string]int64{"sandboxes": 2}}}, // refused
		&SandboxCreate{Sandbox: starting(60)}, // refused: two are there
		&QuotaPut{Quota: Quota{Tenant: DefaultTenant, Limits: map[string]int64{"memory_mb": 4096}, UpdatedAt: at(23)}},
		&SandboxCreate{Sandbox: starting(61)},
		&SandboxEnd{Ends: []End{{ID: id(61), State: Failed, Reason: "x", At: at(62)}}},
	}
}

// summed is what the tables say that a tenant uses, counted anew.
func summed(t *testing.T, s *Store, tenant string) (u Use) {
	t.Helper()
	txn := s.read()
	for _, table := range []string{tableSandbox, tableSnapshot, tableTemplate, tableSecret} {
		it, err := txn.Get(table, indexID)
		must.NoError(t, err)
		for row := it.Next(); row != nil; row = it.Next() {
			if who, more := counted(row); who == tenant {
				for i := range u {
					u[i] += more[i]
				}
			}
		}
	}
	return u
}

func TestUsage_isAlwaysWhatTheTablesHold(t *testing.T) {
	list := script()
	for n := range list {
		f := replay(t, list[:n+1])
		for _, tenant := range []string{DefaultTenant, "acme"} {
			got, err := f.store.Usage(tenant)
			must.NoError(t, err)
			must.Eq(t, summed(t, f.store, tenant), got, must.Sprintf("after %T", list[n]))
		}
	}
	f := replay(t, list)
	restored := replay(t, nil)
	must.NoError(t, restored.Restore(io.NopCloser(bytes.NewReader(snapshotOf(t, f)))))
	want, err := f.store.Usage(DefaultTenant)
	must.NoError(t, err)
	got, err := restored.store.Usage(DefaultTenant)
	must.NoError(t, err)
	must.Eq(t, want, got)
	must.Positive(t, got[LimitSandboxes])
}

func quota(limits map[string]int64) *QuotaPut {
	return &QuotaPut{Quota: Quota{Tenant: DefaultTenant, Limits: limits}}
}

func TestQuota_refusesEachLimitByName(t *testing.T) {
	tmpl := func(n int) *TemplatePut {
		return &TemplatePut{Template: Template{Tenant: DefaultTenant, Name: fmt.Sprint("t", n), Digest: "sha256:abc"}}
	}
	snap := func(n int) *SnapshotPut {
		return &SnapshotPut{Snapshot: Snapshot{ID: snapID(n), Tenant: DefaultTenant, Sandbox: id(1), Node: "n1", State: SnapshotMaking, Template: "base", Digest: "sha256:abc", CreatedAt: at(1)}}
	}
	for _, c := range []struct {
		limit  Limit
		max    int64
		before []Command
		over   Command
		want   QuotaError
	}{
		{LimitSandboxes, 1, []Command{&SandboxCreate{Sandbox: starting(1)}}, &SandboxCreate{Sandbox: starting(2)}, QuotaError{Max: 1, Used: 1, Asked: 1}},
		{LimitConcurrent, 1, []Command{&SandboxCreate{Sandbox: starting(1)}}, &SandboxCreate{Sandbox: starting(2)}, QuotaError{Max: 1, Used: 1, Asked: 1}},
		{LimitCPU, 1500, []Command{&SandboxCreate{Sandbox: starting(1)}}, &SandboxCreate{Sandbox: starting(2)}, QuotaError{Max: 1500, Used: 1000, Asked: 1000}},
		{LimitMemory, 1023, []Command{&SandboxCreate{Sandbox: starting(1)}}, &SandboxCreate{Sandbox: starting(2)}, QuotaError{Max: 1023, Used: 512, Asked: 512}},
		{LimitStorage, 1024, []Command{&SandboxCreate{Sandbox: starting(1)}}, &SandboxCreate{Sandbox: starting(2)}, QuotaError{Max: 1024, Used: 1024, Asked: 1024}},
		{LimitTemplates, 1, []Command{tmpl(1), tmpl(1)}, tmpl(2), QuotaError{Max: 1, Used: 1, Asked: 1}},
		{LimitSnapshots, 1, []Command{&SandboxCreate{Sandbox: starting(1)}, snap(1)}, snap(2), QuotaError{Max: 1, Used: 1, Asked: 1}},
		{LimitSandboxes, 0, nil, &SandboxCreate{Sandbox: starting(1)}, QuotaError{Max: 0, Used: 0, Asked: 1}},
	} {
		t.Run(c.limit.String(), func(t *testing.T) {
			f := replay(t, append([]Command{quota(map[string]int64{c.limit.String(): c.max})}, c.before...))
			_, err := f.store.apply(100, c.over)
			var e *QuotaError
			must.True(t, errors.As(err, &e), must.Sprint(err))
			c.want.Tenant, c.want.Limit = DefaultTenant, c.limit
			must.Eq(t, c.want, *e)
			must.Eq(t, 429, api.StatusOf(err))
			must.Eq(t, api.CodeQuota, api.AsError(err).ErrorCode)
			must.StrContains(t, err.Error(), c.limit.String())
			_, err = f.store.apply(101, quota(nil))
			must.NoError(t, err)
			_, err = f.store.apply(102, c.over)
			must.NoError(t, err, must.Sprint("without the limit"))
		})
	}
}

func TestQuota_aPausedSandboxIsNotConcurrent(t *testing.T) {
	f := replay(t, []Command{
		quota(map[string]int64{"concurrent_sandboxes": 1, "sandboxes": 2}), &SandboxCreate{Sandbox: starting(1)},
		&SandboxRunning{ID: id(1), Node: "n1", StartedAt: at(2)}, &SandboxPaused{ID: id(1), Node: "n1", At: at(3)},
	})
	_, err := f.store.apply(100, &SandboxCreate{Sandbox: starting(2)})
	must.NoError(t, err)
	_, err = f.store.apply(101, &SandboxCreate{Sandbox: starting(3)})
	must.ErrorContains(t, err, "sandboxes: 2 of 2")
}

func TestQuotaPut_refuses(t *testing.T) {
	for name, q := range map[string]Quota{
		"an unknown limit": {Tenant: "a", Limits: map[string]int64{"cpus": 1}},
		"less than none":   {Tenant: "a", Limits: map[string]int64{"sandboxes": -2}},
		"too much":         {Tenant: "a", Limits: map[string]int64{"sandboxes": MaxLimit + 1}},
		"no tenant":        {Limits: map[string]int64{"sandboxes": 1}},
		"a bad tenant":     {Tenant: "A/../b"},
	} {
		var limit *LimitError
		must.True(t, errors.As((&QuotaPut{Quota: q}).check(), &limit), must.Sprint(name))
	}
}

// C08: a sandbox that fails, or ends twice, or is forgotten, gives back what it had exactly once.
func TestUsage_isNeverNegativeNorLeaked(t *testing.T) {
	end := func(s SandboxState) *SandboxEnd {
		return &SandboxEnd{Ends: []End{{ID: id(1), State: s, Reason: "x", At: at(9)}, {ID: id(1), State: s, Reason: "x", At: at(9)}}}
	}
	f := replay(t, []Command{
		&SandboxCreate{Sandbox: starting(1)}, end(Lost), end(Lost), &SandboxRunning{ID: id(1), Node: "n", StartedAt: at(3)},
		end(Failed), end(Stopped), &SandboxPurge{IDs: []api.SandboxID{id(1)}}, &SandboxPurge{IDs: []api.SandboxID{id(1)}}, end(Stopped),
	})
	u, err := f.store.Usage(DefaultTenant)
	must.NoError(t, err)
	must.Eq(t, Use{}, u)
}

// C07: however many ask at once, what is left goes out once.
func TestQuota_tenThousandAtOnceGetTheOneThatIsLeft(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	t.Cleanup(func() { must.NoError(t, s.Close()) })
	mustApply(t, s, quota(map[string]int64{"sandboxes": 10}))
	for i := range 9 {
		mustApply(t, s, &SandboxCreate{Sandbox: starting(i + 1)})
	}
	var mu sync.Mutex
	made, refused := 0, 0
	var wg sync.WaitGroup
	for i := range 10_000 {
		wg.Go(func() {
			_, err := s.Apply(t.Context(), &SandboxCreate{Sandbox: starting(100 + i)})
			for errors.Is(err, ErrNoLeader) { // its queue is full: nothing was changed
				_, err = s.Apply(t.Context(), &SandboxCreate{Sandbox: starting(100 + i)})
			}
			var e *QuotaError
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				made++
			case errors.As(err, &e):
				refused++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	must.Eq(t, 1, made)
	must.Eq(t, 9999, refused)
	u, err := s.Usage(DefaultTenant)
	must.NoError(t, err)
	must.Eq(t, 10, u[LimitSandboxes])
}

// quotaInput is an operation of the model: a create of a size, or the end of one that was created.
type quotaInput struct {
	end  bool
	size int64
}

// Creates and ends by many clients at once look as if they had been made one by one: none is refused while there is room, none is admitted
// when there is none.
func TestQuota_isLinearizable(t *testing.T) {
	const room = 4000
	s := open(t, Config{Dir: t.TempDir()})
	t.Cleanup(func() { must.NoError(t, s.Close()) })
	mustApply(t, s, quota(map[string]int64{"cpu_millis": room}))
	start := time.Now()
	var mu sync.Mutex
	var history []porcupine.Operation
	do := func(client int, in quotaInput, c Command) bool {
		call := time.Since(start).Nanoseconds()
		_, err := s.Apply(t.Context(), c)
		back := time.Since(start).Nanoseconds()
		var e *QuotaError
		if err != nil && !errors.As(err, &e) {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		history = append(history, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: err == nil, Return: back})
		return err == nil
	}
	var wg sync.WaitGroup
	for client := range 6 {
		wg.Go(func() {
			for i := range 20 {
				n := client*1000 + i + 1
				sb := starting(n)
				sb.CPUMillis = int64(500 + 500*(n%4))
				if do(client, quotaInput{size: sb.CPUMillis}, &SandboxCreate{Sandbox: sb}) {
					do(client, quotaInput{end: true, size: sb.CPUMillis}, &SandboxEnd{Ends: []End{{ID: sb.ID, State: Stopped, Reason: "x", At: at(n + 1)}}})
				}
			}
		})
	}
	wg.Wait()
	model := porcupine.Model{
		Init: func() any { return int64(0) },
		Step: func(st, in, out any) (bool, any) {
			used, op, ok := st.(int64), in.(quotaInput), out.(bool)
			if op.end {
				return ok, used - op.size
			}
			if fits := used+op.size <= room; fits != ok {
				return false, st
			} else if !fits {
				return true, st
			}
			return true, used + op.size
		},
	}
	must.Eq(t, porcupine.Ok, porcupine.CheckOperationsTimeout(model, history, 30*time.Second))
}
