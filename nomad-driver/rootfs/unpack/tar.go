package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/tree"
)

const (
	maxID      = 65535 // of the 65,536 ids that a sandbox has
	maxName    = 255   // bytes of one path component
	maxTarget  = 4095
	maxTrailer = 16 << 20 // bytes after a tar's end
)

// writer writes the entries of tars into a tree.
type writer struct {
	ctx      context.Context
	dirs     *dirs
	b        *budget
	buf      []byte
	defaults *tree.Defaults
	dropped  map[string]int
	mtimes   map[string]time.Time // of directories, set when nothing changes them any more
	layer    map[string]bool      // in a layer: the paths that it brought; nil in a plain tar
}

// epoch is the time of everything that an archive does not describe: the time of an import would make its export differ.
var epoch = time.Unix(0, 0)

func newWriter(ctx context.Context, root string, b *budget) (*writer, error) {
	d, err := openDirs(root)
	if err != nil {
		return nil, err
	}
	w := &writer{
		ctx: ctx, dirs: d, b: b, buf: make([]byte, 256<<10),
		dropped: map[string]int{}, mtimes: map[string]time.Time{".": epoch},
	}
	d.made = func(p string) { w.mtimes[p] = epoch }
	return w, nil
}

// tar unpacks the tar r, plain or compressed, on top of what is there.
func (w *writer) tar(r io.Reader) error {
	plain, release, err := decompress(&source{w.ctx, r, w.b})
	if err != nil {
		return err
	}
	defer release()
	in := &inflated{r: plain, b: w.b}
	tr := tar.NewReader(in)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return w.trailer(in)
		}
		if err != nil {
			return w.readError(err)
		}
		if err := w.entry(h, tr); err != nil {
			return err
		}
	}
}

// trailer reads on to the end of the stream, so that checksums are compared and a sender can finish.
func (w *writer) trailer(in *inflated) error {
	if in.out == 0 {
		return fmt.Errorf("%w: the archive is empty", ErrInvalid)
	}
	if in.ended && !in.zeros {
		return fmt.Errorf("%w: the archive ends early: the mark of a tar's end is missing", ErrInvalid)
	}
	n, err := io.CopyBuffer(io.Discard, io.LimitReader(in, maxTrailer+1), w.buf)
	if err != nil {
		return w.readError(err)
	}
	if n > maxTrailer {
		return fmt.Errorf("%w: more than %d bytes follow the end of the tar", ErrInvalid, maxTrailer)
	}
	return nil
}

// readError tells a malformed archive from a reader that failed.
func (w *writer) readError(err error) error {
	if cerr := w.ctx.Err(); cerr != nil {
		return cerr
	}
	if errors.Is(err, ErrLimit) || errors.Is(err, ErrInvalid) {
		return err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: the archive ends early: %w", ErrInvalid, err)
	}
	return fmt.Errorf("%w: read archive: %w", ErrInvalid, err)
}

func (w *writer) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return w.global(h)
	}
	if err := w.b.entry(h.Name); err != nil {
		return err
	}
	p, err := w.path("path", h.Name)
	if err != nil {
		return err
	}
	if w.layer != nil {
		done, err := w.whiteout(p)
		if err != nil || done {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, tar.TypeDir, tar.TypeSymlink, tar.TypeLink:
	case tar.TypeChar:
		if standardDevice(p, h) {
			w.dropped["standard device nodes in /dev"]++
			return nil
		}
		return fmt.Errorf("%w: %.200q is a character device; a template has no device nodes", ErrInvalid, p)
	case tar.TypeBlock:
		return fmt.Errorf("%w: %.200q is a block device; a template has no device nodes", ErrInvalid, p)
	case tar.TypeFifo:
		return fmt.Errorf("%w: %.200q is a FIFO; a template has directories, files and links only", ErrInvalid, p)
	default:
		return fmt.Errorf("%w: %.200q is of the unknown tar type %q", ErrInvalid, p, h.Typeflag)
	}
	if h.Uid < 0 || h.Uid > maxID || h.Gid < 0 || h.Gid > maxID {
		return fmt.Errorf("%w: %.200q belongs to %d:%d; ids go from 0 to %d", ErrInvalid, p, h.Uid, h.Gid, maxID)
	}
	xattrs, err := w.xattrs(p, h)
	if err != nil {
		return err
	}
	if err := w.create(p, h, r, xattrs); err != nil {
		if errors.Is(err, ErrInvalid) || errors.Is(err, ErrLimit) {
			return err
		}
		return fmt.Errorf("unpack %.200q: %w", p, err)
	}
	return nil
}

