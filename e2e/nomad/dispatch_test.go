package nomad

import (
	"encoding/json"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/driver"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// TestDispatch_thePayloadIsTheRequest places sandboxes as the control service does: one parameterized job, and the whole
// request as the payload of a dispatch.
func TestDispatch_thePayloadIsTheRequest(t *testing.T) {
	a := startAgent(t)
	job := batchJob("class", map[string]any{"template": "(in the payload)"}, "")
	job.ParameterizedJob = &nomadapi.ParameterizedJobConfig{Payload: "required"}
	task := job.TaskGroups[0].Tasks[0]
	task.DispatchPayload = &nomadapi.DispatchPayloadConfig{File: driver.DispatchFile}
	off := true
	task.LogConfig = &nomadapi.LogConfig{Disabled: &off}
	_, _, err := a.api.Jobs().Register(job, nil)
	must.NoError(t, err)
	client := nodeapi.NewUnix(a.socket)

	dispatch := func(req nodeapi.CreateRequest) string {
		b, err := json.Marshal(req)
		must.NoError(t, err)
		r, _, err := a.api.Jobs().Dispatch("class", nil, b, "", nil)
		must.NoError(t, err)
		return r.DispatchedJobID
	}
	t.Run("runs as it says", func(t *testing.T) {
		req := nodeapi.CreateRequest{
			ID: api.NewSandboxID(), Template: "base", Hostname: "cell", User: "user",
			Limits: nodeapi.Limits{MemoryBytes: 64 << 20}, Metadata: map[string]string{"k": "v"},
		}
		begin := time.Now()
		id := dispatch(req)
		var sb nodeapi.Sandbox
		poll(t, "the sandbox on the node", func() (err error) {
			sb, err = client.Get(t.Context(), req.ID)
			return err
		})
		t.Logf("dispatch to the node's record: %v", time.Since(begin))
		must.Eq(t, "cell", sb.Hostname)
		must.Eq(t, 64<<20, sb.Limits.MemoryBytes)
		must.Eq(t, "control", sb.Owner.Kind)
		must.Eq(t, map[string]string{"k": "v"}, sb.Metadata)
		alloc := a.alloc(t, id, "running")
		must.Eq(t, alloc.ID, sb.Owner.AllocID)
		must.Eq(t, "cell\n", a.cli(t, "alloc", "exec", "-t=false", alloc.ID, "hostname"))

		// The control service ends it on the node; Nomad learns of it.
		_, err = client.Stop(t.Context(), req.ID, nodeapi.StopRequest{})
		must.NoError(t, err)
		a.alloc(t, id, "failed")
	})
	for _, tc := range []struct {
		name string
		req  nodeapi.CreateRequest
		want string
	}{
		{"more memory than the class has", nodeapi.CreateRequest{ID: api.NewSandboxID(), Template: "base", Limits: nodeapi.Limits{MemoryBytes: 1 << 40}}, "limits.memory_bytes"},
		{"no id", nodeapi.CreateRequest{Template: "base"}, "sandbox id"},
		{"unknown template", nodeapi.CreateRequest{ID: api.NewSandboxID(), Template: "no-such-template"}, "no-such-template"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			alloc := a.alloc(t, dispatch(tc.req), "failed")
			must.StrContains(t, events(alloc.TaskStates["main"]), tc.want)
		})
	}
	a.cli(t, "job", "stop", "-purge", "-detach", "class")
	poll(t, "the node to forget all", func() error {
		a.cli(t, "system", "gc")
		return a.none(t)
	})
	a.host().NothingLeft(t)
}
