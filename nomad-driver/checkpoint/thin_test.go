package checkpoint

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	core "github.com/checkpoint-restore/go-criu/v7/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/vma"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/pager"
)

// writeImages writes images of a process with a mapping for each of these runs of pages, and returns what is where.
func writeImages(t *testing.T, dir string, pid int, runs []pageRun) map[uint64][]byte {
	t.Helper()
	magics := func(m uint32) []byte {
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, commonMagic), m)
	}
	pm := append(magics(pagemapMagic), 2, 0, 0, 0, 8, byte(pid))
	e := &mm.MmEntry{}
	for _, f := range []**uint64{
		&e.MmStartCode, &e.MmEndCode, &e.MmStartData, &e.MmEndData, &e.MmStartStack, &e.MmStartBrk, &e.MmBrk, &e.MmArgStart, &e.MmArgEnd, &e.MmEnvStart, &e.MmEnvEnd,
	} {
		*f = proto.Uint64(0)
	}
	e.ExeFileId = proto.Uint32(0)
	var pages []byte
	there := map[uint64][]byte{}
	for _, r := range runs {
		body := r.encode()
		pm = append(binary.LittleEndian.AppendUint32(pm, uint32(len(body))), body...)
		for i := range r.pages {
			page := bytes.Repeat([]byte{byte(pid), byte(rand.Uint32()), byte(i)}, pageSize)[:pageSize]
			pages = append(pages, page...)
			there[r.at+i*pageSize] = page
		}
		e.Vmas = append(e.Vmas, &vma.VmaEntry{
			Start: proto.Uint64(r.at), End: proto.Uint64(r.end()), Pgoff: proto.Uint64(0), Shmid: proto.Uint64(0), Prot: proto.Uint32(3),
			Flags: proto.Uint32(unix.MAP_PRIVATE | unix.MAP_ANONYMOUS), Status: proto.Uint32(vmaRegular | vmaAnonPrivate), Fd: proto.Int64(-1),
		})
	}
	body, err := proto.Marshal(e)
	must.NoError(t, err)
	mmImage := append(binary.LittleEndian.AppendUint32(magics(mmMagic), uint32(len(body))), body...)
	for name, b := range map[string][]byte{
		fmt.Sprintf("pagemap-%d.img", pid): pm, fmt.Sprintf("pages-%d.img", pid): pages, fmt.Sprintf("mm-%d.img", pid): mmImage,
	} {
		must.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	writeCore(t, dir, pid, 1)
	return there
}

// writeCore writes the image that says in which state a process is.
func writeCore(t *testing.T, dir string, pid int, state uint32) {
	t.Helper()
	e := &core.CoreEntry{Mtype: core.CoreEntry_X86_64.Enum(), Tc: &core.TaskCoreEntry{
		TaskState: &state, ExitCode: proto.Uint32(0), Personality: proto.Uint32(0), Flags: proto.Uint32(0), BlkSigset: proto.Uint64(0), Comm: proto.String("p"),
	}}
	must.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("core-%d.img", pid)), image(t, coreMagic, e), 0o600))
}

