package state

import (
	"cmp"
	"fmt"
	"slices"
)

// Build returns a build by its id.
func (s *Store) Build(id string) (Build, error) {
	row, err := first[Build](s.read(), tableBuild, id)
	if err != nil {
		return Build{}, err
	}
	if row == nil {
		return Build{}, fmt.Errorf("build %.80q: %w", id, ErrNotFound)
	}
	return *row, nil
}

// Builds returns a tenant's builds, the newest first; of all tenants where tenant is empty.
func (s *Store) Builds(tenant string) ([]Build, error) {
	it, err := s.read().Get(tableBuild, indexID)
	if err != nil {
		return nil, fmt.Errorf("list builds: %w", err)
	}
	out := collect(it, func(b *Build) bool { return tenant == "" || b.Tenant == tenant })
	slices.SortFunc(out, func(a, b Build) int { return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.ID, b.ID)) })
	return out, nil
}

// BuildLog returns the log of a build.
func (s *Store) BuildLog(id string) ([]BuildLogEntry, error) {
	it, err := s.read().Get(tableBuildLog, indexID+"_prefix", id+"/")
	if err != nil {
		return nil, fmt.Errorf("read the log of build %s: %w", id, err)
	}
	var out []BuildLogEntry
	for row, ok := it.Next().(*buildChunk); ok; row, ok = it.Next().(*buildChunk) {
		out = append(out, row.Entries...)
	}
	return out, nil
}
