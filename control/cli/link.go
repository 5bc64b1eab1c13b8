package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
)

func linkCommand(*Env) *command {
	return &command{
		synopsis: "Make links to files of sandboxes",
		usage:    "<subcommand> [options] [args]",
		about: `
Groups the commands for links. A link reads or writes one file of a sandbox,
without a key, until it expires.

    $ curl "$(soulbox link create <id> report.pdf)" > report.pdf

See the help of each subcommand for more.`,
	}
}

func linkCreateCommand(env *Env) *command {
	var (
		op      = "read"
		user    string
		expires time.Duration
		asJSON  bool
	)
	return &command{
		synopsis: "Make a link to a file",
		usage:    "[options] <id> <path>",
		about: `
Makes a link to one file of a sandbox, for whoever has it: no key is needed.
It is good until it expires, its sandbox ends, or the key that signed it is
revoked. A relative path begins in the home of the user.

    $ curl "$(soulbox link create <id> report.pdf)" > report.pdf
    $ curl --data-binary @in.csv -H 'Content-Type: application/octet-stream' \
        "$(soulbox link create -op=write -expires=1h <id> in.csv)"`,
		remote: true,
		flags: func(o *options) {
			o.Func("op", "<read|write>", "What the link is good for: read or write. Default = read.", complete.PredictSet("read", "write"), func(s string) error {
				if s != "read" && s != "write" {
					return fmt.Errorf("%.40q is neither read nor write", s)
				}
				op = s
				return nil
			})
			o.Duration(&expires, "expires", "<duration>", "How long the link is good, at most 168h. Default = 5m.")
			o.String(&user, "user", "<name>", "User whose rights count, and whose home relative paths begin in.", nil)
			o.Switch(&asJSON, "json", "Print the link, its end and the version of its key as JSON.")
		},
		args: sandboxNames(env, false),
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) != 2 {
				return usagef("the command needs an id and a path, not %d arguments", len(args))
			}
			ids, err := sandboxIDs(args[:1], 1, 1)
			if err != nil {
				return err
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			secs := int64((expires + time.Second - 1) / time.Second) // never less than was asked for
			l, err := client.CreateLink(ctx, ids[0], api.LinkRequest{Operation: op, Path: args[1], User: user, ExpiresIn: secs})
			if err != nil {
				return fmt.Errorf("link to %s:%s: %w", ids[0], args[1], err)
			}
			if asJSON {
				return printJSON(env.Stdout, l)
			}
			_, err = fmt.Fprintln(env.Stdout, l.URL)
			return err
		},
	}
}
