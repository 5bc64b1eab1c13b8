package node

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

func TestExitOf(t *testing.T) {
	id := api.NewSandboxID()
	stop := &stopIntent{Reason: nodeapi.ExitDeadline}
	for _, tc := range []struct {
		name string
		exit sandbox.Exit
		stop *stopIntent
		want nodeapi.Exit
	}{
		{"main exits", sandbox.Exit{Record: exitRecord(id, guest.ReasonMainExited, 3, 0)}, nil, nodeapi.Exit{Reason: nodeapi.ExitMainExited, Code: 3}},
		{"main is signalled", sandbox.Exit{Record: exitRecord(id, guest.ReasonMainExited, 139, 11)}, nil, nodeapi.Exit{Reason: nodeapi.ExitMainExited, Code: 139, Signal: 11}},
		{"main is killed for memory", sandbox.Exit{Record: exitRecord(id, guest.ReasonMainExited, 137, 9), OOM: true}, nil, nodeapi.Exit{Reason: nodeapi.ExitKilled, Code: 137, Signal: 9, OOM: true, Message: "the kernel ended it for lack of memory"}},
		{"main is killed for memory, and PID 1 has passed it on", sandbox.Exit{Record: exitRecord(id, guest.ReasonMainExited, 137, 9), OOM: true, Waited: true, Code: 137}, nil, nodeapi.Exit{Reason: nodeapi.ExitKilled, Code: 137, Signal: 9, OOM: true, Message: "the kernel ended it for lack of memory"}},
		{"stopped", sandbox.Exit{Record: exitRecord(id, guest.ReasonShutdown, 143, 15)}, stop, nodeapi.Exit{Reason: nodeapi.ExitDeadline, Code: 143, Signal: 15}},
		{"main ends before the stop", sandbox.Exit{Record: exitRecord(id, guest.ReasonMainExited, 0, 0)}, stop, nodeapi.Exit{Reason: nodeapi.ExitMainExited}},
		{"killed by a stop", sandbox.Exit{Waited: true, Code: 137, Signal: 9}, stop, nodeapi.Exit{Reason: nodeapi.ExitDeadline, Code: 137, Signal: 9}},
		{"killed from outside", sandbox.Exit{Waited: true, Code: 143, Signal: 15}, nil, nodeapi.Exit{Reason: nodeapi.ExitKilled, Code: 143, Signal: 15, Message: "its PID 1 was killed"}},
		{"killed, seen by a later daemon", sandbox.Exit{}, nil, nodeapi.Exit{Reason: nodeapi.ExitKilled, Code: 137, Signal: 9, Message: "its PID 1 was killed"}},
		{"out of memory", sandbox.Exit{OOM: true}, nil, nodeapi.Exit{Reason: nodeapi.ExitKilled, Code: 137, Signal: 9, OOM: true, Message: "the kernel ended it for lack of memory"}},
		{"reboot", sandbox.Exit{Rebooted: true}, nil, nodeapi.Exit{Reason: nodeapi.ExitLost, Code: -1, Message: "the machine restarted under it"}},
		{"reboot after the end", sandbox.Exit{Rebooted: true, Record: exitRecord(id, guest.ReasonMainExited, 5, 0)}, nil, nodeapi.Exit{Reason: nodeapi.ExitMainExited, Code: 5}},
	} {
		t.Run(tc.name, func(t *testing.T) { must.Eq(t, tc.want, *exitOf(tc.exit, tc.stop)) })
	}
}

func TestStop_asksThenKills(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	got, err := n.client.Stop(t.Context(), sb.ID, nodeapi.StopRequest{Signal: 2, Timeout: time.Minute})
	must.NoError(t, err)
	must.Eq(t, nodeapi.Exit{Reason: nodeapi.ExitStopped, Code: 130, Signal: 2}, *got.Exit)

	deaf, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	n.rt.instance(deaf.ID).deaf = true
	start := time.Now()
	got, err = n.client.Stop(t.Context(), deaf.ID, nodeapi.StopRequest{Timeout: 50 * time.Millisecond, Reason: "because"})
	must.NoError(t, err)
	must.Eq(t, nodeapi.Exit{Reason: "because", Code: 137, Signal: 9}, *got.Exit)
	must.Between(t, 50*time.Millisecond, time.Since(start), 5*time.Second)

	again, err := n.client.Stop(t.Context(), deaf.ID, nodeapi.StopRequest{})
	must.NoError(t, err)
	must.Eq(t, got, again)
}