// standardDevice reports whether h is one of the nodes in /dev that root tars of distributions hold and every sandbox has
// anyway. They are left out; any other node is refused.
func standardDevice(p string, h *tar.Header) bool {
	want, ok := map[string][2]int64{
		"dev/null": {1, 3}, "dev/zero": {1, 5}, "dev/full": {1, 7}, "dev/random": {1, 8}, "dev/urandom": {1, 9},
		"dev/tty": {5, 0}, "dev/console": {5, 1}, "dev/ptmx": {5, 2}, "dev/pts/ptmx": {5, 2},
	}[p]
	return ok && want == [2]int64{h.Devmajor, h.Devminor}
}

// global takes the defaults that a tar of tree.Pack carries. Other global records mean nothing for a tree.
func (w *writer) global(h *tar.Header) error {
	s, ok := h.PAXRecords[tree.DefaultsRecord]
	if !ok {
		return nil
	}
	d, err := tree.ParseDefaults(s)
	if err != nil {
		return err
	}
	w.defaults = &d
	return nil
}

// path checks a path of the archive and returns it clean and relative; "." is the root.
func (w *writer) path(what, name string) (string, error) {
	switch {
	case strings.ContainsRune(name, 0):
		return "", fmt.Errorf("%w: %s %.200q has a NUL byte", ErrInvalid, what, name)
	case name == "":
		return "", fmt.Errorf("%w: an entry has an empty %s", ErrInvalid, what)
	case name[0] == '/':
		return "", fmt.Errorf("%w: %s %.200q is absolute", ErrInvalid, what, name)
	case len(name) > w.b.limits.PathBytes:
		return "", &LimitError{"path_bytes", int64(w.b.limits.PathBytes), name}
	}
	depth := 0
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "..":
			return "", fmt.Errorf("%w: %s %.200q has a \"..\"", ErrInvalid, what, name)
		case len(part) > maxName:
			return "", fmt.Errorf("%w: %s %.200q has a name longer than %d bytes", ErrInvalid, what, name, maxName)
		case part != "" && part != ".":
			depth++
		}
	}
	if depth > w.b.limits.Depth {
		return "", &LimitError{"depth", int64(w.b.limits.Depth), name}
	}
	return path.Clean(name), nil
}

func (w *writer) create(p string, h *tar.Header, r io.Reader, xattrs []tree.XattrValue) error {
	if p == "." {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: the root is not a directory", ErrInvalid)
		}
		w.mtimes[p] = h.ModTime
		return nil // the root is always 0755 and root's own; see finish
	}
	parent, name, err := w.dirs.parent(p)
	if err != nil {
		return err
	}
	mode, err := lstat(parent, name)
	if err != nil {
		return err
	}
	w.brought(p)
	if h.Typeflag == tar.TypeDir {
		return w.mkdir(parent, name, p, mode, h, xattrs)
	}
	delete(w.mtimes, p)
	if h.Typeflag == tar.TypeLink {
		return w.link(p, mode, h)
	}
	if mode != 0 {
		// What came first is unlinked, never written through: it may have other names.
		if parent, err = w.replace(p, name); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeSymlink {
		return symlink(parent, name, p, h)
	}
	return w.file(parent, name, p, h, r, xattrs)
}

// replace removes what is at p and returns the directory that holds it: removing closes cached descriptors.
func (w *writer) replace(p, name string) (int, error) {
	parent, _, err := w.dirs.parent(p)
	if err != nil {
		return -1, err
	}
	// A descriptor of its own, because remove forgets the cached ones.
	dup, err := unix.FcntlInt(uintptr(parent), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dup)
	if _, err := w.dirs.remove(dup, name, p, nil); err != nil {
		return -1, err
	}
	parent, _, err = w.dirs.parent(p)
	return parent, err
}

