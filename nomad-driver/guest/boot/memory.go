package boot

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// The file systems in memory that every sandbox has.
const (
	MemoryTmp     = "tmp"     // /tmp
	MemoryShm     = "shm"     // /dev/shm
	MemoryDev     = "dev"     // /dev
	MemoryProgram = "program" // around the binary of PID 1
	MemoryNothing = "nothing" // what directories are hidden behind
)

// memory is one of them: how it is mounted, and what is in a new one.
type memory struct {
	attrs   int
	mode    uint32 // of its root
	options []string
	files   []string    // empty ones, on which something is mounted
	dirs    []string    // the same
	links   [][2]string // target and name
}

func memoryOf(word string, b *guest.Boot) (memory, error) {
	switch word {
	case MemoryTmp:
		return memory{attrs: attrBase, mode: 0o1777, options: []string{sizeOption(b.TmpBytes), inodeOption(b.TmpInodes)}}, nil
	case MemoryShm:
		return memory{attrs: attrNoExec, mode: 0o1777, options: []string{sizeOption(b.ShmBytes), inodeOption(b.TmpInodes)}}, nil
	case MemoryDev:
		m := memory{
			attrs: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, mode: 0o755, options: []string{"size=64k", "nr_inodes=256"},
			dirs: []string{"pts", "shm", "mqueue"},
			links: [][2]string{
				{"pts/ptmx", "ptmx"}, {"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"},
			},
		}
		for _, d := range devices {
			m.files = append(m.files, d.name)
		}
		return m, nil
	case MemoryProgram:
		return memory{attrs: attrBase, mode: 0o755, options: []string{"size=4k", "nr_inodes=2"}, files: []string{"init"}}, nil
	case MemoryNothing:
		return memory{attrs: attrNoExec | unix.MOUNT_ATTR_RDONLY, mode: 0o555, options: []string{"size=4k", "nr_inodes=1"}}, nil
	}
	return memory{}, fmt.Errorf("file system %.40q is none that a sandbox has in memory", word)
}

// newMemory makes one for the ids of this process.
func newMemory(word string, b *guest.Boot) (mount int, err error) {
	m, err := memoryOf(word, b)
	if err != nil {
		return -1, err
	}
	mount, err = newFS("tmpfs", m.attrs, append([]string{"mode=" + strconv.FormatUint(uint64(m.mode), 8)}, m.options...)...)
	if err != nil {
		return -1, err
	}
	if err := m.fill(mount); err != nil {
		return -1, errors.Join(err, unix.Close(mount))
	}
	return mount, nil
}

// fill makes what is in a new one.
func (m *memory) fill(mount int) error {
	for _, name := range m.files {
		if err := touch(mount, name); err != nil {
			return err
		}
	}
	for _, name := range m.dirs {
		if err := unix.Mkdirat(mount, name, 0o755); err != nil {
			return fmt.Errorf("make directory %s: %w", name, err)
		}
	}
	for _, l := range m.links {
		if err := unix.Symlinkat(l[0], mount, l[1]); err != nil {
			return fmt.Errorf("make link %s: %w", l[1], err)
		}
	}
	return nil
}

// NewMemory makes the detached mount of one of the file systems in memory for a sandbox that comes back, whose root is this id of the host. It is as PID 1
// makes it. The caller closes it.
func NewMemory(word string, b *guest.Boot, root uint32) (*os.File, error) {
	m, err := memoryOf(word, b)
	if err != nil {
		return nil, err
	}
	id := strconv.FormatUint(uint64(root), 10)
	// Written first: no mount but this one has been made yet, so that one that is read-only can be filled.
	mount, err := newFS("tmpfs", m.attrs&^unix.MOUNT_ATTR_RDONLY, append([]string{"mode=" + strconv.FormatUint(uint64(m.mode), 8), "uid=" + id, "gid=" + id}, m.options...)...)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(mount), word)
	if err := m.fill(mount); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	names := append(slices.Clone(m.files), m.dirs...)
	for _, l := range m.links {
		names = append(names, l[1])
	}
	for _, name := range names {
		if err := unix.Fchownat(mount, name, int(root), int(root), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, errors.Join(fmt.Errorf("own %s: %w", name, err), f.Close())
		}
	}
	if m.attrs&unix.MOUNT_ATTR_RDONLY != 0 || word == MemoryProgram {
		if err := readOnly(mount); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

// IsNewMemory reports whether the root directory of one of the file systems in memory, of a sandbox that stands still, holds what a new one does. What is
// below a mount does not count: nobody can have changed it.
func IsNewMemory(word string, dir *os.File, root uint32) (bool, error) {
	m, err := memoryOf(word, &guest.Boot{})
	if err != nil {
		return false, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return false, fmt.Errorf("stat file system %s: %w", word, err)
	}
	if st.Mode != unix.S_IFDIR|m.mode || st.Uid != root || st.Gid != root {
		return false, nil
	}
	if n, err := unix.Flistxattr(int(dir.Fd()), nil); n != 0 || err != nil {
		return false, err
	}
	entries, err := dir.ReadDir(len(m.files) + len(m.dirs) + len(m.links) + 1)
	if len(entries) != len(m.files)+len(m.dirs)+len(m.links) {
		return false, nil
	}
	if len(entries) > 0 && err != nil {
		return false, fmt.Errorf("read file system %s: %w", word, err)
	}
	want := map[string]os.FileMode{}
	for _, name := range m.files {
		want[name] = 0
	}
	for _, name := range m.dirs {
		want[name] = os.ModeDir
	}
	for _, l := range m.links {
		want[l[1]] = os.ModeSymlink
	}
	for _, e := range entries {
		if typ, ok := want[e.Name()]; !ok || e.Type() != typ {
			return false, nil
		}
	}
	buf := make([]byte, unix.PathMax)
	for _, l := range m.links {
		n, err := unix.Readlinkat(int(dir.Fd()), l[1], buf)
		if err != nil {
			return false, fmt.Errorf("read link %s: %w", l[1], err)
		}
		if string(buf[:n]) != l[0] {
			return false, nil
		}
	}
	return true, nil
}
