package lifecycle_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCreate_runsAndTellsItsSteps(t *testing.T) {
	s := coretest.New(t, nil)
	p := coretest.Params()
	p.Metadata = map[string]string{"k": "v"}
	p.EnvVars = map[string]string{"A": "1"}
	before := s.State.Stats()["commit_index"]
	sb, steps, err := s.Sandboxes.Create(t.Context(), p)
	must.NoError(t, err)
	must.Eq(t, state.Running, sb.State)
	must.Eq(t, s.Node.ID(), sb.Node)
	must.Eq(t, "base", sb.Template)
	must.StrHasPrefix(t, "sha256:", sb.Digest)
	must.Eq(t, map[string]string{"k": "v"}, sb.Metadata)
	must.Eq(t, coretest.Caller.KeyID, sb.KeyID)
	must.Eq(t, time.Minute, sb.EndAt.Sub(sb.CreatedAt))
	must.Eq(t, 24*time.Hour, sb.MaxEndAt.Sub(sb.CreatedAt))
	must.Positive(t, sb.CreateIndex)
	must.Eq(t, 1, s.Node.Created(sb.ID))
	must.True(t, s.Node.Running()[sb.ID].Deadline.Equal(sb.EndAt))

	want := []string{
		lifecycle.StepValidate, lifecycle.StepTemplate, lifecycle.StepIntent, lifecycle.StepPlace,
		lifecycle.StepReport, lifecycle.StepFact, "node.fake",
	}
	var got []string
	for _, st := range steps {
		got = append(got, st.Name)
		must.Positive(t, st.Nanos)
	}
	must.Eq(t, want, got)
	must.Eq(t, commits(t, before)+2, commits(t, s.State.Stats()["commit_index"]), must.Sprint("a create costs two commits"))
}

func commits(t *testing.T, s string) int {
	t.Helper()
	n := 0
	for _, c := range s {
		n = n*10 + int(c-'0')
	}
	return n
}

func TestCreate_refusesBadParams(t *testing.T) {
	s := coretest.New(t, nil)
	for _, c := range []struct {
		name   string
		change func(*lifecycle.CreateParams)
		code   int
		say    string
	}{
		{"no template", func(p *lifecycle.CreateParams) { p.Template = "" }, 400, "templateID"},
		{"odd template", func(p *lifecycle.CreateParams) { p.Template = "a\x00b" }, 400, "templateID"},
		{"unknown template", func(p *lifecycle.CreateParams) { p.Template = "nope" }, 404, "nope"},
		{"negative timeout", func(p *lifecycle.CreateParams) { p.Timeout = -1 }, 400, "timeout"},
		{"long timeout", func(p *lifecycle.CreateParams) { p.Timeout = 25 * time.Hour }, 400, "Timeout cannot be greater than 24 hours"},
		{"negative cpu", func(p *lifecycle.CreateParams) { p.CPUMillis = -1 }, 400, "cpuMillis"},
		{"huge cpu", func(p *lifecycle.CreateParams) { p.CPUMillis = 1 << 62 }, 400, "cpuMillis"},
		{"one MiB", func(p *lifecycle.CreateParams) { p.MemoryMB = 1 }, 400, "memoryMB"},
		{"huge memory", func(p *lifecycle.CreateParams) { p.MemoryMB = 1 << 62 }, 400, "memoryMB"},
		{"negative disk", func(p *lifecycle.CreateParams) { p.DiskMB = -5 }, 400, "diskMB"},
		{"negative pids", func(p *lifecycle.CreateParams) { p.Limits.PIDs = -5 }, 400, "pids"},
		{"odd end", func(p *lifecycle.CreateParams) { p.Lifecycle.OnTimeout = "sleep" }, 400, "onTimeout"},
		{"odd env name", func(p *lifecycle.CreateParams) { p.EnvVars = map[string]string{"A=B": ""} }, 400, "envVars"},
		{"NUL in env", func(p *lifecycle.CreateParams) { p.EnvVars = map[string]string{"A": "\x00"} }, 400, "envVars"},
		{"bad UTF-8 in metadata", func(p *lifecycle.CreateParams) { p.Metadata = map[string]string{"a": "\xff"} }, 400, "metadata"},
		{"much metadata", func(p *lifecycle.CreateParams) {
			p.Metadata = map[string]string{"a": string(make([]byte, 1<<20))}
		}, 400, "metadata"},
		{"bad network", func(p *lifecycle.CreateParams) { p.Network = []byte("{") }, 400, "network"},
		{"odd hostname", func(p *lifecycle.CreateParams) { p.Hostname = "a b" }, 400, "hostname"},
		{"odd profile", func(p *lifecycle.CreateParams) { p.Profile = "root" }, 400, "profile"},
		{"empty command", func(p *lifecycle.CreateParams) { p.Main = &guest.Start{} }, 400, "command"},
		{"odd id", func(p *lifecycle.CreateParams) { p.ID = "../x" }, 400, "sandbox id"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := coretest.Params()
			c.change(&p)
			_, _, err := s.Sandboxes.Create(t.Context(), p)
			must.Error(t, err)
			must.Eq(t, c.code, api.StatusOf(err), must.Sprint(err))
			must.StrContains(t, err.Error(), c.say)
		})
	}
	must.Eq(t, 0, s.Node.Records())
	must.Eq(t, 0, len(listAll(t, s)))
}

