package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/nomad-driver/node"
	"github.com/soulbox-dev/soulbox/nomad-driver/posture"
)

// runAudit is the subcommand "audit". It returns the exit code: 1 where -strict is set and something is open.
func runAudit(args []string) int {
	fs := flag.NewFlagSet("nomad-driver-soulbox audit", flag.ContinueOnError)
	asJSON := fs.Bool("json", false, "print the report as JSON")
	strict := fs.Bool("strict", false, "end with exit code 1 when something is open")
	socket := fs.String("socket", (&node.Config{}).SocketPath(), "`path` of the node's socket, whose rights are looked at")
	most := fs.Int("max-sandboxes", node.DefaultMaxSandboxes, "how many sandboxes the node may run")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case fs.NArg() > 0:
		fmt.Fprintf(os.Stderr, "nomad-driver-soulbox audit: unexpected argument %q\n", fs.Arg(0))
		return 2
	}
	r, err := posture.Look(posture.Options{Version: version.Version, Socket: *socket, MaxSandbox: *most})
	if err == nil && *asJSON {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(r)
	} else if err == nil {
		err = r.WriteText(os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "nomad-driver-soulbox audit:", err)
		return 1
	}
	if *strict && len(r.Open()) > 0 {
		return 1
	}
	return 0
}
