// Package pid1 is what PID 1 of a sandbox does once its world is set up: it starts processes and terminals, keeps their
// output in bounded rings, reaps, opens files as the sandbox's users, and answers the node on one unix socket.
//
// It owns the processes of the sandbox and the exit record. It never sets up namespaces, mounts or filters (package boot
// does, before), speaks no protocol but the guest's, and holds no secret: everything in it may be taken over by what runs
// in the sandbox without gain. It imports the standard library and golang.org/x/sys only.
package pid1

import (
	"os"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// Config is what Run needs.
type Config struct {
	// Boot: only SandboxID, User, Cwd, Env and Main count here.
	//
	// Main.Attach tells that the node will attach to Main for its output: when Main ends, Run then waits, at most LogWait,
	// until an attachment has had all of it, before it ends the sandbox.
	Boot *guest.Boot
	// Listener is the listening unix socket. Run owns it.
	Listener *os.File
	// Exit takes the exit record. Run owns it. It may be nil in tests.
	Exit *os.File
	// Version is SoulBox's version, for Info.
	Version string
	// Started is called once, from Run's goroutine, when the guest serves: with Main's process, or 0 where there is none,
	// or with the reason why Main could not be started, which is a *frame.ErrorBody. Run returns after an error.
	Started func(main guest.ProcessID, err error)
}

// Run is PID 1's work. It returns the code to exit with when the sandbox has ended, and must be called from the main
// goroutine of a process that is PID 1 of its pid namespace, because it reaps every child and kills everything at its end.
func Run(c Config) (exitCode int) { panic("in the making") }
