package checkpoint

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// parentLink is where CRIU leaves the folder of a dump's parent in that of its images.
const parentLink = "parent"

// Merge makes the images of a dump whole: it brings in what they lack because it was copied ahead, and removes the copy. Afterwards they are as those of a
// dump that had none. On error they are of no use.
func (a *Ahead) Merge(images string) (bytes int64, err error) {
	defer func() { err = errors.Join(err, a.Remove()) }()
	for _, p := range a.parts {
		if err := p.merge(images); err != nil {
			return 0, fmt.Errorf("merge images of process %d: %w", p.inside, err)
		}
	}
	if err := os.Remove(filepath.Join(images, parentLink)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	if err := wholeImages(images); err != nil {
		return 0, err
	}
	return folderBytes(images)
}

// wholeImages returns an error where an image lacks pages that were copied ahead.
func wholeImages(images string) error {
	paths, err := filepath.Glob(filepath.Join(images, "pagemap-*.img"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		pm, err := readPagemap(path)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(pm.runs, func(r pageRun) bool { return r.flags&pageParent != 0 }) {
			return fmt.Errorf("image %s lacks pages", filepath.Base(path))
		}
	}
	return nil
}

// merge writes both images of a process anew. Of one that has ended meanwhile there are none.
func (p *aheadPart) merge(images string) (err error) {
	path := filepath.Join(images, fmt.Sprintf("pagemap-%d.img", p.inside))
	pm, err := readPagemap(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pages := filepath.Join(images, fmt.Sprintf("pages-%d.img", pm.pages))
	own, err := os.Open(pages)
	if err != nil {
		return err
	}
	defer own.Close()
	if runs, err := p.cover(pm, own); err != nil || runs != nil {
		if err == nil {
			err = replace(p.pages.Name(), pages)
		}
		if err != nil {
			return err
		}
		return writePagemap(path, pm, runs)
	}
	out, err := os.OpenFile(pages+".new", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	var runs []pageRun
	size := uint64(0)
	add := func(r pageRun, from *os.File) error {
		if r.flags&pagePresent == 0 {
			runs = append(runs, r)
			return nil
		}
		n := int64(r.pages * pageSize)
		if _, err := from.Seek(int64(r.off), io.SeekStart); err != nil {
			return err
		}
		if got, err := io.CopyN(out, from, n); err != nil { // in the kernel
			return fmt.Errorf("copy %d bytes, got %d: %w", n, got, err)
		}
		r.off, r.raw = size, nil
		runs = appendRun(runs, r)
		size += uint64(n)
		return nil
	}
	for _, r := range pm.runs {
		if r.flags&pageParent == 0 {
			if err := add(r, own); err != nil {
				return err
			}
			continue
		}
		copied := p.within(r)
		if end := covered(r.at, copied); end < r.end() {
			return fmt.Errorf("nothing was copied of the page at %#x", end)
		}
		for _, c := range copied {
			c.short = r.short
			if err := add(c, p.pages); err != nil {
				return err
			}
		}
	}
	return errors.Join(replace(pages+".new", pages), writePagemap(path, pm, runs))
}

// replace puts a file in place of another. Between the two there is none: images that are not finished are of no use anyway, and ext4 writes to disk at once what is
// renamed over a file, and has the caller wait.
func replace(from, to string) error {
	if err := os.Remove(to); err != nil {
		return err
	}
	return os.Rename(from, to)
}

// writePagemap replaces an image of which pages there are.
func writePagemap(path string, pm *pagemap, runs []pageRun) error {
	b := slices.Clone(pm.head)
	for _, r := range runs {
		b = appendEntry(b, r.encode())
	}
	if err := os.WriteFile(path+".new", b, 0o644); err != nil {
		return err
	}
	return replace(path+".new", path)
}

// cover returns the runs of a whole image whose pages are the copy as it is, with the pages in it that the dump has itself. Nil: the copy has other pages too, lacks some,
// or has them in another order.
func (p *aheadPart) cover(pm *pagemap, own *os.File) ([]pageRun, error) {
	type page struct{ from, to, pages uint64 }
	var runs []pageRun
	var changed []page
	size := uint64(0)
	for _, r := range pm.runs {
		if r.flags&(pageParent|pagePresent) == 0 {
			runs = append(runs, r)
			continue
		}
		copied := p.within(r)
		if covered(r.at, copied) < r.end() {
			return nil, nil
		}
		for _, c := range copied {
			if c.off != size {
				return nil, nil
			}
			size += c.pages * pageSize
			if c.short = r.short; r.flags&pageParent == 0 {
				changed = append(changed, page{r.off + c.at - r.at, c.off, c.pages})
				c.flags = r.flags
			}
			runs = appendRun(runs, c)
		}
	}
	if size != uint64(p.size) {
		return nil, nil
	}
	for _, c := range changed {
		n := int64(c.pages * pageSize)
		if _, err := io.Copy(io.NewOffsetWriter(p.pages, int64(c.to)), io.NewSectionReader(own, int64(c.from), n)); err != nil {
			return nil, err
		}
	}
	return runs, nil
}

// within returns what was copied of a run.
func (p *aheadPart) within(r pageRun) []pageRun {
	return intersect(p.runs[runBehind(p.runs, r.at):], []pageRun{r})
}

// runBehind returns which of rs, which are by address, is the first that ends behind an address.
func runBehind(rs []pageRun, at uint64) int {
	i, _ := slices.BinarySearchFunc(rs, at, func(r pageRun, at uint64) int {
		if r.end() <= at {
			return -1
		}
		return 1
	})
	return i
}

// suffices returns an error where the images of a dump lack a page that was not copied.
func (p *aheadPart) suffices(images string) error {
	pm, err := readPagemap(filepath.Join(images, fmt.Sprintf("pagemap-%d.img", p.inside)))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, r := range pm.runs {
		if r.flags&pageParent == 0 {
			continue
		}
		if end := covered(r.at, p.within(r)); end < r.end() {
			return fmt.Errorf("nothing was copied of the page at %#x", end)
		}
	}
	return nil
}

// covered returns up to where runs follow each other without a hole from at on.
func covered(at uint64, runs []pageRun) uint64 {
	for _, r := range runs {
		if r.at != at {
			break
		}
		at = r.end()
	}
	return at
}