func TestStop_secondOneMayBeQuicker(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	n.rt.instance(sb.ID).deaf = true
	slow := make(chan nodeapi.Sandbox, 1)
	go func() {
		s, err := n.client.Stop(t.Context(), sb.ID, nodeapi.StopRequest{Timeout: time.Hour, Reason: "slow"})
		must.NoError(t, err)
		slow <- s
	}()
	waitUntil(t, "stopping", func() bool { s, _ := n.Get(sb.ID); return s.State == nodeapi.StateStopping })
	_, err = n.client.Stop(t.Context(), sb.ID, nodeapi.StopRequest{Reason: "quick"})
	must.NoError(t, err)
	must.Eq(t, "slow", (<-slow).Exit.Reason)
}

func TestStop_badInput(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	for _, r := range []nodeapi.StopRequest{{Signal: 65}, {Signal: -1}, {Timeout: -1}, {Timeout: 48 * time.Hour}, {Reason: "a\nb"}} {
		_, err := n.client.Stop(t.Context(), sb.ID, r)
		must.Eq(t, http.StatusBadRequest, api.StatusOf(err))
	}
	_, err = n.client.Stop(t.Context(), api.NewSandboxID(), nodeapi.StopRequest{})
	must.True(t, api.IsNotFound(err))
}

func TestWait_manyCallers(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			s, err := n.client.Wait(t.Context(), sb.ID)
			must.NoError(t, err)
			must.Eq(t, 42, s.Exit.Code)
		})
	}
	n.rt.instance(sb.ID).end(sandbox.Exit{Record: exitRecord(sb.ID, guest.ReasonMainExited, 42, 0)})
	wg.Wait()
}

