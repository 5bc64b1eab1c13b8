package boot

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// mountGiven puts what the node has given to the sandbox of the host in its place: devices, and what their drivers need beside them.
func (m *mounter) mountGiven() error {
	for i, g := range m.boot.Given {
		if err := m.give(m.given[i], strings.TrimPrefix(g.Path, "/"), g.Dir); err != nil {
			return fmt.Errorf("give %s: %w", g.Path, err)
		}
		if err := unix.Close(m.given[i]); err != nil {
			return err
		}
	}
	return nil
}

func (m *mounter) give(mount int, name string, dir bool) error {
	parent, err := m.makeDirs(path.Dir(name))
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	base := path.Base(name)
	if dir {
		err = unix.Mkdirat(parent, base, 0o755)
	} else {
		err = touch(parent, base)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	// Found from the root, without a link: what is there already may be anything.
	target, err := m.open(name, 0)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return move(mount, target, "")
}

// makeDirs makes the directories of a path in the root that are missing, and opens the last.
func (m *mounter) makeDirs(name string) (int, error) {
	at, err := m.open(".", unix.O_DIRECTORY)
	if err != nil || name == "." {
		return at, err
	}
	for i, sofar := 0, strings.Split(name, "/"); i < len(sofar); i++ {
		err := unix.Mkdirat(at, sofar[i], 0o755)
		if err = errors.Join(err, unix.Close(at)); err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, fmt.Errorf("make directory: %w", err)
		}
		if at, err = m.open(path.Join(sofar[:i+1]...), unix.O_DIRECTORY); err != nil {
			return -1, err
		}
	}
	return at, nil
}
