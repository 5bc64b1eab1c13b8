package guest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// Limits of what is said of entries.
const (
	MaxEntries  = 50_000    // entries of one OpWalk answer
	MaxDepth    = 256       // levels that OpWalk goes down
	MaxRead     = 512 << 10 // bytes of a file that OpRead answers with
	MaxMetadata = 16 << 10  // bytes of keys and values that an Entry has
)

// MetadataPrefix is what the names of the extended attributes begin with that hold a file's metadata.
const MetadataPrefix = "user.e2b."

// Entry is a file as its user sees it: owner, size and time are those of the link where it is one, type and permission bits
// those of what the link leads to. Names that are not UTF-8 have U+FFFD in place of the bytes that are not.
type Entry struct {
	Name     string    `json:"name"`
	Path     string    `json:"path"` // absolute, as asked for
	Type     string    `json:"type"` // file, directory, symlink (one that leads nowhere), other
	Size     int64     `json:"size"` // bytes
	Mode     uint32    `json:"mode"` // permission bits with setuid, setgid and sticky, of what it leads to
	LinkMode uint32    `json:"link_mode"`
	Owner    string    `json:"owner"`
	Group    string    `json:"group"`
	ModTime  time.Time `json:"mod_time"`
	// LinkMode is st_mode of the entry itself, type bits included.

	Target   string            `json:"target,omitempty"` // of a symlink: absolute, with all links followed where it leads anywhere
	Metadata map[string]string `json:"metadata,omitempty"`
}

// Entry describes a path. A path that does not exist is CodeNotFound; a symlink that leads nowhere is not.
func (c *Client) Entry(ctx context.Context, f FileRequest) (Entry, error) {
	r, err := c.call(ctx, Request{Op: OpEntry, File: &f})
	if err != nil {
		return Entry{}, err
	}
	if r.Entry == nil {
		return Entry{}, missing(OpEntry, "entry")
	}
	return *r.Entry, checkEntry(OpEntry, r.Entry)
}

// Walk lists a directory f.Depth levels deep: depth first, in lexical order, without the directory itself. Symlinks below it
// are not followed, directories that the user may not read are listed without what they hold.
func (c *Client) Walk(ctx context.Context, f FileRequest) ([]Entry, error) {
	list, err := parts(ctx, c, Request{Op: OpWalk, File: &f}, MaxEntries, func(r Response) []Entry { return r.Entries })
	if err != nil {
		return nil, err
	}
	for i := range list {
		if n := list[i].Name; n == "" || n == "." || n == ".." || strings.ContainsAny(n, "/\x00") {
			return nil, fmt.Errorf("guest %s: %w: directory entry %.80q", OpWalk, ErrBadAnswer, n)
		}
		if err := checkEntry(OpWalk, &list[i]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// ReadSmall returns what a regular file has, read inside as the user: for the files of /proc and its like, whose content
// depends on who reads. One of more than MaxRead bytes is CodeLimit.
func (c *Client) ReadSmall(ctx context.Context, f FileRequest) ([]byte, error) {
	r, err := c.call(ctx, Request{Op: OpRead, File: &f})
	if err != nil {
		return nil, err
	}
	if len(r.Data) > MaxRead {
		return nil, fmt.Errorf("guest %s: %w: %d bytes", OpRead, ErrBadAnswer, len(r.Data))
	}
	return r.Data, nil
}

// checkEntry bounds what a guest says of a file.
func checkEntry(op Op, e *Entry) error {
	const maxText = 8 << 10
	n := 0
	for k, v := range e.Metadata {
		n += len(k) + len(v)
	}
	if len(e.Name) > maxText || len(e.Path) > maxText || len(e.Target) > maxText || len(e.Owner) > maxText || len(e.Group) > maxText ||
		n > 4*MaxMetadata {
		return fmt.Errorf("guest %s: %w: an entry that is too long", op, ErrBadAnswer)
	}
	return nil
}

const tempPrefix = ".soulbox-upload-"

// TempName returns a new name for a file that is being written and then renamed to what it is for. replaces tells that there
// is a file of that name already: a watch then reports the rename as a write, not as a creation.
func TempName(replaces bool) string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	kind := "c-"
	if replaces {
		kind = "w-"
	}
	return tempPrefix + kind + hex.EncodeToString(b[:])
}

// IsTempName reports whether name is one of TempName's.
func IsTempName(name string) (replaces, ok bool) {
	rest, ok := strings.CutPrefix(name, tempPrefix)
	if !ok || len(rest) != 18 || rest[1] != '-' || rest[0] != 'c' && rest[0] != 'w' {
		return false, false
	}
	_, err := hex.DecodeString(rest[2:])
	return rest[0] == 'w', err == nil
}
