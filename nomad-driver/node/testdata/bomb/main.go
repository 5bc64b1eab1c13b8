// Command bomb takes as many descriptors as it can get: open files, pipes, sockets and inotify instances with watches. It
// runs inside a sandbox and waits to be killed.
package main

import (
	"os"
	"os/exec"
	"syscall"
)

func main() {
	if len(os.Args) < 2 { // the parent: as many children as the sandbox has processes for
		for {
			cmd := exec.Command("/proc/self/exe", "child")
			if cmd.Start() != nil {
				break
			}
		}
	}
	take()
	println("full")
	select {}
}

func take() {
	for {
		if fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC); err == nil {
			for _, dir := range []string{"/", "/tmp", "/etc", "/home"} {
				_, _ = syscall.InotifyAddWatch(fd, dir, syscall.IN_ALL_EVENTS)
			}
			continue
		}
		var p [2]int
		if syscall.Pipe2(p[:], syscall.O_NONBLOCK) == nil {
			_, _ = syscall.Write(p[1], make([]byte, 64<<10)) // the kernel's memory for it
			continue
		}
		if _, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0); err != nil {
			return
		}
	}
}
