package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/cli/transfer"
	"github.com/soulbox-dev/soulbox/control/state"
)

func operatorCommands() map[string]func(*Env) *command {
	return map[string]func(*Env) *command{
		"operator": operatorCommand, "operator snapshot": operatorSnapshotCommand, "operator snapshot save": operatorSaveCommand,
		"operator snapshot inspect": operatorInspectCommand, "operator snapshot restore": operatorRestoreCommand,
		"operator raft": operatorRaftCommand, "operator raft list-peers": operatorPeersCommand, "operator raft remove-peer": operatorRemoveCommand,
		"operator autopilot": operatorAutopilotCommand, "operator autopilot state": autopilotStateCommand, "operator autopilot config": autopilotConfigCommand,
		"operator autopilot set-config": autopilotSetCommand,
	}
}

var (
	operatorCommand         = group("the servers of the control service", "    $ soulbox operator snapshot save backup.sb")
	operatorSnapshotCommand = group("backups of the control service", "    $ soulbox operator snapshot save backup.sb\n    $ soulbox operator snapshot restore -yes backup.sb")
)

func operatorSaveCommand(env *Env) *command {
	return &command{
		synopsis: "Save everything that the control service keeps",
		usage:    "<file>",
		about: `
Writes a backup of the service's state into a file that only you can read:
sandboxes, templates' names, keys, roles, tenants, quotas. It holds tokens of
sandboxes: keep it as a secret. It holds neither files nor memory of
sandboxes, nor the audit log.

    $ soulbox operator snapshot save backup.sb`,
		remote: true,
		args:   complete.PredictFiles("*"),
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) != 1 {
				return usagef("name the file to write")
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			r, err := client.SaveState(ctx)
			if err != nil {
				return fmt.Errorf("save the state: %w", err)
			}
			defer r.Close()
			b, err := saveBackup(env.inDir(args[0]), r)
			if err != nil {
				return fmt.Errorf("save the state: %w", err)
			}
			return printBackup(env, b)
		},
	}
}

// saveBackup writes a backup that is whole, or nothing.
func saveBackup(path string, r io.Reader) (b state.Backup, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".soulbox-backup-") // 0600
	if err != nil {
		return b, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	b, err = state.CheckBackup(io.TeeReader(r, f))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return b, err
	}
	return b, os.Rename(f.Name(), path)
}

func printBackup(env *Env, b state.Backup) error {
	return printTable(env.Stdout, [][]string{
		{"Index", fmt.Sprint(b.Index)}, {"Made", b.At.Format(time.RFC3339)}, {"Server", printable(b.Server)}, {"Size", transfer.Bytes(b.Bytes)},
	})
}

func operatorInspectCommand(env *Env) *command {
	return &command{
		synopsis: "Check a backup and tell what it is of",
		usage:    "<file>",
		about: `
Reads a backup to its end, without a service, and checks that it is whole and
that this version can read it.

    $ soulbox operator snapshot inspect backup.sb`,
		args: complete.PredictFiles("*"),
		run: func(_ context.Context, _ *connection, args []string) error {
			if len(args) != 1 {
				return usagef("name the file")
			}
			f, err := os.Open(env.inDir(args[0]))
			if err != nil {
				return err
			}
			defer f.Close()
			b, err := state.CheckBackup(f)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return printBackup(env, b)
		},
	}
}

func operatorRestoreCommand(env *Env) *command {
	var yes bool
	return &command{
		synopsis: "Put a backup in the place of everything that the service keeps",
		usage:    "-yes <file>",
		about: `
Replaces the state of all control servers by that of a backup. What was made
since is forgotten: keys stop working, and sandboxes that the backup does not
know of end. The backup is checked as a whole before anything changes.

    $ soulbox operator snapshot restore -yes backup.sb`,
		remote: true,
		flags:  func(o *options) { o.Switch(&yes, "yes", "Do it.") },
		args:   complete.PredictFiles("*"),
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) != 1 {
				return usagef("name the file")
			}
			if !yes {
				return usagef("this replaces everything that the service keeps: say -yes")
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			f, err := os.Open(env.inDir(args[0]))
			if err != nil {
				return err
			}
			defer f.Close()
			out, err := client.RestoreState(ctx, f)
			if err != nil {
				return fmt.Errorf("restore the state: %w", err)
			}
			return printBackup(env, state.Backup{Index: out.Index, At: out.At, Server: out.Server, Bytes: out.Bytes})
		},
	}
}
