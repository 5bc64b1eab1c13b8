package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
)

// group is a command that only has others below it.
func group(what, examples string) func(*Env) *command {
	return func(*Env) *command {
		return &command{
			synopsis: "Manage " + what, usage: "<subcommand> [options] [args]",
			about: "\nGroups the commands for " + what + ".\n\n" + examples,
		}
	}
}

// apiCommand is a command that calls the service once: it takes between least and most arguments, and prints what do returns as JSON where it is
// asked to, else as a table.
func apiCommand(env *Env, synopsis, usage, about string, least, most int, flags func(*options), do func(context.Context, *api.Client, []string) (any, [][]string, error)) *command {
	var asJSON bool
	return &command{
		synopsis: synopsis, usage: usage, about: "\n" + wrap(strings.ReplaceAll(about, "\n", " "), "", 76), remote: true,
		flags: func(o *options) {
			o.Switch(&asJSON, "json", "Print the answer as JSON.")
			if flags != nil {
				flags(o)
			}
		},
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) < least || len(args) > most {
				return usagef("the command takes %s, not %d arguments", usage, len(args))
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			v, rows, err := do(ctx, client, args)
			if err != nil {
				return fmt.Errorf("%s: %w", strings.ToLower(synopsis[:1])+synopsis[1:], err)
			}
			if asJSON && v != nil {
				return printJSON(env.Stdout, v)
			}
			if rows == nil {
				return nil // it is printed
			}
			return printTable(env.Stdout, rows)
		},
	}
}
