package pager

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Descriptors that Run finds: a socket (see HandOver), the state, and the files of pages from firstFile on. The userfaultfds get the numbers that the state names.
const (
	stdin     = 0
	StateFD   = 3
	firstFile = 4
)

const (
	// around is how much is copied with a page that is waited for: the next ones are often wanted too.
	around = 64 << 10
	// ahead is how much is copied at a time while nobody waits. Who begins to wait meanwhile waits that much longer.
	ahead = 128 << 10
	// pauseFor is how long to wait, in ms, where the kernel could do nothing for want of memory, or because the memory is being changed.
	pauseFor = 2
)

// Run serves what the state names until every page is there, or nobody is left who could want one. It returns the code to exit with. It writes
// "ready" and the pid of its keeper to stdout once both hold the userfaultfds.
func Run() int {
	// A service manager that ends the node asks all of its processes, and this one works for a sandbox.
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, time.Now().UTC().Format(time.RFC3339), err)
		return 1
	}
	return 0
}

func run() error {
	// Without it processes of a sandbox stand still: the kernel must not end it for want of memory.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	s := &server{buf: make([]byte, max(around, ahead))}
	clear(s.buf) // it is to be there
	// Whoever has started this program takes note of it first, or ends.
	if err := errors.Join(receive(stdin), unix.Close(stdin)); err != nil {
		return err
	}
	state, err := openState(StateFD)
	if err != nil {
		return err
	}
	s.state = state
	for i := range state.Files() {
		s.files = append(s.files, firstFile+i)
	}
	for _, sp := range state.spaces() {
		s.spaces = append(s.spaces, &space{fd: sp.FD, all: slices.Clone(sp.Ranges), left: slices.Clone(sp.Ranges)})
	}
	for _, sp := range s.spaces {
		if err := unix.SetNonblock(sp.fd, true); err != nil { // who has handed it over may have changed that
			sp.gone = true
		}
	}
	if err := s.takeOver(); err != nil {
		return err
	}
	keeper, err := startKeeper()
	if err != nil {
		return err
	}
	fmt.Printf("ready %d\n", keeper)
	_ = os.Stdout.Close()
	if err := s.serve(); err != nil {
		return err // the keeper stays, for who comes next
	}
	atomic.StoreUint64(&state.header().done, 1)
	return keeper.end()
}

type server struct {
	state  *State
	files  []int
	spaces []*space
	buf    []byte
	slow   bool          // the kernel could not do what it was asked last
	watch  time.Duration // for which nothing more comes but what is waited for
}

// space is the memory of one process.
type space struct {
	fd      int
	all     ranges // as in the state: less than that is missing
	left    ranges
	waiting []uint64 // pages that are waited for and could not be brought yet
	cursor  uint64   // where the next copy begins that nobody waits for
	heard   bool     // whether it had something to tell in this turn
	gone    bool     // nobody can want a page any more
}

// takeOver goes on with what one that was killed has left: what it was told of last, and those who wait for what it was told of before.
func (s *server) takeOver() error {
	if m := s.state.message(); m.event != 0 {
		fd := int(s.state.header().inboxFD)
		for _, sp := range s.spaces {
			if sp.fd == fd {
				if err := s.handle(sp, m); err != nil {
					return err
				}
				break
			}
		}
		s.state.emptyInbox()
	}
	const lowest, highest = 64 << 10, 1<<47 - pageSize
	for _, sp := range s.spaces {
		_ = wake(sp.fd, lowest, highest-lowest) // they ask again
	}
	return nil
}

func (s *server) serve() error {
	for len(s.spaces) > 0 {
		if err := s.hear(); err != nil {
			return err
		}
		for _, sp := range s.spaces {
			waiting := sp.waiting
			sp.waiting = nil
			for _, page := range waiting {
				if err := s.fault(sp, page); err != nil {
					return err
				}
			}
		}
		if s.watch = s.state.watching(); s.watch <= 0 {
			if err := s.copyAhead(); err != nil {
				return err
			}
		}
		s.dropDone()
	}
	return nil
}

