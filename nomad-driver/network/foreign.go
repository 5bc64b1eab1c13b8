package network

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// ErrNoNamespace is in the chain of an error that says that a path leads to no network namespace, or to none any more.
var ErrNoNamespace = errors.New("not a network namespace")

// Foreign is a network namespace that somebody else has made and wired, and will take away. It is only listened in: no sandbox is ever in it, since
// what a sandbox sends must pass its own firewall.
type Foreign struct {
	f  *os.File
	id uint64
}

// OpenForeign opens the network namespace that a path of the machine leads to.
func OpenForeign(path string) (*Foreign, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // it may be anything
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w: it does not exist", path, ErrNoNamespace)
	}
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	var fs unix.Statfs_t
	var st unix.Stat_t
	err = errors.Join(unix.Fstatfs(int(f.Fd()), &fs), unix.Fstat(int(f.Fd()), &st))
	if err == nil && fs.Type == unix.NSFS_MAGIC {
		var kind int
		if kind, err = unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err == nil && kind == unix.CLONE_NEWNET {
			return &Foreign{f: f, id: st.Ino}, nil
		}
	}
	if err == nil {
		err = ErrNoNamespace
	}
	return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
}

// ID tells it from every other one of the machine for as long as there is a socket in it.
func (ns *Foreign) ID() uint64 { return ns.id }

// Do runs do on a thread in the namespace, which is out of it again afterwards. A socket that do makes stays in the namespace, and keeps it there.
func (ns *Foreign) Do(do func() error) error { return inNamespace(ns.f, do) }

// Wired reports whether it has an interface other than its loopback.
func (ns *Foreign) Wired() (wired bool, err error) {
	err = ns.Do(func() error {
		list, err := net.Interfaces()
		for _, i := range list {
			wired = wired || i.Flags&net.FlagLoopback == 0
		}
		return err
	})
	return wired, err
}

// Close lets go of it.
func (ns *Foreign) Close() error { return ns.f.Close() }
