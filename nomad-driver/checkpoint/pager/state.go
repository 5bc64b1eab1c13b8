package pager

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Space is the memory of one process, by its userfaultfd's number in the program that serves it.
type Space struct {
	FD     int
	Ranges []Range
}

// Range is memory whose pages may be missing: Len bytes at Dst, which are in file number File from Off on.
type Range struct {
	Dst, Len, Off uint64
	File          uint32
}

// First is memory to bring first: Len bytes at Dst of space number Space. What of it is not missing is passed over.
type First struct {
	Space    int
	Dst, Len uint64
}

// Touched is a page that a process has waited for: number Page of file number File.
type Touched struct{ File, Page uint32 }

func (r Range) end() uint64 { return r.Dst + r.Len }

const (
	stateMagic   = 0x73756f6c706f7873
	stateVersion = 1

	// maxEntries bounds the ranges of all spaces.
	maxEntries  = 1 << 18
	headerSize  = pageSize
	entrySize   = int(unsafe.Sizeof(entry{}))
	listsSize   = headerSize + 2*maxEntries*entrySize
	messageSize = 32

	// MaxTouched bounds the pages that are noted as waited for, and the pieces of memory that are brought first.
	MaxTouched = 1 << 13
	stateSize  = listsSize + MaxTouched*int(unsafe.Sizeof(Touched{})+unsafe.Sizeof(first{}))
)

// header is the beginning of the state file, which a program that is killed leaves to the one after it. What counts is one of two lists: the other
// one is written, and then made the one that counts by one store.
type header struct {
	magic, version uint64
	files          uint64 // how many files of pages there are
	done           uint64 // 1: every page is there
	active         uint64 // its lowest bit is the list that counts
	count          [2]uint64
	left           uint64 // pages that were missing when this was last written
	faults         uint64 // that were waited for
	touched        uint64 // how many pages are noted as waited for
	first, firstAt uint64 // how many pieces are to be brought first, and which is next
	watchUntil     uint64 // until when nothing comes but what is waited for, in ns of the monotonic clock
	restUntil      uint64 // until when nothing comes but that and what is to come first
	_              [2]uint64
	// inbox is where the kernel writes what it tells, so that nothing is lost of what it has told of. inboxFD is who was asked.
	inboxFD int64
	inbox   [messageSize]byte
}

type entry struct {
	fd, file      uint32
	dst, len, off uint64
}

// first is a First by the number of its userfaultfd.
type first struct {
	fd, pages uint32
	dst       uint64
}

// State is what is to be served, in a file that is shared by all who have it open.
type State struct {
	mem []byte
}

// ErrState is in the chain of an error that says that a state file is none.
var ErrState = errors.New("it is no list of pages to serve")

// ErrTooMany is in the chain of an error that says that memory is in too many pieces.
var ErrTooMany = fmt.Errorf("more than %d pieces of memory", maxEntries)

// CreateState makes a new file for what is to be served from that many files. It is none before Fill.
func CreateState(path string, files int) (_ *State, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(int64(stateSize)); err != nil {
		return nil, err
	}
	s, err := mapState(int(f.Fd()), stateSize)
	if err != nil {
		return nil, err
	}
	h := s.header()
	h.version, h.files = stateVersion, uint64(files)
	return s, s.write(nil)
}

// Fill writes down what is to be served, and what of it comes first: MaxTouched pieces at most.
func (s *State) Fill(spaces []Space, order []First) error {
	if err := s.write(spaces); err != nil {
		return err
	}
	h := s.header()
	for i, o := range order[:min(len(order), MaxTouched)] {
		s.firsts()[i] = first{fd: uint32(spaces[o.Space].FD), pages: uint32(o.Len / pageSize), dst: o.Dst}
		h.first++
	}
	h.restUntil = uint64(monotonic() + restFor)
	h.magic = stateMagic
	return nil
}

// restFor is how long the rest waits for what comes first, and for a first answer: until then the processors have better things to do.
const restFor = 15 * time.Millisecond

// OpenState opens the file of a program that may have been killed.
func OpenState(path string) (*State, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	s, err := openState(int(f.Fd()))
	return s, errors.Join(err, f.Close())
}

func openState(fd int) (*State, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	// One of an earlier version ends with the lists.
	if st.Size != int64(stateSize) && st.Size != int64(listsSize) {
		return nil, ErrState
	}
	s, err := mapState(fd, int(st.Size))
	if err != nil {
		return nil, err
	}
	if h := s.header(); h.magic != stateMagic || h.version != stateVersion || h.count[h.active&1] > maxEntries ||
		h.touched > MaxTouched || h.first > MaxTouched {
		return nil, errors.Join(ErrState, s.Close())
	}
	return s, nil
}

func mapState(fd, size int) (*State, error) {
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the list of pages: %w", err)
	}
	// Of its megabytes a few pages are used: the kernel shall not read ahead.
	if err := unix.Madvise(mem, unix.MADV_RANDOM); err != nil {
		return nil, errors.Join(fmt.Errorf("map the list of pages: %w", err), unix.Munmap(mem))
	}
	return &State{mem: mem}, nil
}

