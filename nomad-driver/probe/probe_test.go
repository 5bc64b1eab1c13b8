package probe

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestSet_everyFeatureAnswersWithAReason(t *testing.T) {
	s := New(Options{Dir: t.TempDir()})
	word := regexp.MustCompile(`^[a-z0-9_]+$`)
	seen := map[string]bool{}
	for _, r := range s.All() {
		must.RegexMatch(t, word, r.Name)
		must.False(t, seen[r.Name], must.Sprintf("%s is twice in the list", r.Name))
		seen[r.Name] = true
		if !r.OK {
			must.StrContains(t, r.Reason, "needs ", must.Sprintf("%s", r.Name))
		} else {
			must.Eq(t, "", r.Reason)
		}
		t.Logf("%-24s ok=%-5v value=%-8q %s", r.Name, r.OK, r.Value, r.Reason)
	}
}

func TestSet_asksOnce(t *testing.T) {
	calls := 0
	s := &Set{once: New(Options{}).once}
	ask := s.once["pidfd"]
	s.once["pidfd"] = func() Result { calls++; return ask() }
	first := s.Get("pidfd")
	start := time.Now()
	must.Eq(t, first, s.Get("pidfd"))
	must.Less(t, time.Second, time.Since(start))
	must.Eq(t, 2, calls)
}

func TestSet_unknownName(t *testing.T) {
	r := New(Options{}).Get("warp_drive")
	must.False(t, r.OK)
	must.Eq(t, "no such probe", r.Reason)
}

// A probe must leave the machine as it was.
func TestSet_leavesNothing(t *testing.T) {
	dir := t.TempDir()
	before := mounts(t)
	_ = New(Options{Dir: dir}).All()
	must.Eq(t, before, mounts(t))
	left, err := os.ReadDir(dir)
	must.NoError(t, err)
	must.SliceEmpty(t, left)
	children, err := os.ReadFile("/proc/thread-self/children")
	if err == nil {
		must.Eq(t, "", strings.TrimSpace(string(children)))
	}
	c, err := findCgroups()
	if err == nil && c.v2 != "" {
		entries, err := os.ReadDir(c.v2)
		must.NoError(t, err)
		for _, e := range entries {
			must.False(t, strings.HasPrefix(e.Name(), "soulbox-probe-"))
		}
	}
}

func mounts(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must.NoError(t, err)
	return strings.Count(string(b), "\n")
}
