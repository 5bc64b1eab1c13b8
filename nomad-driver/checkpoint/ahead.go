package checkpoint

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v7/crit/images/inventory"

	"github.com/soulbox-dev/soulbox/nomad-driver/procstat"
)

// Most of a dump's frozen time is the copy of memory. Where the kernel tracks which pages are written to, that copy is made before, while the processes run,
// and the dump has only the pages that have changed since: the copy is its parent, in CRIU's terms. CRIU is not asked for it: it copies from inside a
// process, so a CRIU that is killed meanwhile leaves a process that stands still. Here nobody is stopped, traced or changed by it.

const (
	// AheadLeast is the least memory, in bytes, for which a copy ahead pays.
	AheadLeast = 64 << 20
	// aheadProcess is the least memory of one process that is copied ahead.
	aheadProcess = 4 << 20
	// aheadRounds bounds how often what has changed meanwhile is copied again. That is worth it from a quarter of what is worth a copy at all.
	aheadRounds = 3
	// maxAddresses bounds the private mappings of a process that is copied ahead, in bytes: each of their pages is looked at.
	maxAddresses = 16 << 30

	inventoryMagic = 0x58313116
)

// ErrAhead is in the chain of an error of a dump that has a copy made ahead, and that may go well without.
var ErrAhead = errors.New("memory that was copied ahead is of no use")

// AheadOptions say what to copy ahead.
type AheadOptions struct {
	PIDs []int  // on the host
	Dir  string // new folder for the copy, beside that of the images
	// Freeze and Thaw stop and start the processes: for as long as it takes to see what has changed.
	Freeze, Thaw func(ctx context.Context) error
	Least        int64 // bytes; with less memory than that nothing is copied
}

// Ahead is memory that was copied while its processes ran.
type Ahead struct {
	dir    string
	parts  []*aheadPart
	Bytes  int64         // copied, in all rounds
	Rounds int           // of copies
	Frozen time.Duration // the longest time for which the processes stood still
}

// aheadPart is what was copied of one process.
type aheadPart struct {
	process process // on the host
	inside  int     // its pid
	pages   *os.File
	size    int64     // of pages
	runs    []pageRun // by address; where a page is in pages is in no order
	// code is what was in pages, by address, that CRIU may have written to while they were copied.
	code map[uint64][]byte
	held []byte // what is to be the beginning of pages
}

// Ahead says why no memory can be copied before a dump; nil: it can.
func (e *Engine) Ahead() error { return e.ahead }

// CopyAhead copies the memory of processes that run, for a dump that follows soon. Nil: it does not pay, or cannot be done here. Whatever becomes of it, the
// processes run on as they did; where this process is killed meanwhile they may have to be thawed. On error nothing of the copy is left.
func (e *Engine) CopyAhead(ctx context.Context, o AheadOptions) (_ *Ahead, err error) {
	if e.ahead != nil {
		return nil, nil
	}
	// A process that is not older than this is another one, with the number of one that was copied.
	uptime, err := uptime()
	if err != nil {
		return nil, err
	}
	least := cmp.Or(o.Least, AheadLeast)
	parts, err := aheadParts(o.PIDs, least)
	if err != nil || parts == nil {
		return nil, err
	}
	a := &Ahead{dir: o.Dir, parts: parts}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Remove())
		}
	}()
	if err := os.Mkdir(o.Dir, 0o700); err != nil {
		return nil, err
	}
	for i, p := range a.parts {
		if p.pages, err = os.OpenFile(filepath.Join(o.Dir, fmt.Sprintf("pages-%d.img", i+1)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return nil, err
		}
	}
	if err := a.first(ctx); err != nil {
		return nil, err
	}
	for last := a.Bytes; a.Rounds <= aheadRounds; {
		changed, err := a.changed()
		if err != nil {
			return nil, err
		}
		if changed <= least/4 || changed > last/2 {
			break // a dump copies that quickly enough, or the next round would find as much
		}
		if last, err = a.again(ctx, o); err != nil {
			return nil, err
		}
	}
	if len(a.parts) == 0 {
		return nil, a.Remove()
	}
	return a, a.writeImages(uptime)
}

