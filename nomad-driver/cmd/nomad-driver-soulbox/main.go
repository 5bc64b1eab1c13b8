// Command nomad-driver-soulbox is SoulBox on a node: without an argument it is Nomad's task driver plugin, as `node` the
// daemon that owns the machine's sandboxes.
//
// It owns the choice between the two and the exit code. It never does the work of either.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins"

	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/nomad-driver/driver"
)

func main() {
	if len(os.Args) > 1 {
		os.Exit(command(os.Args[1], os.Args[2:]))
	}
	plugins.ServeCtx(func(ctx context.Context, logger hclog.Logger) any {
		return driver.New(ctx, logger, version.Version)
	})
}

func command(name string, args []string) int {
	switch name {
	case "node":
		return runNode(args)
	case "audit":
		return runAudit(args)
	case "snapshot-key":
		return runSnapshotKey(args)
	case "version", "-version", "--version":
		fmt.Println("nomad-driver-soulbox", version.Version)
		return 0
	}
	fmt.Fprintf(os.Stderr, "nomad-driver-soulbox: unknown command %q\n\n"+
		"Without an argument this program is a Nomad task driver, which Nomad starts itself.\n"+
		"  node      run the node daemon (see node -help)\n  audit     say how well this machine holds hostile code (see audit -help)\n  snapshot-key  rotate the key of the snapshot store (see snapshot-key -help)\n  version   print the version\n", name)
	return 2
}
