package state

import (
	"fmt"
	"time"
)

func (c *SandboxCreate) apply(tx *writeTx) (Result, error) {
	s := c.Sandbox
	if err := tx.tenant(s.Tenant); err != nil {
		return Result{}, err
	}
	old, err := first[Sandbox](tx.txn, tableSandbox, string(s.ID))
	if err != nil {
		return Result{}, err
	}
	if old == nil {
		old, err = tx.asked(s.ID)
	}
	if err != nil {
		return Result{}, err
	}
	if old != nil {
		return Result{Sandbox: *old}, fmt.Errorf("sandbox %s: %w", s.ID, ErrExists)
	}
	if err := tx.admit(s.Tenant, Ask(nil, &s)); err != nil {
		return Result{}, err
	}
	s.CreateIndex = tx.index
	return changed(s, tx.putSandbox(&s))
}

func (c *SandboxRunning) apply(tx *writeTx) (Result, error) {
	s, err := tx.sandbox(c.ID)
	if err != nil {
		return Result{}, err
	}
	first := s.State == Starting
	switch s.State {
	case Starting:
	case Lost: // it was not: its node has it
		s.Reason, s.Exit = "", nil
		s.EndedAt = time.Time{}
	case Running, Paused, Stopping:
		if s.Node != "" && s.Node != c.Node {
			return Result{Sandbox: s}, fmt.Errorf("sandbox %s runs on node %s, not %s: %w", s.ID, s.Node, c.Node, ErrConflict)
		}
		if s.State == Stopping {
			return Result{Sandbox: s}, fmt.Errorf("sandbox %s is stopping: %w", s.ID, ErrState)
		}
		return Result{Sandbox: s}, nil
	default:
		return Result{Sandbox: s}, fmt.Errorf("sandbox %s has %s: %w", s.ID, s.State, ErrState)
	}
	s.State, s.Node, s.StartedAt = Running, c.Node, c.StartedAt
	if c.Digest != "" {
		s.Digest = c.Digest
	}
	if c.Limits != nil {
		reservedCPU, reservedMB := s.Limits.ReservedCPU, s.Limits.ReservedMB
		s.Limits = *c.Limits
		s.Limits.ReservedCPU, s.Limits.ReservedMB = reservedCPU, reservedMB
	}
	if first {
		if err := tx.spawned(&s); err != nil {
			return Result{}, err
		}
	}
	return changed(s, tx.putSandbox(&s))
}

func (c *SandboxStopping) apply(tx *writeTx) (Result, error) {
	s, err := tx.sandbox(c.ID)
	if err != nil {
		return Result{}, err
	}
	if s.State == Stopping {
		return Result{Sandbox: s}, nil
	}
	if s.State.Ended() {
		return Result{Sandbox: s}, fmt.Errorf("sandbox %s has %s: %w", s.ID, s.State, ErrState)
	}
	s.State, s.Reason = Stopping, c.Reason
	return changed(s, tx.putSandbox(&s))
}

func (c *SandboxEnd) apply(tx *writeTx) (Result, error) {
	var r Result
	for _, e := range c.Ends {
		s, err := first[Sandbox](tx.txn, tableSandbox, string(e.ID))
		if err != nil {
			return Result{}, err
		}
		if s == nil {
			continue
		}
		r.Sandbox = *s
		if e.IfIndex != 0 && e.IfIndex != s.ModifyIndex {
			continue
		}
		if s.State.Ended() && (s.State != Lost || e.State == Lost) {
			continue
		}
		next := *s
		next.State, next.Reason, next.EndedAt, next.Exit = e.State, e.Reason, e.At, e.Exit
		if err := tx.putSandbox(&next); err != nil {
			return Result{}, err
		}
		r.Sandbox = next
		r.Changed++
	}
	return r, nil
}

func (c *SandboxDeadline) apply(tx *writeTx) (Result, error) {
	s, err := tx.sandbox(c.ID)
	if err != nil {
		return Result{}, err
	}
	if s.State.Ended() || s.State == Stopping {
		return Result{Sandbox: s}, fmt.Errorf("sandbox %s is %s: %w", s.ID, s.State, ErrState)
	}
	end := c.EndAt
	if end.After(s.MaxEndAt) {
		end = s.MaxEndAt
	}
	if end.Equal(s.EndAt) || (c.ExtendOnly && end.Before(s.EndAt)) {
		return Result{Sandbox: s}, nil
	}
	s.EndAt, s.Timeout = end, c.Timeout
	return changed(s, tx.putSandbox(&s))
}

func (c *SandboxNetwork) apply(tx *writeTx) (Result, error) {
	s, err := tx.sandbox(c.ID)
	if err != nil {
		return Result{}, err
	}
	if s.State.Ended() || s.State == Stopping {
		return Result{Sandbox: s}, fmt.Errorf("sandbox %s is %s: %w", s.ID, s.State, ErrState)
	}
	s.Network, s.AllowInternetAccess = c.Network, c.AllowInternetAccess
	if c.Shaped {
		s.RateIn, s.RateOut = c.RateIn, c.RateOut
	}
	s.endHold(c.Hold)
	return changed(s, tx.putSandbox(&s))
}

func (c *SandboxPurge) apply(tx *writeTx) (Result, error) {
	var r Result
	for _, id := range c.IDs {
		s, err := first[Sandbox](tx.txn, tableSandbox, string(id))
		if err != nil {
			return Result{}, err
		}
		if s == nil || !s.State.Ended() {
			continue
		}
		if err := tx.txn.Delete(tableSandbox, s); err != nil {
			return Result{}, fmt.Errorf("purge sandbox %s: %w", id, err)
		}
		r.Changed++
	}
	return r, nil
}

func changed(s Sandbox, err error) (Result, error) {
	return Result{Sandbox: s, Changed: 1}, err
}
