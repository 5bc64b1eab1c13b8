package state

import (
	"fmt"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Hold is what a change that is under way will have a sandbox use, where that is more than its record says. The tables admit it before a node is
// asked for the change, and count it, so that no other change is given the same meanwhile. Zero fields hold nothing.
type Hold struct {
	Active    bool  `codec:"active"` // of a paused one: it is being resumed
	CPUMillis int64 `codec:"cpu_millis"`
	MemoryMB  int64 `codec:"memory_mb"`
	DiskMB    int64 `codec:"disk_mb"`
	RateIn    int64 `codec:"rate_in"` // bytes a second; Unlimited: the link is to have no rate
	RateOut   int64 `codec:"rate_out"`

	Run   string    `codec:"run"` // of the control service that makes the change
	At    time.Time `codec:"at"`
	Index uint64    `codec:"index"` // of its entry, by which it ends; 0: there is none
}

// with returns what is held by two changes together, as the later one's.
func (h Hold) with(next Hold) Hold {
	next.Active = h.Active || next.Active
	next.CPUMillis, next.MemoryMB, next.DiskMB = max(h.CPUMillis, next.CPUMillis), max(h.MemoryMB, next.MemoryMB), max(h.DiskMB, next.DiskMB)
	next.RateIn, next.RateOut = wider(h.RateIn, next.RateIn), wider(h.RateOut, next.RateOut)
	return next
}

func wider(a, b int64) int64 {
	if a == Unlimited || b == Unlimited {
		return Unlimited
	}
	return max(a, b)
}

// Holding returns the sandbox with a hold.
func (s Sandbox) Holding(h Hold) Sandbox {
	s.Hold = s.Hold.with(h)
	return s
}

// active reports whether a sandbox counts for what running takes.
func (s *Sandbox) active() bool {
	return !s.State.Ended() && (s.State != Paused || s.Moving || s.Hold.Active)
}

// unbounded reports whether a sandbox takes as much of the network as there is.
func (s *Sandbox) unbounded() (in, out bool) {
	free := func(has, hold int64) bool { return s.active() && (hold == Unlimited || has == 0 && hold == 0) }
	return free(s.RateIn, s.Hold.RateIn), free(s.RateOut, s.Hold.RateOut)
}

// endHold ends the hold that was made by the entry at index, and no later one.
func (s *Sandbox) endHold(index uint64) {
	if index != 0 && s.Hold.Index == index {
		s.Hold = Hold{}
	}
}

// SandboxHold asks for what a sandbox is about to use: a *QuotaError where its tenant may not. The fact that follows ends it, by the Hold.Index in
// Result.
type SandboxHold struct {
	ID   api.SandboxID `codec:"id"`
	Hold Hold          `codec:"hold"`
}

// SandboxUnhold ends a hold whose change did not come about. A later hold stays.
type SandboxUnhold struct {
	ID    api.SandboxID `codec:"id"`
	Index uint64        `codec:"index"`
}

func (*SandboxHold) kind() commandType   { return typeSandboxHold }
func (*SandboxUnhold) kind() commandType { return typeSandboxUnhold }

func (c *SandboxHold) check() error {
	h := c.Hold
	for _, v := range []struct {
		name string
		n    int64
	}{
		{"cpu_millis", h.CPUMillis}, {"memory_mb", h.MemoryMB}, {"disk_mb", h.DiskMB},
		{"rate_in", max(0, h.RateIn)}, {"rate_out", max(0, h.RateOut)},
	} {
		if v.n < 0 || v.n > MaxLimit {
			return limitErrorf("hold."+v.name, "is %d, 0 to %d are allowed", v.n, int64(MaxLimit))
		}
	}
	if h.Run == "" || h.At.IsZero() {
		return limitErrorf("hold", "lacks its run or time")
	}
	return checkID(c.ID)
}

func (c *SandboxUnhold) check() error { return checkID(c.ID) }

func (c *SandboxHold) apply(tx *writeTx) (Result, error) {
	s, err := tx.sandbox(c.ID)
	if err != nil {
		return Result{}, err
	}
	switch {
	case s.State != Running && s.State != Paused, c.Hold.Active && s.State != Paused:
		return Result{Sandbox: s}, fmt.Errorf("sandbox %s is %s: %w", s.ID, s.State, ErrState)
	case c.Hold.Active:
		if err := tx.tenant(s.Tenant); err != nil {
			return Result{}, err
		}
	}
	h := c.Hold
	h.Index = tx.index
	next := s.Holding(h)
	if err := tx.admit(s.Tenant, Ask(&s, &next)); err != nil {
		return Result{}, err
	}
	return changed(next, tx.putSandbox(&next))
}

func (c *SandboxUnhold) apply(tx *writeTx) (Result, error) {
	s, err := tx.sandbox(c.ID)
	if err != nil {
		return Result{}, err
	}
	if c.Index == 0 || s.Hold.Index != c.Index {
		return Result{Sandbox: s}, nil
	}
	s.Hold = Hold{}
	return changed(s, tx.putSandbox(&s))
}
