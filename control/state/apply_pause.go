package state

import (
	"fmt"
	"time"
)

func (c *SandboxMove) apply(tx *writeTx) (Result, error) {
	s, err := tx.sandbox(c.ID)
	if err != nil {
		return Result{}, err
	}
	if s.State != Running {
		return Result{Sandbox: s}, fmt.Errorf("sandbox %s is %s: %w", s.ID, s.State, ErrState)
	}
	if s.Moving == c.Moving {
		return Result{Sandbox: s}, nil
	}
	s.Moving = c.Moving
	return changed(s, tx.putSandbox(&s))
}

func (c *SandboxPaused) apply(tx *writeTx) (Result, error) {
	s, err := tx.sandbox(c.ID)
	if err != nil {
		return Result{}, err
	}
	if s.Node != "" && s.Node != c.Node {
		return Result{Sandbox: s}, fmt.Errorf("sandbox %s is on node %s, not %s: %w", s.ID, s.Node, c.Node, ErrConflict)
	}
	switch s.State {
	case Paused:
		// Whoever moves it and the reconciler both record it, in either order.
		moving := s.Moving || c.Moving
		if s.PausedFiles == c.Files && s.Stored == c.Stored && s.Moving == moving {
			return Result{Sandbox: s}, nil
		}
		s.PausedFiles, s.Stored, s.StoredIn, s.Moving = c.Files, c.Stored, c.StoredIn, moving
		return changed(s, tx.putSandbox(&s))
	case Running, Lost: // a lost one that its node has after all
	default:
		return Result{Sandbox: s}, fmt.Errorf("sandbox %s is %s: %w", s.ID, s.State, ErrState)
	}
	s.State, s.Node, s.PausedAt, s.PausedFiles = Paused, c.Node, c.At, c.Files
	s.Stored, s.StoredIn = c.Stored, c.StoredIn
	s.Moving = s.Moving || c.Moving // who records it first may not know why it is paused
	s.Reason, s.Exit, s.EndedAt, s.Hold = "", nil, time.Time{}, Hold{}
	return changed(s, tx.putSandbox(&s))
}

func (c *SandboxResumed) apply(tx *writeTx) (Result, error) {
	s, err := tx.sandbox(c.ID)
	if err != nil {
		return Result{}, err
	}
	if s.State != Paused {
		return Result{Sandbox: s}, fmt.Errorf("sandbox %s is %s: %w", s.ID, s.State, ErrState)
	}
	s.State, s.Node, s.PausedAt, s.PausedFiles, s.ResumedAt = Running, c.Node, time.Time{}, false, c.At
	s.Stored, s.StoredIn, s.Moving = "", "", false
	s.EndAt, s.MaxEndAt, s.Timeout, s.Hold = c.EndAt, c.MaxEnd, c.Timeout, Hold{}
	return changed(s, tx.putSandbox(&s))
}
