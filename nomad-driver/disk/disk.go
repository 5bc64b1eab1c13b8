// Package disk bounds what a sandbox can write: bytes and inodes of the folder that holds its upper layer.
//
// It owns three ways to do so, of which a kernel and a file system offer some: project quotas, a file system of its own in
// an image file, and tmpfs. It never mounts a sandbox's root and never deletes what a sandbox wrote.
package disk

import (
	"errors"
	"fmt"
	"strings"
)

// Limits of one folder. Zero is no limit.
type Limits struct {
	Bytes  int64
	Inodes int64
}

// Usage of one folder.
type Usage struct {
	Bytes, Inodes int64
	Limits        Limits // as enforced; Limits.Bytes is the size of the whole file system for image and tmpfs
}

// Full reports whether a limit is used up: all inodes, or all bytes but a part in 32, since a file system keeps some for itself (ext4 a
// part in 50, for what it allocates late) and a write that does not fit leaves a rest.
func (u Usage) Full() bool {
	l := u.Limits
	return l.Bytes > 0 && u.Bytes >= l.Bytes-l.Bytes/32 || l.Inodes > 0 && u.Inodes >= l.Inodes
}

// Limiter bounds folders. One limiter serves many folders at once; calls for one folder come one after another. A call may
// take as long as the disk does (an image: some ten milliseconds).
//
// limitertest checks all implementations:
//
//   - Prepare bounds dir, which exists and is empty. A second Prepare of the same folder is an error. It leaves nothing
//     behind on error.
//   - A write beyond Bytes fails with ENOSPC or EDQUOT, a file beyond Inodes too, and others are not affected.
//   - Resize changes the limits of a prepared folder; ErrCannotShrink where they are below what is used and the way of
//     this limiter cannot hold that.
//   - Release ends the bound and frees what it took. It is nil for a folder that is not prepared, also after a crash of the
//     process that prepared it: everything it needs is in the file system.
type Limiter interface {
	Name() string
	Prepare(dir string, l Limits) error
	Resize(dir string, l Limits) error
	Usage(dir string) (Usage, error)
	Release(dir string) error
}

// Errors that callers tell apart.
var (
	ErrUnsupported  = errors.New("not supported here")
	ErrCannotShrink = errors.New("disk limit is below what is used")
	ErrNotPrepared  = errors.New("folder has no disk limit")
)

// Names of the limiters, as in the node's configuration.
const (
	Quota = "quota"
	Image = "image"
	Tmpfs = "tmpfs"
	None  = "none"
)

// ByName returns the limiter of that name without asking the machine for it; nil for None and an empty name.
func ByName(name string) (Limiter, error) {
	switch name {
	case "", None:
		return nil, nil
	case Quota:
		return &ProjectQuota{}, nil
	case Image:
		return &LoopImage{}, nil
	case Tmpfs:
		return TmpfsLimiter{}, nil
	}
	return nil, fmt.Errorf("disk limiter %q is not one of quota, image, tmpfs, none", name)
}

// Release ends whatever bounds dir, for those who do not know what that is. It is nil where nothing does.
func Release(dir string) error {
	return errors.Join(TmpfsLimiter{}.Release(dir), (&LoopImage{}).Release(dir), (&ProjectQuota{}).Release(dir))
}

// FolderOf returns the folder that a name beside it belongs to: an image's name is its folder's and more. Every other name is
// returned as it is.
func FolderOf(name string) string { return strings.TrimSuffix(name, imageSuffix) }

// validate refuses limits that no file system has.
func (l Limits) validate() error {
	const minBytes, maxBytes, minInodes = 1 << 20, 1 << 50, 64
	if l.Bytes != 0 && (l.Bytes < minBytes || l.Bytes > maxBytes) {
		return fmt.Errorf("disk limit %d bytes is not between %d and %d", l.Bytes, minBytes, int64(maxBytes))
	}
	if l.Inodes != 0 && (l.Inodes < minInodes || l.Inodes > 1<<32) {
		return fmt.Errorf("disk limit %d inodes is not between %d and %d", l.Inodes, minInodes, int64(1<<32))
	}
	return nil
}

// Choose returns the limiter for folders below root. want names one, or is empty for the best that works there: project
// quotas (free), else an image (bytes on disk, one loop device each). tmpfs counts as memory and is used only by name.
func Choose(root, want string) (Limiter, error) {
	switch want {
	case "":
		q := &ProjectQuota{}
		if q.Probe(root) == nil {
			return q, nil
		}
		i := &LoopImage{}
		if err := i.Probe(root); err != nil {
			return nil, fmt.Errorf("disk limits below %s: neither project quotas nor images: %w", root, err)
		}
		return i, nil
	case Quota:
		q := &ProjectQuota{}
		return q, q.Probe(root)
	case Image:
		i := &LoopImage{}
		return i, i.Probe(root)
	case Tmpfs:
		return TmpfsLimiter{}, nil
	}
	return nil, fmt.Errorf("disk limiter %q is not one of quota, image, tmpfs", want)
}
