//go:build failpoints

package failpoint

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// On says whether this program was built for such tests.
const On = true

// Env names the file that arms a step: its content is the step's name. It is removed with the kill, so that one arming is one kill.
const Env = "SOULBOX_FAILPOINT"

// At kills this process, where its step is armed.
func At(step string) {
	if armed(step) {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // the signal is on its way
	}
}

// AtOther kills another process, where that step is armed, and returns when it has ended: what its end sets off in the kernel comes before anything that
// this process could do about it.
func AtOther(step string, pid int) {
	if !armed(step) {
		return
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has ended
	}
	defer func() { _ = unix.Close(process) }()
	_ = unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0) // it may have ended
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, -1)
		if n == 1 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

func armed(step string) bool {
	path := os.Getenv(Env)
	if path == "" {
		return false
	}
	b, err := os.ReadFile(path)
	return err == nil && string(b) == step && os.Remove(path) == nil
}