// aheadParts finds the processes with much memory. Nil: with all of them it is less than least.
func aheadParts(pids []int, least int64) ([]*aheadPart, error) {
	inside, err := insidePIDs(pids)
	if err != nil {
		return nil, err
	}
	var parts []*aheadPart
	var sum int64
	for in, pid := range inside {
		bytes, err := privateBytes(pid)
		if gone(err) || err == nil && (bytes < aheadProcess || in == 1) { // PID 1 has little, and keeps it to itself
			continue
		}
		if err != nil {
			return nil, err
		}
		id, err := identify(pid)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		sum += bytes
		parts = append(parts, &aheadPart{process: id, inside: in})
	}
	if sum < least {
		return nil, nil
	}
	return parts, nil
}

// gone reports whether an error says that a process has ended.
func gone(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// privateBytes returns how much memory a process has of its own, swapped out or not.
func privateBytes(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	var sum int64
	for line := range strings.Lines(string(b)) {
		key, v, _ := strings.Cut(line, ":")
		if key != "RssAnon" && key != "VmSwap" {
			continue
		}
		var kib int64
		if _, err := fmt.Sscan(v, &kib); err != nil {
			return 0, fmt.Errorf("%s of process %d: %w", key, pid, err)
		}
		sum += kib << 10
	}
	return sum, nil
}

// uptime returns the time since boot in µs.
func uptime() (uint64, error) {
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, err
	}
	var s, hundredths uint64
	if _, err := fmt.Sscanf(string(b), "%d.%d", &s, &hundredths); err != nil {
		return 0, fmt.Errorf("uptime: %w", err)
	}
	return s*1e6 + hundredths*1e4, nil
}

// first copies all that the processes have.
func (a *Ahead) first(ctx context.Context) error {
	return a.each(func(p *aheadPart) error {
		// First the kernel is asked to track, and only then is anything looked at: what is not the copied page any more has been written to since. A program that
		// is executed meanwhile has memory that counts as written to from its beginning.
		if err := p.track(); err != nil {
			return err
		}
		m, err := p.memory()
		if err != nil {
			return err
		}
		defer m.close()
		scan, err := m.scan()
		if err != nil {
			return err
		}
		return a.copy(ctx, p, m, scan.all())
	}, func() { a.Rounds++ })
}

// errTooLarge says that to look at all pages of a process would take too long.
var errTooLarge = fmt.Errorf("its mappings are larger than %d GiB", maxAddresses>>30)

// each does something with each process, and forgets those that have ended, or are too large: a dump has all of theirs.
func (a *Ahead) each(f func(p *aheadPart) error, then func()) error {
	var errs []error
	a.parts = slices.DeleteFunc(a.parts, func(p *aheadPart) bool {
		err := p.same()
		if err == nil {
			err = f(p)
		}
		switch {
		case err == nil:
			return false
		case !gone(err) && !errors.Is(err, errTooLarge):
			errs = append(errs, fmt.Errorf("process %d: %w", p.inside, err))
			return false
		}
		errs = append(errs, p.pages.Close())
		return true
	})
	then()
	return errors.Join(errs...)
}

// same returns unix.ESRCH where the process has ended.
func (p *aheadPart) same() error {
	s, err := procstat.Of(p.process.PID)
	if err == nil && s.Started() != p.process.Start {
		err = unix.ESRCH
	}
	return err
}

// track has the kernel track which pages are written to from now on.
func (p *aheadPart) track() error {
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/clear_refs", p.process.PID), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("4")
	return errors.Join(err, f.Close())
}

// changed returns how many bytes have been written to since the last round.
func (a *Ahead) changed() (sum int64, err error) {
	err = a.each(func(p *aheadPart) error {
		m, err := p.memory()
		if err != nil {
			return err
		}
		defer m.close()
		scan, err := m.scan()
		for _, r := range scan.written {
			sum += int64(r.pages * pageSize)
		}
		return err
	}, func() {})
	return sum, err
}

// again copies what has changed since the last round, and returns how much that was. What has changed is seen, and tracked anew, while everything stands still.
func (a *Ahead) again(ctx context.Context, o AheadOptions) (int64, error) {
	begin := time.Now()
	type look struct {
		m    *memory
		scan scan
	}
	looks := map[*aheadPart]look{}
	defer func() {
		for _, l := range looks {
			l.m.close()
		}
	}()
	err := o.Freeze(ctx)
	if err == nil {
		err = a.each(func(p *aheadPart) error {
			m, err := p.memory()
			if err != nil {
				return err
			}
			scan, err := m.scan()
			looks[p] = look{m, scan}
			return errors.Join(err, p.track())
		}, func() {})
	}
	err = errors.Join(err, o.Thaw(context.WithoutCancel(ctx)))
	a.Frozen = max(a.Frozen, time.Since(begin))
	if err != nil {
		return 0, err
	}
	before := a.Bytes
	err = a.each(func(p *aheadPart) error {
		l := looks[p]
		p.runs = intersect(p.runs, l.scan.still) // of those that are there, and as they were
		return a.copy(ctx, p, l.m, l.scan.written)
	}, func() { a.Rounds++ })
	return a.Bytes - before, err
}

