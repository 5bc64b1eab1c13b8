package checkpoint

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// Where a copy has what a dump lacks, in its order and nothing else, it becomes the image without being copied again.
func TestMerge_aCopyInOrderTakesThePlace(t *testing.T) {
	const lazy = pageLazy | pagePresent
	const base = uint64(1 << 32)
	copiedRuns := []pageRun{{at: base, pages: 4, flags: lazy}, {at: base + 10*pageSize, pages: 2, flags: pagePresent}, {at: base + 20*pageSize, pages: 3, flags: lazy}}
	tests := []struct {
		name  string
		dump  []pageRun
		takes bool
		want  string // of runs
		err   string
	}{
		{"nothing has changed", []pageRun{
			{at: base, pages: 4, flags: pageParent}, {at: base + 10*pageSize, pages: 2, flags: pageParent}, {at: base + 20*pageSize, pages: 3, flags: pageParent},
		}, true, "0+4 6, 10+2 4, 20+3 6", ""},
		{"the dump has a page itself", []pageRun{
			{at: base, pages: 1, flags: pageParent}, {at: base + pageSize, pages: 1, flags: pagePresent}, {at: base + 2*pageSize, pages: 2, flags: pageParent},
			{at: base + 10*pageSize, pages: 2, flags: pageParent}, {at: base + 20*pageSize, pages: 3, flags: pageParent},
		}, true, "0+1 6, 1+1 4, 2+2 6, 10+2 4, 20+3 6", ""},
		{"the copy has more", []pageRun{
			{at: base, pages: 4, flags: pageParent}, {at: base + 20*pageSize, pages: 3, flags: pageParent},
		}, false, "0+4 6, 20+3 6", ""},
		{"the copy has more at its end", []pageRun{
			{at: base, pages: 4, flags: pageParent}, {at: base + 10*pageSize, pages: 2, flags: pageParent},
		}, false, "0+4 6, 10+2 4", ""},
		{"the dump has a page that the copy has not", []pageRun{
			{at: base, pages: 4, flags: pageParent}, {at: base + 6*pageSize, pages: 1, flags: lazy}, {at: base + 10*pageSize, pages: 2, flags: pageParent}, {at: base + 20*pageSize, pages: 3, flags: pageParent},
		}, false, "0+4 6, 6+1 6, 10+2 4, 20+3 6", ""},
		{"the copy lacks a page", []pageRun{
			{at: base, pages: 5, flags: pageParent}, {at: base + 10*pageSize, pages: 2, flags: pageParent}, {at: base + 20*pageSize, pages: 3, flags: pageParent},
		}, false, "", "nothing was copied of the page at 0x100004000"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			dir, ahead := t.TempDir(), filepath.Join(t.TempDir(), "beside")
			var own []pageRun
			for _, r := range tc.dump {
				if r.flags&pagePresent != 0 {
					own = append(own, r)
				}
			}
			there := writeImages(t, dir, 7, own)
			pm := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, commonMagic), pagemapMagic)
			pm = append(pm, 2, 0, 0, 0, 8, 7)
			for _, r := range tc.dump {
				pm = appendEntry(pm, r.encode())
			}
			must.NoError(t, os.WriteFile(filepath.Join(dir, "pagemap-7.img"), pm, 0o600))
			must.NoError(t, os.Mkdir(ahead, 0o700))
			p := &aheadPart{inside: 7, pages: must0(os.Create(filepath.Join(ahead, "pages-1.img")))}
			for _, r := range copiedRuns {
				r.off = uint64(p.size)
				for i := range r.pages {
					at := r.at + i*pageSize
					page := bytes.Repeat([]byte{byte(at / pageSize), 'c'}, pageSize/2)
					must.Eq(t, pageSize, must0(p.pages.WriteAt(page, p.size)))
					p.size += pageSize
					if there[at] == nil {
						there[at] = page
					}
				}
				p.runs = append(p.runs, r)
			}
			copied := inode(t, p.pages.Name())
			_, err := (&Ahead{dir: ahead, parts: []*aheadPart{p}}).Merge(dir)
			if tc.err != "" {
				must.ErrorContains(t, err, tc.err)
				return
			}
			must.NoError(t, err)
			path := filepath.Join(dir, "pages-7.img")
			must.Eq(t, tc.takes, inode(t, path) == copied)
			got, err := readPagemap(filepath.Join(dir, "pagemap-7.img"))
			must.NoError(t, err)
			b, err := os.ReadFile(path)
			must.NoError(t, err)
			runs, size := "", uint64(0)
			for _, r := range got.runs {
				if runs != "" {
					runs += ", "
				}
				runs += fmt.Sprintf("%d+%d %d", (r.at-base)/pageSize, r.pages, r.flags)
				must.Eq(t, size, r.off)
				size += r.pages * pageSize
				for i := range r.pages {
					must.True(t, bytes.Equal(there[r.at+i*pageSize], b[r.off+i*pageSize:][:pageSize]), must.Sprint("page ", (r.at-base)/pageSize+i))
				}
			}
			must.Eq(t, tc.want, runs)
			must.Eq(t, int(size), len(b))
		})
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	fi, err := os.Stat(path)
	must.NoError(t, err)
	return fi.Sys().(*syscall.Stat_t).Ino
}

