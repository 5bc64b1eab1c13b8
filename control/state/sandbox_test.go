package state

import (
	"errors"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

// TestSandbox_transitions applies each change to a sandbox in each state.
func TestSandbox_transitions(t *testing.T) {
	states := map[SandboxState][]Command{
		Starting: {},
		Running:  {&SandboxRunning{ID: id(1), Node: "n", StartedAt: at(2)}},
		Stopping: {&SandboxRunning{ID: id(1), Node: "n", StartedAt: at(2)}, &SandboxStopping{ID: id(1)}},
		Stopped:  {&SandboxEnd{Ends: []End{{ID: id(1), State: Stopped, At: at(3)}}}},
		Failed:   {&SandboxEnd{Ends: []End{{ID: id(1), State: Failed, At: at(3)}}}},
		Lost:     {&SandboxEnd{Ends: []End{{ID: id(1), State: Lost, At: at(3)}}}},
	}
	run := func() Command { return &SandboxRunning{ID: id(1), Node: "n", StartedAt: at(4)} }
	stopping := func() Command { return &SandboxStopping{ID: id(1)} }
	stopped := func() Command { return &SandboxEnd{Ends: []End{{ID: id(1), State: Stopped, At: at(5)}}} }
	lost := func() Command { return &SandboxEnd{Ends: []End{{ID: id(1), State: Lost, At: at(5)}}} }
	deadline := func() Command { return &SandboxDeadline{ID: id(1), EndAt: at(100)} }
	purge := func() Command { return &SandboxPurge{IDs: []api.SandboxID{id(1)}} }
	const gone = SandboxState("gone")
	for _, c := range []struct {
		from SandboxState
		do   func() Command
		name string
		to   SandboxState
		err  error
	}{
		{Starting, run, "run", Running, nil},
		{Running, run, "run", Running, nil},
		{Stopping, run, "run", Stopping, ErrState},
		{Stopped, run, "run", Stopped, ErrState},
		{Failed, run, "run", Failed, ErrState},
		{Lost, run, "run", Running, nil},
		{Starting, stopping, "stopping", Stopping, nil},
		{Running, stopping, "stopping", Stopping, nil},
		{Stopping, stopping, "stopping", Stopping, nil},
		{Stopped, stopping, "stopping", Stopped, ErrState},
		{Lost, stopping, "stopping", Lost, ErrState},
		{Starting, stopped, "stopped", Stopped, nil},
		{Running, stopped, "stopped", Stopped, nil},
		{Failed, stopped, "stopped", Failed, nil},
		{Lost, stopped, "stopped", Stopped, nil},
		{Stopped, lost, "lost", Stopped, nil},
		{Running, lost, "lost", Lost, nil},
		{Starting, deadline, "deadline", Starting, nil},
		{Running, deadline, "deadline", Running, nil},
		{Stopping, deadline, "deadline", Stopping, ErrState},
		{Stopped, deadline, "deadline", Stopped, ErrState},
		{Running, purge, "purge", Running, nil},
		{Stopped, purge, "purge", gone, nil},
		{Lost, purge, "purge", gone, nil},
	} {
		t.Run(string(c.from)+" "+c.name, func(t *testing.T) {
			f := replay(t, append([]Command{&SandboxCreate{Sandbox: starting(1)}}, states[c.from]...))
			_, err := f.store.apply(50, c.do())
			must.ErrorIs(t, err, c.err)
			sb, err := f.store.Sandbox(id(1))
			if c.to == gone {
				must.ErrorIs(t, err, ErrNotFound)
				return
			}
			must.NoError(t, err)
			must.Eq(t, c.to, sb.State)
			live, err := f.store.Live()
			must.NoError(t, err)
			must.Eq(t, c.to.Ended(), len(live) == 0, must.Sprint("the live index follows the state"))
		})
	}
}

func TestSandboxEnd_leavesWhatChangedSinceTheDecision(t *testing.T) {
	f := replay(t, []Command{&SandboxCreate{Sandbox: starting(1)}})
	seen, err := f.store.Sandbox(id(1))
	must.NoError(t, err)
	_, err = f.store.apply(20, &SandboxRunning{ID: id(1), Node: "n", StartedAt: at(2)})
	must.NoError(t, err)
	r, err := f.store.apply(21, &SandboxEnd{Ends: []End{{ID: id(1), State: Failed, At: at(3), IfIndex: seen.ModifyIndex}}})
	must.NoError(t, err)
	must.Eq(t, 0, r.Changed)
	must.Eq(t, Running, r.Sandbox.State)
}

func TestSandboxDeadline_extendOnlyAndMaximum(t *testing.T) {
	f := replay(t, []Command{&SandboxCreate{Sandbox: starting(1)}})
	for _, c := range []struct {
		name   string
		end    int
		extend bool
		want   int
	}{
		{"extend never shortens", 10, true, 301},
		{"extend extends", 400, true, 400},
		{"set shortens", 10, false, 10},
		{"nothing lies beyond the maximum", 1_000_000, false, 86401},
		{"extend neither", 2_000_000, true, 86401},
	} {
		r, err := f.store.apply(30, &SandboxDeadline{ID: id(1), EndAt: at(c.end), ExtendOnly: c.extend})
		must.NoError(t, err)
		must.True(t, r.Sandbox.EndAt.Equal(at(c.want)), must.Sprint(c.name, r.Sandbox.EndAt))
	}
}

func TestCheck_refusesBeforeTheLog(t *testing.T) {
	sandbox := func(change func(*Sandbox)) Command {
		s := starting(1)
		change(&s)
		return &SandboxCreate{Sandbox: s}
	}
	big := map[string]string{"a": string(make([]byte, MaxEnvBytes))}
	for name, c := range map[string]Command{
		"odd id":        sandbox(func(s *Sandbox) { s.ID = "x" }),
		"client id":     sandbox(func(s *Sandbox) { s.ID += "-c" }),
		"no tenant":     sandbox(func(s *Sandbox) { s.Tenant = "" }),
		"running":       sandbox(func(s *Sandbox) { s.State = Running }),
		"no template":   sandbox(func(s *Sandbox) { s.Template = "" }),
		"beyond max":    sandbox(func(s *Sandbox) { s.EndAt = s.MaxEndAt.Add(1) }),
		"big env":       sandbox(func(s *Sandbox) { s.EnvVars = big }),
		"big metadata":  sandbox(func(s *Sandbox) { s.Metadata = big }),
		"bad network":   sandbox(func(s *Sandbox) { s.Network = []byte("{") }),
		"no node":       &SandboxRunning{ID: id(1), StartedAt: at(1)},
		"no ends":       &SandboxEnd{},
		"end to run":    &SandboxEnd{Ends: []End{{ID: id(1), State: Running, At: at(1)}}},
		"short hash":    &KeyPut{Key: Key{ID: "a", Tenant: "t", Hash: []byte("x")}},
		"many purges":   &SandboxPurge{IDs: make([]api.SandboxID, MaxBatch+1)},
		"nameless tmpl": &TemplatePut{Template: Template{Tenant: "t", Digest: "d"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := encodeCommand(c)
			must.Error(t, err)
		})
	}
	long := End{ID: id(1), State: Failed, At: at(1), Reason: string(make([]byte, 1<<20))}
	_, err := encodeCommand(&SandboxEnd{Ends: []End{long}})
	must.NoError(t, err, must.Sprint("a long reason is cut, not refused"))
	var limit *LimitError
	_, err = encodeCommand(sandbox(func(s *Sandbox) { s.EnvVars = big }))
	must.True(t, errors.As(err, &limit))
	must.Eq(t, "envVars", limit.Field)
}

func TestPurgeable_oldestFirst(t *testing.T) {
	var log []Command
	for n := 1; n <= 6; n++ {
		log = append(log, &SandboxCreate{Sandbox: starting(n)})
		if n != 6 {
			log = append(log, &SandboxEnd{Ends: []End{{ID: id(n), State: Stopped, At: at(100 * n)}}})
		}
	}
	f := replay(t, log)
	for _, c := range []struct {
		name        string
		before      int
		keep, limit int
		want        int
	}{
		{"by age", 250, 100, 100, 2},
		{"by number", 0, 3, 100, 2},
		{"limit", 1000, 100, 3, 3},
		{"nothing is due", 0, 100, 100, 0},
	} {
		ids, err := f.store.Purgeable(at(c.before), c.keep, c.limit)
		must.NoError(t, err)
		must.Len(t, c.want, ids, must.Sprint(c.name))
		for i, got := range ids {
			must.Eq(t, id(i+1), got)
		}
	}
}
