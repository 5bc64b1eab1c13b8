package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Tree is all groups below one parent, in every hierarchy: it makes and finds them. Its methods may be called from any goroutine.
type Tree struct {
	h      hierarchy
	parent string
	mkdir  func(path string) error // os.Mkdir, but for tests on ordinary directories

	mu    sync.Mutex
	ready bool // the parent was prepared by this Tree
}

// hierarchy is what differs between the versions. dirs are a group's directories, one for each mounted hierarchy.
type hierarchy interface {
	version() int
	// roots returns the root directory of each hierarchy.
	roots() []string
	// prepareParent readies the parent's directories, which exist, for groups below them. It may be called again.
	prepareParent(parent string) error
	// guardDevices denies a new group all devices but those of every sandbox's /dev, and its own.
	guardDevices(group string, own []Device) error
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
	// machineCores, setCores and cores speak of cores as the kernel's files do; "": all of them.
	machineCores() (string, error)
	setCores(group, list string) error
	cores(group string) (string, error)
}

// Detect finds out which control groups are mounted at root (normally /sys/fs/cgroup) and returns a Tree whose groups
// live below parent (normally "soulbox"), a name without slashes. It makes nothing yet.
func Detect(root, parent string) (*Tree, error) {
	if parent == "" || parent[0] == '.' || strings.ContainsAny(parent, "/\x00") {
		return nil, fmt.Errorf("control group parent %q must be a plain name", parent)
	}
	t := &Tree{parent: parent, mkdir: func(path string) error { return os.Mkdir(path, 0o755) }}
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		h, err := newV2(root)
		if err != nil {
			return nil, err
		}
		t.h = h
		return t, nil
	}
	h, err := newV1(root)
	if err != nil {
		return nil, err
	}
	t.h = h
	return t, nil
}

// Version returns 1 or 2.
func (t *Tree) Version() int { return t.h.version() }

// Create makes the group of that name with its limits, and with devices of its own where it has some; without a way to keep others from
// these that is an error. A group of that name must not exist in any hierarchy: one that is there stays as it is.
func (t *Tree) Create(name string, l Limits, own ...Device) (*Group, error) {
	g, err := t.Open(name)
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
	if err := t.makeParent(false); err != nil {
		return nil, fmt.Errorf("make control group %s: %w", t.parent, err)
	}
	for _, dir := range g.dirs() {
		err := t.mkdir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			if err = t.makeParent(true); err == nil {
				err = t.mkdir(dir)
			}
		}
		if err != nil {
			return nil, undo(fmt.Errorf("make control group: %w", err))
		}
		made = append(made, dir)
	}
	if err := errors.Join(t.h.setLimits(g.rel, l), t.h.guardDevices(g.rel, own)); err != nil {
		return nil, errors.Join(undo(fmt.Errorf("limit control group %s: %w", name, err)), t.h.removed(g.rel))
	}
	return g, nil
}

// makeParent makes and prepares the parent, once for each Tree, and again where somebody has removed it since.
func (t *Tree) makeParent(again bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ready && !again {
		return nil
	}
	for _, root := range t.h.roots() {
		if err := t.mkdir(filepath.Join(root, t.parent)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := t.h.prepareParent(t.parent); err != nil {
		return err
	}
	t.ready = true
	return nil
}

// Devices says by what sandboxes' groups are kept from devices of the host ("devices controller", "bpf"), or why they are
// not: there is a /dev of six nodes in front of it, so that this is no reason not to start one.
func (t *Tree) Devices() (string, error) {
	if err := t.makeParent(false); err != nil {
		return "", err
	}
	return t.h.devices()
}

// Open returns the group of that name, whether it exists or not.
func (t *Tree) Open(name string) (*Group, error) {
	if name == "" || name[0] == '.' || strings.ContainsAny(name, "/\x00\n") {
		return nil, fmt.Errorf("control group name %q must be a plain name", name)
	}
	return &Group{tree: t, name: name, rel: filepath.Join(t.parent, name)}, nil
}

// List returns the names of all groups below the parent in any hierarchy, sorted.
func (t *Tree) List() ([]string, error) {
	var names []string
	for _, root := range t.h.roots() {
		entries, err := os.ReadDir(filepath.Join(root, t.parent))
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
func (t *Tree) Close() error {
	var errs []error
	for _, root := range t.h.roots() {
		err := unix.Rmdir(filepath.Join(root, t.parent))
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, fmt.Errorf("remove control group %s in %s: %w", t.parent, root, err))
		}
	}
	return errors.Join(errs...)
}