// Close lets go of it. The file stays.
func (s *State) Close() error { return unix.Munmap(s.mem) }

// Done reports whether every page is there.
func (s *State) Done() bool { return atomic.LoadUint64(&s.header().done) == 1 }

// Faults returns how often a process has waited for a page.
func (s *State) Faults() uint64 { return atomic.LoadUint64(&s.header().faults) }

// Watch has nothing come for a while but what is waited for, so that it is seen what that is: of what comes unasked nobody knows whether it was wanted.
func (s *State) Watch(d time.Duration) { s.header().watchUntil = uint64(monotonic() + d) }

// watching returns how much longer nothing comes but what is waited for.
func (s *State) watching() time.Duration { return time.Duration(s.header().watchUntil) - monotonic() }

// resting returns how much longer nothing comes but that and what is to come first.
func (s *State) resting() time.Duration { return time.Duration(s.header().restUntil) - monotonic() }

func monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// Touched returns the pages that were waited for, in order; after MaxTouched of them, none.
func (s *State) Touched() []Touched {
	if len(s.mem) < stateSize {
		return nil
	}
	return slices.Clone(s.touched()[:atomic.LoadUint64(&s.header().touched)])
}

// touch notes a page that is waited for.
func (s *State) touch(t Touched) {
	h := s.header()
	if n := h.touched; len(s.mem) >= stateSize && n < MaxTouched {
		s.touched()[n] = t
		atomic.StoreUint64(&h.touched, n+1)
	}
}

func (s *State) touched() []Touched {
	return unsafe.Slice((*Touched)(unsafe.Pointer(&s.mem[listsSize])), MaxTouched)
}

func (s *State) firsts() []first {
	return unsafe.Slice((*first)(unsafe.Pointer(&s.mem[listsSize+MaxTouched*int(unsafe.Sizeof(Touched{}))])), MaxTouched)
}

// nextFirst returns what is to be brought next before all else, once.
func (s *State) nextFirst() (f first, ok bool) {
	h := s.header()
	if len(s.mem) < stateSize || h.firstAt >= h.first {
		return f, false
	}
	f = s.firsts()[h.firstAt]
	h.firstAt++
	return f, true
}

// Files returns how many files of pages there are.
func (s *State) Files() int { return int(s.header().files) }

// FDs returns the numbers of all userfaultfds that are named: of processes, and of one that was told of last.
func (s *State) FDs() []int {
	seen := map[int]bool{}
	var fds []int
	add := func(fd int) {
		if fd > 0 && !seen[fd] {
			seen[fd] = true
			fds = append(fds, fd)
		}
	}
	for _, sp := range s.spaces() {
		add(sp.FD)
	}
	if m := s.message(); m.event == eventFork {
		add(int(uint32(m.a)))
	}
	return fds
}

func (s *State) header() *header { return (*header)(unsafe.Pointer(&s.mem[0])) }

func (s *State) list(i uint64) []entry {
	return unsafe.Slice((*entry)(unsafe.Pointer(&s.mem[headerSize+int(i)*maxEntries*entrySize])), maxEntries)
}

// spaces reads the list that counts.
func (s *State) spaces() []Space {
	h := s.header()
	i := atomic.LoadUint64(&h.active) & 1
	var out []Space
	for _, e := range s.list(i)[:h.count[i]] {
		if n := len(out); n == 0 || out[n-1].FD != int(e.fd) {
			out = append(out, Space{FD: int(e.fd)})
		}
		sp := &out[len(out)-1]
		if e.len > 0 {
			sp.Ranges = append(sp.Ranges, Range{Dst: e.dst, Len: e.len, Off: e.off, File: e.file})
		}
	}
	return out
}

// write writes the list that does not count, and makes it count.
func (s *State) write(spaces []Space) error {
	h := s.header()
	next := atomic.LoadUint64(&h.active) + 1
	l, n := s.list(next&1), 0
	for _, sp := range spaces {
		if n+len(sp.Ranges)+1 > maxEntries {
			return ErrTooMany
		}
		l[n] = entry{fd: uint32(sp.FD)} // also of one that has no range left
		n++
		for _, r := range sp.Ranges {
			l[n] = entry{fd: uint32(sp.FD), file: r.File, dst: r.Dst, len: r.Len, off: r.Off}
			n++
		}
	}
	h.count[next&1] = uint64(n)
	atomic.StoreUint64(&h.active, next)
	return nil
}

// What the kernel tells of: linux/userfaultfd.h.
const (
	eventFault  = 0x12
	eventFork   = 0x13
	eventRemap  = 0x14
	eventRemove = 0x15
	eventUnmap  = 0x16
)

// message is struct uffd_msg: of a fault b is the address, of a fork a the new userfaultfd, of a remap from, to and length, of the others
// beginning and end.
type message struct {
	event   uint8
	_       [7]byte
	a, b, c uint64
}

// message returns what is in the inbox; event 0: nothing.
func (s *State) message() message { return *(*message)(unsafe.Pointer(&s.header().inbox)) }

func (s *State) emptyInbox() { atomic.StoreUint64((*uint64)(unsafe.Pointer(&s.header().inbox)), 0) }
