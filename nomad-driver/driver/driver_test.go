package driver

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// fakeNode keeps sandboxes in memory and speaks the part of the node's API that the driver uses. The real node is behind
// the driver in e2e/nomad.
type fakeNode struct {
	mu        sync.Mutex
	sandboxes map[api.SandboxID]*nodeapi.Sandbox
	requests  map[api.SandboxID]string // the JSON of what was asked for
	creates   int
	stops     []nodeapi.StopRequest
	lost      string        // why ports are not published any more
	hangUps   int           // waits that are yet to be cut off
	ended     chan struct{} // closed and renewed at every end
}

func serveFake(t *testing.T) (*fakeNode, string) {
	t.Helper()
	f := &fakeNode{sandboxes: map[api.SandboxID]*nodeapi.Sandbox{}, requests: map[api.SandboxID]string{}, ended: make(chan struct{})}
	socket := filepath.Join(t.TempDir(), "node.sock")
	l, err := net.Listen("unix", socket)
	must.NoError(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/node", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, nodeapi.Node{ID: "n1", Version: "0.1.0", Healthy: true, Probes: []nodeapi.Probe{{Name: "user_namespaces", OK: true}}})
	})
	mux.HandleFunc("POST /v1/sandboxes", f.create)
	mux.HandleFunc("GET /v1/sandboxes", f.list)
	mux.HandleFunc("GET /v1/sandboxes/{id}", f.get)
	mux.HandleFunc("GET /v1/sandboxes/{id}/wait", f.wait)
	mux.HandleFunc("POST /v1/sandboxes/{id}/stop", f.stop)
	mux.HandleFunc("POST /v1/sandboxes/{id}/published/renew", f.renew)
	mux.HandleFunc("DELETE /v1/sandboxes/{id}", f.remove)
	srv := &http.Server{Handler: mux}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return f, socket
}

func answer(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

func refuse(w http.ResponseWriter, e *api.Error) {
	w.WriteHeader(e.Code)
	answer(w, e)
}

func (f *fakeNode) create(w http.ResponseWriter, r *http.Request) {
	var req nodeapi.CreateRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		refuse(w, api.Errorf(400, api.CodeInvalid, "%v", err))
		return
	}
	if req.Template == "missing" {
		refuse(w, api.Errorf(404, api.CodeUnknownTemplate, "template missing does not exist"))
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.creates++
	body, _ := json.Marshal(req)
	if f.sandboxes[req.ID] != nil && f.requests[req.ID] != string(body) {
		refuse(w, api.Errorf(409, api.CodeConflict, "sandbox %s exists and is another", req.ID))
		return
	}
	if f.sandboxes[req.ID] == nil {
		f.requests[req.ID] = string(body)
		f.sandboxes[req.ID] = &nodeapi.Sandbox{ID: req.ID, State: nodeapi.StateRunning, Template: req.Template, Owner: req.Owner}
	}
	answer(w, f.sandboxes[req.ID])
}

func (f *fakeNode) list(w http.ResponseWriter, _ *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := []nodeapi.Sandbox{}
	for _, sb := range f.sandboxes {
		all = append(all, *sb)
	}
	answer(w, all)
}

func (f *fakeNode) get(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if sb := f.sandboxes[api.SandboxID(r.PathValue("id"))]; sb != nil {
		answer(w, sb)
		return
	}
	refuse(w, api.Errorf(404, api.CodeNotFound, "no such sandbox"))
}

func (f *fakeNode) renew(w http.ResponseWriter, _ *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := []nodeapi.PublishedPort{}
	if f.lost != "" {
		list = append(list, nodeapi.PublishedPort{Proto: "tcp", Port: 80, Error: f.lost})
	}
	answer(w, list)
}

// lose has a port of every sandbox not published any more.
func (f *fakeNode) lose(why string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lost = why
}

// hangUp cuts one wait off, that is there or that comes.
func (f *fakeNode) hangUp() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hangUps++
	close(f.ended)
	f.ended = make(chan struct{})
}

