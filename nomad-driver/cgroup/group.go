package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Entry is how a new process starts in a group. Exactly one of its two ways is there.
type Entry struct {
	// Tasks are the tasks files of v1: a process that writes "0" into each before it has a second thread is in the group.
	Tasks []*os.File
	// Dir is the directory of v2, for clone3(2) with CLONE_INTO_CGROUP.
	Dir *os.File
}

// Close closes the files.
func (e *Entry) Close() error {
	var errs []error
	for _, f := range e.Tasks {
		errs = append(errs, f.Close())
	}
	if e.Dir != nil {
		errs = append(errs, e.Dir.Close())
	}
	return errors.Join(errs...)
}

// Group is one sandbox's control group, in every hierarchy. Its methods may be called from any goroutine.
type Group struct {
	tree *Tree
	name string
	rel  string // below each root
}

// Name returns the group's name.
func (g *Group) Name() string { return g.name }

func (g *Group) dirs() []string {
	var dirs []string
	for _, root := range g.tree.h.roots() {
		dirs = append(dirs, filepath.Join(root, g.rel))
	}
	return dirs
}

// Entry opens the way in for a new process. The caller closes it.
func (g *Group) Entry() (*Entry, error) { return g.tree.h.entry(g.rel) }

// SetLimits changes the limits. Zero values leave what is set. A memory limit below what is in use is ErrBelowUse: v2
// would end the group over it. After an error some of the limits may have changed.
func (g *Group) SetLimits(l Limits) error {
	if l.MemoryBytes > 0 {
		s, err := g.Stats()
		if err != nil {
			return err
		}
		if s.MemoryBytes > uint64(l.MemoryBytes) {
			return fmt.Errorf("%w: %d bytes are, the limit would be %d", ErrBelowUse, s.MemoryBytes, l.MemoryBytes)
		}
	}
	return g.tree.h.setLimits(g.rel, l)
}

// Stats reads the counters.
func (g *Group) Stats() (Stats, error) {
	s, err := g.tree.h.stats(g.rel)
	s.Time = time.Now()
	return s, err
}

// OOMKills returns how many processes the kernel's out-of-memory killer ended in the group.
func (g *Group) OOMKills() (uint64, error) { return g.tree.h.oomKills(g.rel) }

// ForksDenied returns how many processes and threads the group was refused at its limit.
func (g *Group) ForksDenied() (uint64, error) { return g.tree.h.forksDenied(g.rel) }

// OOMEvents returns a file for the runtime's poller that can be read after the group ran out of memory, and at its
// removal. It is nil where the kernel ends the whole group by itself (v2). The caller closes it.
func (g *Group) OOMEvents() (*os.File, error) { return g.tree.h.oomEvents(g.rel) }

// Processes returns the host's pids of the processes in the group, in any hierarchy.
func (g *Group) Processes() ([]int, error) {
	var pids []int
	for _, dir := range g.dirs() {
		p, err := readPIDs(filepath.Join(dir, "cgroup.procs"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return nil, err
		}
		pids = append(pids, p...)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// Freeze stops every process of the group and returns once all have stopped.
func (g *Group) Freeze(ctx context.Context) error { return g.freezer(ctx, true) }

// Thaw lets them go on.
func (g *Group) Thaw(ctx context.Context) error { return g.freezer(ctx, false) }

func (g *Group) freezer(ctx context.Context, frozen bool) error {
	return poll(ctx, soon, func() (bool, error) { return g.tree.h.setFrozen(g.rel, frozen) })
}

// Kill ends every process in the group and returns once none is left, zombies not counted. A group that does not exist
// has none.
func (g *Group) Kill(ctx context.Context) error {
	const dying = 500 * time.Microsecond // what is killed has to run, and on v1 each turn stops it first
	err := poll(ctx, dying, func() (bool, error) {
		pids, err := g.Processes()
		if err != nil || len(pids) == 0 {
			return true, err
		}
		return false, g.tree.h.kill(g.rel)
	})
	if err != nil {
		return fmt.Errorf("kill control group %s: %w", g.name, err)
	}
	return nil
}

// Remove removes the group, which must have no processes. It waits, until ctx ends, for those that are about to be gone.
// A group that does not exist is no error.
func (g *Group) Remove(ctx context.Context) error {
	for _, dir := range g.dirs() {
		err := poll(ctx, soon, func() (bool, error) {
			err := unix.Rmdir(dir)
			switch {
			case err == nil, errors.Is(err, unix.ENOENT):
				return true, nil
			case errors.Is(err, unix.EBUSY):
				return false, nil
			}
			return true, err
		})
		if err != nil {
			return fmt.Errorf("remove control group %s: %w", dir, err)
		}
	}
	return g.tree.h.removed(g.rel)
}

// soon is the first distance of a poll for what the kernel does on its own.
const soon = 20 * time.Microsecond

// poll calls step until it reports that it is done, an error, or until ctx ends; at once, then at growing distances, of which wait is the first. Short
// ones are slept in the kernel: a timer of the runtime takes a millisecond at least where nothing else runs, and what is waited for mostly takes less.
func poll(ctx context.Context, wait time.Duration, step func() (done bool, err error)) error {
	for ; ; wait = min(2*wait, 10*time.Millisecond) {
		done, err := step()
		if done || err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if wait < time.Millisecond {
			ts := unix.NsecToTimespec(wait.Nanoseconds())
			_ = unix.Nanosleep(&ts, nil) // a signal may end it early
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
	}
}
