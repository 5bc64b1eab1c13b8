package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/transfer"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/unpack"
)

func templateCommand(*Env) *command {
	return &command{
		synopsis: "Import, list and delete templates",
		usage:    "<subcommand> [options] [args]",
		about: `
Groups the commands for templates: the root file systems that sandboxes start
from.

    $ soulbox template import web ./rootfs.tar.gz
    $ soulbox template list`,
	}
}

func templateImportCommand(env *Env) *command {
	var asJSON, quiet bool
	return &command{
		synopsis: "Make a template of a tar, an OCI layout or a folder",
		usage:    "[options] <name> <source>",
		about: `
Makes a template of a root file system. The source is a tar, plain or
compressed with gzip or zstd, a folder with an OCI image layout or a tar of
one, a folder with a root, or "-" for a tar from standard input. A template
that had the name is replaced; sandboxes that run keep theirs.

    $ soulbox template import debian ./debian.tar.zst
    $ docker export $(docker create alpine) | soulbox template import alpine -`,
		remote: true,
		flags: func(o *options) {
			o.Switch(&quiet, "quiet", "Show no progress.")
			o.alias("q", &quiet)
			o.Switch(&asJSON, "json", "Print the template as JSON.")
		},
		args: complete.PredictFiles("*"),
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) != 2 {
				return usagef("the command takes a name and a source, not %d arguments", len(args))
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			source, err := openSource(ctx, env, args[1])
			if err != nil {
				return fmt.Errorf("import template %s: %w", args[0], err)
			}
			var p *transfer.Progress
			if w, ok := env.screen(); ok && !quiet {
				p = transfer.NewProgress(w, "Importing "+printable(args[0]), 0)
			}
			start := time.Now()
			t, err := client.ImportTemplate(ctx, args[0], p.Reader(source), api.ImportOptions{Source: sourceName(args[1])})
			p.Done()
			_ = source.Close() // it was only read; the HTTP client may have closed it already
			if err != nil {
				return fmt.Errorf("import template %s: %w", args[0], err)
			}
			if asJSON {
				return printJSON(env.Stdout, t)
			}
			_, err = fmt.Fprintf(env.Stdout, "Imported template %s: %d files, %s, in %s\n%s\n",
				printable(t.Name), t.Files, transfer.Bytes(t.Bytes), short(time.Since(start)), printable(t.Digest))
			return err
		},
	}
}

// openSource opens what a template is made of, as the archive that a node unpacks. Everything in it is checked there.
func openSource(ctx context.Context, env *Env, name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(env.Stdin), nil
	}
	return unpack.Source(ctx, env.inDir(name))
}

func sourceName(s string) string {
	if s == "-" {
		return "standard input"
	}
	return filepath.Base(s)
}

func templateListCommand(env *Env) *command {
	var asJSON bool
	return &command{
		synopsis: "List templates",
		usage:    "[options]",
		about:    "\nLists the templates by name.",
		remote:   true,
		flags: func(o *options) {
			o.Switch(&asJSON, "json", "Print the list as JSON.")
		},
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			list, err := client.Templates(ctx)
			if err != nil {
				return fmt.Errorf("list templates: %w", err)
			}
			if asJSON {
				if list == nil {
					list = []api.Template{}
				}
				return printJSON(env.Stdout, list)
			}
			if len(list) == 0 {
				_, err := fmt.Fprintln(env.Stdout, "No templates")
				return err
			}
			rows := [][]string{{"Name", "Digest", "Files", "Size", "Created", "Source"}}
			now := time.Now()
			for _, t := range list {
				rows = append(rows, []string{t.Name, shortDigest(t.Digest), fmt.Sprint(t.Files), transfer.Bytes(t.Bytes), ago(t.CreatedAt, now), t.Source})
			}
			return printTable(env.Stdout, rows)
		},
	}
}

func shortDigest(s string) string {
	const n = len("sha256:") + 12
	if len(s) > n {
		return s[:n]
	}
	return s
}

func templateDeleteCommand(env *Env) *command {
	return &command{
		synopsis: "Delete templates",
		usage:    "<name>...",
		about: `
Deletes the names of templates. Sandboxes that run keep what they started
from.`,
		remote: true,
		args:   templateNames(env),
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) == 0 {
				return usagef("which template? The command needs its name")
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range args {
				if err := client.DeleteTemplate(ctx, name); err != nil {
					errs = append(errs, fmt.Errorf("delete template %s: %w", name, err))
					continue
				}
				fmt.Fprintf(env.Stdout, "Deleted template %s\n", printable(name))
			}
			return errors.Join(errs...)
		},
	}
}