func (f *fakeNode) wait(w http.ResponseWriter, r *http.Request) {
	for {
		f.mu.Lock()
		if f.hangUps > 0 {
			f.hangUps--
			f.mu.Unlock()
			refuse(w, api.Errorf(503, api.CodeUnavailable, "the daemon ends"))
			return
		}
		sb, ended := f.sandboxes[api.SandboxID(r.PathValue("id"))], f.ended
		stopped := sb == nil || sb.State == nodeapi.StateStopped
		f.mu.Unlock()
		if stopped {
			f.get(w, r)
			return
		}
		select {
		case <-ended:
		case <-r.Context().Done():
			return
		}
	}
}

func (f *fakeNode) stop(w http.ResponseWriter, r *http.Request) {
	var req nodeapi.StopRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		refuse(w, api.Errorf(400, api.CodeInvalid, "%v", err))
		return
	}
	f.mu.Lock()
	f.stops = append(f.stops, req)
	f.mu.Unlock()
	f.end(api.SandboxID(r.PathValue("id")), nodeapi.Exit{Reason: nodeapi.ExitStopped, Code: 128 + req.Signal, Signal: req.Signal})
	f.get(w, r)
}

func (f *fakeNode) end(id api.SandboxID, exit nodeapi.Exit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if sb := f.sandboxes[id]; sb != nil {
		sb.State, sb.Exit = nodeapi.StateStopped, &exit
	}
	close(f.ended)
	f.ended = make(chan struct{})
}

func (f *fakeNode) remove(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sandboxes, api.SandboxID(r.PathValue("id")))
	w.WriteHeader(http.StatusNoContent)
}

// asked is how many creates came.
func (f *fakeNode) asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.creates
}

// has are copies of the sandboxes that are there.
func (f *fakeNode) has() map[api.SandboxID]nodeapi.Sandbox {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[api.SandboxID]nodeapi.Sandbox{}
	for id, sb := range f.sandboxes {
		out[id] = *sb
	}
	return out
}

// stopped are the stops that came.
func (f *fakeNode) stopped() []nodeapi.StopRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.stops)
}

// forget removes all sandboxes.
func (f *fakeNode) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.sandboxes)
}

// configured returns a driver that talks to socket and starts no daemon.
func driverOn(t *testing.T, socket string) *Driver {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	d := New(ctx, hclog.NewNullLogger(), "0.1.0")
	var raw []byte
	must.NoError(t, base.MsgPackEncode(&raw, &Config{Socket: socket}))
	must.NoError(t, d.SetConfig(&base.Config{PluginConfig: raw}))
	return d
}

func TestSetConfig_takesNoDriverConfigAndHasNoEffect(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "node.sock")
	d := New(t.Context(), hclog.NewNullLogger(), "0.1.0")
	var raw []byte
	must.NoError(t, base.MsgPackEncode(&raw, &Config{Socket: socket, StartNode: true}))
	must.NoError(t, d.SetConfig(&base.Config{PluginConfig: raw, AgentConfig: &base.AgentConfig{Driver: nil}}))
	must.FileNotExists(t, socket)
}

func TestSetConfig_namesTheFieldAtFault(t *testing.T) {
	for _, tc := range []struct {
		config Config
		want   string
	}{
		{Config{Socket: "node.sock"}, `socket "node.sock" is not an absolute path`},
		{Config{}, "socket is empty"},
		{Config{Socket: "/x", NodeLog: "log"}, "node_log"},
		{Config{Socket: "/" + string(make([]byte, 200))}, "at most 107"},
	} {
		var raw []byte
		must.NoError(t, base.MsgPackEncode(&raw, &tc.config))
		err := New(t.Context(), hclog.NewNullLogger(), "0.1.0").SetConfig(&base.Config{PluginConfig: raw})
		must.ErrorContains(t, err, tc.want)
	}
}

func TestPluginInfo_hasAVersionThatNomadReads(t *testing.T) {
	info, err := New(t.Context(), hclog.NewNullLogger(), "0.1.0-dev").PluginInfo()
	must.NoError(t, err)
	must.Eq(t, Name, info.Name)
	must.SliceContains(t, info.PluginApiVersions, "v0.1.0")
}

