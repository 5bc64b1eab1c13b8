package reconcile_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errCrash = errors.New("the control service died here")

var every = []state.SandboxState{
	state.Starting, state.Running, state.Paused, state.Stopping, state.Stopped, state.Failed, state.Lost,
}

func all(t *testing.T, s *coretest.Server) []state.Sandbox {
	t.Helper()
	l, err := s.State.List(state.Filter{Tenant: state.DefaultTenant, States: every}, state.Ascending, state.Page{})
	must.NoError(t, err)
	return l.Sandboxes
}

// TestCrash_duringCreate lets the control service die at each point of a create: after its restart there is one sandbox,
// recorded as running, or none.
func TestCrash_duringCreate(t *testing.T) {
	for point, survives := range map[string]bool{
		lifecycle.CrashBeforeIntent: false,
		lifecycle.CrashBeforePlace:  false,
		lifecycle.CrashAfterPlace:   true,
		lifecycle.CrashBeforeFact:   true,
		lifecycle.CrashAfterFact:    true,
	} {
		t.Run(point, func(t *testing.T) {
			armed := true
			s := coretest.New(t, func(s *coretest.Server) {
				s.Config.Sandboxes = func(c *lifecycle.Config) {
					c.Crash = func(at string) error {
						if armed && at == point {
							return errCrash
						}
						return nil
					}
				}
			})
			p := coretest.Params()
			p.ID = api.NewSandboxID()
			_, _, err := s.Sandboxes.Create(t.Context(), p)
			must.ErrorIs(t, err, errCrash)
			s.Stop()
			armed = false
			s.Start(t)
			coretest.Until(t, "record and node agree", func() bool {
				sb, err := s.State.Sandbox(p.ID)
				_, runs := s.Node.Running()[p.ID]
				switch {
				case errors.Is(err, state.ErrNotFound):
					return !runs
				case sb.State == state.Running:
					return runs && sb.Node == s.Node.ID()
				}
				return sb.State.Ended() && !runs
			})
			_, runs := s.Node.Running()[p.ID]
			must.Eq(t, survives, runs)
			must.LessEq(t, 1, s.Node.Created(p.ID))

			// The client that comes back with the same id gets that sandbox, or a clear no, never a second one.
			sb, _, err := s.Sandboxes.Create(t.Context(), p)
			if err == nil {
				must.Eq(t, p.ID, sb.ID)
			} else {
				must.Eq(t, 409, api.StatusOf(err), must.Sprint(err))
			}
			must.LessEq(t, 1, s.Node.Created(p.ID))
		})
	}
}

// TestCrash_ofControlWhileNodeIsMaking lets the control service die while the node makes the sandbox.
func TestCrash_ofControlWhileNodeIsMaking(t *testing.T) {
	s := coretest.New(t, nil)
	release := make(chan struct{})
	making := make(chan struct{})
	s.Node.SetHooks(fleettest.Hooks{BeforeCreate: func(context.Context, nodeapi.CreateRequest) error {
		close(making)
		<-release
		return nil
	}})
	p := coretest.Params()
	p.ID = api.NewSandboxID()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	sandboxes := s.Sandboxes
	go func() {
		defer close(done)
		_, _, _ = sandboxes.Create(ctx, p)
	}()
	<-making
	s.Stop() // the create call cannot record anything any more
	close(release)
	s.Start(t)
	coretest.Until(t, "the sandbox is finished", func() bool {
		sb, err := s.State.Sandbox(p.ID)
		return err == nil && sb.State == state.Running
	})
	cancel()
	<-done
	must.Eq(t, 1, s.Node.Created(p.ID))
}

func TestNodeDaemonKilled_sandboxesGoOn(t *testing.T) {
	s := coretest.New(t, nil)
	sb, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.NoError(t, err)
	ended, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.NoError(t, err)
	s.Node.Kill()
	coretest.Until(t, "the fleet notices", func() bool {
		_, err := s.Sandboxes.NodeFor(t.Context(), sb.Tenant, sb.ID)
		return api.StatusOf(err) == 503
	})
	h, err := s.Sandboxes.Health(t.Context(), sb.Tenant, sb.ID)
	must.NoError(t, err)
	must.False(t, h.OK())
	s.Node.End(ended.ID, nodeapi.Exit{Reason: nodeapi.ExitMainExited, Code: 7})
	time.Sleep(400 * time.Millisecond) // longer than LostAfter: away is not gone
	now, err := s.State.Sandbox(sb.ID)
	must.NoError(t, err)
	must.Eq(t, state.Running, now.State)

	s.Node.Start(t)
	coretest.Until(t, "the end is recorded with its exit code", func() bool {
		now, err := s.State.Sandbox(ended.ID)
		return err == nil && now.State == state.Stopped && now.Exit != nil && now.Exit.Code == 7
	})
	coretest.Until(t, "the other one is healthy", func() bool {
		h, err := s.Sandboxes.Health(t.Context(), sb.Tenant, sb.ID)
		return err == nil && h.OK()
	})
	must.Eq(t, 1, s.Node.Created(sb.ID))
}

func TestNodeRebooted_sandboxesAreLost(t *testing.T) {
	s := coretest.New(t, nil)
	sb, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.NoError(t, err)
	s.Node.Kill()
	s.Node.Reboot()
	s.Node.Start(t)
	coretest.Until(t, "it is lost with a reason", func() bool {
		now, err := s.State.Sandbox(sb.ID)
		return err == nil && now.State == state.Lost && now.Reason != ""
	})
}

