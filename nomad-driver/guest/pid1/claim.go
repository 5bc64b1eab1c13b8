package pid1

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// What a user may not make, root makes for them, where guest.FileRequest.Claim asks for it: new files and directories in a directory
// that the user may look into but not write. Whoever asks may act as root as well; what has to be kept from using this are
// processes of the sandbox that lead a path elsewhere. So the directory is opened as the user and without any symlink, and
// root works relative to it; and nothing that exists is touched, but for a file that the user may write, which is replaced by one
// that has its owner, and what is the user's own, which gets another name or is removed.

// denied reports whether the user's own rights were not enough.
func denied(err error) bool {
	var body *frame.ErrorBody
	return errors.As(err, &body) && body.Code == guest.CodePermission
}

// spot is a directory that its user may search.
type spot struct {
	dir  int
	base string      // the name in it
	st   unix.Stat_t // of the name
	free bool        // nothing has the name
}

func (s *spot) close() { unix.Close(s.dir) }

// spotOf opens the directory of a path as the calling thread's user.
func spotOf(path string) (*spot, error) {
	dir, base := split(path)
	if base == "" || base == "." || base == ".." {
		return nil, unix.EINVAL
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(unix.AT_FDCWD, dir, &how)
	if err != nil {
		return nil, err
	}
	s := &spot{dir: fd, base: base}
	switch err = unix.Fstatat(fd, base, &s.st, unix.AT_SYMLINK_NOFOLLOW); err {
	case unix.ENOENT:
		s.free, err = true, nil
	case nil:
	}
	if err == nil && !keepsFiles(fd) {
		err = unix.EACCES
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// keepsFiles reports whether a directory is on a file system that is one, and no window to the kernel.
func keepsFiles(fd int) bool {
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil {
		return false
	}
	switch uint32(fs.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC,
		unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.DEVPTS_SUPER_MAGIC:
		return false
	}
	return true
}

// writable reports whether the calling thread's user may write the file that has the name.
func (s *spot) writable() bool {
	fd, err := unix.Openat(s.dir, s.base, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return s.st.Mode&unix.S_IFMT == unix.S_IFREG
}

// claim finds a user's spot and has root work there.
func (f *files) claim(verb, path string, u guest.UserInfo, find func() (*spot, error), work func(*spot) error) error {
	var s *spot
	err := f.workers.as(u, func() (err error) {
		s, err = find()
		return err
	})
	if err != nil {
		return failFile(verb, path, err)
	}
	defer s.close()
	if err := f.workers.as(guest.UserInfo{}, func() error { return work(s) }); err != nil {
		return failFile(verb, path, err)
	}
	return nil
}

// claimDir makes the first directory that is missing on the way to path, and gives it to the user, who may make the others.
func (f *files) claimDir(path string, u guest.UserInfo) error {
	return f.claim("make directory", path, u, func() (*spot, error) {
		for {
			s, err := spotOf(path)
			switch {
			case err == nil && s.free:
				return s, nil
			case err == nil: // nothing is missing
				s.close()
				return nil, unix.EACCES
			case err != unix.ENOENT:
				return nil, err
			}
			path, _ = split(path)
		}
	}, func(s *spot) error {
		if err := unix.Mkdirat(s.dir, s.base, dirMode); err != nil {
			return err
		}
		fd, err := unix.Openat(s.dir, s.base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Fchown(fd, int(u.UID), int(u.GID))
	})
}

// claimFile makes a new file: the user's, or, where it is to replace one, that one's owner's.
func (f *files) claimFile(path, replaces string, req *guest.FileRequest, u guest.UserInfo) (fd int, err error) {
	uid, gid := u.UID, u.GID
	fd = -1
	err = f.claim("open", path, u, func() (*spot, error) {
		if replaces != "" {
			old, err := spotOf(replaces)
			if err != nil {
				return nil, err
			}
			defer old.close()
			if old.free || !old.writable() || !sameDir(path, replaces) {
				return nil, unix.EACCES
			}
			uid, gid = old.st.Uid, old.st.Gid
		}
		s, err := spotOf(path)
		if err == nil && !s.free {
			s.close()
			return nil, unix.EACCES
		}
		return s, err
	}, func(s *spot) error {
		mode := req.Mode
		if mode == 0 {
			mode = fileMode
		}
		flags := req.Flags&unix.O_ACCMODE | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
		n, err := unix.Openat(s.dir, s.base, flags, mode&0o777)
		if err != nil {
			return err
		}
		if err := unix.Fchown(n, int(uid), int(gid)); err != nil {
			unix.Close(n)
			return errors.Join(err, unix.Unlinkat(s.dir, s.base, 0))
		}
		fd = n
		return nil
	})
	return fd, err
}

// claimRename puts a file that claimFile made in its place.
func (f *files) claimRename(path, target string, u guest.UserInfo) (replaced, error) {
	_, to := split(target)
	flags := uint(unix.RENAME_NOREPLACE)
	old := replaced(-1)
	err := f.claim("rename", path, u, func() (*spot, error) {
		new, err := spotOf(target)
		if err != nil {
			return nil, err
		}
		defer new.close()
		s, err := spotOf(path)
		if err != nil {
			return nil, err
		}
		ok := !s.free && temporary(s) && sameDir(path, target)
		switch {
		case new.free:
			ok = ok && s.st.Uid == u.UID
		case new.writable():
			ok, flags = ok && s.st.Uid == new.st.Uid, 0
		default:
			ok = false
		}
		if !ok {
			s.close()
			return nil, unix.EACCES
		}
		return s, nil
	}, func(s *spot) error {
		old = replacedAt(s.dir, to)
		return unix.Renameat2(s.dir, s.base, s.dir, to, flags)
	})
	return old, err
}

// claimMove gives another name to what is the user's. What has that name is the user's too, or there is nothing.
func (f *files) claimMove(path, target string, u guest.UserInfo) error {
	var to *spot
	defer func() {
		if to != nil {
			to.close()
		}
	}()
	return f.claim("rename", path, u, func() (*spot, error) {
		s, err := spotOf(path)
		if err != nil {
			return nil, err
		}
		if to, err = spotOf(target); err == nil && !(s.ownedBy(u) && (to.free || to.ownedBy(u))) {
			err = unix.EACCES
		}
		if err != nil {
			s.close()
			return nil, err
		}
		return s, nil
	}, func(s *spot) error {
		flags := uint(0)
		if to.free {
			flags = unix.RENAME_NOREPLACE
		}
		return unix.Renameat2(s.dir, s.base, to.dir, to.base, flags)
	})
}

// claimRemove removes a file that claimFile made, or what is the user's. What is in a directory, the user has to remove: root takes the empty one away.
func (f *files) claimRemove(path string, u guest.UserInfo) error {
	return f.claim("remove", path, u, func() (*spot, error) {
		s, err := spotOf(path)
		if err != nil {
			return nil, err
		}
		switch {
		case temporary(s) && !s.free:
		case !s.ownedBy(u):
			err = unix.EACCES
		case s.isDir():
			err = s.clear()
		}
		if err != nil {
			s.close()
			return nil, err
		}
		return s, nil
	}, func(s *spot) error {
		flags := 0
		if s.isDir() {
			flags = unix.AT_REMOVEDIR
		}
		return unix.Unlinkat(s.dir, s.base, flags)
	})
}

func (s *spot) ownedBy(u guest.UserInfo) bool { return !s.free && s.st.Uid == u.UID }

func (s *spot) isDir() bool { return !s.free && s.st.Mode&unix.S_IFMT == unix.S_IFDIR }

// clear removes all that is in the directory that has the name, as the calling thread's user.
func (s *spot) clear() error {
	fd, err := unix.Openat(s.dir, s.base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		sub, err := empty(fd)
		if err != nil || sub == "" {
			return err
		}
		if err := removeAll(fd, sub); err != nil {
			return err
		}
	}
}

func temporary(s *spot) bool {
	_, ok := guest.IsTempName(s.base)
	return ok && s.st.Mode&unix.S_IFMT == unix.S_IFREG
}

func sameDir(a, b string) bool {
	x, _ := split(a)
	y, _ := split(b)
	return x == y
}
