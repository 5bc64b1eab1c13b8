package checkpoint

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/pager"
	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/osthread"
)

// LazyLeast is the least memory, in bytes, for which a restore that leaves it out pays: DESIGN.md has the figures.
const LazyLeast = 32 << 20

// ErrLazy is in the chain of an error of a restore that would have gone well with all memory at once.
var ErrLazy = errors.New("memory cannot come later")

// Freezer is the control group of a restored tree.
type Freezer interface {
	Processes() ([]int, error)
	// StartFreeze asks its processes to stop; who is traced does so once the tracer lets go.
	StartFreeze(ctx context.Context) error
	Freeze(ctx context.Context) error // returns when all have
	Thaw(ctx context.Context) error
}

// LazyOptions say how a restore leaves memory out.
type LazyOptions struct {
	Dir   string // folder for what the page server keeps, which must not be there
	Least int64  // bytes; with less memory than that everything comes at once
	// First is what comes before the rest, of what comes later; nil: nothing in particular.
	First *Touched
	// Watch has nothing come unasked for a moment, to see what is touched first.
	Watch bool
}

// watchFor is how long Watch goes on: an answer takes a tenth of it, and all memory comes that much later.
const watchFor = 250 * time.Millisecond

func (o LazyOptions) watch() time.Duration {
	if o.Watch {
		return watchFor
	}
	return 0
}

// Lazy is a restore that leaves memory out.
type Lazy struct {
	o      LazyOptions
	images string // folder of the images, which stays until every page is there
	thin   *thin
}

// Lazy says why memory always comes at once; nil: it need not.
func (e *Engine) Lazy() error { return e.lazy }

// Prepare starts the page server, which waits for Serve: its start takes longer than all that it is told then. It is to be ended if anything goes wrong after that.
func (l *Lazy) Prepare(init string) (*Pages, error) {
	var files []string
	for _, name := range l.thin.files {
		files = append(files, filepath.Join(l.images, name))
	}
	p, err := newPages(init, l.o.Dir, files)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLazy, err)
	}
	if err := p.ready(len(l.thin.late)); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrLazy, err), p.Close())
	}
	return p, nil
}

// Serve has the page server begin for a restored tree that is frozen, and has not run. It is frozen then too.
func (l *Lazy) Serve(ctx context.Context, group Freezer, p *Pages) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w: %w", ErrLazy, err)
		}
	}()
	pids, err := group.Processes()
	if err != nil {
		return err
	}
	inside, err := insidePIDs(pids)
	if err != nil {
		return err
	}
	for in, pid := range inside { // to trace one that is stopped and frozen would wait for ever; it does not run anyway
		if l.thin.stopped[in] {
			pids = slices.DeleteFunc(pids, func(p int) bool { return p == pid })
		}
	}
	device, err := pager.OpenDevice()
	if err != nil {
		return err
	}
	defer unix.Close(device)
	osthread.ThrowAway(func() { // who traces is a thread
		var h *held
		if h, err = holdAll(pids, func() error { return group.Thaw(ctx) }); err != nil {
			return
		}
		failpoint.At("restore.thawed")
		err = l.serve(ctx, device, inside, p)
		err = errors.Join(err, group.StartFreeze(ctx), h.release())
	})
	if err == nil {
		err = group.Freeze(ctx)
	}
	return err
}

// insidePIDs maps the pids inside to those of the host, of processes that have not ended.
func insidePIDs(pids []int) (map[int]int, error) {
	out := map[int]int{}
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "NSpid:"); ok {
				f := strings.Fields(v)
				var inside int
				if _, err := fmt.Sscan(f[len(f)-1], &inside); err != nil {
					return nil, err
				}
				out[inside] = pid
			}
		}
	}
	return out, nil
}

// serve runs while all threads are held.
func (l *Lazy) serve(ctx context.Context, device int, inside map[int]int, p *Pages) (err error) {
	var fds []int
	defer func() {
		// The server has its own. Without one nobody runs any more who could see zeros.
		for _, fd := range fds {
			err = errors.Join(err, unix.Close(fd))
		}
	}()
	var spaces []pager.Space
	for _, late := range l.thin.late {
		pid, ok := inside[late.pid]
		if !ok {
			return fmt.Errorf("process %d is not there", late.pid)
		}
		fd, err := late.open(pid, device)
		if err != nil {
			return fmt.Errorf("process %d: %w", late.pid, err)
		}
		fds = append(fds, fd)
		rest, err := late.fillTouched(pid, filepath.Join(l.images, l.thin.files[late.file]))
		if err != nil {
			return fmt.Errorf("process %d: %w", late.pid, err)
		}
		spaces = append(spaces, pager.Space{Ranges: rest})
	}
	return p.begin(ctx, fds, spaces, l.o.First.order(l.thin), l.o.watch())
}

// open makes the userfaultfd of a process and has the kernel ask it for all that comes later.
func (l late) open(pid, device int) (_ int, err error) {
	r, err := tracee{pid}.begin()
	if err != nil {
		return -1, err
	}
	fd, err := r.userfaultfd(device)
	// Before it is asked for anything: the process's own way back to where it was may touch what is missing.
	if err := errors.Join(err, r.end()); err != nil {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
		return -1, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unix.Close(fd))
		}
	}()
	if err := pager.Begin(fd); err != nil {
		return -1, err
	}
	for _, m := range l.mappings {
		if err := pager.Register(fd, m.start, m.end-m.start); err != nil {
			return -1, err
		}
	}
	return fd, nil
}

// Bits of an entry of /proc/pid/pagemap.
const (
	memoryPresent = 1 << 63
	memorySwapped = 1 << 62
)

// fillTouched fills the pages that are there already, since the kernel has written to them on its way (it tells threads their processor in
// their own memory), and returns the others.
func (l late) fillTouched(pid int, pages string) (_ []pager.Range, err error) {
	var opened [3]*os.File
	for i, path := range []string{pages, fmt.Sprintf("/proc/%d/pagemap", pid), fmt.Sprintf("/proc/%d/mem", pid)} {
		flag := os.O_RDONLY
		if i == 2 {
			flag = os.O_RDWR
		}
		f, err := os.OpenFile(path, flag, 0)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		opened[i] = f
	}
	images, present, mem := opened[0], opened[1], opened[2]
	var rest []pager.Range
	b, page := make([]byte, 64<<10), make([]byte, pageSize)
	for _, r := range l.ranges {
		begin := uint64(0) // of what is missing, in r
		keep := func(end uint64) {
			if begin < end {
				rest = append(rest, pager.Range{Dst: r.Dst + begin, Len: end - begin, Off: r.Off + begin, File: r.File})
			}
		}
		for at := uint64(0); at < r.Len; {
			n := min((r.Len-at)/pageSize*8, uint64(len(b)))
			if _, err := present.ReadAt(b[:n], int64((r.Dst+at)/pageSize*8)); err != nil {
				return nil, fmt.Errorf("look for pages at %#x: %w", r.Dst+at, err)
			}
			for e := range slices.Chunk(b[:n], 8) {
				if binary.LittleEndian.Uint64(e)&(memoryPresent|memorySwapped) != 0 {
					if _, err := images.ReadAt(page, int64(r.Off+at)); err != nil {
						return nil, err
					}
					if _, err := mem.WriteAt(page, int64(r.Dst+at)); err != nil {
						return nil, fmt.Errorf("fill the page at %#x: %w", r.Dst+at, err)
					}
					keep(at)
					begin = at + pageSize
				}
				at += pageSize
			}
		}
		keep(r.Len)
	}
	return rest, nil
}
