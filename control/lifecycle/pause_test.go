package lifecycle_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// running makes a sandbox that runs.
func running(t *testing.T, s *coretest.Server, change func(*lifecycle.CreateParams)) state.Sandbox {
	t.Helper()
	p := coretest.Params()
	if change != nil {
		change(&p)
	}
	sb, _, err := s.Sandboxes.Create(t.Context(), p)
	must.NoError(t, err)
	return sb
}

func tenantOf(sb state.Sandbox) string { return sb.Tenant }

func TestPause_keepsAndResumes(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, nil)
	paused, err := s.Sandboxes.Pause(t.Context(), tenantOf(sb), sb.ID, lifecycle.KeepMemory)
	must.NoError(t, err)
	must.Eq(t, state.Paused, paused.State)
	must.False(t, paused.PausedAt.IsZero())

	_, err = s.Sandboxes.Pause(t.Context(), tenantOf(sb), sb.ID, lifecycle.KeepMemory)
	must.Eq(t, http.StatusConflict, api.StatusOf(err), must.Sprint("a paused one is not paused again"))
	_, err = s.Sandboxes.NodeFor(t.Context(), tenantOf(sb), sb.ID)
	must.Eq(t, http.StatusConflict, api.StatusOf(err), must.Sprint("and answers no exec"))
	_, err = s.Sandboxes.Resume(t.Context(), "another", sb.ID, time.Minute, lifecycle.KeepMemory)
	must.True(t, api.IsNotFound(err))

	got, resumed, err := s.Sandboxes.Connect(t.Context(), tenantOf(sb), sb.ID, 2*time.Minute, lifecycle.KeepMemory)
	must.NoError(t, err)
	must.True(t, resumed)
	must.Eq(t, state.Running, got.State)
	must.True(t, s.Node.Running()[sb.ID].Deadline.Equal(got.EndAt))
	_, resumed, err = s.Sandboxes.Connect(t.Context(), tenantOf(sb), sb.ID, time.Minute, lifecycle.KeepMemory)
	must.NoError(t, err)
	must.False(t, resumed)
	_, err = s.Sandboxes.Resume(t.Context(), tenantOf(sb), sb.ID, time.Minute, lifecycle.KeepMemory)
	must.Eq(t, http.StatusConflict, api.StatusOf(err), must.Sprint("one that runs is not resumed"))
}

func TestPause_ofTheNodeAtTheDeadlineIsRecorded(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, func(p *lifecycle.CreateParams) {
		p.Timeout, p.Lifecycle.OnTimeout = 100*time.Millisecond, state.OnTimeoutPause
	})
	coretest.Until(t, "the pause in the record", func() bool {
		got, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
		return err == nil && got.State == state.Paused
	})
	must.Eq(t, 1, s.Node.Records(), must.Sprint("the node keeps it"))
}

func TestResume_isRecordedWhereTheServiceDiedBetween(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, nil)
	_, err := s.Sandboxes.Pause(t.Context(), tenantOf(sb), sb.ID, lifecycle.KeepMemory)
	must.NoError(t, err)
	client := nodeapi.NewUnix(s.Node.Socket)
	defer client.Close()
	end := time.Now().Add(time.Hour).UTC()
	_, err = client.Resume(t.Context(), sb.ID, nodeapi.ResumeRequest{Deadline: end})
	must.NoError(t, err)
	coretest.Until(t, "the resume in the record", func() bool {
		got, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
		return err == nil && got.State == state.Running && got.EndAt.Equal(end)
	})
}

func TestWake_resumesOnceHoweverManyAsk(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, func(p *lifecycle.CreateParams) { p.Lifecycle.AutoResume = true })
	_, err := s.Sandboxes.Pause(t.Context(), tenantOf(sb), sb.ID, lifecycle.KeepMemory)
	must.NoError(t, err)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			got, err := s.Sandboxes.Wake(t.Context(), sb.ID)
			must.NoError(t, err)
			must.Eq(t, state.Running, got.State)
		})
	}
	wg.Wait()
	must.Eq(t, 1, s.Node.Resumed(sb.ID))
	got, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
	must.NoError(t, err)
	must.Eq(t, time.Minute, got.EndAt.Sub(got.ResumedAt), must.Sprint("it gets the time that it was last given"))
}

func TestWake_leavesAloneWhatWasNotMadeForIt(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, nil)
	_, err := s.Sandboxes.Pause(t.Context(), tenantOf(sb), sb.ID, lifecycle.KeepMemory)
	must.NoError(t, err)
	_, err = s.Sandboxes.Wake(t.Context(), sb.ID)
	must.Eq(t, http.StatusConflict, api.StatusOf(err))
}