// memory is the memory of a process at one time: of the program that it executed then.
type memory struct {
	pid                 int
	maps, pagemap, data *os.File
}

func (p *aheadPart) memory() (_ *memory, err error) {
	m := &memory{pid: p.process.PID}
	for name, to := range map[string]**os.File{"maps": &m.maps, "pagemap": &m.pagemap, "mem": &m.data} {
		if *to, err = os.Open(fmt.Sprintf("/proc/%d/%s", m.pid, name)); err != nil {
			m.close()
			return nil, err
		}
	}
	return m, p.same()
}

func (m *memory) close() {
	for _, f := range []*os.File{m.maps, m.pagemap, m.data} {
		if f != nil {
			_ = f.Close() // only read
		}
	}
}

// Bits of an entry of /proc/pid/pagemap, beside those that say that there is a page.
const (
	memoryWritten = 1 << 55 // since it is tracked
	memoryOfFile  = 1 << 61 // or shared
	memoryGuard   = 1 << 58 // of MADV_GUARD_INSTALL, beside that of what is swapped out: there is nothing (Linux 6.15)
	memoryFrame   = 1<<55 - 1
)

// zeroFrame is the number of the page of zeros, which memory has that was only read yet, and no image; 0: it is not told.
var zeroFrame = sync.OnceValue(func() uint64 {
	page, err := unix.Mmap(-1, 0, pageSize, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0
	}
	defer func() { _ = unix.Munmap(page) }()
	at := address(page) + uint64(page[0]) // which reads it
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return 0
	}
	defer f.Close()
	var b [8]byte
	if _, err := f.ReadAt(b[:], int64(at/pageSize*8)); err != nil {
		return 0
	}
	v := binary.LittleEndian.Uint64(b[:])
	if v&memoryPresent == 0 || v&memoryOfFile != 0 {
		return 0
	}
	return v & memoryFrame
})

// address returns where memory is.
func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }

// scan is which pages of its own a process has, by address: those that were written to since they are tracked, and the others.
type scan struct{ written, still []pageRun }

// all returns both.
func (s scan) all() []pageRun {
	all := append(slices.Clone(s.written), s.still...)
	sortRuns(all)
	return all
}

// scan looks at all private mappings: at those that CRIU looks at.
func (m *memory) scan() (s scan, err error) {
	sum := uint64(0)
	lines := bufio.NewScanner(m.maps)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		var from, to uint64
		if _, err := fmt.Sscanf(f[0], "%x-%x", &from, &to); err != nil || len(f) < 5 {
			return s, fmt.Errorf("mapping %.100q: %w", lines.Text(), err)
		}
		name := ""
		if len(f) > 5 {
			name = f[5]
		}
		if f[1][3] != 'p' || strings.HasPrefix(name, "[vvar") || name == "[vsyscall]" {
			continue
		}
		if sum += to - from; sum > maxAddresses {
			return s, errTooLarge
		}
		// As CRIU calls those that a restore may bring later.
		flags := uint64(pagePresent)
		if f[4] == "0" && name != "[vdso]" {
			flags |= pageLazy
		}
		if err := m.scanMapping(&s, from, to, flags, name == "[vdso]"); err != nil {
			return s, err
		}
	}
	return s, lines.Err()
}

