// Command soulbox is SoulBox's command line, its control service and its development server in one program.
package main

import (
	"fmt"
	"os"

	"github.com/soulbox-dev/soulbox/control/cli"
)

func main() { os.Exit(run()) }

func run() int {
	env, err := cli.System()
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		return 1
	}
	return cli.Run(env, os.Args[1:])
}
