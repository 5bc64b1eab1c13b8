package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
)

const defaultList = 100 // rows of a list where nothing else is said

func sandboxListCommand(env *Env) *command {
	var (
		opts        api.ListOptions
		limit       int64
		all, asJSON bool
		quiet       bool
	)
	return &command{
		synopsis: "List sandboxes",
		usage:    "[options]",
		about: `
Lists sandboxes, the newest first. Those that have ended are shown with -state
or -all.

    $ soulbox sandbox list -metadata=project=demo
    $ soulbox sandbox list -state=failed,lost`,
		remote: true,
		flags: func(o *options) {
			o.Func("state", "<state,…>", "Only those in one of these states: "+strings.Join(states, ", ")+".", complete.PredictSet(states...), func(s string) error {
				for _, v := range strings.Split(s, ",") {
					if !slices.Contains(states, v) {
						return fmt.Errorf("there is no state %.40q; there are %s", v, strings.Join(states, ", "))
					}
					opts.States = append(opts.States, v)
				}
				return nil
			})
			o.Pairs(&opts.Metadata, "metadata", "Only those with this label. May be given many times: all must fit.", nil)
			o.String(&opts.Template, "template", "<name>", "Only those of this template.", templateNames(env))
			o.Int(&limit, "limit", "<number>", fmt.Sprintf("Show at most so many. Default = %d.", defaultList), 1)
			o.Switch(&all, "all", "Show every sandbox in every state.")
			o.Switch(&quiet, "quiet", "Print ids alone.")
			o.alias("q", &quiet)
			o.Switch(&asJSON, "json", "Print the list as JSON.")
		},
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			if all && len(opts.States) == 0 {
				opts.States = states
			}
			if limit == 0 && !all {
				limit = defaultList
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			list, more, err := collect(ctx, client, opts, int(limit))
			if err != nil {
				return fmt.Errorf("list sandboxes: %w", err)
			}
			if err := printSandboxes(env, list, asJSON, quiet); err != nil {
				return err
			}
			if more {
				fmt.Fprintf(env.Stderr, "There are more: -limit or -all shows them.\n")
			}
			return nil
		},
	}
}

// collect returns at most limit sandboxes (0: all) and whether there are more.
func collect(ctx context.Context, client *api.Client, o api.ListOptions, limit int) (list []api.Sandbox, more bool, err error) {
	list = []api.Sandbox{}
	o.Limit = 1000
	if limit > 0 {
		o.Limit = min(limit, 1000)
	}
	for s, err := range client.AllSandboxes(ctx, o) {
		if err != nil {
			return nil, false, err
		}
		if limit > 0 && len(list) == limit {
			return list, true, nil
		}
		list = append(list, s)
	}
	return list, false, nil
}

func printSandboxes(env *Env, list []api.Sandbox, asJSON, quiet bool) error {
	switch {
	case asJSON:
		return printJSON(env.Stdout, list)
	case quiet:
		for _, s := range list {
			if _, err := fmt.Fprintln(env.Stdout, s.ID); err != nil {
				return err
			}
		}
		return nil
	case len(list) == 0:
		_, err := fmt.Fprintln(env.Stdout, "No sandboxes")
		return err
	}
	now := time.Now()
	rows := [][]string{{"ID", "Template", "State", "CPU", "Memory", "Created", "Ends"}}
	for _, s := range list {
		ends := until(s.EndAt, now)
		if !s.EndedAt.IsZero() {
			ends = ago(s.EndedAt, now)
		}
		rows = append(rows, []string{s.ID.String(), s.Template, s.State, cores(s.CPUMillis), mebibytes(s.MemoryMB), ago(s.CreatedAt, now), ends})
	}
	return printTable(env.Stdout, rows)
}
