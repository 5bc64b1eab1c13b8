package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Manager makes and finds groups. Its methods may be called from any goroutine.
type Manager struct {
	h      hierarchy
	parent string
	mkdir  func(path string) error // os.Mkdir, but for tests on ordinary directories

	mu    sync.Mutex
	ready bool // the parent was prepared by this Manager
}

// hierarchy is what differs between the versions. dirs are a group's directories, one for each mounted hierarchy.
type hierarchy interface {
	version() int
	// roots returns the root directory of each hierarchy.
	roots() []string
	// prepareParent readies the parent's directories, which exist, for groups below them. It may be called again.
	prepareParent(parent string) error
	// guardDevices denies a new group all devices but those of a sandbox's /dev.
	guardDevices(group string) error
	// devices says by what the groups' devices are guarded, or why they are not. Valid after prepareParent.
	devices() (string, error)
	// removed is told of every group that is gone.
	removed(group string) error
	// oomEvents returns a file that can be read after the group ran out of memory; nil where the kernel itself ends the
	// whole group then.
	oomEvents(group string) (*os.File, error)
	// entry opens what a new process needs to start in the group.
	entry(group string) (*Entry, error)
	setLimits(group string, l Limits) error
	// setFrozen asks for a state and reports whether it is reached.
	setFrozen(group string, frozen bool) (reached bool, err error)
	// kill sends SIGKILL to every process once.
	kill(group string) error
	// freezerDir returns the folder of the group that the freezer works on.
	freezerDir(group string) string
	stats(group string) (Stats, error)
	oomKills(group string) (uint64, error)
	// dir returns the group's directory in the hierarchy of a controller.
	dir(controller, group string) (string, error)
	forksDenied(group string) (uint64, error)
}

// Detect finds out which control groups are mounted at root (normally /sys/fs/cgroup) and returns a Manager whose groups
// live below parent (normally "soulbox"), a name without slashes. It makes nothing yet.
func Detect(root, parent string) (*Manager, error) {
	if parent == "" || parent[0] == '.' || strings.ContainsAny(parent, "/\x00") {
		return nil, fmt.Errorf("control group parent %q must be a plain name", parent)
	}
	m := &Manager{parent: parent, mkdir: func(path string) error { return os.Mkdir(path, 0o755) }}
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		h, err := newV2(root)
		if err != nil {
			return nil, err
		}
		m.h = h
		return m, nil
	}
	h, err := newV1(root)
	if err != nil {
		return nil, err
	}
	m.h = h
	return m, nil
}

// Version returns 1 or 2.
func (m *Manager) Version() int { return m.h.version() }

// Create makes the group of that name with its limits. A group of that name must not exist in any hierarchy: one that is
// there stays as it is.
func (m *Manager) Create(name string, l Limits) (*Group, error) {
	g, err := m.Open(name)
	if err != nil {
		return nil, err
	}
	var made []string
	undo := func(err error) error {
		for _, dir := range made { // only ours: nothing has entered them yet
			err = errors.Join(err, unix.Rmdir(dir))
		}
		return err
	}
	if err := m.makeParent(false); err != nil {
		return nil, fmt.Errorf("make control group %s: %w", m.parent, err)
	}
	for _, dir := range g.dirs() {
		err := m.mkdir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			if err = m.makeParent(true); err == nil {
				err = m.mkdir(dir)
			}
		}
		if err != nil {
			return nil, undo(fmt.Errorf("make control group: %w", err))
		}
		made = append(made, dir)
	}
	if err := errors.Join(m.h.setLimits(g.rel, l), m.h.guardDevices(g.rel)); err != nil {
		return nil, errors.Join(undo(fmt.Errorf("limit control group %s: %w", name, err)), m.h.removed(g.rel))
	}
	return g, nil
}

// makeParent makes and prepares the parent, once for each Manager, and again where somebody has removed it since.
func (m *Manager) makeParent(again bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ready && !again {
		return nil
	}
	for _, root := range m.h.roots() {
		if err := m.mkdir(filepath.Join(root, m.parent)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := m.h.prepareParent(m.parent); err != nil {
		return err
	}
	m.ready = true
	return nil
}

// Devices says by what sandboxes' groups are kept from devices of the host ("devices controller", "bpf"), or why they are
// not: there is a /dev of six nodes in front of it, so that this is no reason not to start one.
func (m *Manager) Devices() (string, error) {
	if err := m.makeParent(false); err != nil {
		return "", err
	}
	return m.h.devices()
}

// Open returns the group of that name, whether it exists or not.
func (m *Manager) Open(name string) (*Group, error) {
	if name == "" || name[0] == '.' || strings.ContainsAny(name, "/\x00\n") {
		return nil, fmt.Errorf("control group name %q must be a plain name", name)
	}
	return &Group{m: m, name: name, rel: filepath.Join(m.parent, name)}, nil
}

// List returns the names of all groups below the parent in any hierarchy, sorted.
func (m *Manager) List() ([]string, error) {
	var names []string
	for _, root := range m.h.roots() {
		entries, err := os.ReadDir(filepath.Join(root, m.parent))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list control groups: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Close removes the parent's directories where no group is left in them.
func (m *Manager) Close() error {
	var errs []error
	for _, root := range m.h.roots() {
		err := unix.Rmdir(filepath.Join(root, m.parent))
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, fmt.Errorf("remove control group %s in %s: %w", m.parent, root, err))
		}
	}
	return errors.Join(errs...)
}

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
	m    *Manager
	name string
	rel  string // below each root
}

// Name returns the group's name.
func (g *Group) Name() string { return g.name }

func (g *Group) dirs() []string {
	var dirs []string
	for _, root := range g.m.h.roots() {
		dirs = append(dirs, filepath.Join(root, g.rel))
	}
	return dirs
}

// Entry opens the way in for a new process. The caller closes it.
func (g *Group) Entry() (*Entry, error) { return g.m.h.entry(g.rel) }

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
	return g.m.h.setLimits(g.rel, l)
}

// Stats reads the counters.
func (g *Group) Stats() (Stats, error) {
	s, err := g.m.h.stats(g.rel)
	s.Time = time.Now()
	return s, err
}

// OOMKills returns how many processes the kernel's out-of-memory killer ended in the group.
func (g *Group) OOMKills() (uint64, error) { return g.m.h.oomKills(g.rel) }

// ForksDenied returns how many processes and threads the group was refused at its limit.
func (g *Group) ForksDenied() (uint64, error) { return g.m.h.forksDenied(g.rel) }

// OOMEvents returns a file for the runtime's poller that can be read after the group ran out of memory, and at its
// removal. It is nil where the kernel ends the whole group by itself (v2). The caller closes it.
func (g *Group) OOMEvents() (*os.File, error) { return g.m.h.oomEvents(g.rel) }

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
	return poll(ctx, func() (bool, error) { return g.m.h.setFrozen(g.rel, frozen) })
}

// Kill ends every process in the group and returns once none is left, zombies not counted. A group that does not exist
// has none.
func (g *Group) Kill(ctx context.Context) error {
	err := poll(ctx, func() (bool, error) {
		pids, err := g.Processes()
		if err != nil || len(pids) == 0 {
			return true, err
		}
		return false, g.m.h.kill(g.rel)
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
		err := poll(ctx, func() (bool, error) {
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
	return g.m.h.removed(g.rel)
}

// poll calls step until it reports that it is done, an error, or until ctx ends; at once, then at growing distances.
func poll(ctx context.Context, step func() (done bool, err error)) error {
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		done, err := step()
		if done || err != nil {
			return err
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
