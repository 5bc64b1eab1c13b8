package shape

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Class is how a sandbox fares against others where they share a link that is full.
type Class string

// The classes, as sandboxes have them.
const (
	Guaranteed Class = "guaranteed"
	Burstable  Class = "burstable"
	BestEffort Class = "best_effort"
)

// weights are what one sandbox of a class counts for, as its processor weight does.
var weights = map[Class]uint64{Guaranteed: 40, Burstable: 10, BestEffort: 1}

// classes are in the order of their numbers.
var classes = []Class{Guaranteed, Burstable, BestEffort}

// MaxMembers is how many members a Shared may have: their numbers are below it.
const MaxMembers = 1<<16 - 1 - firstMember

// Numbers of HTB classes. 1 carries all.
const (
	all         = 1
	host        = 2 // what nobody has classified, where that takes part
	firstClass  = 16
	firstMember = 256
)

// Owned returns whether the root discipline of a link is one of Shared's with this handle, and whether it is anybody's: one that the kernel
// has made by itself has no handle.
func Owned(h *netlink.Handle, index int, handle uint16) (own, taken bool, err error) {
	link, err := h.LinkByIndex(index)
	if err != nil {
		return false, false, err
	}
	list, err := h.QdiscList(link)
	if err != nil {
		return false, false, fmt.Errorf("traffic control of %s: %w", link.Attrs().Name, err)
	}
	for _, q := range list {
		if a := q.Attrs(); a.Parent == netlink.HANDLE_ROOT && a.Handle != 0 {
			major, _ := netlink.MajorMinor(a.Handle)
			return major == handle, true, nil
		}
	}
	return false, false, nil
}

// Shared is the rate of a link, in the direction in which it sends, shared out among members: while all have something to send, each gets a share by
// the weight of its class, and members of one class get the same, however many connections they have. What one leaves, others use. Its methods may be
// called from any goroutine.
type Shared struct {
	h      *netlink.Handle
	index  int
	handle uint16
	rate   uint64 // bytes a second, for members

	mu      sync.Mutex
	members map[int]Class
}

// Share begins to share out a link's rate, in bytes a second. handle names the discipline among those of the machine. withHost tells that other packets than
// the members' take part, with a tenth of the rate for themselves; else they pass at once. What shaped the link before must be the kernel's default, or one
// of an earlier Share with the same handle.
func Share(h *netlink.Handle, index int, handle uint16, rate uint64, withHost bool) (*Shared, error) {
	if rate < MinRate || rate > MaxRate {
		return nil, fmt.Errorf("rate is %d bytes a second, must be between %d and %d", rate, uint64(MinRate), uint64(MaxRate))
	}
	own, taken, err := Owned(h, index, handle)
	if err != nil {
		return nil, err
	}
	if taken && !own {
		return nil, errors.New("its link has traffic control of somebody else")
	}
	if err := clear(h, index); err != nil {
		return nil, err
	}
	s := &Shared{h: h, index: index, handle: handle, rate: rate, members: map[int]Class{}}
	root := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(handle, 0), Parent: netlink.HANDLE_ROOT})
	if withHost {
		root.Defcls = host
	}
	if err := h.QdiscAdd(root); err != nil {
		return nil, fmt.Errorf("htb: %w", err)
	}
	err = s.class(h.ClassAdd, netlink.MakeHandle(handle, 0), all, rate, rate)
	if withHost {
		err = errors.Join(err, s.class(h.ClassAdd, s.id(all), host, max(rate/10, 1), rate))
		s.rate -= rate / 10
	}
	for i := range classes {
		err = errors.Join(err, s.class(h.ClassAdd, s.id(all), firstClass+uint16(i), s.least(), rate)) //nolint:gosec // three
	}
	if err != nil {
		return nil, errors.Join(err, clear(h, index))
	}
	return s, nil
}

func (s *Shared) id(minor uint16) uint32 { return netlink.MakeHandle(s.handle, minor) }

// least is the rate of a class that nobody is in, and of a member: what counts is what they borrow.
func (s *Shared) least() uint64 { return max(s.rate/(10*MaxMembers), 1<<10) }

// class makes or changes a class of rates in bytes a second.
func (s *Shared) class(do func(netlink.Class) error, parent uint32, minor uint16, rate, ceil uint64) error {
	c := netlink.NewHtbClass(netlink.ClassAttrs{LinkIndex: s.index, Parent: parent, Handle: s.id(minor)}, netlink.HtbClassAttrs{
		Rate: rate * 8, Ceil: ceil * 8, Buffer: Direction{Rate: rate}.burst(), Cbuffer: Direction{Rate: ceil}.burst(),
		// What one sends before the next of the same class does: the largest packet that a link carries at once.
		Quantum: 64 << 10,
	})
	if err := do(c); err != nil {
		return fmt.Errorf("htb class %x: %w", minor, err)
	}
	return nil
}

// ID is the priority that packets of a member carry (SO_PRIORITY): by it they are sorted.
func ID(handle uint16, number int) uint32 {
	return netlink.MakeHandle(handle, uint16(firstMember+number)) //nolint:gosec // below MaxMembers
}

// Join makes a member of a class, or gives a member another.
func (s *Shared) Join(number int, c Class) error {
	if weights[c] == 0 {
		return fmt.Errorf("class %.40q is none of %v", c, classes)
	}
	if number < 0 || number >= MaxMembers {
		return fmt.Errorf("member %d: there are %d at most", number, MaxMembers)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	had, is := s.members[number]
	if is && had == c {
		return nil
	}
	if is { // the kernel moves no class to another parent
		if err := s.drop(number); err != nil {
			return err
		}
	}
	for i, of := range classes {
		if of == c {
			err := s.class(s.h.ClassAdd, s.id(firstClass+uint16(i)), uint16(firstMember+number), s.least(), s.rate) //nolint:gosec // checked
			if err != nil {
				return err
			}
		}
	}
	s.members[number] = c
	return s.shareOut()
}

// Leave ends a membership, if there is one.
func (s *Shared) Leave(number int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, is := s.members[number]; !is {
		return nil
	}
	return errors.Join(s.drop(number), s.shareOut())
}

func (s *Shared) drop(number int) error {
	delete(s.members, number)
	c := netlink.NewHtbClass(netlink.ClassAttrs{LinkIndex: s.index, Handle: s.id(uint16(firstMember + number))}, netlink.HtbClassAttrs{}) //nolint:gosec // below MaxMembers
	if err := s.h.ClassDel(c); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("htb class of member %d: %w", number, err)
	}
	return nil
}

// shareOut gives each class the rate that its members have together. s.mu is held.
func (s *Shared) shareOut() error {
	var sum uint64
	of := map[Class]uint64{}
	for _, c := range s.members {
		of[c] += weights[c]
		sum += weights[c]
	}
	var errs []error
	for i, c := range classes {
		rate := s.least()
		if sum > 0 {
			rate = max(rate, s.rate/sum*of[c])
		}
		errs = append(errs, s.class(s.h.ClassChange, s.id(all), firstClass+uint16(i), rate, s.rate)) //nolint:gosec // three
	}
	return errors.Join(errs...)
}

// Free ends what shapes a link, so that it is as the kernel has it by itself.
func Free(h *netlink.Handle, index int) error { return clear(h, index) }
