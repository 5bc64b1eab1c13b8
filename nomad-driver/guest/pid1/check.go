package pid1

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

const (
	maxSignal = 64
	maxData   = 1 << 20

	maxSandboxID = 64
)

// check refuses a request that breaks a limit or lacks what its operation needs. What passes may be handed to a backend.
func check(r *guest.Request) error {
	if r.Version < guest.MinProtocolVersion || r.Version > guest.ProtocolVersion {
		return fail(guest.CodeVersion, "protocol version %d; this guest serves %d to %d", r.Version, guest.MinProtocolVersion, guest.ProtocolVersion)
	}
	lacks := func(field string) error { return fail(guest.CodeBadRequest, "%s: %s is missing", r.Op, field) }
	switch r.Op {
	case guest.OpInfo, guest.OpList, guest.OpLookupUser, guest.OpPark:
		return nil
	case guest.OpRenew:
		if r.Renew == nil {
			return lacks("renew")
		}
		if len(r.Renew.SandboxID) == 0 || len(r.Renew.SandboxID) > maxSandboxID || len(r.Renew.Env) > guest.MaxArgs {
			return fail(guest.CodeBadRequest, "renew: an id of 1 to %d bytes, and at most %d variables, are allowed", maxSandboxID, guest.MaxArgs)
		}
		return nil
	case guest.OpSetEnv:
		if err := checkWords(words{"env", r.Env}); err != nil {
			return err
		}
		return checkEnv("env", r.Env)
	case guest.OpStart:
		if r.Start == nil {
			return lacks("start")
		}
		return checkStart(r.Start)
	case guest.OpAttach:
		if r.Attach == nil {
			return lacks("attach")
		}
		return checkPID("attach.pid", r.Attach.PID)
	case guest.OpSignal:
		if r.Signal == nil {
			return lacks("signal")
		}
		if err := checkPID("signal.pid", r.Signal.PID); err != nil {
			return err
		}
		return checkSignal(r.Signal.Signal)
	case guest.OpStdin:
		if r.Stdin == nil {
			return lacks("stdin")
		}
		if len(r.Stdin.Data) > maxData {
			return fail(guest.CodeBadRequest, "stdin.data has %d bytes, at most %d are allowed", len(r.Stdin.Data), maxData)
		}
		return checkPID("stdin.pid", r.Stdin.PID)
	case guest.OpResize:
		if r.Resize == nil {
			return lacks("resize")
		}
		return checkPID("resize.pid", r.Resize.PID)
	case guest.OpWait:
		if r.Wait == nil {
			return lacks("wait")
		}
		return checkPID("wait.pid", r.Wait.PID)
	case guest.OpOpen, guest.OpStat, guest.OpReadDir, guest.OpMkdir, guest.OpRemove, guest.OpEntry,
		guest.OpWalk, guest.OpRead:
		if r.File == nil {
			return lacks("file")
		}
		if r.File.Mode > 0o7777 {
			return fail(guest.CodeBadRequest, "file.mode %#o has bits beyond 07777", r.File.Mode)
		}
		if r.Op == guest.OpOpen && r.File.Target != "" {
			return checkText("file.target", r.File.Target, unix.PathMax-1)
		}
		return nil
	case guest.OpWatch:
		if r.Watch == nil {
			return lacks("watch")
		}
		return nil
	case guest.OpRename, guest.OpSymlink:
		if r.File == nil {
			return lacks("file")
		}
		return checkText("file.target", r.File.Target, unix.PathMax-1)
	case guest.OpShutdown:
		if r.Shutdown == nil {
			return lacks("shutdown")
		}
		if r.Shutdown.Grace < 0 {
			return fail(guest.CodeBadRequest, "shutdown.grace is negative")
		}
		if r.Shutdown.Signal == 0 {
			return nil
		}
		return checkSignal(r.Shutdown.Signal)
	default:
		return fail(guest.CodeBadRequest, "unknown operation %.40q", r.Op)
	}
}

func checkPID(field string, pid guest.ProcessID) error {
	if pid <= 1 {
		return fail(guest.CodeBadRequest, "%s %d is no process that this guest started", field, pid)
	}
	return nil
}

func checkSignal(n int) error {
	if n < 1 || n > maxSignal {
		return fail(guest.CodeBadRequest, "signal %d is not between 1 and %d", n, maxSignal)
	}
	return nil
}

// checkText refuses what is empty, too long, or has a NUL byte, which would end it early for the kernel.
func checkText(field, s string, limit int) error {
	switch {
	case s == "":
		return fail(guest.CodeBadRequest, "%s is empty", field)
	case len(s) > limit:
		return fail(guest.CodeBadRequest, "%s has %d bytes, at most %d are allowed", field, len(s), limit)
	case strings.IndexByte(s, 0) >= 0:
		return fail(guest.CodeBadRequest, "%s has a NUL byte", field)
	}
	return nil
}

// words is a list that becomes arguments or environment.
type words struct {
	field string
	items []string
}

// checkWords bounds lists that an exec takes together.
func checkWords(lists ...words) error {
	total := 0
	for _, list := range lists {
		if len(list.items) > guest.MaxArgs {
			return fail(guest.CodeBadRequest, "%s has %d entries, at most %d are allowed", list.field, len(list.items), guest.MaxArgs)
		}
		for i, item := range list.items {
			if total += len(item) + 1; total > guest.MaxArgBytes {
				return fail(guest.CodeBadRequest, "%s: more than %d bytes", list.field, guest.MaxArgBytes)
			}
			if strings.IndexByte(item, 0) >= 0 {
				return fail(guest.CodeBadRequest, "%s[%d] has a NUL byte", list.field, i)
			}
		}
	}
	return nil
}

func checkEnv(field string, env []string) error {
	for i, e := range env {
		if strings.IndexByte(e, '=') < 1 {
			return fail(guest.CodeBadRequest, "%s[%d] is not KEY=VALUE", field, i)
		}
	}
	return nil
}

func checkStart(s *guest.Start) error {
	if len(s.Argv) == 0 || s.Argv[0] == "" {
		return fail(guest.CodeBadRequest, "start.argv names no command")
	}
	if err := checkWords(words{"start.argv", s.Argv}, words{"start.env", s.Env}); err != nil {
		return err
	}
	if err := checkEnv("start.env", s.Env); err != nil {
		return err
	}
	if s.KillOnDetach && !s.Attach {
		return fail(guest.CodeBadRequest, "start.kill_on_detach needs start.attach")
	}
	if len(s.Tag) > guest.MaxTag {
		return fail(guest.CodeBadRequest, "start.tag has %d bytes, at most %d are allowed", len(s.Tag), guest.MaxTag)
	}
	if s.Cwd != "" {
		return checkText("start.cwd", s.Cwd, unix.PathMax-1)
	}
	return nil
}
