package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// roomShare is which part of the memory that the machine has left all rooms together are at most.
	roomShare = 8
	// roomPiece is what a room is made of, in bytes: the larger pages of the kernel.
	roomPiece = 2 << 20
)

// Room is memory for what a dump copies: from there it is written to disk when its processes go on again. The kernel clears memory that it gives away, which takes
// as long as the copy, so it is made before they are frozen.
type Room struct {
	b    []byte
	free func()
}

// MakeRoom makes room for the memory of processes, as far as there is some to spare. Nil: it does not pay, or would not be used. Free has to be called.
func (e *Engine) MakeRoom(pids []int) (_ *Room, err error) {
	if e.beside != nil {
		return nil, nil
	}
	parts, err := aheadParts(pids, besideLeast)
	if err != nil || parts == nil {
		return nil, err
	}
	left, err := available()
	if err != nil {
		return nil, err
	}
	var want int64
	for _, p := range parts {
		bytes, err := privateBytes(p.process.PID)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		want += bytes + bytes/32 // they run on
	}
	want += roomPiece
	if over := e.room.Add(want) - left/roomShare; over > 0 {
		over = min(over, want)
		e.room.Add(-over)
		want -= over
	}
	r := &Room{free: func() { e.room.Add(-want) }}
	defer func() {
		if err != nil || r.b == nil {
			r.free()
		}
	}()
	n := int(want / roomPiece * roomPiece)
	if n == 0 {
		return nil, nil
	}
	if r.b, err = unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return nil, fmt.Errorf("room for %d bytes of memory: %w", n, err)
	}
	r.clear()
	return r, nil
}

// clear has the kernel give the memory, on all processors. That is a matter of speed: what it does not give now it gives later.
func (r *Room) clear() {
	_ = unix.Madvise(r.b, unix.MADV_HUGEPAGE)
	var wg sync.WaitGroup
	defer wg.Wait()
	share := (len(r.b)/roomPiece/min(runtime.GOMAXPROCS(0), besideWorkers) + 1) * roomPiece
	for at := 0; at < len(r.b); at += share {
		part := r.b[at:min(at+share, len(r.b))]
		wg.Go(func() { _ = unix.Madvise(part, unix.MADV_POPULATE_WRITE) })
	}
}

// all returns the memory. Nil has none.
func (r *Room) all() []byte {
	if r == nil {
		return nil
	}
	return r.b
}

// Free gives the memory back. Nil has none.
func (r *Room) Free() error {
	if r == nil {
		return nil
	}
	r.free()
	return unix.Munmap(r.b)
}

// available returns how much memory the machine has left, in bytes.
func available() (int64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			var kib int64
			if _, err := fmt.Sscan(v, &kib); err != nil {
				return 0, fmt.Errorf("memory available: %w", err)
			}
			return kib << 10, nil
		}
	}
	return 0, errors.New("the kernel does not tell how much memory is available")
}

// Late is what is left to do of a dump whose processes may go on.
type Late struct {
	memory *beside
	images string
}

// Finish makes the images whole, and returns how many bytes they have. On error they are of no use.
func (l *Late) Finish() (int64, error) { return l.memory.finish(l.images) }

// Drop gives the images up. Nil has none.
func (l *Late) Drop() error {
	if l == nil {
		return nil
	}
	return l.memory.giveUp()
}
