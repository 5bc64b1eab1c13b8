package pid1

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

const (
	readSize = 64 << 10 // bytes of one read of a process's pipe, at most

	// stallAfter is how long a full ring waits for an attachment that does not take bytes before it gives up the oldest
	// ones under it.
	stallAfter = 250 * time.Millisecond
	// hangupWait is how long after its process's end a terminal is read on where something else still holds it open.
	hangupWait = 200 * time.Millisecond
	// lastTerminalBytes is how much is read of such a terminal after that, at most.
	lastTerminalBytes = 1 << 20
)

// output is one output stream of a process: the pipe or terminal that it writes to, the ring, and who reads the ring. All
// fields are guarded by the process's mutex. One pump goroutine fills the ring.
type output struct {
	p    *process
	typ  frame.Type
	file *os.File
	ring ring

	readers []*reader
	drained bool   // everything that the process itself wrote is in the ring; the process has ended
	final   uint64 // the ring's end when it became drained
	eof     bool   // the pump is gone
}

// reader is one attachment's place in a stream.
type reader struct {
	off      uint64
	lossless bool      // the process waits for it as long as it is attached
	lossy    bool      // the ring never waits for it
	lagging  bool      // it has stalled: the ring does not wait for it until it has caught up
	stalled  time.Time // since when the ring has been waiting for it; zero while there is room
}

// keep returns the offset from which on bytes must stay for the readers that the stream waits for.
func (o *output) keep() uint64 {
	keep := o.ring.end
	for _, r := range o.readers {
		if !r.lagging {
			keep = min(keep, max(r.off, o.ring.start))
		}
	}
	return keep
}

// took notes that r has read up to off.
func (r *reader) took(off uint64, o *output) {
	r.off, r.stalled = off, time.Time{}
	if r.lagging && !r.lossy && o.ring.end-off < ringMax/2 {
		r.lagging = false
	}
}

// await returns when the ring has room, or a reader that stalls has lost its claim. The process's mutex is held.
func (o *output) await() {
	for o.ring.full(o.keep()) {
		// With no time to wait for, every reader that holds the ring up is lossless and will say when it has read.
		left := o.patience(time.Now())
		if left <= 0 {
			o.p.cond.Wait()
			continue
		}
		t := time.AfterFunc(left, o.p.broadcast)
		o.p.cond.Wait()
		t.Stop()
	}
}

// patience takes the claim off readers that have held the ring up for stallAfter and returns how long the next one still
// has; 0 where none is waited for in that way.
func (o *output) patience(now time.Time) (left time.Duration) {
	for _, r := range o.readers {
		if r.lagging || r.lossless || o.ring.end-r.off < ringMax {
			continue
		}
		if r.stalled.IsZero() {
			r.stalled = now
		}
		have := stallAfter - now.Sub(r.stalled)
		if have <= 0 {
			r.lagging = true
			have = 1 // look again
		}
		if left == 0 || have < left {
			left = have
		}
	}
	return left
}

// pump copies from the pipe or terminal to the ring until its end. It owns o.file.
func (o *output) pump() {
	defer o.close()
	rc, err := o.file.SyscallConn()
	if err != nil {
		return
	}
	for {
		o.p.mu.Lock()
		o.await()
		o.p.mu.Unlock()
		var n int
		var rerr error
		err := rc.Read(func(fd uintptr) bool {
			n, rerr = o.fill(fd, readSize)
			return rerr != unix.EAGAIN
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			// The process has ended and end woke this goroutine.
			if !o.drain(func(f func(uintptr)) error { return rc.Control(f) }) {
				return
			}
			o.file.SetReadDeadline(time.Time{})
		case err != nil, rerr != nil, n == 0: // closed; a terminal's EIO; the end
			return
		}
	}
}

// fill reads once into the ring, at most limit bytes. It returns 0 and EAGAIN where the ring has no room, which await
// excludes but for a reader that came in between.
func (o *output) fill(fd uintptr, limit int) (int, error) {
	o.p.mu.Lock()
	defer o.p.mu.Unlock()
	buf := o.ring.space(limit, o.keep())
	if buf == nil {
		return -1, nil
	}
	for {
		n, err := unix.Read(int(fd), buf)
		if err == unix.EINTR {
			continue
		}
		if n > 0 {
			o.ring.commit(n)
			o.p.cond.Broadcast()
		}
		return n, err
	}
}

// drain takes in what the ended process had written before its end, and marks the stream as drained. What others write to
// the same pipe later follows behind. It returns false at the stream's end.
func (o *output) drain(control func(func(uintptr)) error) bool {
	left := lastTerminalBytes
	if o.typ != frame.PTY {
		if err := control(func(fd uintptr) { left, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); err != nil {
			return false
		}
	}
	for left > 0 {
		o.p.mu.Lock()
		o.await()
		o.p.mu.Unlock()
		var n int
		var rerr error
		if err := control(func(fd uintptr) { n, rerr = o.fill(fd, min(left, readSize)) }); err != nil || n == 0 {
			return false
		}
		if rerr != nil {
			break // EAGAIN: empty
		}
		left -= max(n, 0)
	}
	o.p.mu.Lock()
	o.finish()
	o.p.mu.Unlock()
	// Where others still hold a terminal whose session has ended, it is taken from them.
	return o.typ != frame.PTY
}

// finish marks the stream as drained. The process's mutex is held.
func (o *output) finish() {
	if !o.drained {
		o.drained, o.final = true, o.ring.end
		o.p.cond.Broadcast()
	}
}

// close ends the stream. That a pipe was closed does not mean that the process has ended.
func (o *output) close() {
	o.file.Close()
	o.p.mu.Lock()
	o.eof = true
	o.finish()
	o.ring.trim()
	o.p.mu.Unlock()
}

// wake makes the pump see that the process has ended.
func (o *output) wake() {
	at := time.Unix(1, 0)
	if o.typ == frame.PTY {
		at = time.Now().Add(hangupWait)
	}
	o.file.SetReadDeadline(at)
}
