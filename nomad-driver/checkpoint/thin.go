package checkpoint

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v7/crit/images/mm"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/pager"
)

// A restore that leaves memory out is one of thin images: the same, without the pages that come later.

const pageSize = 4096

// Magics of images, after commonMagic.
const (
	pagemapMagic = 0x56084025
	mmMagic      = 0x57492820
)

// Bounds of images that are read here.
const (
	maxMM      = 64 << 20
	maxPagemap = 256 << 20
)

// LazyMapping is the least that a mapping must have in its pages for them to come later: each one costs some calls.
const LazyMapping = 1 << 20

// maxPieces is how many pieces of memory may come later at most: programs cut them into more.
const maxPieces = 1 << 12

// maxThin bounds, in bytes, what is left of thin images: it is copied to memory.
const maxThin = 128 << 20

// late is what one process gets later.
type late struct {
	pid    int // inside
	file   int // of thin.files
	ranges []pager.Range
	// mappings are those that the ranges are in.
	mappings []mapping
}

// thin is a plan of what comes later.
type thin struct {
	bytes   int64
	files   []string // images of pages, by name
	late    []late
	stopped map[int]bool // processes inside that come back stopped by a signal
}

// Flags of an entry of pages: pagemap.h of CRIU.
const (
	pageParent  = 1
	pageLazy    = 2
	pagePresent = 4
)

// pageRun is an entry of an image that says which pages there are.
type pageRun struct {
	at, pages uint64
	flags     uint64
	off       uint64 // in the image of pages, where it has them
	raw       []byte
	short     bool // the count is in the field of before CRIU 4.2
}

func (r pageRun) end() uint64 { return r.at + r.pages*pageSize }

// pagemap is such an image.
type pagemap struct {
	head  []byte // with its magic
	pages uint64 // the number of the image of pages
	runs  []pageRun
}

// bytes is how many the image of pages has for it.
func (p *pagemap) bytes() (sum uint64) {
	for _, r := range p.runs {
		if r.flags&pagePresent != 0 {
			sum += r.pages * pageSize
		}
	}
	return sum
}

// readPagemap reads the image of one process.
func readPagemap(path string) (*pagemap, error) {
	b, err := readImage(path, pagemapMagic, maxPagemap)
	if err != nil {
		return nil, err
	}
	bad := fmt.Errorf("image %s is cut", filepath.Base(path))
	p := &pagemap{}
	var off uint64
	for first, at := true, 8; at < len(b); first = false {
		if len(b)-at < 4 {
			return nil, bad
		}
		size := int(binary.LittleEndian.Uint32(b[at:]))
		if size > len(b)-at-4 {
			return nil, bad
		}
		body := b[at+4 : at+4+size]
		at += 4 + size
		f, err := varints(body)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", filepath.Base(path), err)
		}
		if first {
			p.head, p.pages = b[:at], f[1]
			continue
		}
		r := pageRun{at: f[1], pages: cmp.Or(f[5], f[2]), flags: f[4], raw: body, off: off, short: f[5] == 0}
		if f[3] != 0 {
			r.flags |= pageParent
		}
		if r.at%pageSize != 0 || r.at > 1<<47 || r.pages > 1<<36 || r.end() > 1<<47 {
			return nil, bad
		}
		if r.flags&pagePresent != 0 {
			off += r.pages * pageSize
		}
		p.runs = append(p.runs, r)
	}
	return p, nil
}

// varints reads the numbers of a message by field.
func varints(b []byte) (map[protowire.Number]uint64, error) {
	out := map[protowire.Number]uint64{}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		b = b[n:]
		if typ == protowire.VarintType {
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return nil, protowire.ParseError(n)
			}
			out[num], b = v, b[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return nil, protowire.ParseError(n)
		}
		b = b[n:]
	}
	return out, nil
}

