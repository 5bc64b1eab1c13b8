package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/cli/settings"
)

func configCommand(*Env) *command {
	var b strings.Builder
	for _, k := range settings.Keys() {
		fmt.Fprintf(&b, "\n    %-10s  %s", k.Name, k.Help)
	}
	return &command{
		synopsis: "Read and change this program's settings",
		usage:    "<subcommand> [options] [args]",
		about: `
Groups the commands for the settings of this program, which are in the file
~/.config/soulbox/config.hcl. A flag goes before an environment variable, and
that before the file. The settings:
` + b.String(),
	}
}

func settingNames() complete.Predictor {
	var names []string
	for _, k := range settings.Keys() {
		names = append(names, k.Name)
	}
	return complete.PredictSet(names...)
}

func configGetCommand(env *Env) *command {
	return &command{
		synopsis: "Print a setting",
		usage:    "<name>",
		about: `
Prints the value of a setting that is in force here: from the environment, the
settings file, or the default. A secret is printed in full. The exit code is 1
where the setting has no value.`,
		args: settingNames(),
		run: func(_ context.Context, conn *connection, args []string) error {
			if len(args) != 1 {
				return usagef("the command takes the name of one setting")
			}
			s, err := conn.settings()
			if err != nil {
				return err
			}
			v, err := s.Get(args[0])
			if err != nil {
				return err
			}
			if v.Value == "" {
				return exitCode(1)
			}
			_, err = fmt.Fprintln(env.Stdout, v.Value)
			return err
		},
	}
}

func configSetCommand(env *Env) *command {
	return &command{
		synopsis: "Change a setting",
		usage:    "<name> <value>",
		about: `
Changes a setting in the settings file, which only you can read. The value "-"
is read from standard input, so that a secret is in no list of processes and
no history; an empty value removes the setting.

    $ soulbox config set address https://sandboxes.example.com
    $ soulbox config set api_key - < key`,
		args: settingNames(),
		run: func(_ context.Context, _ *connection, args []string) error {
			if len(args) != 2 {
				return usagef("the command takes the name of a setting and its value")
			}
			k, err := settings.Find(args[0])
			if err != nil {
				return usageError{err}
			}
			value := args[1]
			if value == "-" {
				b, err := io.ReadAll(io.LimitReader(env.Stdin, 64<<10))
				if err != nil {
					return fmt.Errorf("standard input: %w", err)
				}
				value = strings.TrimSpace(string(b))
			}
			path, err := settings.Path(env.Getenv)
			if err != nil {
				return err
			}
			if err := settings.Set(path, k.Name, value); err != nil {
				return err
			}
			if k.Env != "" && env.Getenv(k.Env) != "" {
				fmt.Fprintf(env.Stderr, "Note: %s is set in this shell and goes before the file.\n", k.Env)
			}
			return nil
		},
	}
}

func configListCommand(env *Env) *command {
	var asJSON bool
	return &command{
		synopsis: "List the settings and where each comes from",
		usage:    "[options]",
		about:    "\nLists the settings that are in force here. Secrets are shown in part.",
		flags: func(o *options) {
			o.Switch(&asJSON, "json", "Print the list as JSON.")
		},
		run: func(_ context.Context, conn *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			s, err := conn.settings()
			if err != nil {
				return err
			}
			type entry struct {
				Name   string `json:"name"`
				Value  string `json:"value"`
				Source string `json:"source,omitempty"`
			}
			var list []entry
			rows := [][]string{{"Name", "Value", "Source"}}
			for _, k := range settings.Keys() {
				v, err := s.Get(k.Name)
				if err != nil {
					return err
				}
				list = append(list, entry{k.Name, k.Show(v.Value), v.Source})
				rows = append(rows, []string{k.Name, k.Show(v.Value), v.Source})
			}
			if asJSON {
				return printJSON(env.Stdout, list)
			}
			return printTable(env.Stdout, rows)
		},
	}
}

func configPathCommand(env *Env) *command {
	return &command{
		synopsis: "Print where the settings file is",
		usage:    "",
		about:    "\nPrints the path of the settings file, which need not exist.",
		run: func(_ context.Context, _ *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			path, err := settings.Path(env.Getenv)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(env.Stdout, path)
			return err
		},
	}
}
