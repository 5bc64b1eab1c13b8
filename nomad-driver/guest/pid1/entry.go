package pid1

import (
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// maxKeys is how many metadata keys are said of a file.
const maxKeys = 128

func (f *files) entry(req *guest.FileRequest) (e guest.Entry, err error) {
	err = f.do("stat", req, func(path string, _ guest.UserInfo, a accounts) error {
		e, err = entryOf(path, a.names())
		return err
	})
	return e, err
}

// entryOf describes a path for the calling thread's user.
func entryOf(path string, n names) (guest.Entry, error) {
	dir, base, err := parent(path)
	if err == unix.EINVAL { // the root, or a path that ends in a dot
		if dir, err = openAt(path, unix.O_PATH|unix.O_DIRECTORY, 0); err == nil {
			base = "."
		}
	}
	if err != nil {
		return guest.Entry{}, err
	}
	defer unix.Close(dir)
	e, err := entryAt(dir, base, path, n)
	if base == "." {
		if _, e.Name = split(path); e.Name == "" {
			e.Name = "/"
		}
	}
	return e, err
}

// entryAt describes a name of an open directory. path is what it is called from outside.
func entryAt(dir int, name, path string, n names) (guest.Entry, error) {
	fd, err := lookAt(dir, name, unix.O_NOFOLLOW)
	if err != nil {
		return guest.Entry{}, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return guest.Entry{}, err
	}
	e := guest.Entry{
		Name: name, Path: path, Type: kindOf(st.Mode), Size: st.Size, Mode: st.Mode & 0o7777, LinkMode: st.Mode,
		Owner: n.user(st.Uid), Group: n.group(st.Gid), ModTime: time.Unix(st.Mtim.Unix()).UTC(),
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		e.Metadata = metadata(fd, st.Mode)
		return e, nil
	}
	buf := make([]byte, unix.PathMax)
	k, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return guest.Entry{}, err
	}
	if e.Target = string(buf[:k]); !strings.HasPrefix(e.Target, "/") {
		up, _ := split(path)
		e.Target = joinPath(up, e.Target)
	}
	to, err := lookAt(dir, name, 0)
	if err != nil {
		return e, nil // it leads nowhere, or nowhere that this user may look
	}
	defer unix.Close(to)
	if err := unix.Fstat(to, &st); err != nil {
		return guest.Entry{}, err
	}
	e.Type, e.Mode, e.Metadata = kindOf(st.Mode), st.Mode&0o7777, metadata(to, st.Mode)
	if k, err := unix.Readlink(fdPath(to), buf); err == nil && k > 0 && buf[0] == '/' {
		e.Target = string(buf[:k])
	}
	return e, nil
}

// lookAt opens a name of a directory without any right to its content.
func lookAt(dir int, name string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(dir, name, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// fdPath is a path that leads to what is open as fd, whatever happens to its names.
func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func kindOf(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	default:
		return "other"
	}
}

// metadata returns the metadata of an open file. What cannot be read, is not text or is too much is left out.
func metadata(fd int, mode uint32) map[string]string {
	if k := mode & unix.S_IFMT; k != unix.S_IFREG && k != unix.S_IFDIR {
		return nil
	}
	path := fdPath(fd)
	size, err := unix.Listxattr(path, nil)
	if err != nil || size <= 0 {
		return nil
	}
	buf := make([]byte, size+256) // some more, it may have grown
	if size, err = unix.Listxattr(path, buf); err != nil || size > len(buf) {
		return nil
	}
	var m map[string]string
	total := 0
	value := make([]byte, 4096)
	for name := range strings.SplitSeq(string(buf[:size]), "\x00") {
		key, ok := strings.CutPrefix(name, guest.MetadataPrefix)
		if !ok || key == "" || !utf8.ValidString(key) || len(m) == maxKeys {
			continue
		}
		k, err := unix.Getxattr(path, name, value)
		if err != nil || k > len(value) || !utf8.Valid(value[:k]) {
			continue
		}
		if total += len(key) + k; total > guest.MaxMetadata {
			break
		}
		if m == nil {
			m = map[string]string{}
		}
		m[key] = string(value[:k])
	}
	return m
}

func (f *files) walk(req *guest.FileRequest) (list []guest.Entry, err error) {
	err = f.do("list", req, func(path string, _ guest.UserInfo, a accounts) error {
		fd, err := openAt(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		w := walker{names: a.names(), top: path}
		err = w.down(fd, path, min(max(req.Depth, 1), guest.MaxDepth))
		list = w.list
		return err
	})
	return list, err
}

// walker collects a tree.
type walker struct {
	names names
	top   string
	list  []guest.Entry
}

// down adds what the open directory holds, which it closes. It holds a descriptor a level.
func (w *walker) down(fd int, path string, depth int) error {
	d := os.NewFile(uintptr(fd), path)
	defer d.Close()
	list, err := readNames(d, path)
	if err != nil {
		return err
	}
	for _, name := range list {
		if _, temp := guest.IsTempName(name); temp {
			continue // an upload that is under way
		}
		full := joinPath(path, name)
		e, err := entryAt(fd, name, full, w.names)
		switch err {
		case nil:
		case unix.ENOENT: // removed meanwhile
			continue
		default:
			return err
		}
		if len(w.list) == guest.MaxEntries {
			return fail(guest.CodeLimit, "list %q: more than %d entries", w.top, guest.MaxEntries)
		}
		w.list = append(w.list, e)
		if depth == 1 || e.LinkMode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		switch err {
		case nil:
		case unix.EACCES, unix.EPERM, unix.ENOENT, unix.ENOTDIR, unix.ELOOP: // not this user's, or another thing by now
			continue
		default:
			return err
		}
		if err := w.down(sub, full, depth-1); err != nil {
			return err
		}
	}
	return nil
}

func (f *files) read(req *guest.FileRequest) (data []byte, err error) {
	err = f.do("read", req, func(path string, _ guest.UserInfo, _ accounts) error {
		fd, err := openAt(path, unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return notOpenable(path)
		}
		buf := make([]byte, guest.MaxRead+1)
		n := 0
		for n < len(buf) {
			k, err := unix.Read(fd, buf[n:])
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return err
			}
			if k <= 0 {
				data = buf[:n]
				return nil
			}
			n += k
		}
		return fail(guest.CodeLimit, "read %q: more than %d bytes", path, guest.MaxRead)
	})
	return data, err
}
