package disk

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func newFile(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "f"))
	must.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// blocks are the bytes that a file takes from its disk.
func blocks(t *testing.T, f *os.File) int64 {
	t.Helper()
	var st unix.Stat_t
	must.NoError(t, unix.Fstat(int(f.Fd()), &st))
	return st.Blocks * 512
}

func TestWriter_keepsWhatWasWrittenAndNoMore(t *testing.T) {
	const block = 64 << 10 // of any file system, at most
	for name, pieces := range map[string][]int{
		"nothing":                         {},
		"an empty piece":                  {0},
		"a few bytes":                     {5},
		"one large piece":                 {3<<20 + 1},
		"many pieces of odd sizes":        {4095, 1, 70001, 1 << 20, 3, 256 << 10, 1<<20 + 7},
		"so many that it goes far ahead":  {8 << 20, 9 << 20, 1, 16 << 20, 1},
		"a large one with a small behind": {20 << 20, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFile(t, t.TempDir())
			w := NewWriter(f)
			var want []byte
			for i, n := range pieces {
				p := bytes.Repeat([]byte{byte('a' + i)}, n)
				got, err := w.Write(p)
				must.NoError(t, err)
				must.Eq(t, n, got)
				want = append(want, p...)
			}
			must.NoError(t, w.Finish())
			must.NoError(t, f.Sync())
			b, err := os.ReadFile(f.Name())
			must.NoError(t, err)
			must.True(t, bytes.Equal(want, b))
			must.LessEq(t, int64(len(want)+block), blocks(t, f))
		})
	}
}

// What has no blocks is written to the disk at once where it takes another file's place.
func TestWriter_hasBlocksBeforeItIsFinished(t *testing.T) {
	f := newFile(t, t.TempDir())
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 1); err != nil {
		t.Skipf("the file system allocates nothing ahead: %v", err)
	}
	w := NewWriter(f)
	for range 20 {
		_, err := w.Write(make([]byte, 1<<20))
		must.NoError(t, err)
		must.GreaterEq(t, w.written, w.allocated)
	}
	must.GreaterEq(t, 20<<20, blocks(t, f))
}

// A file that fits fits, though there is no room ahead of it; and one that does not says so.
func TestWriter_onADiskThatIsNearlyFull(t *testing.T) {
	dir := t.TempDir()
	limits := Limits{Bytes: 8 << 20, Inodes: 100}
	l := TmpfsLimiter{}
	must.NoError(t, l.Prepare(dir, limits))
	t.Cleanup(func() { must.NoError(t, l.Release(dir)) })
	f := newFile(t, dir)
	w := NewWriter(f)
	var total int64
	for range 7 {
		_, err := w.Write(make([]byte, 1<<20))
		must.NoError(t, err)
		total += 1 << 20
	}
	must.NoError(t, w.Finish())
	must.Eq(t, total, blocks(t, f))
	n, err := w.Write(make([]byte, 2<<20))
	must.ErrorIs(t, err, unix.ENOSPC)
	must.Less(t, 2<<20, n)
}

func BenchmarkWriter(b *testing.B) {
	f, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	must.NoError(b, err)
	defer f.Close()
	w := NewWriter(f)
	p := make([]byte, 64<<10)
	for b.Loop() {
		if _, err := w.Write(p); err != nil {
			b.Fatal(err)
		}
	}
}
