package state

import (
	"fmt"
	"slices"

	"github.com/soulbox-dev/soulbox/control/api"
)

// SnapshotByID returns a snapshot by its id.
func (s *Store) SnapshotByID(id api.SnapshotID) (Snapshot, error) {
	row, err := first[Snapshot](s.read(), tableSnapshot, string(id))
	if err != nil {
		return Snapshot{}, err
	}
	if row == nil {
		return Snapshot{}, fmt.Errorf("snapshot %s: %w", id, ErrNotFound)
	}
	return *row, nil
}

// SnapshotNamed returns a tenant's ready snapshot by its name and tag.
func (s *Store) SnapshotNamed(tenant, name, tag string) (Snapshot, error) {
	it, err := s.read().Get(tableSnapshot, indexID)
	if err != nil {
		return Snapshot{}, fmt.Errorf("list snapshots: %w", err)
	}
	found := collect(it, func(sn *Snapshot) bool {
		return sn.Tenant == tenant && sn.State == SnapshotReady && sn.Name == name && sn.Tag == tag
	})
	if len(found) == 0 || name == "" {
		return Snapshot{}, fmt.Errorf("snapshot %.80q: %w", name, ErrNotFound)
	}
	return found[0], nil
}

// Snapshots returns the snapshots of a tenant, the newest first; of all tenants where tenant is empty.
func (s *Store) Snapshots(tenant string) ([]Snapshot, error) {
	it, err := s.read().Get(tableSnapshot, indexID)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	out := collect(it, func(sn *Snapshot) bool { return tenant == "" || sn.Tenant == tenant })
	slices.SortFunc(out, func(a, b Snapshot) int {
		if c := b.CreatedAt.Compare(a.CreatedAt); c != 0 {
			return c
		}
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return out, nil
}
