package checkpoint

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v7/rpc"

	"github.com/soulbox-dev/soulbox/nomad-driver/osthread"
)

// Most of a dump's frozen time is the copy of memory, for which CRIU has one processor: it moves pages from each process into pipes, and from there into a file.
// Nothing changes in what is frozen, so that copy is made here, on all processors, while CRIU looks at all else. CRIU takes it for that of an earlier dump
// in which no page has been written to since, checks that it has each page, and leaves them out. DESIGN.md says why what it is told is true.

const (
	// besideLeast is the least memory, in bytes, of all processes for which that pays. Of one process it is aheadProcess.
	besideLeast = 8 << 20
	// besidePiece is how much is read at once, in bytes: what a processor's cache has room for until it is written.
	besidePiece = 256 << 10
	// besideWorkers bounds how many copy at once.
	besideWorkers = 8
	// besideNice is the priority of those beside CRIU: a third of its share of a processor that they have to share, and not less, since what they copy stands still.
	besideNice = 5
)

// errBeside is in the chain of an error of a dump that may go well where CRIU copies the memory itself.
var errBeside = errors.New("memory that was copied beside the dump is of no use")

// Beside says why CRIU copies all memory itself in a dump; nil: it need not.
func (e *Engine) Beside() error { return e.beside }

// beside is memory of frozen processes that is being copied.
type beside struct {
	*Ahead
	work   *errgroup.Group
	cancel context.CancelFunc
}

// copyBeside begins to copy the memory of frozen processes into a new folder, which CRIU may be told of at once; into room first, as far as there is some. Nil: it does not
// pay. giveUp has to be called, or wait, and then finish.
func (e *Engine) copyBeside(ctx context.Context, pids []int, dir string, room *Room) (_ *beside, err error) {
	uptime, err := uptime()
	if err != nil {
		return nil, err
	}
	parts, err := aheadParts(pids, besideLeast)
	if err != nil || parts == nil {
		return nil, err
	}
	a := &Ahead{dir: dir, Rounds: 1}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Remove())
		}
	}()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	for _, p := range parts {
		pages, err := e.plan(p)
		if errors.Is(err, errTooLarge) || errors.Is(err, errKernelWrites) {
			continue // CRIU copies it
		}
		if err != nil {
			return nil, fmt.Errorf("process %d: %w", p.inside, err)
		}
		p.runs = pages
		for _, r := range pages {
			a.Bytes += int64(r.pages * pageSize)
		}
		if p.pages, err = os.OpenFile(filepath.Join(dir, fmt.Sprintf("pages-%d.img", len(a.parts)+1)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return nil, err
		}
		a.parts = append(a.parts, p)
	}
	if len(a.parts) == 0 {
		return nil, a.Remove()
	}
	if err := a.writeImages(uptime); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	b := &beside{Ahead: a, cancel: cancel}
	b.start(ctx, room.all())
	return b, nil
}

// errKernelWrites says that the kernel may write to a process's memory though it is frozen.
var errKernelWrites = errors.New("it has asynchronous input and output")

// maxCode is how many first pages of code are read of each process.
const maxCode = 16

// plan returns which pages of a frozen process CRIU will want, by address.
func (e *Engine) plan(p *aheadPart) ([]pageRun, error) {
	if e.ahead == nil { // what is not written to from here on is as it is copied
		if err := p.track(); err != nil {
			return nil, err
		}
	}
	m, err := p.memory()
	if err != nil {
		return nil, err
	}
	defer m.close()
	scan, err := m.scan()
	if err != nil {
		return nil, err
	}
	pages := scan.all()
	if _, err := m.maps.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	p.code = map[uint64][]byte{}
	first := true
	lines := bufio.NewScanner(m.maps)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) > 5 && strings.HasPrefix(f[5], "/[aio]") {
			return nil, errKernelWrites
		}
		if f[1][2] != 'x' {
			continue
		}
		// CRIU calls the kernel from the first page that holds code: it writes there and puts back what was there, which makes that page one of the process's
		// own if it was not yet. So it is among the pages that CRIU will want, and what is in it is read before CRIU comes; and in those after it, should CRIU pass some over.
		var at uint64
		if _, err := fmt.Sscanf(f[0], "%x-", &at); err != nil {
			return nil, fmt.Errorf("mapping %.100q: %w", lines.Text(), err)
		}
		i := runBehind(pages, at)
		own := i < len(pages) && pages[i].at <= at
		if first && !own && f[1][3] == 'p' {
			pages, own = slices.Insert(pages, i, pageRun{at: at, pages: 1, flags: pagePresent}), true
		}
		first = false
		if own && len(p.code) < maxCode {
			page := make([]byte, pageSize)
			if _, err := m.data.ReadAt(page, int64(at)); err != nil {
				return nil, err
			}
			p.code[at] = page
		}
	}
	return pages, lines.Err()
}

