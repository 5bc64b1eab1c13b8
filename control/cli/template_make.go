package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/transfer"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/base"
)

func templateMakeCommand(env *Env) *command {
	var names []string
	for _, r := range base.Recipes() {
		names = append(names, r.Name)
	}
	return &command{
		synopsis: "Make one of the templates that SoulBox brings",
		usage:    "<name>",
		about: `
Makes one of the templates that SoulBox brings from the packages of the
distribution, and imports it under its name: base, or code-interpreter-v1,
which runs Python for the code interpreter SDKs. It is made on this machine,
as root, in one or two minutes, once: what was made stays in the cache.

    $ sudo soulbox template make code-interpreter-v1`,
		remote: true,
		args:   complete.PredictSet(names...),
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) != 1 {
				return usagef("the command takes a name, not %d arguments", len(args))
			}
			i := slices.Index(names, args[0])
			if i < 0 {
				return usagef("there is no recipe for %q, but for %q", args[0], names)
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			start := time.Now()
			tar, err := base.Build(ctx, base.Options{Recipe: base.Recipes()[i], Progress: indented{env.Stderr}})
			if err != nil {
				return err
			}
			source, err := openSource(ctx, env, tar)
			if err != nil {
				return err
			}
			t, err := client.ImportTemplate(ctx, args[0], source, api.ImportOptions{Source: filepath.Base(tar)})
			_ = source.Close() // it was only read; the HTTP client may have closed it already
			if err != nil {
				return fmt.Errorf("import template %s: %w", args[0], err)
			}
			_, err = fmt.Fprintf(env.Stdout, "Made template %s: %d files, %s, in %s\n%s\n",
				printable(t.Name), t.Files, transfer.Bytes(t.Bytes), short(time.Since(start)), printable(t.Digest))
			return err
		},
	}
}
