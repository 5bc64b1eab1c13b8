package cli

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/transfer"
)

func cpCommand(env *Env) *command {
	var c copying
	return &command{
		synopsis: "Copy files to and from a sandbox",
		usage:    "[options] <source> <target>",
		about: `
Copies a file, or with -r a folder, between this machine and a sandbox. A path
in a sandbox is written <id>:<path>; one that does not start with a slash is
below the user's home. "-" is standard input or output; with -r it is a tar.

    $ soulbox cp main.py <id>:
    $ soulbox cp -r <id>:/home/user/out ./results
    $ soulbox cp <id>:/etc/os-release -

Modes and times are kept, owners are not. A source folder goes into a target
folder that exists, under its own name; its content alone goes there where the
source ends with "/.". What comes out of a sandbox stays below the target:
links that lead out of it, devices, sockets and pipes are left out and named,
and the exit code is 1 then.`,
		remote: true,
		flags: func(o *options) {
			o.Switch(&c.recursive, "r", "Copy folders, with everything in them.")
			o.alias("R", &c.recursive)
			o.String(&c.opts.User, "user", "<name>", "User of the sandbox who reads or writes, and whose home relative paths start from.", nil)
			o.Switch(&c.quiet, "quiet", "Show no progress.")
			o.alias("q", &c.quiet)
		},
		args: complete.PredictOr(complete.PredictFiles("*"), colon(sandboxNames(env, false))),
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) != 2 {
				return usagef("the command takes a source and a target, not %d arguments", len(args))
			}
			src, err := parsePlace(args[0])
			if err != nil {
				return err
			}
			dst, err := parsePlace(args[1])
			if err != nil {
				return err
			}
			c.env = env
			switch {
			case src.id == "" && dst.id == "":
				return usagef("one of the two must be in a sandbox: <id>:<path>")
			case src.id != "" && dst.id != "":
				return usagef("one of the two must be on this machine: copy in two steps")
			}
			if c.client, err = conn.client(); err != nil {
				return err
			}
			c.id = src.id + dst.id
			var report transfer.Report
			if dst.id != "" {
				report, err = c.upload(ctx, src.path, dst.path)
			} else {
				report, err = c.download(ctx, src.path, dst.path)
			}
			if err != nil {
				return fmt.Errorf("copy %s to %s: %w", args[0], args[1], err)
			}
			return c.tell(report)
		},
	}
}

// copying is one call of cp.
type copying struct {
	env       *Env
	client    *api.Client
	id        api.SandboxID
	opts      api.FileOptions
	recursive bool
	quiet     bool
}

// place is one side of a copy. id is empty for this machine.
type place struct {
	id   api.SandboxID
	path string
}

// parsePlace reads <id>:<path> or a path of this machine. A file of this machine whose name looks like the former is
// written with "./" before it.
func parsePlace(s string) (place, error) {
	if s == "" {
		return place{}, usagef("a path is empty")
	}
	name, p, ok := strings.Cut(s, ":")
	if !ok || strings.Contains(name, "/") {
		return place{path: s}, nil
	}
	id, err := api.ParseSandboxID(name)
	if err != nil {
		return place{}, usagef("%.80q: %w (a file of this machine with a colon in its name is written ./%s)", s, err, printable(s))
	}
	if p == "" {
		p = "."
	}
	return place{id, p}, nil
}

// tell names what was left out.
func (c *copying) tell(r transfer.Report) error {
	const most = 20
	for i, s := range r.Skipped {
		if i == most {
			fmt.Fprintf(c.env.Stderr, "… and %d more\n", len(r.Skipped)-most)
			break
		}
		fmt.Fprintf(c.env.Stderr, "Left out %s: it %s\n", printable(s.Path), printable(strings.TrimPrefix(s.Reason, "its name ")))
	}
	if len(r.Skipped) > 0 {
		return exitCode(1)
	}
	return nil
}

// progress shows a transfer where somebody watches.
func (c *copying) progress(label string, total int64) *transfer.Progress {
	w, ok := c.env.screen()
	if c.quiet || !ok {
		return nil
	}
	return transfer.NewProgress(w, printable(label), total)
}

// isDir reports whether p is, or leads to, a directory of the sandbox, and which: its absolute path without links at its end.
func (c *copying) isDir(ctx context.Context, p string) (abs string, ok bool, err error) {
	st, err := c.client.Stat(ctx, c.id, p, c.opts)
	switch {
	case api.IsNotFound(err) && errorCode(err) == api.CodeNotFound && !c.gone(ctx):
		return "", false, nil
	case err != nil:
		return "", false, err
	case st.Target != "":
		return path.Clean(st.Target), st.Type == "directory", nil
	}
	return path.Clean(st.Path), st.Type == "directory", nil
}

// gone reports whether it is the sandbox that does not exist, rather than a file of it.
func (c *copying) gone(ctx context.Context) bool {
	_, err := c.client.GetSandbox(ctx, c.id)
	return api.IsNotFound(err)
}

func errorCode(err error) string {
	var e *api.Error
	if errors.As(err, &e) {
		return e.ErrorCode
	}
	return ""
}

// content reports whether p means the content of a folder: it ends with "/." or is ".".
func content(p string) bool { return p == "." || strings.HasSuffix(p, "/.") }

// colon adds the colon behind an id.
func colon(p complete.Predictor) complete.Predictor {
	return complete.PredictFunc(func(a complete.Args) []string {
		list := p.Predict(a)
		for i := range list {
			list[i] += ":"
		}
		return list
	})
}