// start begins to copy: pieces of the files, each by whoever is free.
func (b *beside) start(ctx context.Context, room []byte) {
	b.work, ctx = errgroup.WithContext(ctx)
	b.work.Go(func() error {
		type piece struct {
			p        *aheadPart
			from, to uint64 // in the file
		}
		var pieces []piece
		for _, p := range b.parts {
			if err := p.place(); err != nil {
				return fmt.Errorf("process %d: %w", p.inside, err)
			}
			n := min(int(p.size), len(room)/besidePiece*besidePiece)
			p.held, room = room[:n], room[n:]
			for from := uint64(0); from < uint64(p.size); from += besidePiece {
				pieces = append(pieces, piece{p, from, min(from+besidePiece, uint64(p.size))})
			}
		}
		var next atomic.Int64
		copy := func() error {
			buf := make([]byte, besidePiece)
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(pieces) {
					return nil
				}
				c := pieces[i]
				if err := c.p.copyPiece(buf, c.from, c.to); err != nil {
					return fmt.Errorf("process %d: %w", c.p.inside, err)
				}
				runtime.Gosched() // what CRIU asks meanwhile waits for one of those who copy
			}
			return ctx.Err()
		}
		for range min(runtime.GOMAXPROCS(0), besideWorkers, len(pieces)) {
			b.work.Go(func() (err error) {
				osthread.ThrowAway(func() {
					// CRIU goes first: it has more to do that only it can do.
					_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), besideNice)
					err = copy()
				})
				return err
			})
		}
		return nil
	})
}

// place gives each page its place in the file: in the order in which they are in memory, and without those that the kernel may drop at any time, which no image has.
func (p *aheadPart) place() error {
	dropped, err := droppable(p.process.PID)
	if err != nil {
		return err
	}
	runs := p.runs
	p.runs = nil
	add := func(r pageRun, from, to uint64) {
		if from < to {
			p.runs = append(p.runs, pageRun{at: from, pages: (to - from) / pageSize, flags: r.flags, off: uint64(p.size)})
			p.size += int64(to - from)
		}
	}
	for _, r := range runs {
		from := r.at
		for len(dropped) > 0 && dropped[0].from < r.end() {
			d := dropped[0]
			add(r, from, d.from)
			from = max(from, d.to)
			if d.to > r.end() {
				break // there may be more of it in the next run
			}
			dropped = dropped[1:]
		}
		add(r, from, r.end())
	}
	return nil
}

// span is a piece of memory.
type span struct{ from, to uint64 }

// droppable returns a process's mappings of MAP_DROPPABLE, by address.
func droppable(pid int) (out []span, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var at span
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if flags, ok := strings.CutPrefix(lines.Text(), "VmFlags:"); ok {
			if slices.Contains(strings.Fields(flags), "dp") {
				out = append(out, at)
			}
			continue
		}
		if first, _, _ := strings.Cut(lines.Text(), " "); !strings.HasSuffix(first, ":") {
			if _, err := fmt.Sscanf(first, "%x-%x", &at.from, &at.to); err != nil {
				return nil, fmt.Errorf("mapping %.100q: %w", lines.Text(), err)
			}
		}
	}
	return out, lines.Err()
}

// copyPiece copies what belongs to a place in the file of pages, to where there is room for it, or through buf, which is long enough.
func (p *aheadPart) copyPiece(buf []byte, from, to uint64) error {
	held := to <= uint64(len(p.held))
	if buf = buf[:to-from]; held {
		buf = p.held[from:to]
	}
	// Runs are in the file in the order in which they are in memory.
	i, _ := slices.BinarySearchFunc(p.runs, from, func(r pageRun, from uint64) int {
		if r.off+r.pages*pageSize <= from {
			return -1
		}
		return 1
	})
	var there []unix.RemoteIovec
	for at := from; at < to; i++ {
		r := p.runs[i]
		n := min(r.off+r.pages*pageSize, to) - at
		there = append(there, unix.RemoteIovec{Base: uintptr(r.at + at - r.off), Len: int(n)})
		at += n
	}
	if err := p.read(buf, there); err != nil || held {
		return err
	}
	_, err := p.pages.WriteAt(buf, int64(from))
	return err
}

