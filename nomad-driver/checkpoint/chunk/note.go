package chunk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
)

// A note is what a caller keeps beside a snapshot, and may replace: unlike all else of a snapshot it is written after it. It is encrypted as the snapshot
// is, so that nobody without the key reads or makes one; and it goes with its snapshot.

// MaxNote bounds a note, in bytes.
const MaxNote = 1 << 20

// PutNote keeps b beside a snapshot. What was there is replaced.
func (s *Store) PutNote(ctx context.Context, m *Manifest, b []byte) error {
	if len(b) > MaxNote {
		return fmt.Errorf("note of snapshot %s: %d bytes, at most %d", m.ID, len(b), MaxNote)
	}
	t, err := s.tenant(ctx, m.Tenant, m.key)
	if err != nil {
		return fmt.Errorf("note of snapshot %s: %w", m.ID, err)
	}
	if err := s.back.Put(ctx, t.note(m.ID), t.encrypt(t.note(m.ID), b)); err != nil {
		return fmt.Errorf("note of snapshot %s: %w", m.ID, err)
	}
	return nil
}

// Note returns what is kept beside a snapshot, or an error with ErrNotFound.
func (s *Store) Note(ctx context.Context, m *Manifest) ([]byte, error) {
	t, err := s.tenant(ctx, m.Tenant, m.key)
	if err != nil {
		return nil, fmt.Errorf("note of snapshot %s: %w", m.ID, err)
	}
	b, err := s.back.Get(ctx, t.note(m.ID), 2*MaxNote)
	if err == nil && !bytes.HasPrefix(b, cipherMark) {
		err = fmt.Errorf("%w: it is not encrypted", ErrBad)
	}
	if err == nil {
		b, err = t.decrypt(t.note(m.ID), b)
	}
	if err != nil {
		return nil, fmt.Errorf("note of snapshot %s: %w", m.ID, err)
	}
	return b, nil
}

// sweepNotes removes the notes of snapshots that are gone: who has written one may have done so after its snapshot was deleted.
func (s *Store) sweepNotes(ctx context.Context, t tenant) error {
	notes, err := s.back.List(ctx, t.note(""))
	if err != nil || len(notes) == 0 {
		return err
	}
	// Manifests after: a note comes after its manifest, so that of one that is seen here is seen too.
	manifests, err := s.back.List(ctx, t.manifest(""))
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, o := range manifests {
		there[path.Base(o.Name)] = true
	}
	var errs []error
	for _, o := range notes {
		if !there[path.Base(o.Name)] {
			errs = append(errs, s.back.Delete(ctx, o.Name))
		}
	}
	return errors.Join(errs...)
}