func TestTask_runsAndEnds(t *testing.T) {
	node, socket := serveFake(t)
	d := driverOn(t, socket)
	cfg := task(t, TaskConfig{Command: "true"})
	handle, network, err := d.StartTask(cfg)
	must.NoError(t, err)
	must.Nil(t, network)
	must.Eq(t, handleVersion, handle.Version)

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var waits []<-chan *drivers.ExitResult
	for range 3 {
		ch, err := d.WaitTask(ctx, cfg.ID)
		must.NoError(t, err)
		waits = append(waits, ch)
	}
	node.end(sandboxID(cfg.ID), nodeapi.Exit{Reason: nodeapi.ExitMainExited, Code: 137, Signal: 9, OOM: true})
	for _, ch := range waits {
		must.Eq(t, &drivers.ExitResult{ExitCode: 137, Signal: 9, OOMKilled: true}, <-ch)
		_, open := <-ch
		must.False(t, open)
	}
	ch, err := d.WaitTask(ctx, cfg.ID)
	must.NoError(t, err)
	must.Eq(t, 9, (<-ch).Signal, must.Sprint("an ended task answers at once"))

	status, err := d.InspectTask(cfg.ID)
	must.NoError(t, err)
	must.Eq(t, drivers.TaskStateExited, status.State)
	must.NoError(t, d.DestroyTask(cfg.ID, false))
	_, err = d.InspectTask(cfg.ID)
	must.ErrorIs(t, err, drivers.ErrTaskNotFound)
}

func TestStart_repeatedFindsTheFirstSandbox(t *testing.T) {
	node, socket := serveFake(t)
	cfg := task(t, TaskConfig{})
	_, _, err := driverOn(t, socket).StartTask(cfg)
	must.NoError(t, err)
	// The plugin was killed before its answer reached Nomad, which asks the next one.
	_, _, err = driverOn(t, socket).StartTask(cfg)
	must.NoError(t, err)
	must.Eq(t, 2, node.asked())
	must.MapLen(t, 1, node.has())
}

// A deadline counts from each call, so the second request is not the first one's.
func TestStart_repeatedFindsTheFirstSandboxWithADeadline(t *testing.T) {
	node, socket := serveFake(t)
	cfg := task(t, TaskConfig{Deadline: "1h"})
	_, _, err := driverOn(t, socket).StartTask(cfg)
	must.NoError(t, err)
	_, _, err = driverOn(t, socket).StartTask(cfg)
	must.NoError(t, err)
	must.MapLen(t, 1, node.has())
}

// The client was killed before it could note the start: it starts the task again, under another id.
func TestStart_removesWhatAnEarlierRunLeft(t *testing.T) {
	node, socket := serveFake(t)
	first := task(t, TaskConfig{})
	_, _, err := driverOn(t, socket).StartTask(first)
	must.NoError(t, err)
	other := task(t, TaskConfig{})
	other.ID, other.Name = "alloc-1/side/0badcafe", "side"
	_, _, err = driverOn(t, socket).StartTask(other)
	must.NoError(t, err)

	again := task(t, TaskConfig{})
	again.ID = "alloc-1/main/feedbeef"
	_, _, err = driverOn(t, socket).StartTask(again)
	must.NoError(t, err)
	must.MapLen(t, 2, node.has())
	must.MapContainsKeys(t, node.has(), []api.SandboxID{sandboxID(again.ID), sandboxID(other.ID)})
}

func TestStart_dispatchedAgainGoesOnWithTheSandboxOfTheSameAllocation(t *testing.T) {
	node, socket := serveFake(t)
	req := nodeapi.CreateRequest{ID: api.NewSandboxID(), Template: "base"}
	first := task(t, TaskConfig{})
	writeDispatch(t, first, req)
	_, _, err := driverOn(t, socket).StartTask(first)
	must.NoError(t, err)

	again := task(t, TaskConfig{})
	again.ID = "alloc-1/main/feedbeef"
	writeDispatch(t, again, req)
	second := driverOn(t, socket)
	handle, _, err := second.StartTask(again)
	must.NoError(t, err)
	must.Eq(t, first.ID, node.has()[req.ID].Owner.TaskID, must.Sprint("it is the one that somebody may use already"))
	must.NoError(t, driverOn(t, socket).RecoverTask(handle), must.Sprint("a plugin that was started later finds it by the second run"))

	foreign := task(t, TaskConfig{})
	foreign.ID, foreign.AllocID = "alloc-2/main/feedbeef", "alloc-2"
	writeDispatch(t, foreign, req)
	_, _, err = driverOn(t, socket).StartTask(foreign)
	must.ErrorContains(t, err, "exists and is another")
	must.MapContainsKey(t, node.has(), req.ID)
	must.NoError(t, driverOn(t, socket).DestroyTask(again.ID, true))
	must.MapNotContainsKey(t, node.has(), req.ID)
}

