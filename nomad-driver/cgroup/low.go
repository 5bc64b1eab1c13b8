package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// lowMemory keeps the memory protection of v2's groups in order. A group's memory.low counts only as far as that of the
// group above it goes, and what the one above has left over is, on some mounts, spread over groups that asked for none. So the
// parent has exactly the sum of its groups'.
type lowMemory struct {
	mu     sync.Mutex
	groups map[string]int64 // group → bytes; nil before the first look at the kernel's files
	sum    int64            // as the parent has it
}

// set gives a group a protection; 0 ends it.
func (m *lowMemory) set(root, group string, bytes int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.look(root, filepath.Dir(group)); err != nil {
		return err
	}
	if bytes == 0 && m.groups[group] == 0 {
		return nil
	}
	if err := writeInt(filepath.Join(root, group), "memory.low", bytes); err != nil {
		return err
	}
	m.groups[group] = bytes
	return m.setParent(root, filepath.Dir(group))
}

// forget is for a group that is gone.
func (m *lowMemory) forget(root, group string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.look(root, filepath.Dir(group)); err != nil {
		return err
	}
	// Also where this process never knew the group: what it found in the parent may count it.
	delete(m.groups, group)
	err := m.setParent(root, filepath.Dir(group))
	if errors.Is(err, ErrNotExist) {
		return nil // the last one took the parent along
	}
	return err
}

func (m *lowMemory) setParent(root, parent string) error {
	sum := int64(0)
	for _, b := range m.groups {
		sum += b
	}
	if sum == m.sum {
		return nil
	}
	if err := writeInt(filepath.Join(root, parent), "memory.low", sum); err != nil {
		return fmt.Errorf("protect memory of control group %s: %w", parent, err)
	}
	m.sum = sum
	return nil
}

// look reads, once, what an earlier process has set.
func (m *lowMemory) look(root, parent string) error {
	if m.groups != nil {
		return nil
	}
	groups := make(map[string]int64)
	dir := filepath.Join(root, parent)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("list control groups: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		// A group may be gone by now, and a kernel without the controller has no such file.
		if low, err := readUint(filepath.Join(dir, e.Name()), "memory.low"); err == nil && low > 0 && low < 1<<62 {
			groups[filepath.Join(parent, e.Name())] = int64(low)
		}
	}
	if low, err := readUint(dir, "memory.low"); err == nil && low < 1<<62 {
		m.sum = int64(low)
	}
	m.groups = groups
	return nil
}
