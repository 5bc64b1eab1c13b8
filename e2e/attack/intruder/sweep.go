package main

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// unswept are calls that have no harmless form for the process that makes them: it would end, wait for ever, or return on
// another's stack.
var unswept = map[uintptr]string{
	unix.SYS_RT_SIGRETURN: "has no caller", unix.SYS_PAUSE: "waits", unix.SYS_VFORK: "shares its stack", unix.SYS_EXIT: "ends",
	unix.SYS_EXIT_GROUP: "ends", unix.SYS_RT_SIGSUSPEND: "waits",
}

func init() {
	works["sweep"] = func(args []string) error {
		if len(args) != 2 {
			return fmt.Errorf("usage: sweep FIRST LAST")
		}
		first, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		last, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		for nr := first; nr <= last; nr++ {
			if why, ok := unswept[uintptr(nr)]; ok {
				fmt.Printf("%d\tnot made: %s\n", nr, why)
				continue
			}
			fmt.Printf("%d\t%s\n", nr, apart("call", strconv.Itoa(nr)))
		}
		return nil
	}
	// call makes one system call with arguments that no call can do harm with: all bits set is no descriptor, no pointer, no
	// process and no known flag.
	works["call"] = func(args []string) error {
		nr, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		const x = ^uintptr(0)
		if nr == unix.SYS_FORK {
			fmt.Println(child(unix.RawSyscall(unix.SYS_FORK, 0, 0, 0)))
			return nil
		}
		fmt.Println(call(uintptr(nr), x, x, x, x, x, x))
		return nil
	}
}
