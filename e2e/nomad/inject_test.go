package nomad

import (
	"bytes"
	"encoding/json"
	"testing"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/driver"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// TestDispatch_whatAClientChoseIsLiteral is C03: words that mean something to Nomad, HCL or a shell, in every text of a request that a
// client writes. They arrive in the sandbox, and in the node's record, as they were sent, and the job that Nomad has knows none of them.
func TestDispatch_whatAClientChoseIsLiteral(t *testing.T) {
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
	defer client.Close()

	hostile := map[string]string{
		"INTERPOLATED": `${NOMAD_ALLOC_ID} ${attr.unique.hostname} ${meta.secret} ${env["PATH"]} $${x}`,
		"TEMPLATED":    `{{ env "NOMAD_TOKEN" }}{{ key "x" }}{{ with secret "y" }}{{ end }}`,
		"HCL":          "x\"\n}\ntask \"evil\" {\n  driver = \"raw_exec\"\n  config { command = \"/bin/true\" }\n}\n/*",
		"SHELL":        "$(touch /pwned) `touch /pwned` ; touch /pwned\r\n\ttab",
		"JSON":         `"},"owner":{"kind":"test"},"profile":"default","x":{"a":"\u0000"`,
		"LD_PRELOAD":   "/nonexistent.so",
		"NOMAD_TOKEN":  "of the client",
		"VAULT_TOKEN":  "of the client",
	}
	req := nodeapi.CreateRequest{
		ID: api.NewSandboxID(), Template: "base", User: "user", Profile: "strict",
		Limits: nodeapi.Limits{MemoryBytes: 64 << 20}, Env: hostile,
		Metadata: map[string]string{"tenant": "default", "template": `${NOMAD_JOB_NAME}"; {{ env "x" }}`},
	}
	b, err := json.Marshal(req)
	must.NoError(t, err)
	r, _, err := a.api.Jobs().Dispatch("class", map[string]string{}, b, "", nil)
	must.NoError(t, err)
	var sb nodeapi.Sandbox
	poll(t, "the sandbox on the node", func() (err error) {
		sb, err = client.Get(t.Context(), req.ID)
		return err
	})
	must.Eq(t, req.Metadata, sb.Metadata)
	must.Eq(t, "strict", sb.Profile)
	must.Eq(t, "control", sb.Owner.Kind)
	a.alloc(t, r.DispatchedJobID, "running")
	for name, want := range hostile {
		var out bytes.Buffer
		exit, err := client.Run(t.Context(), req.ID, nodeapi.ExecRequest{Start: guest.Start{
			Argv: []string{"/bin/bash", "-c", `printf %s "${!1}"`, "sh", name}, User: "user",
		}}, nil, &out, nil)
		must.NoError(t, err)
		must.Eq(t, 0, exit.Code)
		must.Eq(t, want, out.String(), must.Sprint(name))
	}
	dispatched, _, err := a.api.Jobs().Info(r.DispatchedJobID, nil)
	must.NoError(t, err)
	must.Len(t, 1, dispatched.TaskGroups)
	must.Len(t, 1, dispatched.TaskGroups[0].Tasks)
	must.Eq(t, driver.Name, dispatched.TaskGroups[0].Tasks[0].Driver)
	must.MapEmpty(t, dispatched.TaskGroups[0].Tasks[0].Env)
	must.MapEmpty(t, dispatched.Meta)
	must.MapEmpty(t, dispatched.TaskGroups[0].Tasks[0].Meta)

	_, err = client.Stop(t.Context(), req.ID, nodeapi.StopRequest{})
	must.NoError(t, err)
	a.cli(t, "job", "stop", "-purge", "-detach", "class")
	poll(t, "the node to forget all", func() error {
		a.cli(t, "system", "gc")
		return a.none(t)
	})
	a.host().NothingLeft(t)
}
