package checkpoint

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

// What is copied of a process that stands still is what it has, on every kernel.
func TestCopyAhead_isTheMemoryOfTheProcess(t *testing.T) {
	cmd := exec.Command("bash", "-c", `x=$(head -c 8000000 /dev/zero | tr '\0' x); echo ready; read line`)
	in, err := cmd.StdinPipe()
	must.NoError(t, err)
	out, err := cmd.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, cmd.Start())
	defer func() { must.NoError(t, in.Close()); _ = cmd.Wait() }()
	_, err = bufio.NewReader(out).ReadString('\n')
	must.NoError(t, err)

	e := &Engine{}
	stands := func(context.Context) error { return nil } // anyway
	o := AheadOptions{PIDs: []int{cmd.Process.Pid}, Dir: filepath.Join(t.TempDir(), "ahead"), Least: 1 << 30, Freeze: stands, Thaw: stands}
	none, err := e.CopyAhead(t.Context(), o)
	must.NoError(t, err)
	must.Nil(t, none)
	o.Least = 1
	a, err := e.CopyAhead(t.Context(), o)
	must.NoError(t, err)
	must.Len(t, 1, a.parts)
	must.Greater(t, 8_000_000, a.Bytes)
	p := a.parts[0]
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", cmd.Process.Pid))
	must.NoError(t, err)
	defer mem.Close()
	for _, r := range p.runs {
		want, got := make([]byte, r.pages*pageSize), make([]byte, r.pages*pageSize)
		_, err := mem.ReadAt(want, int64(r.at))
		must.NoError(t, err)
		_, err = p.pages.ReadAt(got, int64(r.off))
		must.NoError(t, err)
		must.True(t, bytes.Equal(want, got), must.Sprintf("pages at %#x", r.at))
	}
	pm, err := readPagemap(filepath.Join(o.Dir, fmt.Sprintf("pagemap-%d.img", p.inside)))
	must.NoError(t, err)
	must.Len(t, len(p.runs), pm.runs)
	must.NoError(t, a.Remove())
	_, err = os.Stat(o.Dir)
	must.ErrorIs(t, err, os.ErrNotExist)

	e.ahead = errUntracked
	none, err = e.CopyAhead(t.Context(), o)
	must.NoError(t, err)
	must.Nil(t, none)
}

// Merged images have each page of the dump, from the dump or from the copy, in order and in as few pieces as one without a copy would have.
func TestMerge_makesImagesWhole(t *testing.T) {
	const lazy = pageLazy | pagePresent
	const base = uint64(1 << 32)
	setup := func(t *testing.T) (dir string, a *Ahead, there map[uint64][]byte, copied *os.File) {
		dir = t.TempDir()
		// Pages 0–99, of which each third has changed since the copy; page 200, which is new.
		var runs []pageRun
		for i := range uint64(100) {
			flags := uint64(lazy)
			if i%3 != 0 {
				flags = pageParent
			}
			if i == 51 {
				flags = pagePresent // it may not come later
			}
			runs = append(runs, pageRun{at: base + i*pageSize, pages: 1, flags: flags})
		}
		runs = append(runs, pageRun{at: base + 200*pageSize, pages: 1, flags: lazy})
		var own []pageRun
		for _, r := range runs {
			if r.flags&pagePresent != 0 {
				own = append(own, r)
			}
		}
		there = writeImages(t, dir, 7, own)
		pm := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, commonMagic), pagemapMagic)
		pm = append(pm, 2, 0, 0, 0, 8, 7)
		for _, r := range runs {
			pm = appendEntry(pm, r.encode())
		}
		must.NoError(t, os.WriteFile(filepath.Join(dir, "pagemap-7.img"), pm, 0o600))
		must.NoError(t, os.Symlink("../ahead", filepath.Join(dir, "parent")))
		ahead := filepath.Join(t.TempDir(), "ahead")
		must.NoError(t, os.Mkdir(ahead, 0o700))
		copied, err := os.Create(filepath.Join(ahead, "pages-1.img"))
		must.NoError(t, err)
		p := &aheadPart{inside: 7, pages: copied}
		order := rand.Perm(101)
		for n, i := range order { // page 100 is there no more
			r := pageRun{at: base + uint64(i)*pageSize, pages: 1, flags: lazy, off: uint64(n) * pageSize}
			page := bytes.Repeat([]byte{byte(i), 'c'}, pageSize/2)
			_, err := copied.WriteAt(page, int64(r.off))
			must.NoError(t, err)
			p.runs = append(p.runs, r)
			if i%3 != 0 && i < 100 {
				there[r.at] = page
			}
		}
		sortRuns(p.runs)
		return dir, &Ahead{dir: ahead, parts: []*aheadPart{p}}, there, copied
	}
	t.Run("whole", func(t *testing.T) {
		dir, a, there, _ := setup(t)
		ended := &aheadPart{inside: 9, pages: must0(os.Create(filepath.Join(a.dir, "pages-2.img")))}
		a.parts = append(a.parts, ended)
		size, err := a.Merge(dir)
		must.NoError(t, err)
		must.Greater(t, 101*pageSize, size)
		_, err = os.Stat(a.dir)
		must.ErrorIs(t, err, os.ErrNotExist)
		_, err = os.Lstat(filepath.Join(dir, "parent"))
		must.ErrorIs(t, err, os.ErrNotExist)
		pm, err := readPagemap(filepath.Join(dir, "pagemap-7.img"))
		must.NoError(t, err)
		var got []string
		b, err := os.ReadFile(filepath.Join(dir, "pages-7.img"))
		must.NoError(t, err)
		n := 0
		for _, r := range pm.runs {
			got = append(got, fmt.Sprintf("%d+%d %d", (r.at-base)/pageSize, r.pages, r.flags))
			for i := range r.pages {
				must.True(t, bytes.Equal(there[r.at+i*pageSize], b[r.off+i*pageSize:][:pageSize]), must.Sprint("page ", (r.at-base)/pageSize+i))
				n++
			}
		}
		must.Eq(t, []string{"0+51 6", "51+1 4", "52+48 6", "200+1 6"}, got)
		must.Eq(t, 101, n)
		must.Len(t, 101*pageSize, b)
	})
	t.Run("a page was not copied", func(t *testing.T) {
		dir, a, _, _ := setup(t)
		a.parts[0].runs = append(a.parts[0].runs[:4], a.parts[0].runs[5:]...)
		_, err := a.Merge(dir)
		must.ErrorContains(t, err, "nothing was copied")
		_, err = os.Stat(a.dir)
		must.ErrorIs(t, err, os.ErrNotExist)
	})
	t.Run("a process was not copied", func(t *testing.T) {
		dir, a, _, copied := setup(t)
		a.parts = nil
		defer copied.Close()
		_, err := a.Merge(dir)
		must.ErrorContains(t, err, "lacks pages")
	})
	t.Run("the copy is cut", func(t *testing.T) {
		dir, a, _, copied := setup(t)
		must.NoError(t, copied.Truncate(50*pageSize))
		_, err := a.Merge(dir)
		must.Error(t, err)
	})
}

func must0[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
