package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
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
			if err != nil || pid == criu || session(pid) != criu {
				continue
			}
			if err := endChild(pid); err != nil {
				errs = append(errs, fmt.Errorf("end process %d, which criu %d has left: %w", pid, criu, err))
			}
		}
	}
	return errors.Join(errs...)
}

// session returns the session of a process; 0: it is gone, or the session's leader is in an outer pid namespace.
func session(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:])) // state, parent, group, session
	if len(f) < 4 {
		return 0
	}
	sid, err := strconv.Atoi(f[3])
	if err != nil {
		return 0
	}
	return sid
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
