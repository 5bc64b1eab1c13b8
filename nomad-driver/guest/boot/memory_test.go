package boot

import (
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

func TestNewMemory_isAsNewAndTellsOfChanges(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	sizes := &guest.Boot{TmpBytes: 1 << 20, ShmBytes: 1 << 20, TmpInodes: 64}
	for _, word := range []string{MemoryTmp, MemoryShm, MemoryDev, MemoryProgram, MemoryNothing} {
		t.Run(word, func(t *testing.T) {
			is := func(mount *os.File, root uint32) bool {
				fd, err := unix.Openat(int(mount.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
				must.NoError(t, err)
				dir := os.NewFile(uintptr(fd), word)
				defer dir.Close()
				new, err := IsNewMemory(word, dir, root)
				must.NoError(t, err)
				return new
			}
			f, err := NewMemory(word, sizes, 100000)
			must.NoError(t, err)
			defer f.Close()
			must.True(t, is(f, 100000))
			must.False(t, is(f, 200000), must.Sprint("of another owner"))
			if word == MemoryProgram || word == MemoryNothing {
				must.ErrorIs(t, unix.Mknodat(int(f.Fd()), "more", unix.S_IFREG|0o644, 0), unix.EROFS)
				return
			}
			must.NoError(t, unix.Mknodat(int(f.Fd()), "more", unix.S_IFREG|0o644, 0))
			must.False(t, is(f, 100000), must.Sprint("with one file more"))
			must.NoError(t, unix.Unlinkat(int(f.Fd()), "more", 0))
			must.True(t, is(f, 100000))
			must.NoError(t, unix.Fsetxattr(dirOf(t, f), "user.a", []byte("b"), 0))
			must.False(t, is(f, 100000), must.Sprint("with an attribute"))
		})
	}
	_, err := NewMemory("other", sizes, 0)
	must.Error(t, err)
}

// dirOf opens the root of a mount for more than its path.
func dirOf(t *testing.T, mount *os.File) int {
	t.Helper()
	fd, err := unix.Openat(int(mount.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, unix.Close(fd)) })
	return fd
}

// A process that is forked meanwhile has every descriptor for a moment, and would keep a mount from being made read-only by one that is open for writing.
func TestNewMemory_whileOthersAreForked(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					if err := exec.Command("/bin/true").Run(); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	for range 500 {
		f, err := NewMemory(MemoryProgram, &guest.Boot{}, 0)
		must.NoError(t, err)
		must.NoError(t, f.Close())
	}
	close(done)
	wg.Wait()
}
