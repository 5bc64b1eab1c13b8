package sandboxtest

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// Footprint is what sandboxes of one base directory leave on a host.
type Footprint struct {
	base     string
	cgroups  *cgroup.Tree
	Mounts   []string // lines of mountinfo that name the base directory or an overlay of ours
	Groups   []string
	Dirs     []string // sandboxes' directories
	Children []string // processes of ours, zombies included
	Files    int      // open descriptors of this process
}

// Look takes the footprint.
func Look(tb testing.TB, base string, cgroups *cgroup.Tree) Footprint {
	tb.Helper()
	f := Footprint{base: base, cgroups: cgroups}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, base) || strings.Contains(line, "overlay soulbox") {
			f.Mounts = append(f.Mounts, line)
		}
	}
	if f.Groups, err = cgroups.List(); err != nil {
		tb.Fatal(err)
	}
	for _, sub := range []string{"s", "r"} {
		entries, _ := os.ReadDir(filepath.Join(base, sub))
		for _, e := range entries {
			f.Dirs = append(f.Dirs, filepath.Join(sub, e.Name()))
		}
	}
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		tb.Fatal(err)
	}
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err == nil {
			f.Children = append(f.Children, strings.Fields(string(b))...)
		}
	}
	slices.Sort(f.Children)
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	f.Files = len(fds)
	return f
}

// Compare fails the test where there is more than before. It looks again for a moment: descriptors of closed connections
// may take one.
func (f Footprint) Compare(tb testing.TB, before Footprint) {
	tb.Helper()
	for deadline := time.Now().Add(2 * time.Second); f.Files > before.Files && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
		f = Look(tb, f.base, f.cgroups)
	}
	for _, c := range []struct {
		what     string
		now, was []string
	}{
		{"mounts", f.Mounts, before.Mounts},
		{"control groups", f.Groups, before.Groups},
		{"directories", f.Dirs, before.Dirs},
		{"child processes", f.Children, before.Children},
	} {
		for _, s := range c.now {
			if !slices.Contains(c.was, s) {
				tb.Errorf("left behind: %s: %s", c.what, s)
			}
		}
	}
	if f.Files > before.Files+3 { // the runtime's poller opens a few of its own at first use
		tb.Errorf("left behind: %d open descriptors, %d before", f.Files, before.Files)
	}
}

// Release releases a sandbox and fails the test where that does not work.
func Release(tb testing.TB, s *sandbox.Sandbox) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.Release(ctx); err != nil {
		tb.Errorf("release sandbox %s: %v", s.Ref().ID, err)
	}
}