// readImage reads an image with its two magics.
func readImage(path string, magic uint32, limit int64) ([]byte, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > limit {
		return nil, fmt.Errorf("image %s is no regular file of at most %d bytes", filepath.Base(path), limit)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(b) < 8 || binary.LittleEndian.Uint32(b) != commonMagic || binary.LittleEndian.Uint32(b[4:]) != magic {
		return nil, fmt.Errorf("image %s does not begin as it should", filepath.Base(path))
	}
	return b, nil
}

// Kinds and advice of mappings: image.h of CRIU, linux/mman.h.
const (
	vmaRegular     = 1 << 0
	vmaHeap        = 1 << 5
	vmaAnonPrivate = 1 << 9

	// Advice that changes nothing of what a page holds: huge pages, merging of equal ones, no core dump.
	harmlessAdvice = 1<<12 | 1<<13 | 1<<14 | 1<<15 | 1<<16
)

// mapping is memory of a process that could come later.
type mapping struct {
	pid        int
	start, end uint64
	shared     bool // another process has one at the same place
}

// readMappings returns those of one process.
func readMappings(path string, pid int) ([]mapping, error) {
	b, err := readImage(path, mmMagic, maxMM)
	if err != nil {
		return nil, err
	}
	if len(b) < 12 || int64(binary.LittleEndian.Uint32(b[8:])) != int64(len(b)-12) {
		return nil, fmt.Errorf("image %s is cut", filepath.Base(path))
	}
	var e mm.MmEntry
	if err := proto.Unmarshal(b[12:], &e); err != nil {
		return nil, fmt.Errorf("image %s: %w", filepath.Base(path), err)
	}
	var out []mapping
	for _, v := range e.GetVmas() {
		const no = unix.MAP_SHARED | unix.MAP_GROWSDOWN | unix.MAP_LOCKED | unix.MAP_HUGETLB
		plain := v.GetStatus()&^vmaHeap == vmaRegular|vmaAnonPrivate && v.GetFlags()&unix.MAP_ANONYMOUS != 0 && v.GetFlags()&no == 0
		if plain && v.GetMadv()&^harmlessAdvice == 0 && v.GetEnd()-v.GetStart() >= LazyMapping {
			out = append(out, mapping{pid: pid, start: v.GetStart(), end: v.GetEnd()})
		}
	}
	return out, nil
}

// planThin says what of the images can come later: whole mappings of private, anonymous memory with many pages. It is nil where that is
// less than least bytes. What a process may share with the one that forked it comes at once, as CRIU shares it again.
func planThin(images string, least int64) (*thin, error) {
	paths, err := filepath.Glob(filepath.Join(images, "pagemap-[0-9]*.img"))
	if err != nil {
		return nil, err
	}
	var all []mapping
	stopped := map[int]bool{}
	for _, path := range paths {
		pid, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "pagemap-"), ".img"))
		if err != nil || pid == 1 { // PID 1 has little, and answers first
			continue
		}
		if stopped[pid], err = dumpedStopped(filepath.Join(images, fmt.Sprintf("core-%d.img", pid))); err != nil {
			return nil, err
		}
		m, err := readMappings(filepath.Join(images, fmt.Sprintf("mm-%d.img", pid)), pid)
		if err != nil {
			return nil, err
		}
		all = append(all, m...)
	}
	slices.SortFunc(all, func(a, b mapping) int { return cmp.Compare(a.start, b.start) })
	for i, reach := 1, 0; i < len(all); i++ { // reach is the one before that ends last
		if all[i].start < all[reach].end {
			all[i].shared, all[reach].shared = true, true
		}
		if all[i].end > all[reach].end {
			reach = i
		}
	}
	own := map[int][]mapping{}
	for _, m := range all {
		if !m.shared && !stopped[m.pid] { // who is stopped cannot be made to ask for a userfaultfd
			own[m.pid] = append(own[m.pid], m)
		}
	}
	t := &thin{stopped: stopped}
	left := int64(0) // of those that get some later, what comes at once
	for pid, mappings := range own {
		pm, err := readPagemap(filepath.Join(images, pagemapName(pid)))
		if err != nil {
			return nil, err
		}
		l := late{pid: pid, file: len(t.files)}
		for _, m := range mappings {
			var rs []pager.Range
			var sum uint64
			for _, r := range pm.runs {
				if r.flags&(pageLazy|pagePresent|pageParent) != pageLazy|pagePresent || r.end() <= m.start || r.at >= m.end {
					continue
				}
				a, b := max(r.at, m.start), min(r.end(), m.end)
				rs = append(rs, pager.Range{Dst: a, Len: b - a, Off: r.off + a - r.at, File: uint32(l.file)})
				sum += b - a
			}
			if sum >= LazyMapping {
				l.ranges, l.mappings = append(l.ranges, rs...), append(l.mappings, m)
				t.bytes += int64(sum)
			}
		}
		if len(l.ranges) > 0 {
			t.late = append(t.late, l)
			t.files = append(t.files, fmt.Sprintf("pages-%d.img", pm.pages))
			left += int64(pm.bytes())
		}
	}
	left -= t.bytes
	pieces := 0
	for _, l := range t.late {
		pieces += len(l.ranges)
	}
	if t.bytes == 0 || t.bytes < least || pieces > maxPieces || left > maxThin {
		return nil, nil
	}
	return t, nil
}