// The control service ended a sandbox while Nomad's client was away: it is not started again.
func TestRecover_dispatchedSandboxThatIsGoneHasEnded(t *testing.T) {
	node, socket := serveFake(t)
	req := nodeapi.CreateRequest{ID: api.NewSandboxID(), Template: "base"}
	cfg := task(t, TaskConfig{})
	writeDispatch(t, cfg, req)
	handle, _, err := driverOn(t, socket).StartTask(cfg)
	must.NoError(t, err)
	must.NoError(t, driverOn(t, socket).DestroyTask(cfg.ID, true))
	must.MapEmpty(t, node.has())
	later := driverOn(t, socket)
	must.NoError(t, later.RecoverTask(handle))
	ended, err := later.WaitTask(t.Context(), cfg.ID)
	must.NoError(t, err)
	must.ErrorContains(t, (<-ended).Err, "gone from the node")
	must.NoError(t, later.StopTask(cfg.ID, 0, ""))
	must.NoError(t, later.DestroyTask(cfg.ID, true))

	own := task(t, TaskConfig{}) // a task of a job file is another thing: Nomad is its owner
	handle, _, err = driverOn(t, socket).StartTask(own)
	must.NoError(t, err)
	must.NoError(t, driverOn(t, socket).DestroyTask(own.ID, true))
	must.Error(t, driverOn(t, socket).RecoverTask(handle))
}

func TestStart_refusesWhatASandboxCannotHave(t *testing.T) {
	_, socket := serveFake(t)
	cfg := task(t, TaskConfig{})
	cfg.Mounts = []*drivers.MountConfig{{TaskPath: "/data", HostPath: "/srv"}}
	_, _, err := driverOn(t, socket).StartTask(cfg)
	must.ErrorContains(t, err, `volume_mount to "/data" is not supported`)
	cfg.Devices = []*drivers.DeviceConfig{{HostPath: "/dev/gpu0", TaskPath: "/dev/gpu0", Permissions: "rw"}}
	_, _, err = driverOn(t, socket).StartTask(cfg)
	must.ErrorContains(t, err, `mount of /srv to "/data" is not supported`)
	for want, spec := range map[string]*drivers.NetworkIsolationSpec{
		"the group's network has no namespace":          {Mode: drivers.NetIsolationModeGroup},
		`network isolation mode "vpn" is not supported`: {Mode: "vpn"},
	} {
		cfg = task(t, TaskConfig{})
		cfg.NetworkIsolation = spec
		_, _, err = driverOn(t, socket).StartTask(cfg)
		must.ErrorContains(t, err, want)
	}
	dispatched := task(t, TaskConfig{})
	writeDispatch(t, dispatched, nodeapi.CreateRequest{ID: api.NewSandboxID(), Template: "base"})
	dispatched.NetworkIsolation = &drivers.NetworkIsolationSpec{Mode: drivers.NetIsolationModeGroup, Path: "/var/run/netns/x"}
	_, _, err = driverOn(t, socket).StartTask(dispatched)
	must.ErrorContains(t, err, "network modes bridge and cni are not supported for dispatched sandboxes")
}

func TestCapabilities_includeTheNetworkOfAGroup(t *testing.T) {
	caps, err := New(t.Context(), hclog.NewNullLogger(), "0.1.0").Capabilities()
	must.NoError(t, err)
	must.True(t, caps.HasNetIsolationMode(drivers.NetIsolationModeGroup))
	must.True(t, caps.HasNetIsolationMode(drivers.NetIsolationModeHost))
	must.False(t, caps.MustInitiateNetwork)
}

