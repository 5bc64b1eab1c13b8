package node

import (
	"os"

	"golang.org/x/sys/unix"
)

// failpoints are the steps of a pause and a resume at which a test may have the daemon killed: SOULBOX_FAILPOINT names one.
var failpoints = []string{
	"pause.parked", "pause.frozen", "pause.recorded",
	"checkpoint.dumped", "checkpoint.synced", "checkpoint.renamed", "checkpoint.recorded", "checkpoint.ended",
	"restore.restored", "restore.recorded", "restore.woken",
	"resume.recorded", "resume.thawed",
}

var failAt = os.Getenv("SOULBOX_FAILPOINT")

// failpoint kills the daemon, as nobody could prevent, where a test asked for it.
func failpoint(name string) {
	if failAt == name {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // the signal is on its way
	}
}
