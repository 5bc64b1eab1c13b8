package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/transfer"
)

func snapshotCommand(*Env) *command {
	return &command{
		synopsis: "Take, find and use snapshots of sandboxes",
		usage:    "<subcommand> [options] [args]",
		about: `
Groups the commands for snapshots: the processes, memory and files of a
sandbox at one moment, from which sandboxes can be made.

    $ soulbox snapshot create -name=warm <sandbox>
    $ soulbox snapshot restore warm
    $ soulbox snapshot delete warm`,
	}
}

func snapshotCreateCommand(env *Env) *command {
	var (
		name, description string
		labels            map[string]string
		asJSON, quiet     bool
	)
	return &command{
		synopsis: "Take a snapshot of a sandbox",
		usage:    "[options] <sandbox>",
		about: `
Takes a snapshot of a running or paused sandbox, which goes on as it was. The
snapshot can be used wherever a template can.`,
		remote: true,
		flags: func(o *options) {
			o.String(&name, "name", "<name[:tag]>", "A name for it. One that had the name loses it.", nil)
			o.String(&description, "description", "<text>", "What it is for.", nil)
			o.Pairs(&labels, "label", "A label. May be repeated.", nil)
			o.Switch(&quiet, "quiet", "Print the id only.")
			o.alias("q", &quiet)
			o.Switch(&asJSON, "json", "Print the snapshot as JSON.")
		},
		args: sandboxNames(env, false),
		run: onSandbox(func(ctx context.Context, client *api.Client, id api.SandboxID) error {
			start := time.Now()
			sn, err := client.CreateSnapshot(ctx, api.SnapshotRequest{SandboxID: id, Name: name, Description: description, Labels: labels})
			if err != nil {
				return fmt.Errorf("snapshot of sandbox %s: %w", id, err)
			}
			switch {
			case asJSON:
				return printJSON(env.Stdout, sn)
			case quiet:
				_, err = fmt.Fprintln(env.Stdout, sn.ID)
			default:
				_, err = fmt.Fprintf(env.Stdout, "Snapshot %s of sandbox %s: %s, %s stored, in %s\n",
					sn.ID, id, transfer.Bytes(sn.Bytes), transfer.Bytes(sn.StoredBytes), short(time.Since(start)))
			}
			return err
		}),
	}
}

func snapshotListCommand(env *Env) *command {
	var (
		f       api.SnapshotFilter
		sandbox string
		asJSON  bool
	)
	return &command{
		synopsis: "List snapshots",
		usage:    "[options]",
		about:    "\nLists snapshots, the newest first.",
		remote:   true,
		flags: func(o *options) {
			o.String(&sandbox, "sandbox", "<id>", "Only those of this sandbox.", sandboxNames(env, true))
			o.String(&f.Name, "name", "<name[:tag]>", "Only those with this name.", nil)
			o.String(&f.Label, "label", "<key[=value]>", "Only those with this label.", nil)
			o.String(&f.State, "state", "<state>", "Only those in this state: making, ready or failed.", complete.PredictSet("making", "ready", "failed"))
			o.Switch(&asJSON, "json", "Print the list as JSON.")
		},
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			if sandbox != "" {
				id, err := api.ParseSandboxID(sandbox)
				if err != nil {
					return usageError{err}
				}
				f.SandboxID = id
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			list, err := client.Snapshots(ctx, f)
			if err != nil {
				return fmt.Errorf("list snapshots: %w", err)
			}
			if asJSON {
				if list == nil {
					list = []api.Snapshot{}
				}
				return printJSON(env.Stdout, list)
			}
			if len(list) == 0 {
				_, err := fmt.Fprintln(env.Stdout, "No snapshots")
				return err
			}
			rows := [][]string{{"ID", "Name", "Sandbox", "State", "Size", "Stored", "Created", "Description"}}
			now := time.Now()
			for _, s := range list {
				rows = append(rows, []string{
					string(s.ID), snapshotName(s), string(s.SandboxID), s.State, transfer.Bytes(s.Bytes), transfer.Bytes(s.StoredBytes),
					ago(s.CreatedAt, now), s.Description,
				})
			}
			return printTable(env.Stdout, rows)
		},
	}
}

func snapshotName(s api.Snapshot) string {
	if s.Name == "" {
		return ""
	}
	return s.Name + ":" + s.Tag
}