// Each page is in the thin images or comes later, and only one of the two; what parent and child may share comes at once, and what a stopped process has.
func TestThin_isWhatDoesNotComeLater(t *testing.T) {
	dir := t.TempDir()
	const lazy = pageLazy | pagePresent
	big := uint64(LazyMapping / pageSize)
	there := map[int]map[uint64][]byte{
		1: writeImages(t, dir, 1, []pageRun{{at: 1 << 30, pages: 2 * big, flags: lazy}}), // PID 1
		7: writeImages(t, dir, 7, []pageRun{
			{at: 1 << 20, pages: 3, flags: lazy}, {at: 2 << 30, pages: 2 * big, flags: lazy}, {at: 3 << 30, pages: big, flags: pagePresent},
			{at: 4 << 30, pages: big, flags: lazy}, {at: 5 << 30, pages: big, flags: lazy},
		}),
		8: writeImages(t, dir, 8, []pageRun{{at: 4<<30 + pageSize, pages: big, flags: lazy}, {at: 6 << 30, pages: big, flags: lazy}}),
		9: writeImages(t, dir, 9, []pageRun{{at: 7 << 30, pages: 2 * big, flags: lazy}}),
	}
	writeCore(t, dir, 9, taskStopped)
	p, err := planThin(dir, 1)
	must.NoError(t, err)
	must.Eq(t, int64(4*LazyMapping), p.bytes)
	none, err := planThin(dir, p.bytes+1)
	must.NoError(t, err)
	must.Nil(t, none)

	later := map[int]map[uint64][]byte{}
	for _, l := range p.late {
		later[l.pid] = map[uint64][]byte{}
		b, err := os.ReadFile(filepath.Join(dir, p.files[l.file]))
		must.NoError(t, err)
		for _, r := range l.ranges {
			for o := uint64(0); o < r.Len; o += pageSize {
				later[l.pid][r.Dst+o] = b[r.Off+o:][:pageSize]
			}
		}
	}
	images, err := p.open(dir)
	must.NoError(t, err)
	defer images.Close()
	folder, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", images.Fd()))
	must.NoError(t, err)
	defer folder.Close()
	names, err := folder.Readdirnames(-1)
	must.NoError(t, err)
	must.SliceContainsAll(t, []string{"pagemap-7.img", "pages-7.img", "pagemap-8.img", "pages-8.img"}, names)
	must.SliceContainsAll(t, names, p.names())
	read := func(name string) []byte {
		if !slices.Contains(names, name) { // it shows through
			b, err := os.ReadFile(filepath.Join(dir, name))
			must.NoError(t, err)
			return b
		}
		fd, err := unix.Openat(int(images.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must.NoError(t, err)
		f := os.NewFile(uintptr(fd), name)
		defer f.Close()
		st, err := f.Stat()
		must.NoError(t, err)
		must.Eq(t, 0o644, st.Mode().Perm())
		b, err := io.ReadAll(f)
		must.NoError(t, err)
		return b
	}
	copied := t.TempDir()
	for pid, want := range there {
		name := fmt.Sprintf("pagemap-%d.img", pid)
		must.NoError(t, os.WriteFile(filepath.Join(copied, name), read(name), 0o600))
		pm, err := readPagemap(filepath.Join(copied, name))
		must.NoError(t, err)
		must.Eq(t, uint64(pid), pm.pages)
		b := read(fmt.Sprintf("pages-%d.img", pid))
		got, size := map[uint64][]byte{}, 0
		for at, page := range later[pid] {
			got[at] = page
		}
		for _, r := range pm.runs {
			for i := range r.pages {
				must.MapNotContainsKey(t, got, r.at+i*pageSize)
				got[r.at+i*pageSize] = b[r.off+i*pageSize:][:pageSize]
				size += pageSize
			}
		}
		must.Eq(t, len(b), size)
		must.True(t, len(want) == len(got))
		for at, page := range want {
			must.True(t, bytes.Equal(page, got[at]), must.Sprintf("page %#x of process %d", at, pid))
		}
	}
}

func rangeOf(page, pages uint64) pager.Range {
	return pager.Range{Dst: page * pageSize, Len: pages * pageSize}
}

// A run that comes later in parts is what is left of it.
func TestThin_runIsCut(t *testing.T) {
	l := late{}
	for _, p := range []uint64{2, 3, 7, 9} {
		l.ranges = append(l.ranges, rangeOf(p, 1))
	}
	var got []uint64
	for _, k := range l.without(pageRun{at: 1 * pageSize, pages: 10, flags: pageLazy | pagePresent, off: 100 * pageSize}) {
		must.Eq(t, 99*pageSize, k.off-k.at)
		got = append(got, k.at/pageSize, k.pages)
	}
	must.Eq(t, []uint64{1, 1, 4, 3, 8, 1, 10, 1}, got)
	must.SliceEmpty(t, l.without(pageRun{at: 2 * pageSize, pages: 2, flags: pageLazy}))
	must.Len(t, 1, l.without(pageRun{at: 2 * pageSize, pages: 2}))
}

func FuzzReadPagemap(f *testing.F) {
	f.Add([]byte{0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56, 2, 0, 0, 0, 8, 1, 8, 0, 0, 0, 8, 0, 16, 0, 32, 6, 40, 1})
	path := filepath.Join(f.TempDir(), "pagemap-2.img")
	f.Fuzz(func(t *testing.T, b []byte) {
		must.NoError(t, os.WriteFile(path, b, 0o600))
		p, err := readPagemap(path)
		if err != nil {
			return
		}
		for _, r := range p.runs {
			must.True(t, r.at <= r.end())
		}
	})
}
