package node

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

func TestCreate_returnsWhatIsEnforced(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	req := createRequest()
	req.Limits = nodeapi.Limits{PIDs: 99}
	req.Env = map[string]string{"B": "2", "A": "1"}
	sb, err := n.client.Create(t.Context(), req)
	must.NoError(t, err)
	must.Eq(t, nodeapi.StateRunning, sb.State)
	must.Eq(t, baseTemplate.Digest, sb.Digest)
	must.Eq(t, "user", sb.User)
	must.Eq(t, string(req.ID), sb.Hostname)
	must.Eq(t, 99, sb.Limits.PIDs)
	must.Positive(t, sb.Limits.MemoryBytes)
	must.Eq(t, sandbox.DefaultTmpBytes, sb.Limits.TmpBytes)
	must.Eq(t, []string{"A=1", "B=2"}, n.rt.instance(req.ID).config.Boot.Env)
	got, err := n.client.Get(t.Context(), req.ID)
	must.NoError(t, err)
	must.Eq(t, sb, got)
}

func TestCreate_sameRequestAgainReturnsTheSandbox(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	req := createRequest()
	first, err := n.client.Create(t.Context(), req)
	must.NoError(t, err)
	again, err := n.client.Create(t.Context(), req)
	must.NoError(t, err)
	must.Eq(t, first, again)
	must.Eq(t, 1, n.rt.creates)

	req.Limits.PIDs = 77
	_, err = n.client.Create(t.Context(), req)
	must.Eq(t, http.StatusConflict, api.StatusOf(err))
}

func TestCreate_sameRequestAtTheSameTimeMakesOne(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	req := createRequest()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, err := n.client.Create(t.Context(), req)
			must.NoError(t, err)
		})
	}
	wg.Wait()
	must.Eq(t, 1, n.rt.creates)
}

func TestCreate_idRangesAreDistinctAndComeBack(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	bases := map[uint32]bool{}
	for range 5 {
		sb, err := n.client.Create(t.Context(), createRequest())
		must.NoError(t, err)
		base := n.rt.instance(sb.ID).config.IDBase
		must.False(t, bases[base])
		bases[base] = true
	}
	for _, sb := range n.List() {
		must.NoError(t, n.client.Delete(t.Context(), sb.ID))
	}
	must.MapEmpty(t, n.ids.taken)
	must.Eq(t, 0, n.templates.held())
}

func TestCreate_badInputNamesTheField(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	for _, tc := range []struct {
		name string
		set  func(*nodeapi.CreateRequest)
		want string
	}{
		{"id", func(r *nodeapi.CreateRequest) { r.ID = "../../etc" }, "id"},
		{"id with suffix", func(r *nodeapi.CreateRequest) { r.ID += "-x" }, "suffix"},
		{"no template", func(r *nodeapi.CreateRequest) { r.Template = "" }, "template"},
		{"hostname", func(r *nodeapi.CreateRequest) { r.Hostname = "a_b" }, "hostname"},
		{"long hostname", func(r *nodeapi.CreateRequest) { r.Hostname = strings.Repeat("a", 64) }, "at most 63"},
		{"env name", func(r *nodeapi.CreateRequest) { r.Env = map[string]string{"A B": ""} }, "env"},
		{"env digit", func(r *nodeapi.CreateRequest) { r.Env = map[string]string{"1A": ""} }, "digit"},
		{"env NUL", func(r *nodeapi.CreateRequest) { r.Env = map[string]string{"A": "x\x00"} }, "NUL"},
		{"env size", func(r *nodeapi.CreateRequest) { r.Env = map[string]string{"A": strings.Repeat("x", guest.MaxArgBytes)} }, "at most"},
		{"cpu negative", func(r *nodeapi.CreateRequest) { r.Limits.CPUMillis = -1 }, "limits.cpu_millis"},
		{"cpu absurd", func(r *nodeapi.CreateRequest) { r.Limits.CPUMillis = 1 << 62 }, "limits.cpu_millis"},
		{"memory tiny", func(r *nodeapi.CreateRequest) { r.Limits.MemoryBytes = 1 }, "8388608"},
		{"weight", func(r *nodeapi.CreateRequest) { r.Limits.CPUWeight = 10001 }, "between 1 and 10000"},
		{"pids", func(r *nodeapi.CreateRequest) { r.Limits.PIDs = 1 }, "limits.pids"},
		{"tmp", func(r *nodeapi.CreateRequest) { r.Limits.TmpBytes = -5 }, "limits.tmp_bytes"},
		{"nofile", func(r *nodeapi.CreateRequest) { r.Limits.NoFile = 1 << 40 }, "limits.nofile"},
		{"profile", func(r *nodeapi.CreateRequest) { r.Profile = "root" }, "profile"},
		{"user", func(r *nodeapi.CreateRequest) { r.User = "a/b" }, "user"},
		{"cwd", func(r *nodeapi.CreateRequest) { r.Cwd = "home" }, "cwd"},
		{"deadline past", func(r *nodeapi.CreateRequest) { r.Deadline = time.Now().Add(-time.Second) }, "deadline"},
		{"main empty", func(r *nodeapi.CreateRequest) { r.Main = &guest.Start{} }, "main.argv"},
		{"main NUL", func(r *nodeapi.CreateRequest) { r.Main = &guest.Start{Argv: []string{"a\x00b"}} }, "NUL"},
		{"main env", func(r *nodeapi.CreateRequest) { r.Main = &guest.Start{Argv: []string{"a"}, Env: []string{"X"}} }, "NAME=VALUE"},
		{"logs without main", func(r *nodeapi.CreateRequest) { r.Logs = &nodeapi.LogTargets{Stdout: "/x"} }, "logs"},
		{"logs missing", func(r *nodeapi.CreateRequest) {
			r.Main, r.Logs = &guest.Start{Argv: []string{"a"}}, &nodeapi.LogTargets{Stdout: "/no/such/fifo"}
		}, "logs.stdout"},
		{"logs a device", func(r *nodeapi.CreateRequest) {
			r.Main, r.Logs = &guest.Start{Argv: []string{"a"}}, &nodeapi.LogTargets{Stderr: "/dev/null"}
		}, "neither a FIFO nor a regular file"},
		{"metadata", func(r *nodeapi.CreateRequest) { r.Metadata = map[string]string{"a\nb": "c"} }, "metadata"},
		{"owner", func(r *nodeapi.CreateRequest) { r.Owner.AllocID = "a\x1b[0m" }, "owner.alloc_id"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req := createRequest()
			tc.set(&req)
			_, err := n.client.Create(t.Context(), req)
			must.ErrorContains(t, err, tc.want)
			must.Eq(t, http.StatusBadRequest, api.StatusOf(err))
		})
	}
	must.Eq(t, 0, n.rt.creates)
}