func snapshotInfoCommand(env *Env) *command {
	var asJSON bool
	return &command{
		synopsis: "Show a snapshot",
		usage:    "[options] <snapshot>",
		about:    "\nShows a snapshot, by its id, its name or name:tag.",
		remote:   true,
		flags: func(o *options) {
			o.Switch(&asJSON, "json", "Print the snapshot as JSON.")
		},
		args: snapshotNames(env),
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) != 1 {
				return usagef("the command takes one snapshot, not %d arguments", len(args))
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			s, err := client.GetSnapshot(ctx, args[0])
			if err != nil {
				return fmt.Errorf("snapshot %s: %w", args[0], err)
			}
			if asJSON {
				return printJSON(env.Stdout, s)
			}
			rows := [][]string{{"ID", string(s.ID)}, {"Name", snapshotName(s)}, {"State", s.State}}
			if s.Reason != "" {
				rows = append(rows, []string{"Reason", s.Reason})
			}
			rows = append(rows, [][]string{
				{"Sandbox", string(s.SandboxID)}, {"Parent", string(s.Parent)}, {"Template", s.Template}, {"Digest", s.Digest},
				{"Node", string(s.NodeID)}, {"Size", transfer.Bytes(s.Bytes)}, {"Stored", transfer.Bytes(s.StoredBytes)},
				{"Created", when(s.CreatedAt)}, {"Description", s.Description}, {"Labels", pairs(s.Labels)},
			}...)
			return printPairs(env.Stdout, rows)
		},
	}
}

func snapshotRestoreCommand(env *Env) *command {
	timeout := resumeTime
	var asJSON, quiet bool
	return &command{
		synopsis: "Make a sandbox of a snapshot",
		usage:    "[options] <snapshot>",
		about: `
Makes a new sandbox of a snapshot: the processes go on where they were. The
snapshot stays.`,
		remote: true,
		flags: func(o *options) {
			o.Duration(&timeout, "timeout", "<duration>", "How long the sandbox lives.")
			o.Switch(&quiet, "quiet", "Print the id only.")
			o.alias("q", &quiet)
			o.Switch(&asJSON, "json", "Print the sandbox as JSON.")
		},
		args: snapshotNames(env),
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) != 1 {
				return usagef("the command takes one snapshot, not %d arguments", len(args))
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			start := time.Now()
			secs := int64(timeout.Round(time.Second) / time.Second)
			made, err := client.CreateSandbox(ctx, api.CreateRequest{Template: args[0], Timeout: &secs})
			if err != nil {
				return fmt.Errorf("restore snapshot %s: %w", args[0], err)
			}
			switch {
			case asJSON:
				return printJSON(env.Stdout, made)
			case quiet:
				_, err = fmt.Fprintln(env.Stdout, made.ID)
			default:
				_, err = fmt.Fprintf(env.Stdout, "Sandbox %s runs after %s\n", made.ID, short(time.Since(start)))
			}
			return err
		},
	}
}

func snapshotDeleteCommand(env *Env) *command {
	var force bool
	return &command{
		synopsis: "Delete snapshots",
		usage:    "[options] <snapshot>...",
		about: `
Deletes snapshots and what no other snapshot needs of their data. One that
running or paused sandboxes were made from is kept, unless -force is given.`,
		remote: true,
		flags: func(o *options) {
			o.Switch(&force, "force", "Delete it although sandboxes are being made from it.")
		},
		args: snapshotNames(env),
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) == 0 {
				return usagef("which snapshot? The command needs an id or a name")
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			var failed []error
			for _, ref := range args {
				if err := client.DeleteSnapshot(ctx, ref, force); err != nil {
					failed = append(failed, fmt.Errorf("delete snapshot %s: %w", printable(ref), err))
					continue
				}
				fmt.Fprintf(env.Stdout, "Deleted snapshot %s\n", printable(ref))
			}
			return errors.Join(failed...)
		},
	}
}

// snapshotNames completes ids and names of snapshots.
func snapshotNames(env *Env) complete.Predictor {
	return predict(env, func(ctx context.Context, client *api.Client) []string {
		list, err := client.Snapshots(ctx, api.SnapshotFilter{})
		if err != nil {
			return nil
		}
		var out []string
		for _, s := range list {
			out = append(out, string(s.ID))
			if s.Name != "" {
				out = append(out, snapshotName(s))
			}
		}
		return out
	})
}