// What becomes of a task's ports while nobody looks is told in its events: after a restart of the plugin, and of the daemon.
func TestPorts_thatAreLostAreToldInTheTasksEvents(t *testing.T) {
	node, socket := serveFake(t)
	cfg := task(t, TaskConfig{Command: "true", Ports: []string{"http"}})
	cfg.Resources.Ports = &structs.AllocatedPorts{{Label: "http", Value: 23456, To: 80}}
	handle, _, err := driverOn(t, socket).StartTask(cfg)
	must.NoError(t, err)
	next := driverOn(t, socket)
	events, err := next.TaskEvents(t.Context())
	must.NoError(t, err)
	node.lose("/var/run/netns/x: not a network namespace")
	must.NoError(t, next.RecoverTask(handle))
	told := func() {
		t.Helper()
		e := <-events
		must.Eq(t, cfg.ID, e.TaskID)
		must.Eq(t, cfg.AllocID, e.AllocID)
		must.Eq(t, cfg.Name, e.TaskName)
		must.StrContains(t, e.Message, "tcp 80: /var/run/netns/x: not a network namespace")
	}
	ch, err := next.WaitTask(t.Context(), cfg.ID)
	must.NoError(t, err)
	told()
	node.hangUp() // as a daemon does that ends
	told()
	node.end(sandboxID(cfg.ID), nodeapi.Exit{Reason: nodeapi.ExitMainExited})
	must.Eq(t, 0, (<-ch).ExitCode)
}

