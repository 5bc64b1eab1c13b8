package pid1

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// openFlags are the flags that a client may set for a file.
const openFlags = unix.O_ACCMODE | unix.O_CREAT | unix.O_EXCL | unix.O_TRUNC | unix.O_APPEND | unix.O_DIRECTORY | unix.O_NOFOLLOW

// openAt opens a path as the calling thread's user. It neither waits for a FIFO or a device nor makes a terminal its own,
// and does not follow what /proc pretends to be symlinks: they would lead to PID 1's own files. PID 1's part of /proc is
// refused for the same reason; it is PID 1 that looks, so the kernel would not mind.
func openAt(path string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags&openFlags | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY),
		Resolve: unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_PATH != 0 { // openat2 refuses what has no meaning with it
		how.Flags = uint64(flags&(unix.O_DIRECTORY|unix.O_NOFOLLOW) | unix.O_PATH | unix.O_CLOEXEC)
	}
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(mode & 0o7777)
	}
	var fd int
	var err error
	for {
		fd, err = unix.Openat2(unix.AT_FDCWD, path, &how)
		if err != unix.EINTR && err != unix.EAGAIN { // EAGAIN: a rename raced with the walk
			break
		}
	}
	if err != nil {
		return -1, err
	}
	if ownProc(fd) {
		unix.Close(fd)
		return -1, unix.EACCES
	}
	return fd, nil
}

var self = strconv.Itoa(os.Getpid())

// ownProc reports whether fd is, or may be, a file of /proc that belongs to this process.
func ownProc(fd int) bool {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return true
	}
	if fs.Type != unix.PROC_SUPER_MAGIC {
		return false
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlink("/proc/self/fd/"+strconv.Itoa(fd), buf)
	if err != nil || n == len(buf) {
		return true
	}
	rest, ok := strings.CutPrefix(string(buf[:n]), "/proc/"+self)
	return ok && (rest == "" || rest[0] == '/')
}

// checkPath makes path absolute for a user.
func checkPath(field, path string, u guest.UserInfo) (string, error) {
	switch {
	case path == "":
		return "", fail(guest.CodeBadRequest, "%s is empty", field)
	case strings.IndexByte(path, 0) >= 0:
		return "", fail(guest.CodeBadRequest, "%s has a NUL byte", field)
	case path == "~":
		path = u.Home
	case strings.HasPrefix(path, "~/"):
		path = joinPath(u.Home, path[2:])
	case path[0] != '/':
		path = joinPath(u.Home, path)
	}
	if len(path) >= unix.PathMax {
		return "", fail(guest.CodeBadRequest, "%s is longer than %d bytes", field, unix.PathMax-1)
	}
	return path, nil
}

// joinPath joins without cleaning: what ".." means behind a symlink is for the kernel to say.
func joinPath(dir, rest string) string {
	if strings.HasSuffix(dir, "/") {
		return dir + rest
	}
	return dir + "/" + rest
}

// split cuts the last name off a path.
func split(path string) (dir, base string) {
	path = strings.TrimRight(path, "/")
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "/", path
	}
	return path[:i+1], path[i+1:]
}

// parent opens the directory that holds path's last name.
func parent(path string) (fd int, base string, err error) {
	dir, base := split(path)
	if base == "" || base == "." || base == ".." {
		return -1, "", unix.EINVAL
	}
	fd, err = openAt(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	return fd, base, err
}

// mkdirAll makes a directory and its missing parents. That it exists is no error.
func mkdirAll(path string, mode uint32) error {
	var missing []string
	for {
		fd, err := openAt(path, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err == nil {
			unix.Close(fd)
			break
		}
		if err != unix.ENOENT {
			return err
		}
		dir, base := split(path)
		if base == "" {
			return err
		}
		missing = append(missing, base)
		path = dir
	}
	for i := len(missing) - 1; i >= 0; i-- {
		fd, err := openAt(path, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		if missing[i] != "." && missing[i] != ".." {
			err = unix.Mkdirat(fd, missing[i], mode)
		}
		unix.Close(fd)
		if err != nil && err != unix.EEXIST {
			return err
		}
		path = joinPath(path, missing[i])
	}
	// What exists may be something else than a directory, such as a dangling symlink.
	fd, err := openAt(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