// maxIovecs is how many pieces of memory the kernel takes at once (UIO_MAXIOV).
const maxIovecs = 1024

// read reads pieces of a process's memory, which are as long together as buf.
func (p *aheadPart) read(buf []byte, there []unix.RemoteIovec) error {
	for list := range slices.Chunk(there, maxIovecs) {
		n := 0
		for _, r := range list {
			n += r.Len
		}
		here := []unix.Iovec{{Base: &buf[0], Len: uint64(n)}}
		if got, err := unix.ProcessVMReadv(p.process.PID, here, list, 0); err != nil || got != n {
			if err := p.readByForce(buf[:n], list); err != nil {
				return err
			}
		}
		buf = buf[n:]
	}
	return nil
}

// readByForce reads pieces of which some may not be read by the process itself.
func (p *aheadPart) readByForce(buf []byte, there []unix.RemoteIovec) error {
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", p.process.PID))
	if err != nil {
		return err
	}
	defer mem.Close()
	for _, r := range there {
		if _, err := mem.ReadAt(buf[:r.Len], int64(r.Base)); err != nil {
			return err
		}
		buf = buf[r.Len:]
	}
	return nil
}

// wait waits for the copy, and looks whether it has all that a dump lacks. Afterwards the processes may go on. On error nothing of it is left.
func (b *beside) wait(images string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w: %w", errBeside, errors.Join(err, b.giveUp()))
		}
	}()
	if err := b.work.Wait(); err != nil {
		return err
	}
	for _, p := range b.parts {
		if err := p.suffices(images); err != nil {
			return fmt.Errorf("process %d: %w", p.inside, err)
		}
	}
	return nil
}

// finish makes the images of a dump that is done whole with the copy, and returns how many bytes they have. On error they are of no use.
func (b *beside) finish(images string) (int64, error) {
	b.cancel()
	for _, p := range b.parts {
		if err := p.write(); err != nil {
			return 0, errors.Join(fmt.Errorf("memory of process %d: %w", p.inside, err), b.Remove())
		}
	}
	return b.Merge(images)
}

// write writes what is not written yet, and the pages that CRIU may have had its own code in while they were copied.
func (p *aheadPart) write() error {
	for at := 0; at < len(p.held); at += 1 << 20 {
		if _, err := p.pages.WriteAt(p.held[at:min(at+1<<20, len(p.held))], int64(at)); err != nil {
			return err
		}
	}
	return p.putCode()
}

// putCode writes the pages that CRIU may have had its own code in while they were copied.
func (p *aheadPart) putCode() error {
	for at, page := range p.code {
		r := p.runs[runBehind(p.runs, at)]
		if _, err := p.pages.WriteAt(page, int64(r.off+at-r.at)); err != nil {
			return err
		}
	}
	return nil
}

// giveUp ends the copy of a dump that has failed.
func (b *beside) giveUp() error {
	b.cancel()
	_ = b.work.Wait()
	return b.Remove()
}

// forge returns what CRIU knows of the kernel, changed so that it takes memory that was copied beside for that of a dump before. It asks a kernel that tracks nothing in vain
// which pages have been written to since, and takes the answer, none, for the truth; and here it is the truth. Where in that file it says so differs from one version
// of CRIU to the next, so CRIU itself is asked whether it reads it.
func (e *Engine) forge(ctx context.Context) ([]byte, error) {
	// At the end of a dump CRIU asks the kernel to track, and does not expect it to refuse.
	f, err := os.OpenFile("/proc/thread-self/clear_refs", os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteString("4")
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("ask for pages to be tracked: %w", err)
	}
	for at := kerndatFrom; at < min(kerndatTo, len(e.kerndat)); at += 4 {
		if e.kerndat[at] != 0 {
			continue
		}
		forged := slices.Clone(e.kerndat)
		forged[at] = 1
		resp, err := e.call(ctx, place{kerndat: forged}, request{typ: rpc.CriuReqType_FEATURE_CHECK, features: &rpc.CriuFeatures{MemTrack: proto.Bool(true)}})
		if err == nil && resp.GetFeatures().GetMemTrack() {
			return forged, nil
		}
	}
	return nil, errors.New("criu cannot be told that pages are tracked")
}

// Where in the file it is looked for, in bytes: behind two numbers that say what the file is.
const (
	kerndatFrom = 8
	kerndatTo   = 64
)
