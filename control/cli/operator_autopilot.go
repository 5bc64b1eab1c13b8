package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

var operatorAutopilotCommand = group("how the control servers are kept well", "    $ soulbox operator autopilot state\n    $ soulbox operator autopilot config")

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
	var asJSON bool
	return &command{
		synopsis: "Show by which rules control servers get votes and are removed",
		usage:    "[options]",
		about: `
Shows the settings of the server that leads, which are those of the block
autopilot of its configuration file.

    $ soulbox operator autopilot config`,
		remote: true,
		flags:  func(o *options) { o.Switch(&asJSON, "json", "Print the settings as JSON.") },
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			out, err := client.AutopilotConfig(ctx)
			if err != nil {
				return fmt.Errorf("show the settings: %w", err)
			}
			if asJSON {
				return printJSON(env.Stdout, out)
			}
			ms := func(n int64) string { return (time.Duration(n) * time.Millisecond).String() }
			return printTable(env.Stdout, [][]string{
				{"cleanup_dead_servers", fmt.Sprint(out.CleanupDeadServers)}, {"dead_server_last_contact_threshold", ms(out.DeadServerLastContactMs)},
				{"last_contact_threshold", ms(out.LastContactMs)}, {"max_trailing_logs", fmt.Sprint(out.MaxTrailingLogs)},
				{"min_quorum", fmt.Sprint(out.MinQuorum)}, {"server_stabilization_time", ms(out.ServerStabilizationTimeMs)},
			})
		},
	}
}
