package pid1

import (
	"errors"
	"io"
	"os"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

const (
	fileMode = 0o644
	dirMode  = 0o755
)

// files does file operations for the node as users of the sandbox.
type files struct {
	workers *workers
	user    string // default user
	watches watches
}

// opened is a file of the sandbox for the node.
type opened struct {
	fd   int
	info guest.FileInfo
}

// do looks the request's user up and runs f as it, with the path made absolute.
func (f *files) do(verb string, req *guest.FileRequest, work func(path string, u guest.UserInfo, a accounts) error) error {
	u, a, path, err := f.pathOf(req)
	if err != nil {
		return err
	}
	if err := f.workers.as(u, func() error { return work(path, u, a) }); err != nil {
		return failFile(verb, path, err)
	}
	return nil
}

// lookup finds a user of the sandbox.
func (f *files) lookup(spec string) (u guest.UserInfo, a accounts, err error) {
	err = f.workers.as(guest.UserInfo{}, func() error {
		a = readAccounts()
		u, err = a.lookup(spec, f.user)
		return err
	})
	return u, a, err
}

// open opens a file, or makes one.
func (f *files) open(req *guest.FileRequest) (opened, error) {
	o, err := f.openAs(req)
	if err == nil || !req.Claim || !denied(err) || req.Flags&unix.O_CREAT == 0 || req.Flags&unix.O_EXCL == 0 {
		return o, err
	}
	u, a, path, perr := f.pathOf(req)
	if perr != nil {
		return o, perr
	}
	if dir, _ := split(path); req.Parents && f.claimDir(dir, u) == nil {
		return f.openAs(req) // the directory is the user's now
	}
	fd, cerr := f.claimFile(path, req.Target, req, u)
	if cerr != nil {
		return o, err // which says what the user may not do
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return o, failFile("open", path, err)
	}
	_, base := split(path)
	return opened{fd: fd, info: describe(path, base, &st, a.names())}, nil
}

// pathOf looks the request's user up and makes its path absolute.
func (f *files) pathOf(req *guest.FileRequest) (guest.UserInfo, accounts, string, error) {
	u, a, err := f.lookup(req.User)
	if err != nil {
		return u, a, "", err
	}
	path, err := checkPath("file.path", req.Path, u)
	return u, a, path, err
}

func (f *files) openAs(req *guest.FileRequest) (opened, error) {
	var o opened
	err := f.do("open", req, func(path string, _ guest.UserInfo, a accounts) error {
		if req.Parents && req.Flags&unix.O_CREAT != 0 {
			if dir, _ := split(path); dir != "" {
				if err := mkdirAll(dir, dirMode); err != nil {
					return err
				}
			}
		}
		mode := req.Mode
		if mode == 0 {
			mode = fileMode
		}
		fd, err := openAt(path, req.Flags&openFlags, mode)
		if err == unix.ENXIO {
			return notOpenable(path)
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return err
		}
		if k := st.Mode & unix.S_IFMT; k != unix.S_IFREG && k != unix.S_IFDIR {
			unix.Close(fd)
			return notOpenable(path)
		}
		_, base := split(path)
		o = opened{fd: fd, info: describe(path, base, &st, a.names())}
		return nil
	})
	return o, err
}

func notOpenable(path string) error {
	return fail(guest.CodeBadRequest, "open %q: neither a regular file nor a directory", path)
}

func (f *files) stat(req *guest.FileRequest) (i guest.FileInfo, err error) {
	err = f.do("stat", req, func(path string, _ guest.UserInfo, a accounts) error {
		i, err = lstat(path, a)
		return err
	})
	return i, err
}

// lstat describes a path without following it where it is a symlink.
func lstat(path string, a accounts) (guest.FileInfo, error) {
	dir, base, err := parent(path)
	if err == unix.EINVAL { // the root, or a path that ends in a dot
		if dir, err = openAt(path, unix.O_PATH|unix.O_DIRECTORY, 0); err == nil {
			base = "."
		}
	}
	if err != nil {
		return guest.FileInfo{}, err
	}
	defer unix.Close(dir)
	i, err := statAt(dir, base, path, a.names())
	if base == "." {
		_, i.Name = split(path)
		if i.Name == "" {
			i.Name = "/"
		}
	}
	return i, err
}

func statAt(dir int, name, path string, n names) (guest.FileInfo, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return guest.FileInfo{}, err
	}
	i := describe(path, name, &st, n)
	if i.Type == "symlink" {
		buf := make([]byte, unix.PathMax)
		if k, err := unix.Readlinkat(dir, name, buf); err == nil {
			i.Target = string(buf[:k])
		}
	}
	return i, nil
}

func describe(path, name string, st *unix.Stat_t, n names) guest.FileInfo {
	kind := "other"
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		kind = "file"
	case unix.S_IFDIR:
		kind = "directory"
	case unix.S_IFLNK:
		kind = "symlink"
	}
	return guest.FileInfo{
		Name: name, Path: path, Type: kind, Size: st.Size, Mode: st.Mode & 0o7777,
		UID: st.Uid, GID: st.Gid, Owner: n.user(st.Uid), Group: n.group(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()).UTC(),
	}
}

