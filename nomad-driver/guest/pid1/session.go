package pid1

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// killPasses bounds how often killSession looks for processes that were started while it looked.
const killPasses = 3

// killSession kills a process and all that are still in its session. The mutex is held meanwhile: the session's number
// stays its own until its leader is reaped.
func (s *supervisor) killSession(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.hasEnded() {
		return
	}
	_ = unix.Kill(int(p.id), unix.SIGKILL) // first, so that it does not get to act on the others' end
	_ = unix.Kill(-int(p.id), unix.SIGKILL)
	for range killPasses {
		if killMembers(int(p.id)) == 0 {
			break
		}
	}
}

// killMembers kills all of a session but its leader and returns how many it found.
func killMembers(session int) int {
	d, err := os.Open("/proc")
	if err != nil {
		return 0
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return 0
	}
	n := 0
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid <= 1 || pid == session {
			continue
		}
		if sid, err := unix.Getsid(pid); err != nil || sid != session {
			continue
		}
		// The number may have come to another process since; the descriptor cannot.
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if sid, err := unix.Getsid(pid); err == nil && sid == session && unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil {
			n++
		}
		unix.Close(fd)
	}
	return n
}