func TestDeadline_endsTheSandbox(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	req := createRequest()
	req.Deadline = time.Now().Add(time.Hour)
	sb, err := n.client.Create(t.Context(), req)
	must.NoError(t, err)
	_, err = n.client.SetDeadline(t.Context(), sb.ID, time.Now().Add(30*time.Millisecond))
	must.NoError(t, err)
	got, err := n.client.Wait(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Eq(t, nodeapi.ExitDeadline, got.Exit.Reason)
	_, err = n.client.SetDeadline(t.Context(), sb.ID, time.Time{})
	var e *api.Error
	must.True(t, errors.As(err, &e))
	must.Eq(t, api.CodeNotRunning, e.ErrorCode)
}

func TestDelete_waitsForTheRemoval(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	i := n.rt.instance(sb.ID)
	i.releaseErr = errors.New("busy")
	deleted := make(chan error, 1)
	go func() { deleted <- n.client.Delete(t.Context(), sb.ID) }()
	waitUntil(t, "stopped", func() bool { s, err := n.Get(sb.ID); return err == nil && s.State == nodeapi.StateStopped })
	must.MapLen(t, 1, n.ids.taken, must.Sprint("ids must not be given away before the removal"))
	i.mu.Lock()
	i.releaseErr = nil
	i.mu.Unlock()
	must.NoError(t, <-deleted)
	must.MapEmpty(t, n.ids.taken)
	must.True(t, api.IsNotFound(n.client.Delete(t.Context(), sb.ID)))
}

func TestPrune_byAgeAndCount(t *testing.T) {
	cfg := testConfig(shortDir(t))
	cfg.KeepCount = 2
	n := startNode(t, cfg, nil)
	var ids []api.SandboxID
	for range 4 {
		sb, err := n.client.Create(t.Context(), createRequest())
		must.NoError(t, err)
		_, err = n.client.Stop(t.Context(), sb.ID, nodeapi.StopRequest{})
		must.NoError(t, err)
		ids = append(ids, sb.ID)
	}
	n.prune(time.Now())
	waitUntil(t, "two records", func() bool { return len(n.List()) == 2 })
	for _, id := range ids[2:] {
		_, err := n.Get(id)
		must.NoError(t, err)
	}
	n.prune(time.Now().Add(DefaultKeepStopped))
	waitUntil(t, "no records", func() bool { return len(n.List()) == 0 })
}

// A Nomad client that was killed before it had noted a start asks for the sandbox anew, also where it was used and has ended.
func TestDelete_theOwnerThatHadItDoesNotGetItAnew(t *testing.T) {
	dir := shortDir(t)
	cfg := testConfig(dir)
	n := startNode(t, cfg, nil)
	allocs := filepath.Join(dir, "alloc")
	request := func(id api.SandboxID, alloc, kind string) nodeapi.CreateRequest {
		folder := filepath.Join(allocs, alloc)
		must.NoError(t, os.MkdirAll(folder, 0o700))
		req := createRequest()
		req.ID, req.Owner = id, nodeapi.Owner{Kind: kind, AllocID: alloc, TaskID: alloc + "/main/cafe", Folder: folder}
		return req
	}
	const id, task = api.SandboxID("iaaaaaaaaaaaaaaaaaaaa"), api.SandboxID("ibbbbbbbbbbbbbbbbbbbb")
	for _, req := range []nodeapi.CreateRequest{request(id, "one", nodeapi.OwnerControl), request(task, "one", "nomad")} {
		_, err := n.client.Create(t.Context(), req)
		must.NoError(t, err)
		must.NoError(t, n.client.Delete(t.Context(), req.ID))
	}
	_, err := n.client.Create(t.Context(), request(id, "one", nodeapi.OwnerControl))
	must.Eq(t, http.StatusConflict, api.StatusOf(err))
	must.StrContains(t, err.Error(), "has ended")
	_, err = n.client.Create(t.Context(), request(task, "one", "nomad"))
	must.NoError(t, err, must.Sprint("a job file's task may run again"))

	_, err = n.client.Create(t.Context(), request(id, "two", nodeapi.OwnerControl))
	must.NoError(t, err, must.Sprint("it was moved or resumed: another allocation"))
	must.NoError(t, n.client.Delete(t.Context(), id))
	must.NoError(t, os.RemoveAll(filepath.Join(allocs, "one")))
	_, err = n.client.Create(t.Context(), request(id, "one", nodeapi.OwnerControl))
	must.NoError(t, err, must.Sprint("the mark went with the folder"))
}

// A record that Nomad may still ask for stays, whatever its age; one of an allocation that Nomad has collected goes at once; and a
// folder that cannot be looked for says nothing.
func TestPrune_byTheOwnersFolder(t *testing.T) {
	dir := shortDir(t)
	cfg := testConfig(dir)
	cfg.KeepCount = 1
	n := startNode(t, cfg, nil)
	allocs := filepath.Join(dir, "alloc")
	must.NoError(t, os.MkdirAll(filepath.Join(allocs, "there"), 0o700))
	must.NoError(t, os.MkdirAll(filepath.Join(allocs, "runs"), 0o700))
	made := map[string]api.SandboxID{}
	for _, alloc := range []string{"there", "gone", "runs", "elsewhere"} {
		req := createRequest()
		req.Owner.Folder = filepath.Join(allocs, alloc)
		if alloc == "elsewhere" {
			req.Owner.Folder = filepath.Join(dir, "not-mounted", alloc)
		}
		sb, err := n.client.Create(t.Context(), req)
		must.NoError(t, err)
		made[alloc] = sb.ID
		if alloc == "runs" {
			continue
		}
		_, err = n.client.Stop(t.Context(), sb.ID, nodeapi.StopRequest{})
		must.NoError(t, err)
	}
	gone := func(alloc string) func() bool {
		return func() bool { _, err := n.Get(made[alloc]); return api.IsNotFound(err) }
	}
	n.prune(time.Now())
	waitUntil(t, "the record of the collected allocation to go", gone("gone"))
	must.SliceLen(t, 3, n.List())
	n.prune(time.Now().Add(2 * DefaultKeepStopped))
	waitUntil(t, "the old record whose owner nobody knows to go", gone("elsewhere"))
	must.SliceLen(t, 2, n.List(), must.Sprint("Nomad may ask for one that has stopped, and the other runs"))
	must.NoError(t, os.RemoveAll(allocs))
	must.NoError(t, os.Mkdir(allocs, 0o700))
	n.prune(time.Now())
	waitUntil(t, "the other to go after its folder", gone("there"))
	sb, err := n.Get(made["runs"])
	must.NoError(t, err)
	must.Eq(t, nodeapi.StateRunning, sb.State, must.Sprint("what runs is never pruned"))
}
