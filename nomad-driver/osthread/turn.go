package osthread

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// shortTurn is the shortest turn of the processor that Linux gives.
const shortTurn = 100 * time.Microsecond

// ShortTurns asks the kernel to give this process's threads, and those that they will make, short turns of the processor. They get no more
// of it than others, but sooner after they wake: a short turn is due before the long one of whoever computes. It is what an answer
// takes beside a load, where each of a dozen wake-ups on its way would wait for the end of somebody's turn. Linux has it since 6.12;
// older ones take the wish and ignore it.
func ShortTurns() error {
	seen := make(map[int]bool)
	for {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("list own threads: %w", err)
		}
		fresh := false
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil || seen[tid] {
				continue
			}
			seen[tid], fresh = true, true
			if err := turn(tid, shortTurn); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("set turn of thread %d: %w", tid, err)
			}
		}
		if !fresh { // else one that was not asked yet may have made another meanwhile
			return nil
		}
	}
}

// turn sets the length of a thread's turns. A thread that somebody has put into another class than the ordinary one stays there.
func turn(tid int, d time.Duration) error {
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		return err
	}
	if attr.Policy != unix.SCHED_NORMAL {
		return nil
	}
	return unix.SchedSetAttr(tid, &unix.SchedAttr{Flags: attr.Flags, Nice: attr.Nice, Runtime: uint64(d)}, 0)
}
