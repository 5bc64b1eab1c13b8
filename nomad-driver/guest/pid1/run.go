// Package pid1 is what PID 1 of a sandbox does once its world is set up: it starts processes and terminals, keeps their
// output in bounded rings, reaps, opens files as the sandbox's users, and answers the node on one unix socket.
//
// It owns the processes of the sandbox and the exit record. It never sets up namespaces, mounts or filters (package boot
// does, before), speaks no protocol but the guest's, and holds no secret: everything in it may be taken over by what runs
// in the sandbox without gain. It imports the standard library and golang.org/x/sys only.
package pid1

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// Config is what Run needs.
type Config struct {
	// Boot: only SandboxID, User, Cwd, Env and Main count here.
	//
	// Main.Attach tells that the node will attach to Main for its output. Main then waits with a full ring for the first
	// attachment, and when it ends, Run waits until one has had all of its output before it ends the sandbox; each at
	// most LogWait.
	Boot *guest.Boot
	// Listener is the listening unix socket. Run owns it.
	Listener *os.File
	// Exit takes the exit record. Run owns it. It may be nil in tests.
	Exit *os.File
	// Spawn runs a function that starts a process on the one thread that may start them; nil: any thread may.
	Spawn func(func() (int, error)) (int, error)
	// Version is SoulBox's version, for Info.
	Version string
	// Started is called once, from Run's goroutine, when the guest serves: with Main's process, or 0 where there is none,
	// or with the reason why Main could not be started, which has a *frame.ErrorBody in its chain. Run returns after an
	// error.
	Started func(main guest.ProcessID, err error)
}

// LogWait is how long Run waits for whoever Main.Attach announced.
const LogWait = 5 * time.Second

const (
	// TermGrace is how long processes have to end when PID 1 gets SIGTERM.
	TermGrace = 5 * time.Second
	// lastWords is how long conversations have to end when the sandbox has ended.
	lastWords = time.Second
	// deathWait is how long killed processes may take to be gone.
	deathWait = 2 * time.Second

	// Memory: a small heap is collected often, which costs little, and given back when the guest is idle.
	gcPercent   = 25
	trimAfter   = time.Second // not in the midst of a burst of sandboxes
	maxProcs    = 1           // a second core's wake-ups cost an answer more than it would gain by them
	spareThread = 4
)

// exitFailed is what PID 1 exits with when it could not begin.
const exitFailed = 125

// Run is PID 1's work. It returns the code to exit with when the sandbox has ended, and must be called from the main
// goroutine of a process that is PID 1 of its pid namespace, because it reaps every child and kills everything at its end.
func Run(c Config) (exitCode int) {
	if os.Getpid() != 1 {
		c.Started(0, errors.New("the guest must be PID 1 of its namespace"))
		return exitFailed
	}
	// The main thread does the reaping. It must not become one that works in the name of a user: what the kernel thinks of
	// a process is what it thinks of this thread.
	runtime.LockOSThread()
	if runtime.GOMAXPROCS(0) > maxProcs {
		runtime.GOMAXPROCS(maxProcs)
	}
	debug.SetGCPercent(gcPercent)
	unix.Umask(0o022)
	// Nothing that PID 1 holds shall reach a process of the sandbox.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		c.Started(0, fmt.Errorf("close_range: %w", err))
		return exitFailed
	}
	s := newSupervisor(c)
	listener, err := s.takeFiles(c)
	if err != nil {
		c.Started(0, err)
		return exitFailed
	}
	defaultSignals()
	terms := catchTerm()
	s.workers = newWorkers()

	var mainID guest.ProcessID
	if c.Boot.Main != nil {
		prewarm(spareThread)
		close(s.warm)
		if err := s.startMain(*c.Boot.Main); err != nil {
			c.Started(0, err)
			return exitFailed
		}
		mainID = s.main.id
	} else if err := s.checkDefaults(c.Boot); err != nil {
		c.Started(0, err)
		return exitFailed
	}
	trim := time.AfterFunc(trimAfter, debug.FreeOSMemory)
	sv := newServer(s, func() { trim.Reset(trimAfter) })
	go sv.serve(listener)
	c.Started(mainID, nil)
	if c.Boot.Main == nil {
		// After the answer, because threads take longer to make than all of the rest; no process starts before.
		prewarm(spareThread)
		close(s.warm)
	}

	code := make(chan int, 1)
	go func() { code <- s.run(terms, sv, c.Exit) }()
	s.reap()
	return <-code
}

// checkDefaults refuses a default user or working directory that the sandbox does not have, while whoever asked for it can
// still be told. A main process is checked the same way by being started.
func (s *supervisor) checkDefaults(b *guest.Boot) error {
	if b.User == "" && b.Cwd == "" {
		return nil
	}
	u, _, err := s.lookup("")
	if err != nil || b.Cwd == "" {
		return err
	}
	return s.workers.as(u, func() error {
		_, err := s.workDir("", u)
		return err
	})
}

// takeFiles readies what PID 1 works with.
func (s *supervisor) takeFiles(c Config) (listener *os.File, err error) {
	if s.devNull, err = openNull(); err != nil {
		return nil, err
	}
	fd, err := unix.FcntlInt(c.Listener.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("guest socket: %w", err)
	}
	c.Listener.Close()
	return pollable(fd, "guest socket"), nil
}