// open makes the images that are thin, and no others, in a file system in memory that is mounted nowhere and ends with the folder that is returned.
func (t *thin) open(images string) (_ *os.File, err error) {
	ctx, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open file system tmpfs: %w", err)
	}
	defer unix.Close(ctx)
	for _, o := range [][2]string{{"source", "soulbox"}, {"mode", "0755"}, {"size", strconv.Itoa(2 * maxThin)}} {
		if err := unix.FsconfigSetString(ctx, o[0], o[1]); err != nil {
			return nil, fmt.Errorf("set tmpfs option %s=%s: %w", o[0], o[1], err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return nil, fmt.Errorf("make tmpfs: %w", err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount tmpfs: %w", err)
	}
	to := os.NewFile(uintptr(fd), "images")
	for i, l := range t.late {
		if err := l.write(images, to, t.files[i]); err != nil {
			return nil, errors.Join(fmt.Errorf("thin images of process %d: %w", l.pid, err), to.Close())
		}
	}
	return to, nil
}

// names are those of the images that are thin.
func (t *thin) names() (out []string) {
	for i, l := range t.late {
		out = append(out, t.files[i], pagemapName(l.pid))
	}
	return out
}

func pagemapName(pid int) string { return fmt.Sprintf("pagemap-%d.img", pid) }

// Folders of an own mount namespace, in the one of what comes from outside, where the thin images are laid over the others.
const (
	wholeFolder = "criu-whole"
	thinFolder  = "criu-thin"
)

// lay lays the thin images over the others, in this thread's mount namespace, where outside is a folder for mounts. It returns the folder that shows both.
func (i *Images) lay(outside string) (*os.File, error) {
	whole, over := filepath.Join(outside, wholeFolder), filepath.Join(outside, thinFolder)
	for path, mount := range map[string]*os.File{whole: i.dir, over: i.over} {
		if err := os.Mkdir(path, 0o711); err != nil {
			return nil, err
		}
		if err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return nil, fmt.Errorf("attach images at %s: %w", path, err)
		}
	}
	for _, name := range i.lazy.thin.names() {
		if err := unix.Mount(filepath.Join(over, name), filepath.Join(whole, name), "", unix.MS_BIND, ""); err != nil {
			return nil, fmt.Errorf("lay %s over the whole one: %w", name, err)
		}
	}
	return openDir(whole)
}

func copyImage(path string, to *os.File, name string) (err error) {
	from, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	f, err := createImage(to, name)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

func createImage(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make image %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := f.Chmod(0o644); err != nil { // processes under restoration read theirs, with the sandbox's ids
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// write writes the images of one process.
func (l late) write(images string, to *os.File, pages string) (err error) {
	name := pagemapName(l.pid)
	pm, err := readPagemap(filepath.Join(images, name))
	if err != nil {
		return err
	}
	from, err := os.Open(filepath.Join(images, pages))
	if err != nil {
		return err
	}
	defer from.Close()
	f, err := createImage(to, pages)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 256<<10)
	defer func() { err = errors.Join(err, w.Flush(), f.Close()) }()
	out := slices.Clone(pm.head)
	for _, r := range pm.runs {
		for _, k := range l.without(r) {
			body := k.raw
			if k.at != r.at || k.pages != r.pages {
				body = k.encode()
			}
			out = binary.LittleEndian.AppendUint32(out, uint32(len(body)))
			out = append(out, body...)
			if k.flags&pagePresent == 0 {
				continue
			}
			if _, err := io.Copy(w, io.NewSectionReader(from, int64(k.off), int64(k.pages*pageSize))); err != nil {
				return err
			}
		}
	}
	m, err := createImage(to, name)
	if err != nil {
		return err
	}
	_, err = m.Write(out)
	return errors.Join(err, m.Close())
}

// without returns what of a run does not come later.
func (l late) without(r pageRun) []pageRun {
	if r.flags&pageLazy == 0 {
		return []pageRun{r}
	}
	var kept []pageRun
	part := func(from, to uint64) {
		if from < to {
			kept = append(kept, pageRun{at: from, pages: (to - from) / pageSize, flags: r.flags, off: r.off + from - r.at, raw: r.raw, short: r.short})
		}
	}
	at := r.at
	first, _ := slices.BinarySearchFunc(l.ranges, r.at, func(o pager.Range, a uint64) int { return cmp.Compare(o.Dst+o.Len, a+1) })
	for _, o := range l.ranges[first:] {
		if o.Dst >= r.end() {
			break
		}
		part(at, o.Dst)
		at = min(o.Dst+o.Len, r.end())
	}
	part(at, r.end())
	return kept
}

// encode encodes a part of a run.
func (r pageRun) encode() []byte {
	var b []byte
	short, long := uint64(0), r.pages
	if r.short {
		short = r.pages
	}
	for _, f := range []struct {
		num protowire.Number
		v   uint64
	}{{1, r.at}, {2, short}, {4, r.flags}, {5, long}} {
		if f.num == 5 && r.short {
			continue
		}
		b = protowire.AppendTag(b, f.num, protowire.VarintType)
		b = protowire.AppendVarint(b, f.v)
	}
	return b
}