func (w *writer) mkdir(parent int, name, p string, mode uint32, h *tar.Header, xattrs []tree.XattrValue) error {
	if mode != 0 && mode&unix.S_IFMT != unix.S_IFDIR {
		var err error
		if parent, err = w.replace(p, name); err != nil {
			return err
		}
		mode = 0
	}
	if mode == 0 {
		if err := unix.Mkdirat(parent, name, 0o700); err != nil {
			return err
		}
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	w.mtimes[p] = h.ModTime
	return setOwner(fd, h, xattrs)
}

func (w *writer) file(parent int, name, p string, h *tar.Header, r io.Reader, xattrs []tree.XattrValue) (err error) {
	if h.Size > w.b.limits.FileBytes {
		return &LimitError{"file_bytes", w.b.limits.FileBytes, p}
	}
	fd, err := unix.Openat(parent, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := unix.Close(fd); err == nil {
			err = cerr
		}
	}()
	if err := w.copy(fd, p, r); err != nil {
		return err
	}
	if err := setOwner(fd, h, xattrs); err != nil {
		return err
	}
	return setTime(fd, h.ModTime)
}

func (w *writer) copy(fd int, p string, r io.Reader) error {
	var total int64
	for {
		n, err := r.Read(w.buf)
		if n > 0 {
			total += int64(n)
			if err := w.b.write(p, int64(n), total); err != nil {
				return err
			}
			if err := writeAll(fd, w.buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return w.readError(err)
		}
	}
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func symlink(parent int, name, p string, h *tar.Header) error {
	switch {
	case h.Linkname == "" || strings.ContainsRune(h.Linkname, 0):
		return fmt.Errorf("%w: the target of the symbolic link %.200q is empty or has a NUL byte", ErrInvalid, p)
	case len(h.Linkname) > maxTarget:
		return fmt.Errorf("%w: the target of the symbolic link %.200q is longer than %d bytes", ErrInvalid, p, maxTarget)
	}
	if err := unix.Symlinkat(h.Linkname, parent, name); err != nil {
		return err
	}
	if err := unix.Fchownat(parent, name, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	ts := timespec(h.ModTime)
	return unix.UtimesNanoAt(parent, name, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

// link makes a hard link. Its target is a file or symbolic link that is in the tree already.
func (w *writer) link(p string, mode uint32, h *tar.Header) error {
	target, err := w.path("hard link target", h.Linkname)
	if err != nil {
		return err
	}
	if target == p {
		return fmt.Errorf("%w: the hard link %.200q is its own target", ErrInvalid, p)
	}
	if mode != 0 {
		if strings.HasPrefix(target, p+"/") {
			return fmt.Errorf("%w: the hard link %.200q replaces the directory that holds its target", ErrInvalid, p)
		}
		if _, err := w.replace(p, path.Base(p)); err != nil {
			return err
		}
	}
	from, err := w.dirs.dir(path.Dir(target), false)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: the hard link %.200q has the target %.200q, which is not there", ErrInvalid, p, target)
	}
	if err != nil {
		return err
	}
	// Opening a directory may close cached ones: the parent is looked up last, and the target's is a descriptor of its own.
	from, err = unix.FcntlInt(uintptr(from), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	switch mode, err := lstat(from, path.Base(target)); {
	case err != nil:
		return err
	case mode == 0:
		return fmt.Errorf("%w: the hard link %.200q has the target %.200q, which is not there", ErrInvalid, p, target)
	case mode&unix.S_IFMT == unix.S_IFDIR:
		return fmt.Errorf("%w: the hard link %.200q has a directory as its target", ErrInvalid, p)
	}
	parent, name, err := w.dirs.parent(p)
	if err != nil {
		return err
	}
	return unix.Linkat(from, path.Base(target), parent, name, 0)
}

// setOwner sets owner, extended attributes and mode, in this order: chown clears setuid bits and file capabilities.
func setOwner(fd int, h *tar.Header, xattrs []tree.XattrValue) error {
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return err
	}
	for _, x := range xattrs {
		if err := unix.Fsetxattr(fd, x.Name, []byte(x.Value), 0); err != nil {
			return fmt.Errorf("set extended attribute %q: %w", x.Name, err)
		}
	}
	return unix.Fchmod(fd, uint32(h.Mode)&0o7777)
}

func setTime(fd int, t time.Time) error {
	ts := timespec(t)
	tv := []unix.Timeval{{Sec: ts[0].Sec}, {Sec: ts[1].Sec}}
	return unix.Futimes(fd, tv)
}

// timespec gives access and modification time in whole seconds, since 1970 and before 2446, where ext4 ends.
func timespec(t time.Time) [2]unix.Timespec {
	s := min(max(t.Unix(), 0), 15032385535)
	return [2]unix.Timespec{{Sec: s}, {Sec: s}}
}
