package pager

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
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

func (r Range) end() uint64 { return r.Dst + r.Len }

const (
	stateMagic   = 0x73756f6c706f7873
	stateVersion = 1

	// maxEntries bounds the ranges of all spaces.
	maxEntries  = 1 << 18
	headerSize  = pageSize
	entrySize   = int(unsafe.Sizeof(entry{}))
	stateSize   = headerSize + 2*maxEntries*entrySize
	messageSize = 32
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
	_              [7]uint64
	// inbox is where the kernel writes what it tells, so that nothing is lost of what it has told of. inboxFD is who was asked.
	inboxFD int64
	inbox   [messageSize]byte
}

type entry struct {
	fd, file      uint32
	dst, len, off uint64
}

// State is what is to be served, in a file that is shared by all who have it open.
type State struct {
	mem []byte
}

// ErrState is in the chain of an error that says that a state file is none.
var ErrState = errors.New("it is no list of pages to serve")

// ErrTooMany is in the chain of an error that says that memory is in too many pieces.
var ErrTooMany = fmt.Errorf("more than %d pieces of memory", maxEntries)

// CreateState writes a new file with what is to be served from that many files.
func CreateState(path string, files int, spaces []Space) (_ *State, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(int64(stateSize)); err != nil {
		return nil, err
	}
	s, err := mapState(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	h := s.header()
	h.version, h.files = stateVersion, uint64(files)
	if err := s.write(spaces); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	h.magic = stateMagic
	return s, nil
}

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
	if st.Size != int64(stateSize) {
		return nil, ErrState
	}
	s, err := mapState(fd)
	if err != nil {
		return nil, err
	}
	if h := s.header(); h.magic != stateMagic || h.version != stateVersion || h.count[h.active&1] > maxEntries {
		return nil, errors.Join(ErrState, s.Close())
	}
	return s, nil
}

func mapState(fd int) (*State, error) {
	mem, err := unix.Mmap(fd, 0, stateSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the list of pages: %w", err)
	}
	return &State{mem: mem}, nil
}

// Close lets go of it. The file stays.
func (s *State) Close() error { return unix.Munmap(s.mem) }

// Done reports whether every page is there.
func (s *State) Done() bool { return atomic.LoadUint64(&s.header().done) == 1 }

// Faults returns how often a process has waited for a page.
func (s *State) Faults() uint64 { return atomic.LoadUint64(&s.header().faults) }

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
