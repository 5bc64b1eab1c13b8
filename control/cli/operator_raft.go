package cli

import (
	"context"
	"fmt"
	"time"
)

var operatorRaftCommand = group("the cluster of control servers", "    $ soulbox operator raft list-peers\n    $ soulbox operator raft remove-peer -yes c")

func operatorPeersCommand(env *Env) *command {
	var asJSON bool
	return &command{
		synopsis: "List the control servers",
		usage:    "[options]",
		about: `
Lists the servers of the control service as the one that leads sees them, and
how many more of them may fail.

    $ soulbox operator raft list-peers`,
		remote: true,
		flags:  func(o *options) { o.Switch(&asJSON, "json", "Print the servers as JSON.") },
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			out, err := client.ControlServers(ctx)
			if err != nil {
				return fmt.Errorf("list the control servers: %w", err)
			}
			if asJSON {
				return printJSON(env.Stdout, out)
			}
			rows := [][]string{{"ID", "ADDRESS", "ROLE", "VOTER", "HEALTH"}}
			for _, s := range out.Servers {
				role, health := "follower", "healthy"
				if s.Leader {
					role = "leader"
				}
				if !s.Healthy {
					health = "silent for " + (time.Duration(s.SilentMs) * time.Millisecond).Round(time.Second).String()
				}
				rows = append(rows, []string{printable(s.ID), printable(s.Address), role, fmt.Sprint(s.Voter), health})
			}
			if err := printTable(env.Stdout, rows); err != nil {
				return err
			}
			_, err = fmt.Fprintf(env.Stdout, "\nMore that may fail: %d\n", out.FailureTolerance)
			return err
		},
	}
}

func operatorRemoveCommand(*Env) *command {
	var yes bool
	return &command{
		synopsis: "Take out a control server that will not come back",
		usage:    "-yes <id>",
		about: `
Takes a server out of the cluster: it has no vote any more. One that leads is
refused, and one without which the others could agree on nothing. A server
that comes back by itself, as after a restart, needs no removal.

    $ soulbox operator raft remove-peer -yes c`,
		remote: true,
		flags:  func(o *options) { o.Switch(&yes, "yes", "Do it.") },
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) != 1 {
				return usagef("name the server by its id")
			}
			if !yes {
				return usagef("the server does not belong to the cluster any more then: say -yes")
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			if err := client.RemoveControlServer(ctx, args[0]); err != nil {
				return fmt.Errorf("remove server %s: %w", args[0], err)
			}
			return nil
		},
	}
}
