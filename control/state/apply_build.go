package state

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/soulbox-dev/soulbox/control/api"
)

func (c *BuildPut) apply(tx *writeTx) (Result, error) {
	b := c.Build
	old, err := first[Build](tx.txn, tableBuild, b.ID)
	if err != nil {
		return Result{}, err
	}
	if old != nil {
		return Result{Build: *old}, fmt.Errorf("build %s: %w", b.ID, ErrExists)
	}
	it, err := tx.txn.Get(tableBuild, indexID)
	if err != nil {
		return Result{}, fmt.Errorf("read builds: %w", err)
	}
	all := collect(it, func(*Build) bool { return true })
	left, ended := len(all), []Build{} // of the tenant
	for _, o := range all {
		if o.Status == BuildWaiting && o.CreatedAt.Before(c.WaitingBefore) || o.Status.Ended() && o.EndedAt.Before(c.EndedBefore) {
			if err := tx.forgetBuild(o); err != nil {
				return Result{}, err
			}
			left--
			continue
		}
		if o.Tenant != b.Tenant {
			continue
		}
		if o.Status.Ended() {
			ended = append(ended, o)
		}
		if c.Fresh && o.Name == b.Name && o.Status != BuildError {
			b.TemplateID = o.TemplateID
		}
	}
	slices.SortFunc(ended, func(a, b Build) int { return cmp.Or(a.EndedAt.Compare(b.EndedAt), cmp.Compare(a.ID, b.ID)) })
	for _, o := range ended[:max(0, len(ended)-MaxTenantBuilds+1)] {
		if err := tx.forgetBuild(o); err != nil {
			return Result{}, err
		}
		left--
	}
	if left >= MaxBuilds {
		return Result{}, fmt.Errorf("more than %d builds are remembered: %w", MaxBuilds, ErrState)
	}
	b.CreateIndex = tx.index
	return tx.putBuild(&b)
}

func (tx *writeTx) forgetBuild(b Build) error {
	if err := tx.txn.Delete(tableBuild, &b); err != nil {
		return fmt.Errorf("delete build %s: %w", b.ID, err)
	}
	if _, err := tx.txn.DeleteAll(tableBuildLog, indexID+"_prefix", b.ID+"/"); err != nil {
		return fmt.Errorf("delete the log of build %s: %w", b.ID, err)
	}
	return nil
}

func (c *BuildStart) apply(tx *writeTx) (Result, error) {
	b, err := tx.build(c.ID)
	if err != nil {
		return Result{}, err
	}
	if b.Status != BuildWaiting {
		return Result{Build: b}, fmt.Errorf("build %s is %s: %w", c.ID, b.Status, ErrState)
	}
	b.Status, b.Creator, b.StartedAt = BuildBuilding, c.Creator, c.At
	return tx.putBuild(&b)
}

func (c *BuildLog) apply(tx *writeTx) (Result, error) {
	b, err := tx.build(c.ID)
	if err != nil {
		return Result{}, err
	}
	if b.Status != BuildBuilding || b.Creator != c.Creator {
		return Result{Build: b}, fmt.Errorf("build %s is %s: %w", c.ID, b.Status, ErrState)
	}
	if c.Sandbox != "" {
		b.Sandbox = api.SandboxID(c.Sandbox)
	}
	if err := tx.addToLog(&b, c.Entries); err != nil {
		return Result{}, err
	}
	return tx.putBuild(&b)
}

func (c *BuildEnd) apply(tx *writeTx) (Result, error) {
	b, err := tx.build(c.ID)
	if err != nil {
		return Result{}, err
	}
	if b.Status.Ended() || c.Unless != "" && b.Creator == c.Unless {
		return Result{Build: b}, nil
	}
	if err := tx.addToLog(&b, c.Entries); err != nil {
		return Result{}, err
	}
	b.Status, b.Reason, b.Step, b.EndedAt = c.Status, c.Reason, c.Step, c.At
	return tx.putBuild(&b)
}

// addToLog writes entries as the next chunk of the build's log.
func (tx *writeTx) addToLog(b *Build, entries []BuildLogEntry) error {
	if len(entries) == 0 {
		return nil
	}
	chunk := &buildChunk{Key: chunkKey(b.ID, b.Chunks), Entries: entries}
	if err := tx.txn.Insert(tableBuildLog, chunk); err != nil {
		return fmt.Errorf("write the log of build %s: %w", b.ID, err)
	}
	b.Chunks++
	for _, e := range entries {
		b.Bytes += len(e.Message)
	}
	return nil
}

// chunkKey sorts chunks by build and order.
func chunkKey(build string, n int) string { return fmt.Sprintf("%s/%08d", build, n) }

// build returns a copy that the caller may change and put back.
func (tx *writeTx) build(id string) (Build, error) {
	b, err := first[Build](tx.txn, tableBuild, id)
	if err != nil {
		return Build{}, err
	}
	if b == nil {
		return Build{}, fmt.Errorf("build %.80q: %w", id, ErrNotFound)
	}
	return *b, nil
}

func (tx *writeTx) putBuild(b *Build) (Result, error) {
	b.ModifyIndex = tx.index
	if err := tx.txn.Insert(tableBuild, b); err != nil {
		return Result{}, fmt.Errorf("write build %s: %w", b.ID, err)
	}
	return Result{Build: *b, Changed: 1}, nil
}