// mapDroppable is MAP_DROPPABLE: memory that the kernel may drop at any time.
const mapDroppable = 0x08

// needsDroppable skips a test where the kernel refuses such memory as one that does not know it does, which is before Linux 6.11.
func needsDroppable(t *testing.T) {
	t.Helper()
	b, err := unix.Mmap(-1, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|mapDroppable)
	if errors.Is(err, unix.EINVAL) {
		t.Skip("this kernel has no MAP_DROPPABLE: ", err)
	}
	must.NoError(t, err)
	must.NoError(t, unix.Munmap(b))
}

// What the kernel may drop at any time is found, and left out with the rest of its pages in order.
func TestPlace_leavesOutWhatTheKernelMayDrop(t *testing.T) {
	needsDroppable(t)
	b, err := unix.Mmap(-1, 0, 16*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|mapDroppable)
	must.NoError(t, err)
	defer func() { must.NoError(t, unix.Munmap(b)) }()
	at := address(b)
	spans, err := droppable(os.Getpid())
	must.NoError(t, err)
	found := false
	for _, s := range spans {
		found = found || s.from <= at && at+16*pageSize <= s.to
	}
	must.True(t, found, must.Sprintf("%#x is not in %#x", at, spans))
	p := &aheadPart{process: process{PID: os.Getpid()}, runs: []pageRun{{at: at - 4*pageSize, pages: 24, flags: pagePresent}}}
	must.NoError(t, p.place())
	for _, r := range p.runs {
		must.True(t, r.end() <= at || r.at >= at+16*pageSize, must.Sprintf("%#x, %d pages", r.at, r.pages))
	}
	must.Positive(t, len(p.runs))
	must.Less(t, 24*pageSize, p.size)
}

func TestPlace_cutsRunsWhereTheyHaveToBe(t *testing.T) {
	needsDroppable(t)
	// Two mappings that the kernel may drop, of two pages each, with two pages of others around them.
	b, err := unix.Mmap(-1, 0, 10*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE)
	must.NoError(t, err)
	defer func() { must.NoError(t, unix.Munmap(b)) }()
	at := address(b)
	for _, page := range []uint64{2, 6} {
		_, err := unix.MmapPtr(-1, 0, unsafe.Pointer(&b[page*pageSize]), 2*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|mapDroppable|unix.MAP_FIXED)
		must.NoError(t, err)
	}
	for _, tc := range []struct {
		name string
		runs [][2]uint64 // first page and number
		want string
	}{
		{"one run over all", [][2]uint64{{0, 10}}, "0+2@0 4+2@2 8+2@4"},
		{"each page is a run", [][2]uint64{{0, 1}, {1, 1}, {2, 1}, {3, 1}, {4, 1}, {5, 1}, {6, 1}, {7, 1}, {8, 1}, {9, 1}}, "0+1@0 1+1@1 4+1@2 5+1@3 8+1@4 9+1@5"},
		{"runs end within", [][2]uint64{{1, 2}, {3, 4}, {7, 2}}, "1+1@0 4+2@1 8+1@3"},
		{"nothing of them", [][2]uint64{{0, 2}, {4, 2}, {8, 2}}, "0+2@0 4+2@2 8+2@4"},
		{"nothing else", [][2]uint64{{2, 2}, {6, 2}}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := &aheadPart{process: process{PID: os.Getpid()}}
			for _, r := range tc.runs {
				p.runs = append(p.runs, pageRun{at: at + r[0]*pageSize, pages: r[1], flags: pagePresent})
			}
			must.NoError(t, p.place())
			var got []string
			for _, r := range p.runs {
				got = append(got, fmt.Sprintf("%d+%d@%d", (r.at-at)/pageSize, r.pages, r.off/pageSize))
			}
			must.Eq(t, tc.want, strings.Join(got, " "))
		})
	}
}

// Memory that its process may not read itself is read all the same, among other memory and in order.
func TestRead_whatTheProcessMayNotRead(t *testing.T) {
	b, err := unix.Mmap(-1, 0, 3*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE)
	must.NoError(t, err)
	defer func() { must.NoError(t, unix.Munmap(b)) }()
	for i := range b {
		b[i] = byte(i / pageSize)
	}
	want := bytes.Clone(b)
	must.NoError(t, unix.Mprotect(b[pageSize:2*pageSize], unix.PROT_NONE))
	p := &aheadPart{process: process{PID: os.Getpid()}}
	got := make([]byte, len(b))
	at := uintptr(address(b))
	must.NoError(t, p.read(got, []unix.RemoteIovec{{Base: at, Len: pageSize}, {Base: at + pageSize, Len: 2 * pageSize}}))
	must.True(t, bytes.Equal(want, got))
	must.Error(t, p.read(got[:pageSize], []unix.RemoteIovec{{Base: 8, Len: pageSize}}))
}
