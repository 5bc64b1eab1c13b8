package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/procstat"
)

// endOrphans kills and reaps the children of this process that a CRIU has made which has ended since. CRIU makes the root of a tree as a sibling of its own and
// tells of it some milliseconds later: one that is killed in between leaves a process of which nobody else knows. It is in the session that was CRIU's alone.
func endOrphans(criu int) error {
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return err
	}
	var errs []error
	for _, list := range tasks {
		b, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended, and its children are another's
		}
		for _, word := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(word)
			if err != nil || pid == criu || !inSession(pid, criu) {
				continue
			}
			if err := endChild(pid); err != nil {
				errs = append(errs, fmt.Errorf("end process %d, which criu %d has left: %w", pid, criu, err))
			}
		}
	}
	return errors.Join(errs...)
}

// inSession reports whether a process is in the session of that leader. One that is gone is in none, and one whose leader is in an outer pid namespace neither.
func inSession(pid, leader int) bool {
	s, err := procstat.Of(pid)
	return err == nil && s.Session == leader
}

func endChild(pid int) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return err
	}
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
