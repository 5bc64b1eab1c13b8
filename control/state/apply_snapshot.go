package state

import (
	"fmt"

	"github.com/soulbox-dev/soulbox/control/api"
)

func (c *SnapshotPut) apply(tx *writeTx) (Result, error) {
	s := c.Snapshot
	old, err := first[Snapshot](tx.txn, tableSnapshot, string(s.ID))
	if err != nil {
		return Result{}, err
	}
	if old != nil {
		return Result{Snapshot: *old}, fmt.Errorf("snapshot %s: %w", s.ID, ErrExists)
	}
	if err := tx.admit(s.Tenant, useOfSnapshot(&s)); err != nil {
		return Result{}, err
	}
	s.CreateIndex = tx.index
	return tx.putSnapshot(&s)
}

func (c *SnapshotEnd) apply(tx *writeTx) (Result, error) {
	s, err := tx.snapshot(c.ID)
	if err != nil {
		return Result{}, err
	}
	if s.State != SnapshotMaking {
		return Result{Snapshot: s}, nil
	}
	if c.State == SnapshotReady && s.Name != "" {
		if err := tx.releaseName(s); err != nil {
			return Result{}, err
		}
	}
	s.State, s.Reason = c.State, c.Reason
	s.Bytes, s.Stored, s.Pages, s.Files = c.Bytes, c.Stored, c.Pages, c.Files
	if c.State == SnapshotReady {
		s.ReadyAt = c.At
	}
	return tx.putSnapshot(&s)
}

// releaseName takes the name and tag of s from whichever other snapshot has them.
func (t *writeTx) releaseName(s Snapshot) error {
	it, err := t.txn.Get(tableSnapshot, indexID)
	if err != nil {
		return fmt.Errorf("read snapshots: %w", err)
	}
	same := collect(it, func(o *Snapshot) bool {
		return o.ID != s.ID && o.State == SnapshotReady && o.Tenant == s.Tenant && o.Name == s.Name && o.Tag == s.Tag
	})
	for _, o := range same {
		o.Name, o.Tag = "", ""
		if _, err := t.putSnapshot(&o); err != nil {
			return err
		}
	}
	return nil
}

func (c *SnapshotDelete) apply(tx *writeTx) (Result, error) {
	s, err := tx.snapshot(c.ID)
	if err != nil {
		return Result{}, err
	}
	if s.Tenant != c.Tenant {
		return Result{}, fmt.Errorf("snapshot %s: %w", c.ID, ErrNotFound)
	}
	if !c.Force {
		it, err := tx.txn.Get(tableSandbox, indexLive+"_prefix", tenantKey(c.Tenant))
		if err != nil {
			return Result{}, fmt.Errorf("read sandboxes: %w", err)
		}
		if of := collect(it, func(sb *Sandbox) bool { return sb.Origin == c.ID && sb.State == Starting }); len(of) > 0 {
			return Result{Snapshot: s}, fmt.Errorf("snapshot %s: %d sandboxes are being made from it, %s is one: %w",
				c.ID, len(of), of[0].ID, ErrState)
		}
	}
	if err := tx.txn.Delete(tableSnapshot, &s); err != nil {
		return Result{}, fmt.Errorf("delete snapshot %s: %w", c.ID, err)
	}
	return Result{Snapshot: s, Changed: 1}, nil
}

// snapshot returns a copy that the caller may change and put back.
func (t *writeTx) snapshot(id api.SnapshotID) (Snapshot, error) {
	s, err := first[Snapshot](t.txn, tableSnapshot, string(id))
	if err != nil {
		return Snapshot{}, err
	}
	if s == nil {
		return Snapshot{}, fmt.Errorf("snapshot %s: %w", id, ErrNotFound)
	}
	return *s, nil
}

func (t *writeTx) putSnapshot(s *Snapshot) (Result, error) {
	s.ModifyIndex = t.index
	if err := t.txn.Insert(tableSnapshot, s); err != nil {
		return Result{}, fmt.Errorf("write snapshot %s: %w", s.ID, err)
	}
	return Result{Snapshot: *s, Changed: 1}, nil
}
