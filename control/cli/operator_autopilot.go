package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
)

var operatorAutopilotCommand = group("how the control servers are kept well",
	"    $ soulbox operator autopilot state\n    $ soulbox operator autopilot set-config -last-contact-threshold=10s")

func autopilotStateCommand(env *Env) *command {
	var asJSON bool
	return &command{
		synopsis: "Show how the control servers are",
		usage:    "[options]",
		about: `
Shows each control server as the one that leads sees it: whether
it is healthy and since when, whether it has a vote, when it last heard from
the one that leads, and how far its log is.

    $ soulbox operator autopilot state`,
		remote: true,
		flags:  func(o *options) { o.Switch(&asJSON, "json", "Print the state as JSON.") },
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			out, err := client.AutopilotState(ctx)
			if err != nil {
				return fmt.Errorf("show the control servers: %w", err)
			}
			if asJSON {
				return printJSON(env.Stdout, out)
			}
			rows := [][]string{{"ID", "ADDRESS", "ROLE", "VOTER", "HEALTH", "SINCE", "LAST CONTACT", "LAST INDEX"}}
			for _, s := range out.Servers {
				role, health, since := "follower", "healthy", s.StableSince
				if s.Leader {
					role = "leader"
				}
				if !s.Healthy {
					health, since = "failed", s.FailedSince
				}
				when, contact := "-", "-"
				if since != nil {
					when = since.Format(time.RFC3339)
				}
				if s.LastContactMs >= 0 {
					contact = (time.Duration(s.LastContactMs) * time.Millisecond).String()
				}
				rows = append(rows, []string{
					printable(s.ID), printable(s.Address), role, fmt.Sprint(s.Voter), health, when, contact, strconv.FormatUint(s.LastIndex, 10),
				})
			}
			if err := printTable(env.Stdout, rows); err != nil {
				return err
			}
			_, err = fmt.Fprintf(env.Stdout, "\nHealthy: %v\nMore that may fail: %d\n", out.Healthy, out.FailureTolerance)
			return err
		},
	}
}

func autopilotConfigCommand(env *Env) *command {
	return apiCommand(env, "Show by which rules control servers get votes and are removed", "[options]",
		"Shows the settings of the cluster: those of the block autopilot of the file of the server that leads, until they are changed.", 0, 0, nil,
		func(ctx context.Context, c *api.Client, _ []string) (any, [][]string, error) {
			out, err := c.AutopilotConfig(ctx)
			return out, autopilotRows(out), err
		})
}

func autopilotSetCommand(env *Env) *command {
	var change api.AutopilotChange
	return apiCommand(env, "Change how control servers get votes and are removed", "[options]",
		"Changes settings of the cluster; what is not given stays. They are kept with the state, and hold on every server from then on, whatever its file says.", 0, 0,
		func(o *options) {
			duration := func(name, help string, to **int64) {
				o.Func(name, "<duration>", help, nil, func(v string) error {
					d, err := time.ParseDuration(v)
					*to = new(d.Milliseconds())
					return err
				})
			}
			number := func(name, help string, set func(uint64)) {
				o.Func(name, "<n>", help, nil, func(v string) error {
					n, err := strconv.ParseUint(v, 10, 32)
					set(n)
					return err
				})
			}
			o.Func("cleanup-dead-servers", "<true|false>", "Remove servers that were silent for too long.", complete.PredictSet("true", "false"), func(v string) error {
				b, err := strconv.ParseBool(v)
				change.CleanupDeadServers = &b
				return err
			})
			duration("dead-server-last-contact-threshold", "How long a server must be silent until it is removed.", &change.DeadServerLastContactMs)
			duration("last-contact-threshold", "How long a server may go without the one that leads and be healthy.", &change.LastContactMs)
			number("max-trailing-logs", "Entries of the log that a healthy server may lag behind.", func(n uint64) { change.MaxTrailingLogs = &n })
			number("min-quorum", "Voters that there must be left after a removal.", func(n uint64) { change.MinQuorum = new(uint(n)) })
			duration("server-stabilization-time", "How long a server that has joined must be healthy until it gets a vote.", &change.ServerStabilizationTimeMs)
		},
		func(ctx context.Context, c *api.Client, _ []string) (any, [][]string, error) {
			if change == (api.AutopilotChange{}) {
				return nil, nil, usagef("nothing to change: name a setting")
			}
			out, err := c.SetAutopilotConfig(ctx, change)
			return out, autopilotRows(out), err
		})
}

func autopilotRows(c api.AutopilotConfig) [][]string {
	ms := func(n int64) string { return (time.Duration(n) * time.Millisecond).String() }
	return [][]string{
		{"cleanup_dead_servers", fmt.Sprint(c.CleanupDeadServers)}, {"dead_server_last_contact_threshold", ms(c.DeadServerLastContactMs)},
		{"last_contact_threshold", ms(c.LastContactMs)}, {"max_trailing_logs", fmt.Sprint(c.MaxTrailingLogs)},
		{"min_quorum", fmt.Sprint(c.MinQuorum)}, {"server_stabilization_time", ms(c.ServerStabilizationTimeMs)},
	}
}