func (m *memory) scanMapping(s *scan, from, to, flags uint64, always bool) error {
	b := make([]byte, 64<<10)
	zero := zeroFrame()
	for at := from; at < to; {
		n := min((to-at)/pageSize*8, uint64(len(b)))
		got, err := m.pagemap.ReadAt(b[:n], int64(at/pageSize*8))
		if got == 0 { // the program has ended
			if errors.Is(err, io.EOF) || err == nil {
				err = unix.ESRCH
			}
			return err
		}
		for e := range slices.Chunk(b[:got/8*8], 8) {
			v := binary.LittleEndian.Uint64(e)
			nothing := v&memoryGuard != 0 || v&memoryPresent != 0 && zero != 0 && v&memoryFrame == zero
			if always || v&(memoryPresent|memorySwapped) != 0 && v&memoryOfFile == 0 && !nothing {
				list := &s.still
				if v&memoryWritten != 0 {
					list = &s.written
				}
				*list = appendRun(*list, pageRun{at: at, pages: 1, flags: flags})
			}
			at += pageSize
		}
	}
	return nil
}

// appendRun appends pages that are behind all others, as part of the last run where they go on with it in memory and in the file.
func appendRun(rs []pageRun, r pageRun) []pageRun {
	if n := len(rs); n > 0 {
		if l := &rs[n-1]; l.end() == r.at && l.flags == r.flags && (r.off == 0 && l.off == 0 || l.off+l.pages*pageSize == r.off) {
			l.pages += r.pages
			return rs
		}
	}
	return append(rs, r)
}

// intersect returns those of rs that are in pages too. Both are by address.
func intersect(rs, pages []pageRun) (out []pageRun) {
	for i, j := 0, 0; i < len(rs) && j < len(pages); {
		r, p := rs[i], pages[j]
		if from, to := max(r.at, p.at), min(r.end(), p.end()); from < to {
			out = append(out, pageRun{at: from, pages: (to - from) / pageSize, flags: r.flags, off: r.off + from - r.at})
		}
		if r.end() < p.end() {
			i++
		} else {
			j++
		}
	}
	return out
}

// copy adds copies of these pages, which the process has no copies of yet. What cannot be read is left out: it is gone, or will be in the dump.
func (a *Ahead) copy(ctx context.Context, p *aheadPart, m *memory, pages []pageRun) error {
	buf := make([]byte, 1<<20)
	runs := p.runs
	for _, r := range pages {
		for at := r.at; at < r.end(); {
			if err := ctx.Err(); err != nil {
				return err
			}
			want := min(r.end()-at, uint64(len(buf)))
			n, err := m.data.ReadAt(buf[:want], int64(at))
			n = n / pageSize * pageSize
			if n == 0 {
				_ = err // it is not there
				at += pageSize
				continue
			}
			if _, err := p.pages.WriteAt(buf[:n], p.size); err != nil {
				return err
			}
			runs = append(runs, pageRun{at: at, pages: uint64(n) / pageSize, flags: r.flags, off: uint64(p.size)})
			p.size += int64(n)
			a.Bytes += int64(n)
			at += uint64(n)
		}
	}
	sortRuns(runs)
	p.runs = runs
	return nil
}

func sortRuns(rs []pageRun) {
	slices.SortFunc(rs, func(a, b pageRun) int { return cmp.Compare(a.at, b.at) })
}

// writeImages writes what makes the folder one that CRIU takes for that of an earlier dump.
func (a *Ahead) writeImages(uptime uint64) error {
	e := &inventory.InventoryEntry{ImgVersion: proto.Uint32(2), DumpUptime: proto.Uint64(uptime)}
	body, err := proto.Marshal(e)
	if err != nil {
		return err
	}
	b := appendEntry(binary.LittleEndian.AppendUint32(nil, inventoryMagic), body)
	if err := os.WriteFile(filepath.Join(a.dir, "inventory.img"), b, 0o600); err != nil {
		return err
	}
	for _, p := range a.parts {
		var number uint64
		if _, err := fmt.Sscanf(filepath.Base(p.pages.Name()), "pages-%d.img", &number); err != nil {
			return err
		}
		b := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, commonMagic), pagemapMagic)
		b = appendEntry(b, protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), number))
		for _, r := range p.runs {
			b = appendEntry(b, r.encode())
		}
		if err := os.WriteFile(filepath.Join(a.dir, fmt.Sprintf("pagemap-%d.img", p.inside)), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// appendEntry appends an entry of an image.
func appendEntry(b, body []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(body))), body...)
}

// Remove removes the copy. Nil has none.
func (a *Ahead) Remove() error {
	if a == nil {
		return nil
	}
	var errs []error
	for _, p := range a.parts {
		if p.pages != nil {
			errs = append(errs, p.pages.Close())
		}
	}
	a.parts = nil
	return errors.Join(append(errs, os.RemoveAll(a.dir))...)
}
