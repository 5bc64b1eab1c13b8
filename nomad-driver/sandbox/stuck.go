package sandbox

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Stuck is a thread that has been killed and waits in the kernel for something that no signal ends: a disk, a frozen file system. It is gone once the kernel lets
// it go; until then nothing can be taken from under it.
type Stuck struct {
	PID, Thread int    // the host's numbers
	Name        string // of the program; the sandbox's to choose
	Where       string // function of the kernel that it waits in; empty where the kernel does not tell

	ran uint64 // how often it has run: two looks with the same number saw one wait
}

func (s Stuck) String() string {
	text := fmt.Sprintf("process %d (%q)", s.PID, s.Name)
	if s.Where != "" {
		text += " in " + s.Where
	}
	return text
}

// Stuck lists them.
func (s *Sandbox) Stuck() ([]Stuck, error) {
	pids, err := s.group.Processes()
	if err != nil {
		return nil, fmt.Errorf("processes of sandbox %s: %w", s.ref.ID, err)
	}
	var out []Stuck
	for _, pid := range pids {
		threads, err := os.ReadDir(procPath(pid, "task"))
		if err != nil {
			continue // it has ended
		}
		for _, t := range threads {
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				continue
			}
			b, err := os.ReadFile(procPath(pid, "task/"+t.Name()+"/status"))
			if err != nil {
				continue
			}
			if st, ok := parseStuck(string(b)); ok {
				st.PID, st.Thread = pid, tid
				if where, err := os.ReadFile(procPath(pid, "task/"+t.Name()+"/wchan")); err == nil && string(where) != "0" {
					st.Where = string(where)
				}
				out = append(out, st)
			}
		}
	}
	return out, nil
}

// StillStuck lists those of now that were there before and have not run since.
func StillStuck(before, now []Stuck) []Stuck {
	return slices.DeleteFunc(slices.Clone(now), func(s Stuck) bool {
		return !slices.ContainsFunc(before, func(b Stuck) bool { return b.PID == s.PID && b.Thread == s.Thread && b.ran == s.ran })
	})
}

// parseStuck reads /proc/PID/task/TID/status; ok tells that the thread is killed and in an uninterruptible sleep.
func parseStuck(status string) (s Stuck, ok bool) {
	asleep, killed := false, false
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":\t")
		switch key {
		case "Name":
			s.Name = value
		case "State":
			asleep = strings.HasPrefix(value, "D")
		case "SigPnd", "ShdPnd":
			mask, err := strconv.ParseUint(value, 16, 64)
			killed = killed || err == nil && mask&(1<<(unix.SIGKILL-1)) != 0
		case "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches":
			n, err := strconv.ParseUint(value, 10, 64)
			if err == nil {
				s.ran += n
			}
		}
	}
	return s, asleep && killed
}
