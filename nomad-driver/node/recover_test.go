package node

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

func TestRecover_runningOnesGoOn(t *testing.T) {
	cfg := testConfig(shortDir(t))
	n := startNode(t, cfg, nil)
	req := createRequest()
	req.Deadline = time.Now().Add(time.Hour)
	before, err := n.client.Create(t.Context(), req)
	must.NoError(t, err)
	n.stop()
	must.Len(t, 1, n.rt.ids())

	n = startNode(t, cfg, n.rt)
	after, err := n.client.Get(t.Context(), before.ID)
	must.NoError(t, err)
	after.Steps = before.Steps // they are for who asked for the sandbox
	must.Eq(t, before, after)
	same, err := n.client.Create(t.Context(), req)
	must.NoError(t, err)
	must.Eq(t, before.PID, same.PID)
	must.Eq(t, 1, n.running())
	must.Eq(t, 1, n.templates.held())
	other, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	must.NotEq(t, n.rt.instance(before.ID).config.IDBase, n.rt.instance(other.ID).config.IDBase)
	must.NoError(t, n.client.Delete(t.Context(), before.ID))
}

func TestRecover_endedMeanwhile(t *testing.T) {
	cfg := testConfig(shortDir(t))
	n := startNode(t, cfg, nil)
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	n.stop()
	n.rt.instance(sb.ID).end(sandbox.Exit{Record: exitRecord(sb.ID, guest.ReasonMainExited, 9, 0)})

	n = startNode(t, cfg, n.rt)
	got, err := n.client.Wait(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Eq(t, nodeapi.Exit{Reason: nodeapi.ExitMainExited, Code: 9}, *got.Exit)
	waitUntil(t, "release", func() bool { return len(n.rt.ids()) == 0 })
	n.stop()

	n = startNode(t, cfg, n.rt) // and the record is still there a daemon later
	got, err = n.client.Get(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Eq(t, 9, got.Exit.Code)
	must.MapEmpty(t, n.ids.taken)
}

func TestRecover_deadlineIsKept(t *testing.T) {
	cfg := testConfig(shortDir(t))
	n := startNode(t, cfg, nil)
	req := createRequest()
	req.Deadline = time.Now().Add(2 * time.Second) // a busy machine has made it and stopped the daemon by then
	sb, err := n.client.Create(t.Context(), req)
	must.NoError(t, err)
	n.stop()
	time.Sleep(time.Until(req.Deadline)) // it passes while there is no daemon
	n = startNode(t, cfg, n.rt)
	got, err := n.client.Wait(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Eq(t, nodeapi.ExitDeadline, got.Exit.Reason)
}

func TestRecover_stopGoesOn(t *testing.T) {
	cfg := testConfig(shortDir(t))
	n := startNode(t, cfg, nil)
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	n.rt.instance(sb.ID).deaf = true
	go func() { _, _ = n.client.Stop(t.Context(), sb.ID, nodeapi.StopRequest{Timeout: 300 * time.Millisecond}) }()
	waitUntil(t, "stopping", func() bool { s, _ := n.Get(sb.ID); return s.State == nodeapi.StateStopping })
	n.stop()
	n = startNode(t, cfg, n.rt)
	got, err := n.client.Wait(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Eq(t, nodeapi.ExitStopped, got.Exit.Reason)
}

func TestRecover_halfMadeOnesAreSwept(t *testing.T) {
	cfg := testConfig(shortDir(t))
	n := startNode(t, cfg, nil)
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	n.stop()
	// As if the daemon had been killed between the sandbox and its record.
	must.NoError(t, os.Remove(filepath.Join(cfg.StateDir, "records", string(sb.ID)+".json")))
	n = startNode(t, cfg, n.rt)
	must.SliceEmpty(t, n.rt.ids())
	must.Eq(t, []api.SandboxID{sb.ID}, n.rt.swept)
	must.SliceEmpty(t, n.List())
}

func TestRecover_reboot(t *testing.T) {
	cfg := testConfig(shortDir(t))
	n := startNode(t, cfg, nil)
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	n.stop()
	rec, err := readRecord(n.records.path(sb.ID))
	must.NoError(t, err)
	rec.Ref.BootID = "another"
	must.NoError(t, n.records.put(rec))
	n = startNode(t, cfg, newFakeRuntime())
	got, err := n.client.Wait(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Eq(t, nodeapi.ExitLost, got.Exit.Reason)
}

func TestRecover_badRecordIsSetAsideAndItsSandboxSwept(t *testing.T) {
	cfg := testConfig(shortDir(t))
	n := startNode(t, cfg, nil)
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	n.stop()
	path := n.records.path(sb.ID)
	must.NoError(t, os.WriteFile(path, []byte(`{"version":1,`), 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(n.records.dir, tempPrefix+"x"), nil, 0o600))
	n = startNode(t, cfg, n.rt)
	must.SliceEmpty(t, n.rt.ids())
	must.FileExists(t, path+".bad")
	must.FileNotExists(t, filepath.Join(n.records.dir, tempPrefix+"x"))
}

func TestRecover_sandboxThatCannotBeOpened(t *testing.T) {
	cfg := testConfig(shortDir(t))
	n := startNode(t, cfg, nil)
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	n.stop()
	n.rt.openErr = errors.New("no such group")
	n = startNode(t, cfg, n.rt)
	got, err := n.client.Get(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Eq(t, nodeapi.ExitKilled, got.Exit.Reason)
	must.StrContains(t, got.Exit.Message, "no such group")
	must.SliceEmpty(t, n.rt.ids())
	must.MapEmpty(t, n.ids.taken)
}

func TestRecover_noCreatesUntilTheSweepSucceeds(t *testing.T) {
	rt := newFakeRuntime()
	rt.sweepErr = errors.New("device busy")
	n := startNode(t, testConfig(shortDir(t)), rt)
	_, err := n.client.Create(t.Context(), createRequest())
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err))
	info, err := n.client.Node(t.Context())
	must.NoError(t, err)
	must.False(t, info.Healthy)
	rt.mu.Lock()
	rt.sweepErr = nil
	rt.mu.Unlock()
	n.sweep()
	_, err = n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
}

func TestNew_oneDaemonForAStateDirectory(t *testing.T) {
	cfg := testConfig(shortDir(t))
	startNode(t, cfg, nil)
	second := cfg
	second.RunDir += "2"
	second.runtime, second.templates = newFakeRuntime(), &fakeTemplates{}
	_, err := New(second)
	must.ErrorContains(t, err, "another daemon")
}

func TestNew_keepsItsID(t *testing.T) {
	cfg := testConfig(shortDir(t))
	n := startNode(t, cfg, nil)
	n.stop()
	again := startNode(t, cfg, nil)
	must.Eq(t, n.id, again.id)
	must.NotEq(t, n.hub.epoch, again.hub.epoch)
}