func TestPause_ofTheFilesAloneIsNotWokenByTraffic(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, func(p *lifecycle.CreateParams) { p.Lifecycle.AutoResume = true })
	paused, err := s.Sandboxes.Pause(t.Context(), tenantOf(sb), sb.ID, lifecycle.KeepFiles)
	must.NoError(t, err)
	must.True(t, paused.PausedFiles)
	_, err = s.Sandboxes.Wake(t.Context(), sb.ID)
	must.Eq(t, http.StatusConflict, api.StatusOf(err))
	_, err = s.Sandboxes.NodeFor(t.Context(), tenantOf(sb), sb.ID)
	must.Eq(t, http.StatusConflict, api.StatusOf(err))
	got, err := s.Sandboxes.Resume(t.Context(), tenantOf(sb), sb.ID, time.Minute, lifecycle.KeepMemory)
	must.NoError(t, err)
	must.False(t, got.PausedFiles)
}

func TestPause_ofTheFilesAloneAtTheDeadlineIsRecorded(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, func(p *lifecycle.CreateParams) {
		p.Timeout, p.Lifecycle.OnTimeout, p.Lifecycle.FilesOnly = 100*time.Millisecond, state.OnTimeoutPause, true
	})
	coretest.Until(t, "the pause in the record", func() bool {
		got, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
		return err == nil && got.State == state.Paused && got.PausedFiles
	})
}

func TestDelete_endsAPausedOne(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, nil)
	_, err := s.Sandboxes.Pause(t.Context(), tenantOf(sb), sb.ID, lifecycle.KeepMemory)
	must.NoError(t, err)
	must.NoError(t, s.Sandboxes.Delete(t.Context(), tenantOf(sb), sb.ID))
	must.Error(t, s.Sandboxes.Delete(t.Context(), tenantOf(sb), sb.ID))
}

func TestSnapshot_isMadeFoundUsedAndDeleted(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, func(p *lifecycle.CreateParams) { p.EnvVars = map[string]string{"A": "1"} })
	caller := coretest.Caller
	sn, err := s.Sandboxes.TakeSnapshot(t.Context(), lifecycle.SnapshotParams{Caller: caller, Sandbox: sb.ID, Name: "warm:v1"})
	must.NoError(t, err)
	must.Eq(t, state.SnapshotReady, sn.State)
	for _, ref := range []string{string(sn.ID), "warm:v1", string(sn.ID) + ":default", caller.Tenant + "/warm:v1"} {
		got, err := s.Sandboxes.Snapshot(t.Context(), caller.Tenant, ref)
		must.NoError(t, err)
		must.Eq(t, sn.ID, got.ID)
		_, err = s.Sandboxes.Snapshot(t.Context(), "another", ref)
		must.True(t, api.IsNotFound(err))
	}
	for _, ref := range []string{string(sn.ID), "warm:v1", string(sn.ID) + ":default", caller.Tenant + "/warm:v1"} {
		tried := false
		s.Node.SetHooks(fleettest.Hooks{BeforeCreate: func(ctx context.Context, _ nodeapi.CreateRequest) error {
			err := s.Sandboxes.DeleteSnapshot(ctx, caller.Tenant, string(sn.ID), false)
			must.Eq(t, http.StatusConflict, api.StatusOf(err))
			must.ErrorContains(t, err, "in use")
			tried = true
			return nil
		}})
		child := running(t, s, func(p *lifecycle.CreateParams) { p.Template = ref })
		s.Node.SetHooks(fleettest.Hooks{})
		must.True(t, tried)
		must.Eq(t, sn.ID, child.Origin)
		must.Eq(t, sb.Digest, child.Digest)
	}
	// Those that run have all that they need.
	must.NoError(t, s.Sandboxes.DeleteSnapshot(t.Context(), caller.Tenant, "warm:v1", false))
	must.Eq(t, 0, s.Node.Snapshots())
	_, err = s.Sandboxes.Snapshot(t.Context(), caller.Tenant, string(sn.ID))
	must.True(t, api.IsNotFound(err))
}

func TestSnapshot_thatFailsLeavesNothing(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, nil)
	for name, bad := range map[string]string{"upper case": "Warm", "two colons": "a:b:c", "empty tag": "a:", "path": "../x"} {
		_, err := s.Sandboxes.TakeSnapshot(t.Context(), lifecycle.SnapshotParams{Caller: coretest.Caller, Sandbox: sb.ID, Name: bad})
		must.Eq(t, http.StatusBadRequest, api.StatusOf(err), must.Sprint(name))
	}
	s.Node.SetHooks(fleettest.Hooks{Call: func(_, path string) error {
		if strings.HasSuffix(path, "/snapshot") {
			return api.Errorf(http.StatusInsufficientStorage, api.CodeNoSpace, "disk full")
		}
		return nil
	}})
	_, err := s.Sandboxes.TakeSnapshot(t.Context(), lifecycle.SnapshotParams{Caller: coretest.Caller, Sandbox: sb.ID})
	must.Eq(t, http.StatusInsufficientStorage, api.StatusOf(err))
	all, err := s.Sandboxes.Snapshots(t.Context(), coretest.Caller.Tenant)
	must.NoError(t, err)
	must.SliceEmpty(t, all)
	must.Eq(t, 0, s.Node.Snapshots())
}

