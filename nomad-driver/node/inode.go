package node

import (
	"os"
	"syscall"
)

// inode returns what tells a file from another that took its name.
func inode(fi os.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
