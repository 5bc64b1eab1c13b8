package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Groups are in the cpuset hierarchy of v1 from their first process on: to move a group's processes there later would take the lock that stops every fork
// of the machine, at the moment when the group has most to fork, and would show inside as a path in /proc/self/cgroup. On v2 the controller is
// switched on when a group is confined for the first time.

// Cores returns the processors that groups may run on, ascending: those of the machine that are online and open to this process.
func (t *Tree) Cores() ([]int, error) {
	list, err := t.h.machineCores()
	if err != nil {
		return nil, fmt.Errorf("cores of the machine: %w", err)
	}
	return parseCores(list)
}

// Confine keeps the group's processes, and all that they start, on these cores; none lets them run on all of the machine's again. Without a cpuset
// controller, and for a group that an earlier version made without one, it is an ErrUnsupported.
func (g *Group) Confine(cores []int) error {
	if err := g.tree.h.setCores(g.rel, formatCores(cores)); err != nil {
		return fmt.Errorf("confine control group %s: %w", g.name, err)
	}
	return nil
}

// Confined returns the cores that Confine has left to the group; nil: all.
func (g *Group) Confined() ([]int, error) {
	list, err := g.tree.h.cores(g.rel)
	if err != nil {
		return nil, fmt.Errorf("cores of control group %s: %w", g.name, err)
	}
	return parseCores(list)
}

// cpuset returns the group's directory in the hierarchy of that controller.
func (h *v1) cpuset(group string) (string, error) {
	dir, err := h.dir("cpuset", group)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(h.dirs["freezer"], group)); err == nil {
			return "", fmt.Errorf("the group was made without the controller cpuset: %w", ErrUnsupported)
		}
		return "", fmt.Errorf("%s: %w", dir, ErrNotExist)
	}
	return dir, nil
}

// usableCpuset reports whether groups can be made in a cpuset hierarchy: they are useless without cores and memory.
func usableCpuset(root string) bool {
	cores, err := readText(root, "cpuset.cpus")
	return err == nil && cores != "" && unix.Access(root, unix.W_OK) == nil
}

func (h *v1) machineCores() (string, error) {
	dir, err := h.dir("cpuset", "")
	if err != nil {
		return "", err
	}
	return effective(dir, "cpus")
}

// effective returns the cores or memory nodes of a v1 group that are there: the file of that name is of Linux 3.17.
func effective(dir, of string) (string, error) {
	list, err := readText(dir, "cpuset.effective_"+of)
	if errors.Is(err, os.ErrNotExist) {
		return readText(dir, "cpuset."+of)
	}
	return list, err
}

// prepareCpuset gives the parent all cores and memory nodes of the machine, and new groups below it those of the parent.
func (h *v1) prepareCpuset(parent string) error {
	root := h.dirs["cpuset"]
	if root == "" {
		return nil
	}
	dir := filepath.Join(root, parent)
	for _, of := range []string{"cpus", "mems"} {
		all, err := effective(root, of)
		if err != nil {
			return err
		}
		if now, err := readText(dir, "cpuset."+of); err != nil || now == all {
			if err != nil {
				return err
			}
			continue
		}
		if err := write(dir, "cpuset."+of, all); err != nil {
			return err
		}
	}
	return writeInt(dir, "cgroup.clone_children", 1)
}

func (h *v1) setCores(group, list string) error {
	dir, err := h.cpuset(group)
	if err != nil {
		return err
	}
	if list == "" {
		// The kernel takes a core that goes offline out of all groups, and gives it back to none.
		if err := h.prepareCpuset(filepath.Dir(group)); err != nil {
			return err
		}
		if list, err = readText(filepath.Dir(dir), "cpuset.cpus"); err != nil {
			return err
		}
	}
	return write(dir, "cpuset.cpus", list)
}

func (h *v1) cores(group string) (string, error) {
	dir, err := h.cpuset(group)
	if err != nil {
		return "", err
	}
	list, err := readText(dir, "cpuset.cpus")
	if err != nil {
		return "", err
	}
	if all, err := readText(filepath.Dir(dir), "cpuset.cpus"); err != nil || list == all {
		return "", err
	}
	return list, nil
}

func (h *v2) machineCores() (string, error) {
	if !slices.Contains(h.controllers, "cpuset") {
		return "", fmt.Errorf("controller cpuset is not there: %w", ErrUnsupported)
	}
	return readText(h.root, "cpuset.cpus.effective")
}

func (h *v2) setCores(group, list string) error {
	dir := filepath.Join(h.root, group)
	if list == "" {
		// The parent's in full: Linux 6.1 takes no empty list, which would say the same, of a group with processes.
		all, err := readText(filepath.Dir(dir), "cpuset.cpus.effective")
		if errors.Is(err, os.ErrNotExist) {
			return nil // the controller was never switched on
		}
		if err != nil {
			return err
		}
		err = write(dir, "cpuset.cpus", all+"\n")
		if errors.Is(err, ErrUnsupported) {
			return nil // nor for the groups below
		}
		return err
	}
	if err := write(dir, "cpuset.cpus", list+"\n"); !errors.Is(err, ErrUnsupported) {
		return err
	}
	for _, above := range []string{h.root, filepath.Join(h.root, filepath.Dir(group))} {
		if err := write(above, "cgroup.subtree_control", "+cpuset"); err != nil {
			return fmt.Errorf("enable controller cpuset: %w: %w", ErrUnsupported, err)
		}
	}
	return write(dir, "cpuset.cpus", list+"\n")
}

func (h *v2) cores(group string) (string, error) {
	list, err := readText(filepath.Join(h.root, group), "cpuset.cpus")
	if errors.Is(err, os.ErrNotExist) && !errors.Is(err, ErrNotExist) {
		return "", nil // the controller was never switched on
	}
	if err != nil || list == "" {
		return "", err
	}
	if all, err := readText(filepath.Join(h.root, filepath.Dir(group)), "cpuset.cpus.effective"); err != nil || list == all {
		return "", err
	}
	return list, nil
}

func readText(dir, file string) (string, error) {
	b, err := read(dir, file)
	return strings.TrimSpace(string(b)), err
}

// parseCores reads the kernel's form of a set, "0-3,8".
func parseCores(list string) ([]int, error) {
	var cores []int
	for part := range strings.SplitSeq(list, ",") {
		if part == "" {
			continue
		}
		from, to, more := strings.Cut(part, "-")
		if !more {
			to = from
		}
		first, err1 := strconv.ParseUint(from, 10, 16)
		last, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || last < first {
			return nil, fmt.Errorf("%.80q is no set of cores", list)
		}
		for c := first; c <= last; c++ {
			cores = append(cores, int(c))
		}
	}
	return cores, nil
}

func formatCores(cores []int) string {
	parts := make([]string, len(cores))
	for i, c := range cores {
		parts[i] = strconv.Itoa(c)
	}
	return strings.Join(parts, ",")
}
