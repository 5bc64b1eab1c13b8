// Package unpack makes a root file system tree out of an archive that nobody trusts: a root tar, plain or compressed with
// gzip or zstd, or a tar of an OCI image layout.
//
// It owns every rule about what an archive may hold and how large it may be. All of it happens below one directory that the
// caller made and removes on error: each path is resolved by openat2 beneath that directory, never through a symbolic link.
// It never keeps state and knows nothing of names or digests of templates; package store does.
package unpack

import (
	"errors"
	"fmt"

	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/tree"
)

// Errors of this package; every error is one of them, the context's, or the file system's own.
var (
	ErrInvalid = tree.ErrInvalid                        // the archive is malformed or holds what a template may not
	ErrLimit   = errors.New("template exceeds a limit") // a *LimitError
	ErrNoSpace = errors.New("no space left")            // the disk, its inodes or its quota is full
)

// Limits bound what an archive may grow to. Zero means the default of DefaultLimits.
type Limits struct {
	Bytes     int64 // of all files together, as written
	FileBytes int64 // of one file
	Files     int64 // entries of all types, counted as often as they occur
	Depth     int   // path components
	PathBytes int   // of one path, and of one link target
	Ratio     int64 // bytes written for each byte read; not applied to the first RatioGrace bytes
}

// RatioGrace is how many bytes an archive may expand to before Limits.Ratio applies.
const RatioGrace = 64 << 20

// DefaultLimits are the limits where nothing else is said.
var defaultLimits = Limits{
	Bytes:     32 << 30,
	FileBytes: 16 << 30,
	Files:     2_000_000,
	Depth:     128,
	PathBytes: 4000,
	Ratio:     200,
}

// DefaultLimits returns the limits that apply where nothing else is said.
func DefaultLimits() Limits { return defaultLimits }

// LimitError says which limit an archive exceeds. It is ErrLimit.
type LimitError struct {
	Limit string // the field of Limits, in snake_case
	Max   int64
	Path  string // the entry that exceeds it
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("template exceeds the limit %s of %d at %.200q", e.Limit, e.Max, e.Path)
}

// Is makes errors.Is(err, ErrLimit) true.
func (e *LimitError) Is(target error) bool { return target == ErrLimit }

// Options of Into.
type Options struct {
	Limits   Limits
	Ref      string         // which image of an OCI layout that holds several: its org.opencontainers.image.ref.name
	Progress func(Progress) // called from the same goroutine, every few thousand entries or some MiB; may be nil
}

// Progress is how far an import is.
type Progress struct {
	Read  int64 `json:"read"`  // bytes of the archive
	Bytes int64 `json:"bytes"` // written
	Files int64 `json:"files"` // entries
}

// Result is what came out of an archive.
type Result struct {
	Defaults tree.Defaults  // from the image's configuration or the tar's own record; User falls back to "user" where /etc/passwd has it
	Kind     string         // "tar" or "oci"
	Bytes    int64          // written
	Files    int64          // entries seen
	Dropped  map[string]int // what was left out on purpose, by kind
}
