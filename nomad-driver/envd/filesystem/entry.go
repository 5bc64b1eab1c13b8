package filesystem

import (
	"io/fs"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/filesystem"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// info is an entry as clients get it: type and mode are those of what a link leads to, the rest is the link's own.
func info(e *guest.Entry) *wire.EntryInfo {
	i := &wire.EntryInfo{
		Name: e.Name, Path: e.Path, Size: e.Size, Mode: e.Mode & 0o777, Permissions: fileMode(e.LinkMode).String(),
		Owner: e.Owner, Group: e.Group, ModifiedTime: timestamppb.New(e.ModTime), Metadata: e.Metadata,
	}
	switch e.Type {
	case "file":
		i.Type = wire.FileType_FILE_TYPE_FILE
	case "directory":
		i.Type = wire.FileType_FILE_TYPE_DIRECTORY
	case "symlink":
		i.Type = wire.FileType_FILE_TYPE_SYMLINK
	}
	if e.Target != "" {
		i.SymlinkTarget = &e.Target
	}
	return i
}

// fileMode is st_mode in the words of package fs, whose way to write permissions is the contract's.
func fileMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	case unix.S_IFBLK:
		mode |= fs.ModeDevice
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	}
	for bit, flag := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= flag
		}
	}
	return mode
}
