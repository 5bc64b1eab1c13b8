package cli

import (
	"context"
	"fmt"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/nomad-driver/posture"
)

func nodeCommand(*Env) *command {
	return &command{
		synopsis: "Look at the machine that sandboxes run on",
		usage:    "<subcommand> [options]",
		about: `
Groups the commands for the machine itself.

    $ sudo soulbox node audit`,
	}
}

func nodeAuditCommand(env *Env) *command {
	var asJSON, strict bool
	socket := "/run/soulbox/node.sock"
	var most int64 = 1000
	return &command{
		synopsis: "Say how well this machine holds hostile code",
		usage:    "[options]",
		about: `
Says what sandboxes of each profile may do, and why, and which weaknesses
this machine's kernel and settings have, with what stands in front of each. It
looks at this machine itself, and needs neither a node nor the service; as
root it sees more. See SECURITY.md for what no report can promise.`,
		flags: func(o *options) {
			o.Switch(&asJSON, "json", "Print the report as JSON.")
			o.Switch(&strict, "strict", "End with exit code 1 when something is open.")
			o.String(&socket, "socket", "path", "The node's socket, whose rights are looked at.", complete.PredictFiles("*"))
			o.Int(&most, "max-sandboxes", "number", "How many sandboxes the node may run.", 1)
		},
		run: func(_ context.Context, _ *connection, args []string) error {
			if len(args) > 0 {
				return usagef("unexpected argument %q", args[0])
			}
			r, err := posture.Look(posture.Options{Version: version.Version, Socket: socket, MaxSandbox: int(most)})
			if err != nil {
				return fmt.Errorf("audit: %w", err)
			}
			if asJSON {
				err = printJSON(env.Stdout, r)
			} else {
				err = r.WriteText(env.Stdout)
			}
			if err == nil && strict && len(r.Open()) > 0 {
				return exitCode(1)
			}
			return err
		},
	}
}