func TestCreate_unknownTemplate(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	req := createRequest()
	req.Template = "none"
	_, err := n.client.Create(t.Context(), req)
	var e *api.Error
	must.True(t, errors.As(err, &e))
	must.Eq(t, api.CodeUnknownTemplate, e.ErrorCode)
	must.Eq(t, http.StatusNotFound, e.Code)
}

func TestCreate_failureLeavesNothingAndKeepsTheCause(t *testing.T) {
	dir := shortDir(t)
	n := startNode(t, testConfig(dir), nil)
	n.rt.hook = func(context.Context, sandbox.Config) error {
		return &frame.ErrorBody{Code: guest.CodeBadCommand, Message: "main: no such program"}
	}
	req := createRequest()
	_, err := n.client.Create(t.Context(), req)
	var e *api.Error
	must.True(t, errors.As(err, &e))
	must.Eq(t, api.CodeCommand, e.ErrorCode)
	must.StrContains(t, e.Message, "no such program")
	_, err = n.client.Get(t.Context(), req.ID)
	must.True(t, api.IsNotFound(err))
	must.MapEmpty(t, n.ids.taken)
	must.Eq(t, 0, n.templates.held())
	files, err := filepath.Glob(dir + "/s/records/*")
	must.NoError(t, err)
	must.SliceEmpty(t, files)

	n.rt.hook = nil // and the id is free for another try
	_, err = n.client.Create(t.Context(), req)
	must.NoError(t, err)
}

func TestCreate_fullDisk(t *testing.T) {
	cfg := testConfig(shortDir(t))
	cfg.DiskReserve = 1 << 60
	n := startNode(t, cfg, nil)
	_, err := n.client.Create(t.Context(), createRequest())
	must.Eq(t, http.StatusInsufficientStorage, api.StatusOf(err))
	info, err := n.client.Node(t.Context())
	must.NoError(t, err)
	must.False(t, info.Healthy)
	must.StrContains(t, info.Reason, "reserve")
}

func TestCreate_fullDiskInTheMiddle(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	n.rt.hook = func(context.Context, sandbox.Config) error { return unix.ENOSPC }
	_, err := n.client.Create(t.Context(), createRequest())
	must.Eq(t, http.StatusInsufficientStorage, api.StatusOf(err))
}

func TestCreate_capacity(t *testing.T) {
	cfg := testConfig(shortDir(t))
	cfg.MaxSandboxes = 1
	n := startNode(t, cfg, nil)
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	_, err = n.client.Create(t.Context(), createRequest())
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err))
	must.NoError(t, n.client.Delete(t.Context(), sb.ID))
	_, err = n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
}

// A client that goes away ends its creation; another that waits for the same sandbox gets it.
func TestCreate_cancelled(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	entered := make(chan struct{}, 2)
	var once sync.Once
	n.rt.hook = func(ctx context.Context, _ sandbox.Config) error {
		first := false
		once.Do(func() { first = true })
		entered <- struct{}{}
		if first {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	req := createRequest()
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() { _, err := n.client.Create(ctx, req); failed <- err }()
	<-entered
	joined := make(chan error, 1)
	go func() { _, err := n.client.Create(t.Context(), req); joined <- err }()
	cancel()
	must.ErrorIs(t, <-failed, context.Canceled)
	must.NoError(t, <-joined)
	must.Len(t, 1, n.List())
}

func TestDelete_whileStarting(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	entered := make(chan struct{})
	n.rt.hook = func(ctx context.Context, _ sandbox.Config) error {
		close(entered)
		<-ctx.Done()
		return ctx.Err()
	}
	req := createRequest()
	created := make(chan error, 1)
	go func() { _, err := n.client.Create(t.Context(), req); created <- err }()
	<-entered
	must.NoError(t, n.client.Delete(t.Context(), req.ID))
	must.Eq(t, http.StatusConflict, api.StatusOf(<-created))
	must.SliceEmpty(t, n.List())
	must.MapEmpty(t, n.ids.taken)
}
