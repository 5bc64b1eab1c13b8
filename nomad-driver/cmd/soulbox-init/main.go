// Command soulbox-init is PID 1 of a sandbox. Only a node starts it, with a boot socket as descriptor 3. As "soulbox-init pages", outside of
// sandboxes, it is the page server of one that was restored without its memory.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/pager"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/boot"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/pid1"
)

// version is set by the build.
var version = "dev"

// The main goroutine keeps the main thread from the beginning. To the kernel that thread is PID 1: were it the one that starts processes, it
// would be in their Landlock domain, and they could signal it.
func init() { runtime.LockOSThread() }

func main() {
	if len(os.Args) == 2 && os.Args[1] == "pages" && os.Getpid() != 1 {
		os.Exit(pager.Run())
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "soulbox-init", version, "is PID 1 of a sandbox: only a SoulBox node starts it")
		os.Exit(2)
	}
	os.Exit(run())
}

func run() int {
	w, err := boot.Run()
	if err != nil {
		return 125
	}
	return pid1.Run(pid1.Config{
		Boot:     &w.Boot,
		Version:  version,
		Listener: w.Listener,
		Exit:     w.Exit,
		Spawn:    w.Start,
		Started: func(main guest.ProcessID, err error) {
			// Where the node is gone already, nobody is left to tell: the sandbox goes on and is found by its next start.
			if err == nil {
				_ = w.Reply(main)
				return
			}
			code := boot.CodeBoot
			var body *frame.ErrorBody
			if errors.As(err, &body) {
				code = body.Code
			}
			_ = w.Fail(code, err)
		},
	})
}
