package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/transfer"
)

func sandboxCommand(*Env) *command {
	return &command{
		synopsis: "Make, find and end sandboxes",
		usage:    "<subcommand> [options] [args]",
		about: `
Groups the commands for sandboxes.

Make one, run a program in it and end it:

    $ soulbox sandbox create -template=base
    $ soulbox exec -it <id> bash
    $ soulbox sandbox destroy <id>

See the help of each subcommand for more.`,
	}
}

// sandboxIDs checks the ids that a command was given: at least least of them, at most most where it is positive.
func sandboxIDs(args []string, least, most int) ([]api.SandboxID, error) {
	switch {
	case len(args) < least:
		return nil, usagef("which sandbox? The command needs its id")
	case most > 0 && len(args) > most:
		return nil, usagef("the command takes %d arguments, not %d", most, len(args))
	}
	var ids []api.SandboxID
	for _, a := range args {
		id, err := api.ParseSandboxID(a)
		if err != nil {
			return nil, usageError{err}
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// onSandbox is the run of a command that takes one sandbox.
func onSandbox(do func(ctx context.Context, client *api.Client, id api.SandboxID) error) func(context.Context, *connection, []string) error {
	return func(ctx context.Context, conn *connection, args []string) error {
		ids, err := sandboxIDs(args, 1, 1)
		if err != nil {
			return err
		}
		client, err := conn.client()
		if err != nil {
			return err
		}
		return do(ctx, client, ids[0])
	}
}

// onSandboxes is the run of a command that does the same to each sandbox that it is given; one that fails keeps no other from it. verb
// and done name it, such as "pause" and "Paused".
func onSandboxes(env *Env, verb, done string, do func(ctx context.Context, client *api.Client, id api.SandboxID) error) func(context.Context, *connection, []string) error {
	return func(ctx context.Context, conn *connection, args []string) error {
		ids, err := sandboxIDs(args, 1, 0)
		if err != nil {
			return err
		}
		client, err := conn.client()
		if err != nil {
			return err
		}
		var failed []error
		for _, id := range ids {
			if err := do(ctx, client, id); err != nil {
				failed = append(failed, fmt.Errorf("%s sandbox %s: %w", verb, id, err))
				continue
			}
			fmt.Fprintf(env.Stdout, "%s sandbox %s\n", done, id)
		}
		return errors.Join(failed...)
	}
}

// states are the states of a sandbox, as -state takes them.
var states = []string{"starting", "running", "paused", "stopping", "stopped", "failed", "lost"}

func cores(millis int64) string {
	if millis == 0 {
		return none
	}
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.3f", float64(millis)/1000), "0"), ".")
}

func mebibytes(n int64) string {
	if n == 0 {
		return none
	}
	return fmt.Sprintf("%d MiB", n)
}

func pairs(m map[string]string) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		list = append(list, k+"="+m[k])
	}
	return strings.Join(list, ", ")
}

// describe is a sandbox for people.
func describe(s api.Sandbox, now time.Time) [][]string {
	rows := [][]string{
		{"ID", s.ID.String()},
		{"State", s.State},
	}
	if s.Reason != "" {
		rows = append(rows, []string{"Reason", s.Reason})
	}
	if e := s.Exit; e != nil {
		rows = append(rows, []string{"Exit", exitText(*e)})
	}
	rows = append(rows,
		[]string{"Template", s.Template},
		[]string{"Digest", s.Digest},
		[]string{"Node", s.Node.String()},
		[]string{"CPU", cores(s.CPUMillis)},
		[]string{"Memory", mebibytes(s.MemoryMB)},
	)
	rows = append(rows, describeLimits(s)...)
	rows = append(rows,
		[]string{"Created", when(s.CreatedAt)},
	)
	if s.EndedAt.IsZero() {
		rows = append(rows, []string{"Ends", until(s.EndAt, now)})
	} else {
		rows = append(rows, []string{"Ended", when(s.EndedAt)})
	}
	if len(s.Metadata) > 0 {
		rows = append(rows, []string{"Metadata", pairs(s.Metadata)})
	}
	return rows
}

// describeLimits shows the limits that not every sandbox has.
func describeLimits(s api.Sandbox) [][]string {
	var rows [][]string
	if s.DiskMB > 0 {
		rows = append(rows, []string{"Disk", mebibytes(s.DiskMB)})
	}
	if s.QoS != "" && s.QoS != api.QoSBurstable {
		rows = append(rows, []string{"Class", s.QoS})
	}
	for _, l := range []struct {
		name string
		v    int64
		text func(int64) string
	}{
		{"Disk inodes", s.DiskInodes, plainNumber}, {"Processes, at most", s.PIDs, plainNumber},
		{"Disk reads", s.IOReadBytes, perSecond}, {"Disk writes", s.IOWriteBytes, perSecond},
		{"Disk reads", s.IOReadOps, opsPerSecond}, {"Disk writes", s.IOWriteOps, opsPerSecond},
	} {
		if l.v > 0 {
			rows = append(rows, []string{l.name, l.text(l.v)})
		}
	}
	return rows
}

func plainNumber(n int64) string  { return fmt.Sprint(n) }
func perSecond(n int64) string    { return transfer.Bytes(n) + "/s" }
func opsPerSecond(n int64) string { return fmt.Sprintf("%d/s", n) }

func exitText(e api.SandboxExit) string {
	text := fmt.Sprintf("%s, code %d", e.Reason, e.Code)
	if e.Signal != 0 {
		text = fmt.Sprintf("%s, signal %d", e.Reason, e.Signal)
	}
	if e.OOM {
		text += ", out of memory"
	}
	if e.PIDs {
		text += ", met its limit of processes"
	}
	if e.Disk {
		text += ", had used up its disk limit"
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}
