package node

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// The folders of sandboxes are spread, where the file system has a flag for that, and are as before where it has none.
func TestSpread_setsTheFlagOfTheFileSystem(t *testing.T) {
	flags := func(dir string) (int, error) {
		f, err := os.Open(dir)
		must.NoError(t, err)
		defer f.Close()
		return unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	}
	dir := t.TempDir()
	before, err := flags(dir)
	spread(dir)
	spread(filepath.Join(dir, "missing"))
	must.NoError(t, os.Mkdir(filepath.Join(dir, "sandbox"), 0o700))
	var fs unix.Statfs_t
	must.NoError(t, unix.Statfs(dir, &fs))
	if fs.Type != unix.EXT4_SUPER_MAGIC {
		return
	}
	must.NoError(t, err)
	after, err := flags(dir)
	must.NoError(t, err)
	must.Eq(t, before|topDir, after)
	inner, err := flags(filepath.Join(dir, "sandbox"))
	must.NoError(t, err)
	must.Zero(t, inner&topDir)
}