func TestCreate_failureLeavesNothing(t *testing.T) {
	refuse := func(code int, word string) func(context.Context, nodeapi.CreateRequest) error {
		return func(context.Context, nodeapi.CreateRequest) error { return api.Errorf(code, word, "refused") }
	}
	for _, c := range []struct {
		name string
		hook func(context.Context, nodeapi.CreateRequest) error
		code int
		word string
	}{
		{"no such command", refuse(400, api.CodeCommand), 400, api.CodeCommand},
		{"no room", refuse(503, api.CodeCapacity), 503, api.CodeCapacity},
		{"full disk", refuse(507, api.CodeNoSpace), 507, api.CodeNoSpace},
		{"node hangs", func(ctx context.Context, _ nodeapi.CreateRequest) error {
			<-ctx.Done()
			return ctx.Err()
		}, 504, "sandbox_start_timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := coretest.New(t, func(s *coretest.Server) {
				s.Config.Sandboxes = func(l *lifecycle.Config) { l.StartTimeout = 200 * time.Millisecond }
			})
			s.Node.SetHooks(fleettest.Hooks{BeforeCreate: c.hook})
			_, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
			must.Error(t, err)
			must.Eq(t, c.code, api.AsError(err).Code, must.Sprint(err))
			must.Eq(t, c.word, api.AsError(err).ErrorCode)
			all := listAll(t, s)
			must.Eq(t, 1, len(all))
			must.Eq(t, state.Failed, all[0].State)
			must.NotEq(t, "", all[0].Reason)
			coretest.Until(t, "the node forgets it", func() bool { return s.Node.Records() == 0 })
		})
	}
}

func TestCreate_cleansUpWhenTheClientGoes(t *testing.T) {
	s := coretest.New(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	s.Node.SetHooks(fleettest.Hooks{AfterCreate: func(nodeapi.CreateRequest) error { cancel(); return nil }})
	_, _, err := s.Sandboxes.Create(ctx, coretest.Params())
	must.ErrorIs(t, err, context.Canceled)
	all := listAll(t, s)
	must.Eq(t, 1, len(all))
	must.Eq(t, state.Failed, all[0].State)
	must.StrContains(t, all[0].Reason, "client gave up")
	coretest.Until(t, "the node forgets it", func() bool { return s.Node.Records() == 0 })
}

func TestCreate_lostAnswerOfTheNodeIsCleanedUp(t *testing.T) {
	s := coretest.New(t, nil)
	s.Node.SetHooks(fleettest.Hooks{AfterCreate: func(nodeapi.CreateRequest) error { return errors.New("wire cut") }})
	_, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.Error(t, err)
	coretest.Until(t, "the node forgets it", func() bool { return s.Node.Records() == 0 })
}

func TestCreate_sameIDIsTheSameSandbox(t *testing.T) {
	s := coretest.New(t, nil)
	p := coretest.Params()
	p.ID = api.NewSandboxID()
	const callers = 8
	got := make(chan error, callers)
	for range callers {
		go func() {
			sb, _, err := s.Sandboxes.Create(t.Context(), p)
			if err == nil && (sb.ID != p.ID || sb.State != state.Running) {
				err = errors.New("another sandbox")
			}
			got <- err
		}()
	}
	for range callers {
		must.NoError(t, <-got)
	}
	must.Eq(t, 1, s.Node.Created(p.ID))
	p.Template = s.Node.PutTemplate("other", []byte("other")).Digest
	coretest.Until(t, "another template is a conflict", func() bool {
		_, _, err := s.Sandboxes.Create(t.Context(), p)
		return api.StatusOf(err) == http.StatusConflict
	})
}

func listAll(t *testing.T, s *coretest.Server) []state.Sandbox {
	t.Helper()
	l, err := s.Sandboxes.List(t.Context(), state.Filter{
		Tenant: state.DefaultTenant,
		States: []state.SandboxState{state.Starting, state.Running, state.Stopping, state.Stopped, state.Failed, state.Lost},
	}, state.Ascending, state.Page{})
	must.NoError(t, err)
	return l.Sandboxes
}
