// Command intruder is what hostile code in a sandbox does: it tries one thing after another to get out, to reach what is not
// its own, or to take more than its share, and says what the kernel answered.
//
// It owns the attempts. What an answer means is judged outside, by package attack, which also looks whether the host still is
// as it was: nothing that this program says is believed alone. Only tests of SoulBox build it, for Linux on x86-64.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// attempt is one way to try what a case is about. It returns the name of the errno that stopped it, "ok" where nothing did, or
// words of its own.
type attempt struct {
	name string
	try  func() string
}

// cases by the ids of the list of attacks.
var cases = map[string][]attempt{}

// works are what needs arguments or time: bombs, loops, reports.
var works = map[string]func(args []string) error{}

// attemptTime bounds one attempt: a call that blocks is stopped.
const attemptTime = 20 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "intruder:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: intruder CASE… | one CASE NAME | WORK ARGS…")
	}
	if args[0] == "one" && len(args) == 3 {
		return one(args[1], args[2])
	}
	if work, ok := works[args[0]]; ok {
		return work(args[1:])
	}
	for _, id := range args {
		list, ok := cases[id]
		if !ok {
			return fmt.Errorf("no case %q", id)
		}
		for _, a := range list {
			fmt.Printf("%s\t%s\n", a.name, apart("one", id, a.name))
		}
	}
	return nil
}

// apart runs this program once more, since an attempt may end its process or change what the next one sees.
func apart(args ...string) string {
	cmd := exec.Command("/proc/self/exe", args...)
	timer := time.AfterFunc(attemptTime, func() {
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
		}
	})
	out, err := cmd.Output()
	if !timer.Stop() {
		return "blocked"
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return "killed " + unix.SignalName(ws.Signal())
		}
		return "died " + firstLine(exit.Stderr)
	}
	if err != nil {
		return answer(err)
	}
	return strings.TrimSpace(string(out))
}

func one(id, name string) error {
	list := cases[id]
	i := slices.IndexFunc(list, func(a attempt) bool { return a.name == name })
	if i < 0 {
		return fmt.Errorf("case %s has no %q", id, name)
	}
	fmt.Println(list[i].try())
	return nil
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return line
}

// answer is the name of an error's errno, "ok" for none.
func answer(err error) string {
	if err == nil {
		return "ok"
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		if name := unix.ErrnoName(errno); name != "" {
			return name
		}
		return fmt.Sprintf("errno %d", int(errno))
	}
	return err.Error()
}

// call makes a raw system call.
func call(nr uintptr, a ...uintptr) string {
	var args [6]uintptr
	copy(args[:], a)
	_, _, errno := unix.Syscall6(nr, args[0], args[1], args[2], args[3], args[4], args[5])
	if errno != 0 {
		return answer(errno)
	}
	return "ok"
}

func text(s string) uintptr {
	p, err := unix.BytePtrFromString(s)
	if err != nil {
		panic(err)
	}
	return pointer(p)
}
