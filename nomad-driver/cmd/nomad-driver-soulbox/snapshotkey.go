package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk"
	"github.com/soulbox-dev/soulbox/nomad-driver/node"
)

// runSnapshotKey is the subcommand "snapshot-key". It returns the exit code.
func runSnapshotKey(args []string) int {
	fs := flag.NewFlagSet("nomad-driver-soulbox snapshot-key", flag.ContinueOnError)
	fs.Usage = func() {
		fmt.Fprint(fs.Output(), "usage: nomad-driver-soulbox snapshot-key [-file path] rotate\n"+
			"       nomad-driver-soulbox snapshot-key [-file path] -version n revoke\n\n"+
			"rotate adds a version to the snapshot store's key: what is stored from then on is of that version, and older snapshots are read with\n"+
			"theirs. A daemon that runs takes it at once. Every node that shares the store needs the same file.\n"+
			"revoke removes a version and all before it, for good: snapshots that are of them cannot be read any more.\n\n")
		fs.PrintDefaults()
	}
	file := fs.String("file", filepath.Join(node.DefaultStateDir, "snapshot.key"), "`path` of the key")
	version := fs.Int("version", 0, "the `version` to revoke, with all before it")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	var now int
	var err error
	switch verb := fs.Arg(0); {
	case fs.NArg() == 1 && verb == "rotate":
		now, err = chunk.RotateKey(*file)
	case fs.NArg() == 1 && verb == "revoke":
		now, err = chunk.RevokeKey(*file, *version)
	default:
		fs.Usage()
		return 2
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "nomad-driver-soulbox snapshot-key:", err)
		return 1
	}
	fmt.Printf("the current version is %d\n", now)
	return 0
}
