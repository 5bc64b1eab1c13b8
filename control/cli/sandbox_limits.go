package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

func sandboxLimitsCommand(env *Env) *command {
	var (
		size   = sizeFlags{lift: true}
		asJSON bool
	)
	return &command{
		synopsis: "Change the limits of a running sandbox",
		usage:    "[options] <id>",
		about: `
Changes limits of a running sandbox; what is not named stays. Either all of it
comes to hold or nothing does: memory below what is in use, disk below what is
written, and more than is reserved where the sandbox runs are refused.

    $ soulbox sandbox limits -cpu=0.5 -memory=1GiB <id>
    $ soulbox sandbox limits -io-write=none <id>`,
		remote: true,
		flags: func(o *options) {
			size.add(o)
			o.Switch(&asJSON, "json", "Print the sandbox as JSON.")
		},
		args: sandboxNames(env, false),
		run: func(ctx context.Context, conn *connection, args []string) error {
			ids, err := sandboxIDs(args, 1, 1)
			if err != nil {
				return err
			}
			req := api.LimitsRequest{CPU: size.cpu, MemoryMB: size.memory, DiskMB: size.disk, PIDs: size.pids, StorageLimits: size.storage}
			if req == (api.LimitsRequest{}) {
				return usagef("which limit? At least one is needed")
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			s, err := client.SetLimits(ctx, ids[0], req)
			if err != nil {
				return fmt.Errorf("limits of sandbox %s: %w", ids[0], err)
			}
			if asJSON {
				return printJSON(env.Stdout, s)
			}
			return printPairs(env.Stdout, describe(s, time.Now()))
		},
	}
}