// Nomad's log collector ends for good at the end of file: it must not see one while the task runs, whatever happens to
// the daemon, and must see one when it has ended.
func TestLogs_stayOpenAsLongAsTheTaskRuns(t *testing.T) {
	node, socket := serveFake(t)
	d := driverOn(t, socket)
	cfg := task(t, TaskConfig{Command: "true"})
	dir := t.TempDir()
	cfg.StdoutPath, cfg.StderrPath = filepath.Join(dir, "out"), filepath.Join(dir, "err")
	must.NoError(t, unix.Mkfifo(cfg.StdoutPath, 0o600))
	must.NoError(t, unix.Mkfifo(cfg.StderrPath, 0o600))
	handle, _, err := d.StartTask(cfg)
	must.NoError(t, err)
	next := driverOn(t, socket)
	must.NoError(t, next.RecoverTask(handle))

	fd, err := unix.Open(cfg.StdoutPath, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	must.NoError(t, err)
	defer unix.Close(fd)
	_, err = unix.Read(fd, make([]byte, 1))
	must.Eq[error](t, unix.EAGAIN, err, must.Sprint("somebody holds the other end"))

	node.end(sandboxID(cfg.ID), nodeapi.Exit{Reason: nodeapi.ExitMainExited})
	for _, d := range []*Driver{d, next} {
		ch, err := d.WaitTask(t.Context(), cfg.ID)
		must.NoError(t, err)
		<-ch
	}
	n, err := unix.Read(fd, make([]byte, 1))
	must.NoError(t, err)
	must.Zero(t, n)
}

func TestStart_saysWhetherARestartMayHelp(t *testing.T) {
	_, socket := serveFake(t)
	_, _, err := driverOn(t, socket).StartTask(task(t, TaskConfig{Template: "missing"}))
	must.ErrorContains(t, err, "template missing does not exist (template_not_found)", must.Sprint("the code survives as text"))
	var r interface{ IsRecoverable() bool }
	must.False(t, errors.As(err, &r), must.Sprint("a missing template stays missing"))

	_, _, err = driverOn(t, filepath.Join(t.TempDir(), "none.sock")).StartTask(task(t, TaskConfig{}))
	must.True(t, errors.As(err, &r), must.Sprint("a daemon may come back"))
	must.True(t, r.IsRecoverable())
}

func TestUnknownTask_isNoErrorWhereNomadWouldRetry(t *testing.T) {
	_, socket := serveFake(t)
	d := driverOn(t, socket)
	must.NoError(t, d.StopTask("unknown", time.Second, "SIGTERM"))
	must.NoError(t, d.DestroyTask("unknown", true))
	_, err := d.WaitTask(t.Context(), "unknown")
	must.ErrorIs(t, err, drivers.ErrTaskNotFound)
	_, err = d.InspectTask("unknown")
	must.ErrorIs(t, err, drivers.ErrTaskNotFound)
	must.ErrorIs(t, d.SignalTask("unknown", "SIGINT"), drivers.ErrTaskNotFound)
	_, err = d.ExecTask("unknown", []string{"true"}, time.Second)
	must.ErrorIs(t, err, drivers.ErrTaskNotFound)
	_, err = d.TaskStats(t.Context(), "unknown", time.Second)
	var r interface{ IsRecoverable() bool }
	must.True(t, errors.As(err, &r))
	must.False(t, r.IsRecoverable(), must.Sprint("Nomad would ask every second"))
}

func TestDestroy_findsATaskThatThePluginDoesNotKnow(t *testing.T) {
	node, socket := serveFake(t)
	cfg := task(t, TaskConfig{})
	_, _, err := driverOn(t, socket).StartTask(cfg)
	must.NoError(t, err)
	next := driverOn(t, socket)
	must.ErrorContains(t, next.DestroyTask(cfg.ID, false), "is running")
	must.NoError(t, next.DestroyTask(cfg.ID, true))
	must.MapEmpty(t, node.has())
}

func TestRecover_isIdempotentAndChecksTheHandle(t *testing.T) {
	node, socket := serveFake(t)
	cfg := task(t, TaskConfig{})
	handle, _, err := driverOn(t, socket).StartTask(cfg)
	must.NoError(t, err)

	next := driverOn(t, socket)
	must.NoError(t, next.RecoverTask(handle))
	must.NoError(t, next.RecoverTask(handle))
	must.NoError(t, next.StopTask(cfg.ID, 7*time.Second, "SIGINT"))
	must.Eq(t, []nodeapi.StopRequest{{Signal: 2, Timeout: 7 * time.Second}}, node.stopped())
	ch, err := next.WaitTask(t.Context(), cfg.ID)
	must.NoError(t, err)
	must.Eq(t, 2, (<-ch).Signal, must.Sprint("a task that ended meanwhile has its real exit"))

	stranger := handle.Copy()
	stranger.Config.ID = "alloc-9/main/0badcafe"
	must.ErrorContains(t, driverOn(t, socket).RecoverTask(stranger), "belongs to task")

	newer := handle.Copy()
	newer.Version = 99
	must.ErrorContains(t, driverOn(t, socket).RecoverTask(newer), "version 99")
	must.ErrorContains(t, driverOn(t, socket).RecoverTask(nil), "empty")
	node.forget()
	must.Error(t, driverOn(t, socket).RecoverTask(handle))
}

func TestFingerprint_hasOneAttributePerProbeAndForgetsOldOnes(t *testing.T) {
	_, socket := serveFake(t)
	d := driverOn(t, socket)
	seen := map[string]bool{"driver.soulbox.probe.gone": true}
	fp := d.fingerprint(t.Context(), seen)
	must.Eq(t, drivers.HealthStateHealthy, fp.Health)
	ok, isBool := fp.Attributes["driver.soulbox.probe.user_namespaces"].GetBool()
	must.True(t, ok && isBool)
	gone, _ := fp.Attributes["driver.soulbox.probe.gone"].GetString()
	must.Eq(t, "", gone)

	down := driverOn(t, filepath.Join(t.TempDir(), "none.sock")).fingerprint(t.Context(), map[string]bool{})
	must.Eq(t, drivers.HealthStateUnhealthy, down.Health)
}

func TestNodeEnv_dropsSecretsOfTheAgent(t *testing.T) {
	got := nodeEnv([]string{"PATH=/bin", "NOMAD_TOKEN=s", "VAULT_TOKEN=s", "LD_PRELOAD=x", "NOMAD_PLUGIN_MAGIC_COOKIE=y", "LANG=C"})
	must.Eq(t, []string{"PATH=/bin", "LANG=C"}, got)
}

func TestUsage_turnsCountersIntoRates(t *testing.T) {
	u := usage{compute: compute{cores: 2, totalMHz: 4000}}
	measured := []string{"cpu_nanos", "memory_bytes"}
	first := u.of(nodeapi.Stats{Time: now, CPUNanos: 1e9, Measured: measured})
	must.Eq(t, 0.0, first.ResourceUsage.CpuStats.Percent)
	second := u.of(nodeapi.Stats{Time: now.Add(time.Second), CPUNanos: 15e8, MemoryBytes: 42, Measured: measured})
	must.Eq(t, 50.0, second.ResourceUsage.CpuStats.Percent)
	must.Eq(t, 1000.0, second.ResourceUsage.CpuStats.TotalTicks)
	must.Eq(t, []string{"Percent", "Total Ticks"}, second.ResourceUsage.CpuStats.Measured)
	must.Eq(t, uint64(42), second.ResourceUsage.MemoryStats.RSS)
}