func TestSnapshot_ofAServiceThatDiedIsSettled(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, nil)
	making := func() state.Snapshot {
		sn := state.Snapshot{
			ID: api.NewSnapshotID(), Tenant: sb.Tenant, Sandbox: sb.ID, Node: sb.Node, State: state.SnapshotMaking, Template: sb.Template,
			Digest: sb.Digest, CreatedAt: time.Now().UTC(), Creator: "a service that died",
		}
		_, err := s.State.Apply(t.Context(), &state.SnapshotPut{Snapshot: sn})
		must.NoError(t, err)
		return sn
	}
	stored, never := making(), making()
	client := nodeapi.NewUnix(s.Node.Socket)
	defer client.Close()
	_, err := client.Snapshot(t.Context(), sb.ID, nodeapi.SnapshotRequest{ID: stored.ID, Tenant: sb.Tenant})
	must.NoError(t, err)
	coretest.Until(t, "the one that is stored", func() bool {
		sn, err := s.Sandboxes.Snapshot(t.Context(), sb.Tenant, string(stored.ID))
		return err == nil && sn.State == state.SnapshotReady && sn.Bytes > 0
	})
	coretest.Until(t, "the end of the one that is not", func() bool {
		_, err := s.Sandboxes.Snapshot(t.Context(), sb.Tenant, string(never.ID))
		return api.IsNotFound(err)
	})
}

func TestFork_ofAServiceThatDiedLeavesNoSnapshot(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, nil)
	client := nodeapi.NewUnix(s.Node.Socket)
	defer client.Close()
	put := func(passing bool) api.SnapshotID {
		sn := state.Snapshot{
			ID: api.NewSnapshotID(), Tenant: sb.Tenant, Sandbox: sb.ID, Node: sb.Node, State: state.SnapshotMaking, Template: sb.Template,
			Digest: sb.Digest, CreatedAt: time.Now().UTC(), Creator: "a service that died", Passing: passing,
		}
		_, err := client.Snapshot(t.Context(), sb.ID, nodeapi.SnapshotRequest{ID: sn.ID, Tenant: sb.Tenant})
		must.NoError(t, err)
		_, err = s.State.Apply(t.Context(), &state.SnapshotPut{Snapshot: sn})
		must.NoError(t, err)
		return sn.ID
	}
	kept, passing := put(false), put(true)
	coretest.Until(t, "the end of the fork's", func() bool {
		_, err := s.Sandboxes.Snapshot(t.Context(), sb.Tenant, string(passing))
		return api.IsNotFound(err)
	})
	_, err := client.GetSnapshot(t.Context(), sb.Tenant, passing)
	must.True(t, api.IsNotFound(err), must.Sprintf("%v", err))
	coretest.Until(t, "the other one to be ready", func() bool {
		sn, err := s.Sandboxes.Snapshot(t.Context(), sb.Tenant, string(kept))
		return err == nil && sn.State == state.SnapshotReady
	})
	_, err = client.GetSnapshot(t.Context(), sb.Tenant, kept)
	must.NoError(t, err)
}

func TestFork_makesCopiesAndForgetsTheSnapshot(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, func(p *lifecycle.CreateParams) { p.Metadata = map[string]string{"k": "v"} })
	forks, err := s.Sandboxes.Fork(t.Context(), coretest.Caller, sb.ID, 10, time.Minute)
	must.NoError(t, err)
	must.Len(t, 10, forks)
	ids, tokens := map[api.SandboxID]bool{sb.ID: true}, map[string]bool{sb.EnvdToken: true}
	for _, f := range forks {
		must.NoError(t, f.Err)
		must.Eq(t, state.Running, f.Sandbox.State)
		must.Eq(t, "v", f.Sandbox.Metadata["k"])
		ids[f.Sandbox.ID], tokens[f.Sandbox.EnvdToken] = true, true
	}
	must.MapLen(t, 11, ids)
	must.MapLen(t, 11, tokens, must.Sprint("each has a token of its own"))
	all, err := s.Sandboxes.Snapshots(t.Context(), coretest.Caller.Tenant)
	must.NoError(t, err)
	must.SliceEmpty(t, all)
	must.Eq(t, 0, s.Node.Snapshots())
	for _, n := range []int{0, 101} {
		_, err := s.Sandboxes.Fork(t.Context(), coretest.Caller, sb.ID, n, time.Minute)
		must.Eq(t, http.StatusBadRequest, api.StatusOf(err))
	}
	_, err = s.Sandboxes.Fork(t.Context(), auth.Identity{Tenant: "another"}, sb.ID, 1, time.Minute)
	must.True(t, api.IsNotFound(err))
}
