package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// FreezerDir returns the folder of the group's freezer, for a program that works on frozen processes.
func (g *Group) FreezerDir() string { return g.tree.h.freezerDir(g.rel) }

func (h *v1) freezerDir(group string) string { return filepath.Join(h.dirs["freezer"], group) }
func (h *v2) freezerDir(group string) string { return filepath.Join(h.root, group) }

// Join moves a process into the group, in every hierarchy. On cgroup v1 that takes the lock that stops every fork of the machine:
// it is for processes that could not be started in the group.
func (g *Group) Join(pid int) error {
	for _, dir := range g.dirs() {
		// Not every hierarchy has the group: the kernel's own one of v2 beside v1 is used for what only it has.
		if err := write(dir, "cgroup.procs", strconv.Itoa(pid)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("move process %d into control group %s: %w", pid, g.name, err)
		}
	}
	return nil
}

// StartFreeze asks the group's processes to stop and does not wait until they have: who is traced stops when the tracer lets go.
func (g *Group) StartFreeze(context.Context) error {
	_, err := g.tree.h.setFrozen(g.rel, true)
	if err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("freeze control group %s: %w", g.name, err)
	}
	return nil
}
