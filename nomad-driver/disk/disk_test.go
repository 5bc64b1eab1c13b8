package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// limiters returns those that work in root. Each must work somewhere that CI runs: quotas in the test machine.
func limiters(t *testing.T, root string) []Limiter {
	t.Helper()
	var all []Limiter
	for _, name := range []string{Quota, Image, Tmpfs} {
		l, err := Choose(root, name)
		if errors.Is(err, ErrUnsupported) {
			t.Logf("%s: %v", name, err)
			continue
		}
		must.NoError(t, err)
		all = append(all, l)
	}
	return all
}

const mib = 1 << 20

func TestLimiter_conformance(t *testing.T) {
	root := t.TempDir()
	for _, l := range limiters(t, root) {
		t.Run(l.Name(), func(t *testing.T) {
			t.Run("bytes", func(t *testing.T) { bytesAreBounded(t, l, folder(t, root)) })
			t.Run("inodes", func(t *testing.T) { inodesAreBounded(t, l, folder(t, root)) })
			t.Run("neighbours", func(t *testing.T) { neighboursAreNotAffected(t, l, folder(t, root), folder(t, root)) })
			t.Run("twice", func(t *testing.T) {
				dir := prepared(t, l, folder(t, root), Limits{Bytes: 32 * mib})
				must.Error(t, l.Prepare(dir, Limits{Bytes: 32 * mib}))
			})
			t.Run("resize", func(t *testing.T) { resize(t, l, folder(t, root)) })
			t.Run("release", func(t *testing.T) { releaseFreesAll(t, l, folder(t, root)) })
			t.Run("bad limits", func(t *testing.T) {
				for _, bad := range []Limits{{Bytes: -1}, {Bytes: 1}, {Bytes: 1 << 60}, {Inodes: -1}, {Inodes: 1}} {
					must.ErrorContains(t, l.Prepare(folder(t, root), bad), "disk limit")
				}
			})
		})
	}
}

func folder(t *testing.T, root string) string {
	t.Helper()
	dir, err := os.MkdirTemp(root, "f")
	must.NoError(t, err)
	return dir
}

func prepared(t *testing.T, l Limiter, dir string, limits Limits) string {
	t.Helper()
	must.NoError(t, l.Prepare(dir, limits))
	t.Cleanup(func() { must.NoError(t, l.Release(dir)) })
	return dir
}

// fill writes until the limit stops it.
func fill(t *testing.T, file string, most int) (int, error) {
	t.Helper()
	f, err := os.Create(file)
	must.NoError(t, err)
	defer f.Close()
	written := 0
	w := NewWriter(f)
	for written < most {
		n, err := w.Write(make([]byte, mib)) // as the node writes for a sandbox
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, f.Sync()
}

func bytesAreBounded(t *testing.T, l Limiter, dir string) {
	prepared(t, l, dir, Limits{Bytes: 32 * mib})
	n, err := fill(t, filepath.Join(dir, "big"), 64*mib)
	must.True(t, errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT), must.Sprintf("got %v", err))
	must.Between(t, 16*mib, n, 33*mib)
	u, err := l.Usage(dir)
	must.NoError(t, err)
	must.Between(t, int64(16*mib), u.Bytes, 33*mib)
	// What is there can be read and removed, and then there is room again.
	must.NoError(t, os.Remove(filepath.Join(dir, "big")))
	_, err = fill(t, filepath.Join(dir, "small"), 8*mib)
	must.NoError(t, err)
}

func inodesAreBounded(t *testing.T, l Limiter, dir string) {
	prepared(t, l, dir, Limits{Bytes: 64 * mib, Inodes: 256})
	made := 0
	var err error
	for made < 2000 && err == nil {
		if err = os.WriteFile(filepath.Join(dir, fmt.Sprint(made)), nil, 0o600); err == nil {
			made++
		}
	}
	must.True(t, errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT), must.Sprintf("got %v", err))
	must.Between(t, 200, made, 300)
	u, err := l.Usage(dir)
	must.NoError(t, err)
	must.Between(t, int64(200), u.Inodes, 300)
}

func neighboursAreNotAffected(t *testing.T, l Limiter, a, b string) {
	prepared(t, l, a, Limits{Bytes: 16 * mib})
	prepared(t, l, b, Limits{Bytes: 16 * mib})
	_, err := fill(t, filepath.Join(a, "big"), 64*mib)
	must.Error(t, err)
	_, err = fill(t, filepath.Join(b, "some"), 4*mib)
	must.NoError(t, err)
}

func resize(t *testing.T, l Limiter, dir string) {
	must.Error(t, l.Resize(dir, Limits{Bytes: 16 * mib}), must.Sprint("not prepared"))
	prepared(t, l, dir, Limits{Bytes: 16 * mib})
	err := l.Resize(dir, Limits{Bytes: 48 * mib})
	if errors.Is(err, ErrUnsupported) {
		must.Eq(t, Image, l.Name())
		return
	}
	must.NoError(t, err)
	_, err = fill(t, filepath.Join(dir, "big"), 32*mib)
	must.NoError(t, err)
}

func releaseFreesAll(t *testing.T, l Limiter, dir string) {
	must.NoError(t, l.Release(dir), must.Sprint("never prepared"))
	must.NoError(t, l.Prepare(dir, Limits{Bytes: 16 * mib, Inodes: 128}))
	must.NoError(t, l.Release(dir))
	must.NoError(t, l.Release(dir))
	_, err := l.Usage(dir)
	must.Error(t, err)
	mounted, err := isMountPoint(dir)
	must.NoError(t, err)
	must.False(t, mounted)
	must.FileNotExists(t, imageOf(dir))
	must.NoError(t, os.RemoveAll(dir))
	must.NoError(t, l.Release(dir), must.Sprint("the folder is gone"))
}

func TestChoose_namesWhatItDoesNotKnow(t *testing.T) {
	_, err := Choose(t.TempDir(), "floppy")
	must.ErrorContains(t, err, `"floppy" is not one of quota, image, tmpfs`)
}
