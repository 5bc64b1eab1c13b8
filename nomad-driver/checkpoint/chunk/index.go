package chunk

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"time"
)

// An index says which pages a pack has: a header, the pages' hashes, and a keyed hash over both, so that only this installation can have
// written it: a wrong one would let a snapshot share pages that are not its own.
//
//	version 1 | pages uint16 | hash of the pack (32) | pages × 16 | keyed hash (32)
const indexHead = 1 + 2 + hashSize

func (s *Store) putIndex(ctx context.Context, t tenant, p Pack, hashes []byte) error {
	sum, err := hex.DecodeString(p.Hash)
	if err != nil {
		return err
	}
	b := []byte{1}
	b = binary.BigEndian.AppendUint16(b, uint16(p.Pages))
	b = append(b, sum...)
	b = append(b, hashes...)
	mac := t.hash(append([]byte("index "+p.ID), b...))
	return s.back.Put(ctx, t.index(p.ID), append(b, mac[:]...))
}

func parseIndex(t tenant, id string, b []byte) (Pack, []byte, error) {
	if len(b) < indexHead+hashSize || b[0] != 1 {
		return Pack{}, nil, fmt.Errorf("%w: index of pack %s", ErrBad, id)
	}
	pages := int(binary.BigEndian.Uint16(b[1:]))
	body := b[:len(b)-hashSize]
	if pages < 1 || pages > packPages || len(body) != indexHead+pages*pageHash || t.hash(append([]byte("index "+id), body...)) != [hashSize]byte(b[len(body):]) {
		return Pack{}, nil, fmt.Errorf("%w: index of pack %s", ErrBad, id)
	}
	return Pack{ID: id, Hash: hex.EncodeToString(b[3:indexHead]), Pages: pages}, body[indexHead:], nil
}

// maxIndex bounds an index.
const maxIndex = indexHead + packPages*pageHash + hashSize

// known returns where the tenant's pages are that new snapshots may share. What is doomed is not among them.
func (s *Store) known(ctx context.Context, t tenant) (map[[pageHash]byte]place, error) {
	doomed, err := s.back.List(ctx, t.tombstone(""))
	if err != nil {
		return nil, err
	}
	skip := map[string]bool{}
	for _, o := range doomed {
		skip[path.Base(o.Name)] = true
	}
	list, err := s.back.List(ctx, t.index(""))
	if err != nil {
		return nil, err
	}
	known := map[[pageHash]byte]place{}
	for _, o := range list {
		id := path.Base(o.Name)
		if skip[id] {
			continue
		}
		b, err := s.back.Get(ctx, o.Name, maxIndex)
		if errors.Is(err, ErrNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		p, hashes, err := parseIndex(t, id, b)
		if err != nil {
			continue // what cannot be trusted is not shared
		}
		s.packsMu.Lock()
		s.packs[t.name+"/"+id] = p
		s.packsMu.Unlock()
		for i := range p.Pages {
			known[[pageHash]byte(hashes[i*pageHash:])] = place{id, i}
		}
	}
	return known, nil
}

func (s *Store) packOf(t tenant, id string) Pack {
	s.packsMu.Lock()
	defer s.packsMu.Unlock()
	return s.packs[t.name+"/"+id]
}

// Grace is how long a pack stays doomed before it is deleted: longer than any Put that did not know.
const Grace = 2 * MaxPut

// Sweep removes what no snapshot of a tenant needs, in two steps: what is not needed is doomed, and no later Put shares it; what has
// been doomed for Grace, and still is not needed, is deleted. It returns how many packs it deleted.
func (s *Store) Sweep(ctx context.Context, tenantName string) (deleted int, err error) {
	t := folder(tenantName)
	if err := s.sweepNotes(ctx, t); err != nil {
		return 0, err
	}
	// Packs first, manifests after: a pack that comes in between is not seen, and a manifest that does is.
	packs, err := s.back.List(ctx, t.pack(""))
	if err != nil {
		return 0, err
	}
	tombs, err := s.back.List(ctx, t.tombstone(""))
	if err != nil {
		return 0, err
	}
	doomed := map[string]time.Time{}
	for _, o := range tombs {
		doomed[path.Base(o.Name)] = o.Put
	}
	needed, err := s.needed(ctx, tenantName)
	if err != nil {
		return 0, err
	}
	now := s.now()
	for _, o := range packs {
		id := path.Base(o.Name)
		since, marked := doomed[id]
		delete(doomed, id)
		switch {
		case needed[id] && marked:
			err = s.back.Delete(ctx, t.tombstone(id))
		case needed[id]:
		case !marked && now.Sub(o.Put) > MaxPut: // a younger one may be of a Put under way
			err = s.back.Put(ctx, t.tombstone(id), []byte("1\n"))
		case marked && now.Sub(since) > Grace:
			err = errors.Join(s.back.Delete(ctx, t.index(id)), s.back.Delete(ctx, t.pack(id)), s.back.Delete(ctx, t.tombstone(id)))
			deleted++
		}
		if err != nil {
			return deleted, err
		}
	}
	for id, since := range doomed { // its pack is gone: whoever deleted it was killed before this
		if now.Sub(since) > Grace {
			if err := s.back.Delete(ctx, t.tombstone(id)); err != nil {
				return deleted, err
			}
		}
	}
	return deleted, nil
}

// needed returns the packs that the tenant's manifests name. One that cannot be read stops the sweep: what it needs is not known. But what was
// stored with a key that is revoked nobody will ever read.
func (s *Store) needed(ctx context.Context, tenantName string) (map[string]bool, error) {
	list, err := s.back.List(ctx, folder(tenantName).manifest(""))
	if err != nil {
		return nil, err
	}
	needed := map[string]bool{}
	for _, o := range list {
		m, err := s.manifest(ctx, tenantName, path.Base(o.Name))
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrRevoked) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, p := range m.Packs {
			needed[p.ID] = true
		}
	}
	return needed, nil
}
