package chunk

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"time"
)

// ManifestVersion is the version that this code writes.
const ManifestVersion = 1

// Limits of a manifest, beyond which it is refused before anything is made of it.
const (
	maxEntries   = 2 << 20
	maxPacks     = 1 << 18 // a TiB
	maxRuns      = 8 << 20
	maxFileBytes = 1 << 44
	maxName      = 4096
	maxXattrs    = 64
)

// Manifest says what a snapshot consists of.
type Manifest struct {
	Version   int             `json:"version"`
	ID        string          `json:"id"`
	Tenant    string          `json:"tenant"`
	CreatedAt time.Time       `json:"created_at"`
	Meta      json.RawMessage `json:"meta"` // the caller's own
	Packs     []Pack          `json:"packs"`
	Entries   []Entry         `json:"entries"`
	Bytes     int64           `json:"bytes"`  // of all files
	Stored    int64           `json:"stored"` // what this snapshot added to the store

	key int // version that it was stored with
}

// Head returns the manifest without what is in the snapshot: enough for its note.
func (m *Manifest) Head() *Manifest {
	head := *m
	head.Packs, head.Entries = nil, nil
	return &head
}

// Pack is a pack that the snapshot needs pages of.
type Pack struct {
	ID    string `json:"id"`
	Hash  string `json:"hash"`  // over its pages
	Pages int    `json:"pages"` // in it
}

// Entry is one file, directory, link or whiteout. Names are relative and clean; parents come before children.
type Entry struct {
	Name   string            `json:"name"`
	Mode   uint32            `json:"mode"` // type and permissions, as st_mode
	UID    uint32            `json:"uid"`  // relative to the sandbox's first id
	GID    uint32            `json:"gid"`
	MTime  int64             `json:"mtime"` // nanoseconds
	Rdev   uint64            `json:"rdev,omitempty"`
	Target string            `json:"target,omitempty"` // of a symbolic link
	Same   string            `json:"same,omitempty"`   // the earlier name of the same file: a hard link
	Xattrs map[string][]byte `json:"xattrs,omitempty"`
	Size   int64             `json:"size,omitempty"`
	Runs   []Run             `json:"runs,omitempty"` // pages that are not zero, in order
}

// Run is Count pages from page Slot of pack Pack on, which are the file's from page At on.
type Run struct {
	At    int64 `json:"a"`
	Pack  int   `json:"p"`
	Slot  int   `json:"s"`
	Count int   `json:"n"`
}

// File types of Entry.Mode.
const (
	typeMask = 0o170000
	typeDir  = 0o040000
	typeReg  = 0o100000
	typeLink = 0o120000
	typeChar = 0o020000
	typeFIFO = 0o010000
	typeSock = 0o140000
)

// decode reads a manifest and refuses one that no store has written.
func decode(b []byte) (*Manifest, error) {
	if len(b) > maxManifest {
		return nil, fmt.Errorf("%w: manifest of %d bytes, at most %d", ErrBad, len(b), maxManifest)
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrBad, err)
	}
	err := m.bytes()
	if err == nil {
		err = m.check()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrBad, err)
	}
	return &m, nil
}

func (m *Manifest) check() error {
	switch {
	case m.Version < 1 || m.Version > ManifestVersion:
		return fmt.Errorf("version %d, this node reads up to %d", m.Version, ManifestVersion)
	case len(m.Packs) > maxPacks:
		return fmt.Errorf("%d packs, at most %d", len(m.Packs), maxPacks)
	case len(m.Entries) > maxEntries:
		return fmt.Errorf("%d entries, at most %d", len(m.Entries), maxEntries)
	case !validID(m.ID):
		return fmt.Errorf("id %.60q is none", m.ID)
	}
	for i, p := range m.Packs {
		if h, err := hex.DecodeString(p.Hash); err != nil || len(h) != hashSize || !validID(p.ID) || p.Pages < 1 || p.Pages > packPages {
			return fmt.Errorf("pack %d is none", i)
		}
	}
	dirs := map[string]bool{".": true}
	files := map[string]bool{}
	runs := 0
	for i := range m.Entries {
		e := &m.Entries[i]
		if err := e.check(m.Packs); err != nil {
			return fmt.Errorf("entry %d (%.100q): %w", i, e.Name, err)
		}
		if runs += len(e.Runs); runs > maxRuns {
			return fmt.Errorf("more than %d runs", maxRuns)
		}
		if !dirs[path.Dir(e.Name)] || dirs[e.Name] || files[e.Name] {
			return fmt.Errorf("entry %d (%.100q) is there twice, or before its directory", i, e.Name)
		}
		switch {
		case e.Same != "" && !files[e.Same]:
			return fmt.Errorf("entry %d (%.100q) is the same as %.100q, which is none before it", i, e.Name, e.Same)
		case e.Mode&typeMask == typeDir:
			dirs[e.Name] = true
		default:
			files[e.Name] = true
		}
	}
	return nil
}

func (e *Entry) check(packs []Pack) error {
	if e.Name == "" || len(e.Name) > maxName || e.Name != path.Clean(e.Name) || e.Name[0] == '/' || e.Name == ".." ||
		strings.HasPrefix(e.Name, "../") || e.Name == "." || strings.ContainsRune(e.Name, 0) {
		return fmt.Errorf("name is no relative, clean path of at most %d bytes", maxName)
	}
	if e.UID >= 1<<16 || e.GID >= 1<<16 {
		return fmt.Errorf("owner %d:%d is outside the sandbox's ids", e.UID, e.GID)
	}
	if len(e.Target) > maxName || len(e.Xattrs) > maxXattrs || e.Size < 0 || e.Size > maxFileBytes {
		return fmt.Errorf("link, attributes or size beyond what is allowed")
	}
	switch e.Mode & typeMask {
	case typeDir, typeLink, typeReg, typeFIFO, typeSock:
	case typeChar:
		if e.Rdev != 0 {
			return fmt.Errorf("device %#x", e.Rdev) // whiteouts have none
		}
	default:
		return fmt.Errorf("file type %#o", e.Mode&typeMask)
	}
	if e.Mode&typeMask != typeReg && (e.Size != 0 || len(e.Runs) != 0) || e.Same != "" && len(e.Runs) != 0 {
		return fmt.Errorf("content of what has none")
	}
	pages := (e.Size + Page - 1) / Page
	next := int64(0)
	for _, r := range e.Runs {
		if r.Pack < 0 || r.Pack >= len(packs) || r.Count < 1 || r.Slot < 0 || r.Count > packs[r.Pack].Pages || r.Slot > packs[r.Pack].Pages-r.Count {
			return fmt.Errorf("run of pages that no pack has")
		}
		if r.At < next || r.At > pages-int64(r.Count) {
			return fmt.Errorf("runs overlap or go beyond the file's end")
		}
		next = r.At + int64(r.Count)
	}
	return nil
}

// validID reports whether an id can be a part of a name in a backend.
func validID(id string) bool {
	if id == "" || len(id) > 64 {
		return false
	}
	for i := range len(id) {
		if c := id[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
