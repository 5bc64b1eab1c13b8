package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// FreezerDir returns the folder of the group's freezer, for a program that works on frozen processes.
func (g *Group) FreezerDir() string { return g.tree.h.freezerDir(g.rel) }

func (h *v1) freezerDir(group string) string { return filepath.Join(h.dirs["freezer"], group) }
func (h *v2) freezerDir(group string) string { return filepath.Join(h.root, group) }

// ExpectJoin readies the kernel for a Join that comes soon, and returns when it is ready. The first move of a process after a while waits for a grace period of
// RCU, 6 to 15 ms on an idle machine (rcu_sync_enter below cgroup_threadgroup_rwsem), and those right after it do not. So this process is moved to
// where it is. It is a hint: where it cannot be given the Join takes its time.
func (t *Tree) ExpectJoin() {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(b)) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":") // after the hierarchy's number
		controllers, path, _ := strings.Cut(rest, ":")
		for _, root := range t.h.roots() {
			name := filepath.Base(root)
			if t.h.version() == 2 {
				name = "" // which is how its line is known
			}
			if controllers == name && write(filepath.Join(root, path), "cgroup.procs", strconv.Itoa(os.Getpid())) == nil {
				return
			}
		}
	}
}

// Join moves a process into the group, in every hierarchy. That takes the lock that stops every fork of the machine: it is for processes that could not be
// started in the group.
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
