package tree

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// MaxDepth is how deep a tree may be; Walk refuses a deeper one.
const MaxDepth = 512

// Type of an entry.
type Type byte

// The types. Anything else is refused.
const (
	TypeDir     Type = 'd'
	TypeFile    Type = 'f'
	TypeSymlink Type = 'l'
	TypeLink    Type = 'h' // another name of the regular file Target, which sorts before it
)

// Entry is one name of a tree.
type Entry struct {
	Path   string // slash-separated, without a leading slash; empty for the root
	Type   Type
	Mode   uint32 // permission, setuid, setgid and sticky bits
	UID    uint32
	GID    uint32
	Size   int64  // of a regular file
	Target string // of a symbolic or hard link
	MTime  time.Time
	Xattrs []XattrValue // those that XattrKeep names, sorted; of files and directories
	SHA256 [32]byte     // of a regular file's content, where asked for
}

// XattrValue is one extended attribute.
type XattrValue struct{ Name, Value string }

type inode struct{ dev, ino uint64 }

// Walk lists the tree below dir, sorted by path bytes, without crossing a symbolic link. Devices, FIFOs and sockets are an
// ErrInvalid error, unless skipSpecial leaves them out.
func Walk(ctx context.Context, dir *os.File, skipSpecial bool) ([]Entry, error) {
	w := walker{ctx: ctx, skipSpecial: skipSpecial, first: map[inode][]int{}}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", dir.Name(), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, fmt.Errorf("%w: %s is not a directory", ErrInvalid, dir.Name())
	}
	w.add("", TypeDir, &st, "")
	if err := w.dir(int(dir.Fd()), "", 1); err != nil {
		return nil, err
	}
	w.links()
	slices.SortFunc(w.out, func(a, b Entry) int { return cmp.Compare(a.Path, b.Path) })
	return w.out, nil
}

type walker struct {
	ctx         context.Context
	skipSpecial bool
	out         []Entry
	first       map[inode][]int // entries of files with more than one name
}

func (w *walker) add(path string, t Type, st *unix.Stat_t, target string) {
	e := Entry{Path: path, Type: t, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Target: target, MTime: time.Unix(st.Mtim.Sec, 0)}
	if t == TypeFile {
		e.Size = st.Size
		if st.Nlink > 1 {
			key := inode{st.Dev, st.Ino}
			w.first[key] = append(w.first[key], len(w.out))
		}
	}
	if t == TypeSymlink {
		e.Mode = 0o777
	}
	w.out = append(w.out, e)
}

// links turns all names but the first of each file into TypeLink.
func (w *walker) links() {
	for _, names := range w.first {
		slices.SortFunc(names, func(a, b int) int { return cmp.Compare(w.out[a].Path, w.out[b].Path) })
		for _, i := range names[1:] {
			e := &w.out[i]
			e.Type, e.Target, e.Size = TypeLink, w.out[names[0]].Path, 0
		}
	}
}

func (w *walker) dir(fd int, path string, depth int) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if depth > MaxDepth {
		return fmt.Errorf("%w: %.200q is deeper than %d", ErrInvalid, path, MaxDepth)
	}
	names, err := readNames(fd)
	if err != nil {
		return fmt.Errorf("read directory %.200q: %w", path, err)
	}
	for _, name := range names {
		if err := w.entry(fd, name, join(path, name), depth); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) entry(fd int, name, path string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("stat %.200q: %w", path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		w.add(path, TypeFile, &st, "")
	case unix.S_IFLNK:
		target, err := readlinkat(fd, name)
		if err != nil {
			return fmt.Errorf("read link %.200q: %w", path, err)
		}
		w.add(path, TypeSymlink, &st, target)
	case unix.S_IFDIR:
		w.add(path, TypeDir, &st, "")
		sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %.200q: %w", path, err)
		}
		defer unix.Close(sub)
		return w.dir(sub, path, depth+1)
	default:
		if !w.skipSpecial {
			return fmt.Errorf("%w: %.200q is a %s", ErrInvalid, path, specialName(st.Mode))
		}
	}
	return nil
}

func specialName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFIFO:
		return "FIFO"
	case unix.S_IFSOCK:
		return "socket"
	default:
		return "device node"
	}
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// readNames reads the names in the directory fd, which stays open.
func readNames(fd int) ([]string, error) {
	dup, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(dup), "directory")
	defer f.Close()
	return f.Readdirnames(-1)
}

func readlinkat(fd int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, name, buf)
	if err != nil {
		return "", err
	}
	if n == len(buf) {
		return "", unix.ENAMETOOLONG
	}
	return string(buf[:n]), nil
}

// Open opens the entry at path below the tree root fd, without following a symbolic link anywhere.
func Open(root *os.File, path string, flags int) (*os.File, error) {
	if path == "" {
		path = "."
	}
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		fd, err := unix.Openat2(int(root.Fd()), path, &how)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "openat2", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// each opens every file and directory among entries, on all cores, and calls fn with it.
func each(ctx context.Context, root *os.File, entries []Entry, fn func(*Entry, *os.File) error) error {
	g, ctx := errgroup.WithContext(ctx)
	workers := min(runtime.GOMAXPROCS(0), 8)
	const batch = 64
	next := make(chan []Entry, workers)
	g.Go(func() error {
		defer close(next)
		for chunk := range slices.Chunk(entries, batch) {
			select {
			case next <- chunk:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			for chunk := range next {
				for i := range chunk {
					if err := one(ctx, root, &chunk[i], fn); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func one(ctx context.Context, root *os.File, e *Entry, fn func(*Entry, *os.File) error) error {
	if e.Type != TypeFile && e.Type != TypeDir {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := Open(root, e.Path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer f.Close()
	return fn(e, f)
}

// readXattrs returns the attributes of f that are part of a template.
func readXattrs(f *os.File) ([]XattrValue, error) {
	var small [1024]byte
	buf := small[:]
	n, err := unix.Flistxattr(int(f.Fd()), buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = unix.Flistxattr(int(f.Fd()), buf)
	}
	if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes of %.200q: %w", f.Name(), err)
	}
	var out []XattrValue
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if Xattr(name) != XattrKeep {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := unix.Fgetxattr(int(f.Fd()), name, value)
		if err != nil {
			return nil, fmt.Errorf("read extended attribute %q of %.200q: %w", name, f.Name(), err)
		}
		out = append(out, XattrValue{name, string(value[:n])})
	}
	slices.SortFunc(out, func(a, b XattrValue) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}