func (f *files) readDir(req *guest.FileRequest) (list []guest.FileInfo, err error) {
	err = f.do("list", req, func(path string, _ guest.UserInfo, a accounts) error {
		fd, err := openAt(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		d := os.NewFile(uintptr(fd), path)
		defer d.Close()
		entries, err := readNames(d, path)
		if err != nil {
			return err
		}
		n := a.names()
		for _, name := range entries {
			i, err := statAt(fd, name, joinPath(path, name), n)
			if err == unix.ENOENT {
				continue // removed meanwhile
			}
			if err != nil {
				return err
			}
			list = append(list, i)
		}
		return nil
	})
	return list, err
}

func readNames(d *os.File, path string) ([]string, error) {
	var all []string
	for {
		some, err := d.Readdirnames(1024)
		if all = append(all, some...); len(all) > guest.MaxDirEntries {
			return nil, fail(guest.CodeLimit, "list %q: the directory has more than %d entries", path, guest.MaxDirEntries)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	sort.Strings(all)
	return all, nil
}

func (f *files) mkdir(req *guest.FileRequest) (guest.FileInfo, error) {
	i, err := f.mkdirAs(req)
	if err == nil || !req.Claim || !denied(err) {
		return i, err
	}
	u, _, path, perr := f.pathOf(req)
	if perr != nil {
		return i, perr
	}
	if f.claimDir(path, u) != nil {
		return i, err
	}
	req.Parents = true // what is there now is no error
	return f.mkdirAs(req)
}

func (f *files) mkdirAs(req *guest.FileRequest) (i guest.FileInfo, err error) {
	err = f.do("make directory", req, func(path string, _ guest.UserInfo, a accounts) error {
		mode := req.Mode
		if mode == 0 {
			mode = dirMode
		}
		if req.Parents {
			err = mkdirAll(path, mode)
		} else {
			var dir int
			var base string
			if dir, base, err = parent(path); err == nil {
				err = unix.Mkdirat(dir, base, mode)
				unix.Close(dir)
			}
		}
		if err != nil {
			return err
		}
		i, err = lstat(path, a)
		return err
	})
	return i, err
}

func (f *files) remove(req *guest.FileRequest) error {
	err := f.removeAs(req)
	if err == nil || !req.Claim || !denied(err) {
		return err
	}
	u, _, path, perr := f.pathOf(req)
	if perr != nil {
		return perr
	}
	if f.claimRemove(path, u) == nil {
		return nil
	}
	return err
}

func (f *files) removeAs(req *guest.FileRequest) error {
	return f.do("remove", req, func(path string, _ guest.UserInfo, _ accounts) error {
		dir, base, err := parent(path)
		if err == unix.ENOENT {
			return nil
		}
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		return removeAll(dir, base)
	})
}

// replaced is what a rename has replaced, as a descriptor that keeps it; -1: nothing. The kernel frees a large file's pages when the last that keeps
// it goes, for which nobody is to wait.
type replaced int

// replacedAt keeps what has a name in a directory.
func replacedAt(dir int, base string) replaced {
	fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return replaced(fd)
}

func (r replaced) release() {
	if r >= 0 {
		unix.Close(int(r))
	}
}

// rename moves a file to another name. What it has replaced is the caller's to release, also where it fails.
func (f *files) rename(req *guest.FileRequest) (replaced, error) {
	old, err := f.renameAs(req)
	if err == nil || !req.Claim || !denied(err) {
		return old, err
	}
	old.release()
	u, _, path, perr := f.pathOf(req)
	if perr != nil {
		return -1, perr
	}
	target, perr := checkPath("file.target", req.Target, u)
	if perr != nil {
		return -1, perr
	}
	if dir, _ := split(target); req.Parents && f.claimDir(dir, u) == nil {
		if old, err = f.renameAs(req); err == nil || !denied(err) {
			return old, err
		}
		old.release()
	}
	old, cerr := f.claimRename(path, target, u)
	if cerr != nil && req.ClaimPath {
		cerr = f.claimMove(path, target, u)
	}
	if cerr == nil {
		return old, nil
	}
	return old, err
}

func (f *files) renameAs(req *guest.FileRequest) (replaced, error) {
	old := replaced(-1)
	err := f.do("rename", req, func(path string, u guest.UserInfo, _ accounts) error {
		target, err := checkPath("file.target", req.Target, u)
		if err != nil {
			return err
		}
		if req.Parents {
			if dir, _ := split(target); dir != "" {
				if err := mkdirAll(dir, dirMode); err != nil {
					return err
				}
			}
		}
		from, fromBase, err := parent(path)
		if err != nil {
			return err
		}
		defer unix.Close(from)
		to, toBase, err := parent(target)
		if err != nil {
			return failFile("rename to", target, err)
		}
		defer unix.Close(to)
		old = replacedAt(to, toBase)
		return unix.Renameat(from, fromBase, to, toBase)
	})
	return old, err
}

func (f *files) symlink(req *guest.FileRequest) error {
	return f.do("symlink", req, func(path string, _ guest.UserInfo, _ accounts) error {
		dir, base, err := parent(path)
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		return unix.Symlinkat(req.Target, dir, base)
	})
}
