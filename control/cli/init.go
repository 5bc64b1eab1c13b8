package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/soulbox-dev/soulbox/control/cli/project"
)

func initCommand(env *Env) *command {
	var force bool
	return &command{
		synopsis: "Make a project file in this folder",
		usage:    "[options] [<template>]",
		about: `
Writes the file soulbox.hcl with the name of a template. In this folder,
soulbox sandbox create makes sandboxes of it from then on. Default template =
the setting "template", else base.

    $ soulbox init python
    $ soulbox sandbox create`,
		flags: func(o *options) {
			o.Switch(&force, "force", "Replace a file that exists.")
		},
		args: templateNames(env),
		run: func(_ context.Context, conn *connection, args []string) error {
			if len(args) > 1 {
				return usagef("the command takes one argument, not %d", len(args))
			}
			name := ""
			if len(args) == 1 {
				name = args[0]
			} else {
				var err error
				if name, err = conn.template(); err != nil {
					return err
				}
			}
			if name == "" || printable(name) != name {
				return usagef("%.60q is not a name of a template", name)
			}
			path, err := project.Write(env.Dir, name, force)
			if errors.Is(err, project.ErrExists) {
				return fmt.Errorf("%w: -force replaces it", err)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(env.Stdout, "Wrote %s: `%s sandbox create` in this folder makes sandboxes of the template %s.\n", path, Name, name)
			return err
		},
	}
}
