package cgroup

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What follows tells of a group that works against its memory limit in the kernel. The kernel's own count of refused charges (memory.failcnt) is no
// help: Linux 6.18 leaves it at 0 on v1, and elsewhere it grows with each page of a full page cache.

// Charged returns the bytes that count against the group's memory limit, its page cache too.
func (g *Group) Charged() (uint64, error) {
	dir, err := g.tree.h.dir("memory", g.rel)
	if err != nil {
		return 0, err
	}
	return readUint(dir, chargedFile(g.tree.h.version()))
}

func chargedFile(version int) string {
	if version == 1 {
		return "memory.usage_in_bytes"
	}
	return "memory.current"
}

// Charged is that of the Group, from the Meter's open file.
func (m *Meter) Charged() (uint64, error) {
	var buf [32]byte
	n, err := pread(m.charged, buf[:])
	if errors.Is(err, unix.ENODEV) {
		err = ErrNotExist
	}
	if err == nil {
		var v uint64
		if v, err = parseUint(buf[:n]); err == nil {
			return v, nil
		}
	}
	return 0, fmt.Errorf("memory of control group %s: %w", m.group, err)
}

// KernelNanos returns how much processor time the group has had in the kernel.
func (g *Group) KernelNanos() (uint64, error) {
	if g.tree.h.version() == 1 {
		dir, err := g.tree.h.dir("cpuacct", g.rel)
		if err != nil {
			return 0, err
		}
		return readUint(dir, "cpuacct.usage_sys") // Linux 4.7
	}
	dir, err := g.tree.h.dir("cpu", g.rel)
	if err != nil {
		return 0, err
	}
	t, err := readTable(dir, "cpu.stat")
	return t["system_usec"] * 1000, err
}

// KernelNanos returns how much processor time all groups of the tree together have had in the kernel, those that are gone too. Before the first
// group it is an ErrNotExist.
func (t *Tree) KernelNanos() (uint64, error) { return (&Group{tree: t, rel: t.parent}).KernelNanos() }