func TestNodeGoneFromDirectory_lostAndTakenBack(t *testing.T) {
	s := coretest.New(t, nil)
	sb, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.NoError(t, err)
	must.NoError(t, s.Directory.Set())
	coretest.Until(t, "it is lost", func() bool {
		now, err := s.State.Sandbox(sb.ID)
		return err == nil && now.State == state.Lost
	})
	must.MapContainsKey(t, s.Node.Running(), sb.ID, must.Sprint("nobody killed it"))
	must.NoError(t, s.Directory.Set(health.Node{Name: "local", Address: "unix://" + s.Node.Socket}))
	coretest.Until(t, "it runs again", func() bool {
		now, err := s.State.Sandbox(sb.ID)
		return err == nil && now.State == state.Running && now.EndedAt.IsZero()
	})
}

func TestOrphans_onlyTheControlServicesOwnAreDestroyed(t *testing.T) {
	s := coretest.New(t, nil)
	mine, theirs := api.NewSandboxID(), api.NewSandboxID()
	s.Node.Run(nodeapi.CreateRequest{ID: mine, Template: "base", Owner: nodeapi.Owner{Kind: placement.OwnerKind}})
	s.Node.Run(nodeapi.CreateRequest{ID: theirs, Template: "base", Owner: nodeapi.Owner{Kind: "nomad", AllocID: "a"}})
	coretest.Until(t, "the orphan is destroyed", func() bool { _, ok := s.Node.Running()[mine]; return !ok })
	time.Sleep(300 * time.Millisecond)
	must.MapContainsKey(t, s.Node.Running(), theirs)
}

func TestEndings_areRecordedWithTheirReason(t *testing.T) {
	s := coretest.New(t, nil)
	for name, exit := range map[string]nodeapi.Exit{
		"own command": {Reason: nodeapi.ExitMainExited, Code: 3},
		"deadline":    {Reason: nodeapi.ExitDeadline},
		"oom":         {Reason: nodeapi.ExitKilled, OOM: true, Signal: 9, Code: 137},
	} {
		t.Run(name, func(t *testing.T) {
			sb, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
			must.NoError(t, err)
			s.Node.End(sb.ID, exit)
			coretest.Until(t, "it is recorded", func() bool {
				now, err := s.State.Sandbox(sb.ID)
				return err == nil && now.State == state.Stopped
			})
			now, err := s.State.Sandbox(sb.ID)
			must.NoError(t, err)
			must.Eq(t, exit.Reason, now.Reason)
			must.Eq(t, exit.OOM, now.Exit.OOM)
			must.Eq(t, exit.Code, now.Exit.Code)
			must.False(t, now.EndedAt.IsZero())
			coretest.Until(t, "the node may forget it", func() bool { return s.Node.Records() == 0 })
		})
	}
}

func TestDeadline_thatTheNodeMissedIsToldAgain(t *testing.T) {
	s := coretest.New(t, nil)
	sb, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.NoError(t, err)
	s.Node.SetHooks(fleettest.Hooks{Call: func(method, _ string) error {
		if method == "PUT" {
			return api.Errorf(503, api.CodeUnavailable, "not now")
		}
		return nil
	}})
	_, err = s.Sandboxes.SetTimeout(t.Context(), sb.Tenant, sb.ID, 10*time.Minute)
	must.Error(t, err)
	s.Node.SetHooks(fleettest.Hooks{})
	coretest.Until(t, "the node has it", func() bool {
		now, err := s.State.Sandbox(sb.ID)
		return err == nil && s.Node.Running()[sb.ID].Deadline.Equal(now.EndAt) && now.EndAt.After(sb.EndAt)
	})
}

func TestDelete_cutShortIsFinished(t *testing.T) {
	s := coretest.New(t, nil)
	sb, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.NoError(t, err)
	s.Node.SetHooks(fleettest.Hooks{Call: func(method, _ string) error {
		if method == "DELETE" {
			return api.Errorf(503, api.CodeUnavailable, "not now")
		}
		return nil
	}})
	must.Error(t, s.Sandboxes.Delete(t.Context(), sb.Tenant, sb.ID))
	now, err := s.State.Sandbox(sb.ID)
	must.NoError(t, err)
	must.Eq(t, state.Stopping, now.State)
	s.Stop()
	s.Node.SetHooks(fleettest.Hooks{})
	s.Start(t)
	coretest.Until(t, "it is gone", func() bool {
		now, err := s.State.Sandbox(sb.ID)
		return err == nil && now.State == state.Stopped && s.Node.Records() == 0
	})
	now, err = s.State.Sandbox(sb.ID)
	must.NoError(t, err)
	must.Eq(t, "deleted", now.Reason)
}

func TestEnded_areForgottenAfterAWhile(t *testing.T) {
	s := coretest.New(t, func(s *coretest.Server) { s.Config.MaxEnded = 2 })
	for range 4 {
		sb, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
		must.NoError(t, err)
		must.NoError(t, s.Sandboxes.Delete(t.Context(), sb.Tenant, sb.ID))
	}
	coretest.Until(t, "two are left", func() bool { return len(all(t, s)) == 2 })
}

// TestStorm ends many sandboxes at once.
func TestStorm_manyEndAtOnce(t *testing.T) {
	s := coretest.New(t, nil)
	const many = 300
	for range many {
		_, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
		must.NoError(t, err)
	}
	for id := range s.Node.Running() {
		s.Node.End(id, nodeapi.Exit{Reason: nodeapi.ExitKilled})
	}
	coretest.Until(t, "all are recorded and cleaned up", func() bool {
		live, err := s.State.Live()
		return err == nil && len(live) == 0 && s.Node.Records() == 0
	})
}
