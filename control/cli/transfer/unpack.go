package transfer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

// Unpack writes the tar stream r below dir, which exists. strip is how many leading path elements of each name are dropped.
//
// The stream is made from a sandbox's files and may be anything. Every path is resolved below dir by os.Root. Links that
// point out of dir, devices, FIFOs and sockets are skipped and reported; setuid, setgid and sticky bits are dropped, and
// owners are the caller's own. What exists is replaced, a directory only by a directory. An error leaves what came before it.
func Unpack(ctx context.Context, dir string, r io.Reader, strip int) (Report, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Report{}, err
	}
	defer root.Close()
	u := unpacker{root: root, tr: tar.NewReader(r), strip: strip}
	err = u.all(ctx)
	// What broke the stream off is told at its end, behind what a tar reader wants to see.
	if _, rerr := io.CopyN(io.Discard, r, maxTrailing); rerr != nil && !errors.Is(rerr, io.EOF) {
		err = rerr
	}
	// Directories get their modes last: one without the right to write must still take its files.
	err = errors.Join(err, u.finish())
	if err != nil {
		err = fmt.Errorf("unpack into %s: %w", dir, err)
	}
	return u.report, err
}

// maxTrailing is how much is read behind the end of a tar, in bytes, to find out how the stream ended.
const maxTrailing = 1 << 20

type unpacker struct {
	root   *os.Root
	tr     *tar.Reader
	strip  int
	report Report
	dirs   []dirMode
}

type dirMode struct {
	name string
	mode fs.FileMode
	time time.Time
}

func (u *unpacker) all(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := u.tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name, ok := u.local(h.Name)
		if !ok {
			u.skip(h.Name, "its name leads out of the folder")
			continue
		}
		if via := u.linkOn(name); via != "" {
			u.skip(h.Name, fmt.Sprintf("its name leads through the link %q", via))
			continue
		}
		if err := u.entry(name, h); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
	}
}

// local turns a name of the archive into one below the root, without its first elements. ok is false for what is not local.
func (u *unpacker) local(name string) (_ string, ok bool) {
	if strings.HasPrefix(name, "/") || strings.ContainsRune(name, 0) {
		return "", false
	}
	var kept []string
	strip := u.strip
	for e := range strings.SplitSeq(name, "/") {
		switch {
		case e == "" || e == ".":
		case e == "..":
			return "", false
		case strip > 0:
			strip--
		default:
			kept = append(kept, e)
		}
	}
	if len(kept) == 0 {
		return ".", true
	}
	return path.Join(kept...), true
}

// linkOn returns the first symbolic link among the folders that name is in. A tar of a tree has none: where one is written
// through, the elements of a name say nothing about where an entry is, and inside would be deceived.
func (u *unpacker) linkOn(name string) string {
	for i, c := range name {
		if c != '/' {
			continue
		}
		if st, err := u.root.Lstat(name[:i]); err == nil && st.Mode()&fs.ModeSymlink != 0 {
			return name[:i]
		}
	}
	return ""
}

func (u *unpacker) skip(name, reason string) {
	u.report.Skipped = append(u.report.Skipped, Skip{name, reason})
}

func (u *unpacker) entry(name string, h *tar.Header) error {
	if h.Typeflag == tar.TypeDir {
		return u.dir(name, h)
	}
	if name == "." {
		if h.Typeflag == tar.TypeXGlobalHeader {
			return nil
		}
		return errors.New("not a directory")
	}
	if sparse(h) {
		u.skip(name, "is written as a sparse file, which can be of any size")
		return nil
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return u.file(name, h)
	case tar.TypeSymlink:
		return u.symlink(name, h)
	case tar.TypeLink:
		return u.link(name, h)
	case tar.TypeXGlobalHeader:
		return nil
	}
	u.skip(name, "is neither a file, a folder nor a link")
	return nil
}

// sparse reports whether an entry announces holes: a few bytes of a stream would fill a disk. No node writes any.
func sparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

func (u *unpacker) dir(name string, h *tar.Header) error {
	if name != "." {
		if err := u.root.MkdirAll(name, 0o700); err != nil {
			return err
		}
	}
	u.report.Dirs++
	u.dirs = append(u.dirs, dirMode{name, fs.FileMode(h.Mode) & fs.ModePerm, h.ModTime})
	return nil
}

// clear makes room for an entry: its folder exists afterwards, and what had its name, unless it is a directory, does not.
func (u *unpacker) clear(name string) error {
	if parent := path.Dir(name); parent != "." {
		if err := u.root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	st, err := u.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.IsDir():
		return errors.New("there is a directory of that name")
	}
	return u.root.Remove(name)
}

func (u *unpacker) file(name string, h *tar.Header) (err error) {
	if err := u.clear(name); err != nil {
		return err
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n, err := io.Copy(f, u.tr)
	if err != nil {
		return err
	}
	u.report.Files++
	u.report.Bytes += n
	if err := f.Chmod(fs.FileMode(h.Mode) & fs.ModePerm); err != nil {
		return err
	}
	return u.root.Chtimes(name, h.ModTime, h.ModTime)
}

func (u *unpacker) symlink(name string, h *tar.Header) error {
	if !inside(name, h.Linkname) {
		u.skip(name, fmt.Sprintf("is a link to %q, which is out of the folder", h.Linkname))
		return nil
	}
	if err := u.clear(name); err != nil {
		return err
	}
	u.report.Links++
	return u.root.Symlink(h.Linkname, name)
}

// inside reports whether a link at name with that target stays below the root, whatever other links there are on the way:
// the target must not climb above the root by its text, and may climb only at its start, where what it climbs over are the
// folders of name, none of which is a link.
func inside(name, target string) bool {
	if target == "" || path.IsAbs(target) {
		return false
	}
	depth, down := strings.Count(name, "/"), false
	for e := range strings.SplitSeq(target, "/") {
		switch e {
		case "", ".":
		case "..":
			if depth--; depth < 0 || down {
				return false
			}
		default:
			down = true
		}
	}
	return true
}

func (u *unpacker) link(name string, h *tar.Header) error {
	target, ok := u.local(h.Linkname)
	if !ok || target == "." {
		u.skip(name, fmt.Sprintf("is a hard link to %q, which is out of the folder", h.Linkname))
		return nil
	}
	if target == name {
		return nil
	}
	if st, err := u.root.Lstat(target); err != nil || !st.Mode().IsRegular() {
		u.skip(name, fmt.Sprintf("is a hard link to %q, which did not come before it", h.Linkname))
		return nil
	}
	if err := u.clear(name); err != nil {
		return err
	}
	u.report.Links++
	return u.root.Link(target, name)
}

func (u *unpacker) finish() error {
	var errs []error
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		st, err := u.root.Lstat(d.name)
		if err != nil || !st.IsDir() { // replaced by a later entry
			continue
		}
		errs = append(errs, u.root.Chmod(d.name, d.mode), u.root.Chtimes(d.name, d.time, d.time))
	}
	return errors.Join(errs...)
}
