//go:build failpoints

package failpoint

import (
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

// AtOther kills another process, where that step is armed.
func AtOther(step string, pid int) {
	if armed(step) {
		_ = unix.Kill(pid, unix.SIGKILL) // it may have ended
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
