package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/transfer"
)

func sandboxInfoCommand(env *Env) *command {
	var asJSON bool
	return &command{
		synopsis: "Show a sandbox",
		usage:    "[options] <id>",
		about: `
Shows a sandbox: what it was made of, where it runs, when it ends or why it
ended, and what it uses.`,
		remote: true,
		flags: func(o *options) {
			o.Switch(&asJSON, "json", "Print the sandbox as JSON.")
		},
		args: sandboxNames(env, true),
		run: onSandbox(func(ctx context.Context, client *api.Client, id api.SandboxID) error {
			s, err := client.GetSandbox(ctx, id)
			if err != nil {
				return fmt.Errorf("sandbox %s: %w", id, err)
			}
			if asJSON {
				return printJSON(env.Stdout, s)
			}
			rows := describe(s, time.Now())
			if s.State == "running" {
				rows = append(rows, usage(ctx, client, s.ID)...)
			}
			return printPairs(env.Stdout, rows)
		}),
	}
}

// usage is what a sandbox uses, as far as its node can be asked and its kernel counts it.
func usage(ctx context.Context, client *api.Client, id api.SandboxID) [][]string {
	var rows [][]string
	if h, err := client.SandboxHealth(ctx, id); err == nil {
		text := h.Status
		if h.Reason != "" {
			text += ": " + h.Reason
		}
		rows = append(rows, []string{"Health", text})
	}
	st, err := client.Stats(ctx, id)
	if err != nil {
		return append(rows, []string{"Usage", "not known: " + err.Error()})
	}
	has := func(name string) bool { return slices.Contains(st.Measured, name) }
	if has("cpu_nanos") {
		rows = append(rows, []string{"CPU used", short(time.Duration(st.CPUNanos))})
	}
	if has("memory_bytes") {
		rows = append(rows, []string{"Memory used", transfer.Bytes(int64(st.MemoryBytes))})
	}
	if has("pids") {
		rows = append(rows, []string{"Processes", fmt.Sprint(st.PIDs)})
	}
	return rows
}
