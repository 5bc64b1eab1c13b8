// Package boot is the first stage of PID 1: it receives guest.Boot from the node, builds the sandbox's world around itself,
// gives up what it no longer needs, and leaves the rest to package pid1.
//
// It owns mounts, pivot, limits, capabilities and the installation of the seccomp filter, all from inside the new
// namespaces. It never serves a request and starts no process. It trusts the node, and nothing in the root file system.
// Like all of guest it imports the standard library and golang.org/x/sys only.
package boot

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// CodeBoot is the code of the Error frame that a failed set-up step answers with. Its message names step and object.
const CodeBoot = "boot_failed"

// World is what PID 1 has once its set-up is done.
type World struct {
	Boot     guest.Boot
	Listener *os.File // listening unix socket
	Exit     *os.File // write-only, for the exit record
	Steps    []guest.Step
	// Start runs a function that starts a process on the thread that may; nil where every thread may.
	Start Starter

	conn *os.File
	last time.Time
}

// Run sets the world up. It must be called once, by PID 1, before anything else starts goroutines that make system calls.
// On error the node has been told, and PID 1 must exit.
func Run() (_ *World, err error) {
	w := &World{conn: os.NewFile(guest.BootFD, "boot socket"), last: time.Now()}
	unix.CloseOnExec(guest.BootFD)
	os.Clearenv()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
		if err != nil {
			err = errors.Join(err, w.Fail(CodeBoot, err))
		}
	}()
	start := newStarter() // a thread takes its time: it is made while the message comes
	fds, err := w.receive()
	if err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	w.Listener = os.NewFile(uintptr(fds[guest.BootFDListener]), "guest socket")
	w.Exit = os.NewFile(uintptr(fds[guest.BootFDExit]), "exit record")
	m := &mounter{boot: &w.Boot, root: fds[guest.BootFDRoot], init: fds[guest.BootFDInit], given: fds[guest.BootFDCount:], null: -1}
	for _, s := range []struct {
		name string
		do   func() error
	}{
		{"boot.root", m.attachRoot},
		{"boot.proc", m.mountProc},
		{"boot.dev", m.mountDev},
		{"boot.tmp", m.mountTmp},
		{"boot.init", m.mountInit},
		{"boot.given", m.mountGiven},
		{"boot.mask", m.hide},
		{"boot.pivot", func() error {
			if err := m.pivot(); err != nil {
				return err
			}
			w.beginRestrict(start)
			return nil
		}},
		{"boot.stdio", stdio},
		{"boot.network", loopbackUp},
		{"boot.names", func() error { return names(w.Boot.Hostname) }},
		{"boot.files", func() error { return writeFiles(w.Boot.Files) }},
		{"boot.rlimits", func() error { return limit(w.Boot.Rlimits) }},
		{"boot.landlock", func() error { return w.awaitRestrict(start) }},
		{"boot.lock", func() error { return lockDown(&w.Boot) }},
	} {
		if err := s.do(); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		w.step(s.name)
	}
	return w, nil
}

func (w *World) step(name string) {
	now := time.Now()
	w.Steps = append(w.Steps, guest.Step{Name: name, Nanos: now.Sub(w.last).Nanoseconds()})
	w.last = now
}

// Reply tells the node that PID 1 serves and ends the conversation. main is 0 where there is no main process.
func (w *World) Reply(main guest.ProcessID) error {
	w.step("boot.serve")
	err := frame.WriteJSON(w.conn, frame.Response, guest.BootReply{Main: main, Steps: w.Steps})
	return errors.Join(err, w.conn.Close())
}

// Fail tells the node what went wrong, with a code (one of guest.Code*, or CodeBoot), and ends the conversation.
func (w *World) Fail(code string, cause error) error {
	err := frame.WriteJSON(w.conn, frame.Error, &frame.ErrorBody{Code: code, Message: cause.Error()})
	return errors.Join(err, w.conn.Close())
}
