// Command stack puts Nomad, Consul, Vault, CRIU and the CNI plugins where the project's tests and `soulbox dev -cluster` find them.
//
//	stack [-tools DIR] [install [NAME...] | path NAME | dir]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/soulbox-dev/soulbox/tools/stack"
)

func main() {
	tools := flag.String("tools", "tools", "folder with the pinned modules")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: stack [-tools DIR] [install [NAME...] | path NAME | dir]\nThe programs are %q.\n", stack.Names())
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *tools, flag.Args())
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "stack:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, tools string, args []string) error {
	dir, err := stack.Dir()
	if err != nil {
		return err
	}
	switch {
	case len(args) == 0 || args[0] == "install":
		i := &stack.Installer{Tools: tools, Bin: dir, Progress: os.Stderr}
		if len(args) > 1 {
			return i.Install(ctx, args[1:]...)
		}
		return i.Install(ctx)
	case args[0] == "path" && len(args) == 2:
		path, err := stack.Find(args[1])
		if err != nil {
			return err
		}
		fmt.Println(path)
		return nil
	case args[0] == "dir" && len(args) == 1:
		fmt.Println(dir)
		return nil
	}
	flag.Usage()
	return fmt.Errorf("arguments %q are none that it knows", args)
}
