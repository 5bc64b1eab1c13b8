// Package store keeps the templates of one node: root file system trees, content-addressed and immutable, and the names
// that point to them.
//
// It owns the folder it was opened on, and everything in it; one process at a time has it open. It never mounts anything and
// knows nothing of sandboxes: who uses a tree holds a Lease on it. See DESIGN.md for the folder's form.
package store

import (
	"errors"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/tree"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/unpack"
)

// Errors that callers tell apart. Those of package unpack pass through Import.
var (
	ErrNotFound = errors.New("template not found")
	ErrInUse    = errors.New("template is in use")
	ErrLocked   = errors.New("template store is open in another process")
	ErrChanged  = errors.New("template was changed on this machine")
	ErrInvalid  = tree.ErrInvalid
)

// Template describes one stored template. It converts to the node API's type: nodeapi.Template(t).
type Template struct {
	Name      string    `json:"name"`   // empty where no name points to it
	Digest    string    `json:"digest"` // sha256:<hex> over its canonical listing and its defaults
	Bytes     int64     `json:"bytes"`  // of its files' contents
	Files     int64     `json:"files"`  // entries of all types
	CreatedAt time.Time `json:"created_at"`
	User      string    `json:"user,omitempty"` // default user of processes
	Cwd       string    `json:"cwd,omitempty"`
	Env       []string  `json:"env,omitempty"`
}

// Config of a store.
type Config struct {
	Dir    string        // made with mode 0700 where missing; its parent must exist
	Limits unpack.Limits // of each import
}

// ImportOptions of one import. Zero values leave to the archive what it says itself.
type ImportOptions struct {
	User     string
	Cwd      string
	Env      []string      // replaces the archive's own
	Ref      string        // which image of an OCI layout that holds several
	Limits   unpack.Limits // replaces the store's where a field is set
	Progress func(unpack.Progress)
}
