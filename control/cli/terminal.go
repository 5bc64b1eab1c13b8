package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/session"
)

func terminalCommand(*Env) *command {
	return &command{
		synopsis: "Come back to terminals of sandboxes",
		usage:    "<subcommand> [options] [args]",
		about: `
Groups the commands for terminals. A terminal is what soulbox exec -it starts:
a process that goes on when its viewer leaves.

    $ soulbox exec -it <id> bash          # ~. leaves it
    $ soulbox terminal list <id>
    $ soulbox terminal attach <terminal>

See the help of each subcommand for more.`,
	}
}

func terminalListCommand(env *Env) *command {
	var asJSON bool
	return &command{
		synopsis: "List the terminals of a sandbox",
		usage:    "[options] <id>",
		about: `
Lists the terminals of a sandbox, and those that ended a moment ago.`,
		remote: true,
		flags: func(o *options) {
			o.Switch(&asJSON, "json", "Print the terminals as JSON.")
		},
		args: sandboxNames(env, false),
		run: onSandbox(func(ctx context.Context, client *api.Client, id api.SandboxID) error {
			list, err := client.Terminals(ctx, id)
			if err != nil {
				return fmt.Errorf("terminals of sandbox %s: %w", id, err)
			}
			if asJSON {
				return printJSON(env.Stdout, list)
			}
			rows := [][]string{{"ID", "State", "Started", "User", "Command"}}
			for _, t := range list {
				state := "running"
				if t.Exit != nil {
					state = fmt.Sprintf("ended, code %d", session.ExitCode(*t.Exit))
				}
				rows = append(rows, []string{string(t.ID), state, ago(t.StartedAt, time.Now()), t.User, strings.Join(t.Command, " ")})
			}
			return printTable(env.Stdout, rows)
		}),
	}
}

func terminalAttachCommand(env *Env) *command {
	var (
		read, exclusive bool
		offset          int64
	)
	return &command{
		synopsis: "Come back to a terminal",
		usage:    "[options] <terminal>",
		about: `
Joins a terminal with this one: shows what it has printed, as far as that is
kept, and what comes; keys go to its process. ~. at the start of a line leaves
it. The exit code is that of the process.`,
		remote: true,
		flags: func(o *options) {
			o.Switch(&read, "read", "Only look: keys go nowhere.")
			o.Switch(&exclusive, "exclusive", "Let nobody else type as long as this is attached.")
			o.Int(&offset, "offset", "<bytes>", "Begin with this byte of its output. Default = the oldest that is kept.", 0)
		},
		run: func(ctx context.Context, conn *connection, args []string) error {
			id, err := terminalID(args)
			if err != nil {
				return err
			}
			if read && exclusive {
				return usagef("-read and -exclusive do not go together")
			}
			s := session.Session{Stdout: env.Stdout, Stderr: env.Stderr, TTY: true, Escape: '~'}
			mode := api.TerminalRead
			if !read {
				if mode = api.TerminalWrite; exclusive {
					mode = api.TerminalExclusive
				}
				if !session.IsTerminal(env.Stdin) {
					return errors.New("keys come from a terminal, and standard input is none: -read only looks")
				}
				s.Stdin, s.Screen = env.Stdin, screenOf(env)
			}
			return joinTerminal(ctx, conn, &s, id, uint64(offset), mode)
		},
	}
}

func terminalKillCommand(*Env) *command {
	return &command{
		synopsis: "End a terminal's process",
		usage:    "[options] <terminal>",
		about: `
Kills the process of a terminal, and what it started.`,
		remote: true,
		run: func(ctx context.Context, conn *connection, args []string) error {
			id, err := terminalID(args)
			if err != nil {
				return err
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			if err := client.KillTerminal(ctx, id); err != nil {
				return fmt.Errorf("terminal %s: %w", id, err)
			}
			return nil
		},
	}
}

func terminalID(args []string) (api.TerminalID, error) {
	if len(args) != 1 {
		return "", usagef("which terminal? The command needs its id, as soulbox terminal list shows it")
	}
	return api.TerminalID(args[0]), nil
}
