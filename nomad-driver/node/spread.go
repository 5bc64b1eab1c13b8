package node

import (
	"os"

	"golang.org/x/sys/unix"
)

// topDir is FS_TOPDIR_FL of linux/fs.h: ext4 takes what is made in such a directory for the top of trees that have nothing to do with each other, and gives each one
// a group of inodes by its name.
const topDir = 0x00020000

// spread has each folder that is made in dir begin where the file system has room, where it knows of that (ext4). Else the files of all sandboxes are side by side, where ext4 looks, without a journal, at
// every inode that somebody has deleted in the last minutes before it makes one: 2 to 5 ms for the 20 of a sandbox where sandboxes come and go, and 0.4 with this. Where it does not work,
// that is how it is.
func spread(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	if flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS); err == nil && flags&topDir == 0 {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|topDir)
	}
}