// hear handles what the kernel tells of.
func (s *server) hear() error {
	timeout := 0
	switch {
	case s.slow:
		timeout = pauseFor
	case s.watch > 0:
		timeout = int(s.watch/time.Millisecond) + 1
	}
	s.slow = false
	fds := make([]unix.PollFd, len(s.spaces))
	for i, sp := range s.spaces {
		fds[i] = unix.PollFd{Fd: int32(sp.fd), Events: unix.POLLIN}
		sp.heard = false
	}
	if _, err := unix.Poll(fds, timeout); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("poll: %w", err)
	}
	for i, sp := range s.spaces[:len(fds)] { // a fork adds some
		if fds[i].Revents&unix.POLLIN == 0 {
			continue
		}
		sp.heard = true
		if err := s.hearOf(sp); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) hearOf(sp *space) error {
	h := s.state.header()
	for !sp.gone {
		if !s.room(sp) {
			s.slow = true
			return nil
		}
		s.state.emptyInbox()
		h.inboxFD = int64(sp.fd)
		_, _, errno := unix.Syscall(unix.SYS_READ, uintptr(sp.fd), uintptr(unsafe.Pointer(&h.inbox)), messageSize)
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return nil
		case unix.EMFILE, unix.ENFILE, unix.ENOMEM: // a fork that has to wait
			s.slow = true
			return nil
		default:
			return fmt.Errorf("read userfaultfd %d: %w", sp.fd, errno)
		}
		if err := s.handle(sp, s.state.message()); err != nil {
			return err
		}
		s.state.emptyInbox()
	}
	return nil
}

// room reports whether the state has room for what this memory may be told of: it is forked, at worst. If not, that waits until others have all of theirs.
func (s *server) room(sp *space) bool {
	if len(s.spaces) == 1 {
		return true
	}
	n := len(sp.all) + 2
	for _, o := range s.spaces {
		n += len(o.all) + 1
	}
	return n <= maxEntries
}

// handle does what a message asks for. It may be done twice, by one that is killed and the next one.
func (s *server) handle(sp *space, m message) error {
	switch m.event {
	case eventFault:
		atomic.AddUint64(&s.state.header().faults, 1)
		page := m.b &^ (pageSize - 1)
		if i := sp.left.at(page); i >= 0 {
			r := sp.left[i]
			s.state.touch(Touched{File: r.File, Page: uint32((r.Off + page - r.Dst) / pageSize)})
		}
		return s.fault(sp, page)
	case eventFork:
		fd := int(uint32(m.a))
		if !slices.ContainsFunc(s.spaces, func(o *space) bool { return o.fd == fd }) {
			s.spaces = append(s.spaces, &space{fd: fd, all: slices.Clone(sp.all), left: slices.Clone(sp.left)})
		}
	case eventRemap:
		sp.all, sp.left = sp.all.move(m.a, m.b, m.c), sp.left.move(m.a, m.b, m.c)
	case eventRemove, eventUnmap:
		sp.all, _ = sp.all.cut(m.a, m.b)
		sp.left, _ = sp.left.cut(m.a, m.b)
	default:
		return fmt.Errorf("userfaultfd %d: unknown event %#x", sp.fd, m.event)
	}
	return s.record()
}

// record writes down what has to be known by one that goes on.
func (s *server) record() error {
	var spaces []Space
	left := uint64(0)
	for _, sp := range s.spaces {
		if sp.gone {
			continue
		}
		if len(sp.left) < len(sp.all) {
			sp.all = slices.Clone(sp.left)
		}
		spaces = append(spaces, Space{FD: sp.fd, Ranges: sp.all})
		for _, r := range sp.left {
			left += r.Len / pageSize
		}
	}
	atomic.StoreUint64(&s.state.header().left, left)
	return s.state.write(spaces)
}

// Around returns what is brought together with the page at an address.
func Around(at uint64) (from, size uint64) { return at &^ (around - 1), around }

// fault brings a page that is waited for.
func (s *server) fault(sp *space, page uint64) error {
	if sp.gone {
		return nil
	}
	i := sp.left.at(page)
	if i < 0 {
		// It was never written to, or has been emptied since, or it has come meanwhile.
		switch err := zero(sp.fd, page); {
		case err == nil:
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM):
			sp.waiting, s.slow = append(sp.waiting, page), true
		case errors.Is(err, unix.ESRCH):
			sp.gone = true
		default: // it is there, or its place is not any more: whoever waits finds out
			_ = wake(sp.fd, page, pageSize)
		}
		return nil
	}
	r := sp.left[i]
	block, size := Around(page)
	from, to := max(r.Dst, block), min(r.end(), block+size)
	sp.cursor = to
	err := s.copy(sp, r, from, to)
	if sp.left.at(page) >= 0 && !sp.gone {
		sp.waiting = append(sp.waiting, page)
	}
	return err
}

