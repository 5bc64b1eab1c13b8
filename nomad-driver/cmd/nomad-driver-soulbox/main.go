// Command nomad-driver-soulbox is SoulBox on one machine: with "node" it is the daemon that owns the machine's sandboxes.
package main

import (
	"fmt"
	"os"
)

// version is set by the build.
var version = "0.1.0-dev"

func main() {
	if len(os.Args) > 1 && os.Args[1] == "node" {
		os.Exit(runNode(os.Args[2:]))
	}
	fmt.Fprintln(os.Stderr, "usage: nomad-driver-soulbox node [-config FILE] [flags]")
	os.Exit(2)
}