// copyAhead brings some pages that nobody waits for: what is to come first, and then one after the other.
func (s *server) copyAhead() error {
	for f, ok := s.state.nextFirst(); ok; f, ok = s.state.nextFirst() {
		if did, err := s.copyFirst(f); did || err != nil {
			return err
		}
	}
	if s.watch = s.state.resting(); s.watch > 0 {
		return nil
	}
	for _, sp := range s.spaces {
		if sp.gone || len(sp.left) == 0 {
			continue
		}
		i := sp.left.from(sp.cursor)
		if i == len(sp.left) {
			i = 0
		}
		r := sp.left[i]
		from := max(r.Dst, sp.cursor)
		if from >= r.end() {
			from = r.Dst
		}
		to := min(r.end(), from+ahead)
		sp.cursor = to
		return s.copy(sp, r, from, to)
	}
	return nil
}

// copyFirst brings what is missing of a piece of memory, and reports whether that was something.
func (s *server) copyFirst(f first) (bool, error) {
	i := slices.IndexFunc(s.spaces, func(sp *space) bool { return sp.fd == int(f.fd) })
	if i < 0 || s.spaces[i].gone {
		return false, nil
	}
	sp, did := s.spaces[i], false
	for at, end := f.dst, f.dst+uint64(f.pages)*pageSize; ; did = true {
		i := sp.left.from(at)
		if i == len(sp.left) || sp.left[i].Dst >= end {
			return did, nil
		}
		r := sp.left[i]
		from := max(r.Dst, at)
		to := min(r.end(), end, from+ahead)
		if err := s.copy(sp, r, from, to); err != nil || s.slow || sp.gone {
			return true, err
		}
		at = to
	}
}

// copy brings the pages of r between from and to. What could not be brought yet is left.
func (s *server) copy(sp *space, r Range, from, to uint64) error {
	b := s.buf[:to-from]
	if err := readFull(s.files, r, from, b); err != nil {
		return err
	}
	at := from
	for at < to && !sp.gone {
		n, err := put(sp.fd, at, b[at-from:])
		at += n
		if err == nil || n > 0 {
			continue
		}
		if errors.Is(err, unix.ENOENT) && to-at > pageSize {
			// More than one mapping by now.
			if n, err = put(sp.fd, at, b[at-from:][:pageSize]); err == nil {
				at += n
				continue
			}
		}
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM):
			s.slow = true
			sp.left, _ = sp.left.cut(from, at)
			return nil
		case errors.Is(err, unix.ESRCH):
			sp.gone = true
		case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL):
			// It is there, or its place is not any more.
			_ = wake(sp.fd, at, pageSize)
			at += pageSize
		default:
			return fmt.Errorf("copy to %#x by userfaultfd %d: %w", at, sp.fd, err)
		}
	}
	sp.left, _ = sp.left.cut(from, at)
	return nil
}

func readFull(files []int, r Range, from uint64, b []byte) error {
	if int(r.File) >= len(files) {
		return fmt.Errorf("%w: it names file %d of %d", ErrState, r.File, len(files))
	}
	for off := int64(r.Off + from - r.Dst); len(b) > 0; {
		n, err := unix.Pread(files[r.File], b, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = unix.ENODATA
		}
		if err != nil {
			return fmt.Errorf("read pages from file %d at %d: %w", r.File, off, err)
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// dropDone closes the userfaultfds whose memory is all there, or gone: where a page is missing then, it is one of zeros.
func (s *server) dropDone() {
	before := len(s.spaces)
	var closed []int
	s.spaces = slices.DeleteFunc(s.spaces, func(sp *space) bool {
		drop := sp.gone || len(sp.left) == 0 && len(sp.waiting) == 0 && !sp.heard
		if drop {
			closed = append(closed, sp.fd)
		}
		return drop
	})
	if len(s.spaces) == before {
		return
	}
	// Not named any more before it is closed: its number may be that of another one then.
	_ = s.record() // there are fewer than before
	for _, fd := range closed {
		_ = unix.Close(fd)
	}
}
