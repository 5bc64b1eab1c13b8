package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/tree"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/unpack"
)

// Own names a tenant's own copy of a tree: files that no other tenant's sandboxes have mounted, so that they share neither an inode nor a page of
// the page cache.
type Own struct {
	Tenant string `json:"tenant"`
	Digest string `json:"digest"`
}

var tenantPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// CheckTenant checks the name of a tenant: it is a folder's.
func CheckTenant(tenant string) error {
	if !tenantPattern.MatchString(tenant) {
		return fmt.Errorf("%w: tenant %.80q is not 1 to 63 of a-z, 0-9 and \"-\", which neither begins nor ends it", ErrInvalid, tenant)
	}
	return nil
}

// copying is a copy that is being made.
type copying struct {
	done chan struct{} // closed once err is set
	err  error
}

// MakeOwn returns once a tenant has its own copy of a template; made tells that it had none. Where there is none it is made, once however many ask; it goes on when ctx
// ends, so that who asks again finds it. Its content is compared with the template's digest, so that what was changed in memory or on
// disk is not copied.
func (s *Store) MakeOwn(ctx context.Context, tenant, nameOrDigest string) (made bool, err error) {
	if err := CheckTenant(tenant); err != nil {
		return false, err
	}
	c, err := s.startOwn(tenant, nameOrDigest)
	if c == nil || err != nil {
		return false, err
	}
	select {
	case <-c.done:
		return true, c.err
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// startOwn returns the copy that is being made for a tenant, or nil where it has one.
func (s *Store) startOwn(tenant, nameOrDigest string) (*copying, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, os.ErrClosed
	}
	e, _, err := s.find(nameOrDigest)
	if err != nil {
		return nil, err
	}
	own := Own{Tenant: tenant, Digest: e.meta.Digest}
	if s.own[own] != nil {
		return nil, nil
	}
	if c := s.copies[own]; c != nil {
		return c, nil
	}
	c := &copying{done: make(chan struct{})}
	s.copies[own] = c
	e.leases++
	s.wg.Go(func() {
		err := s.copyOwn(s.ctx, own, e.meta)
		s.mu.Lock()
		defer s.mu.Unlock()
		e.leases--
		delete(s.copies, own)
		c.err = err
		close(c.done)
	})
	return c, nil
}

func (s *Store) copyOwn(ctx context.Context, own Own, m meta) error {
	fail := func(err error) error {
		return fmt.Errorf("copy template %s for tenant %s: %w", own.Digest, own.Tenant, unpack.SpaceError(err))
	}
	work, err := os.MkdirTemp(filepath.Join(s.dir, tempDir), "own-")
	if err != nil {
		return fail(err)
	}
	err = s.copyTree(ctx, work, m)
	if err == nil {
		err = s.placeOwn(work, own, m)
	}
	if rerr := os.RemoveAll(work); err == nil {
		err = rerr
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// copyTree makes work a stored tree with the content of another one.
func (s *Store) copyTree(ctx context.Context, work string, m meta) error {
	from, err := os.Open(s.root(m.Digest))
	if err != nil {
		return err
	}
	defer from.Close()
	r, w := io.Pipe()
	packed := make(chan struct{})
	go func() {
		defer close(packed)
		d := m.Defaults
		_ = w.CloseWithError(tree.Pack(ctx, from, w, tree.PackOptions{Defaults: &d}))
	}()
	// It was within the limits of its import, which may have been others than the store's.
	_, err = unpack.Into(ctx, work, r, unpack.Options{Limits: s.limits.With(unpack.Limits{
		Bytes: 1 << 62, FileBytes: 1 << 62, Files: 1 << 62, Depth: 1 << 16, PathBytes: 1 << 16, Ratio: 1 << 32,
	})})
	_ = r.CloseWithError(err) // which ends Pack where the copy ended first
	<-packed
	if err != nil {
		return err
	}
	root, err := os.Open(filepath.Join(work, rootDir))
	if err != nil {
		return err
	}
	defer root.Close()
	sum, err := tree.Digest(ctx, root, m.Defaults)
	if err != nil {
		return err
	}
	if sum.Digest != m.Digest {
		return fmt.Errorf("%w: it is now %s", ErrChanged, sum.Digest)
	}
	if err := writeJSON(work, filepath.Join(work, metaFile), m); err != nil {
		return err
	}
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		return fmt.Errorf("flush to disk: %w", err)
	}
	return nil
}

// placeOwn makes the tree in work part of the store.
func (s *Store) placeOwn(work string, own Own, m meta) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	place := s.ownPath(own)
	if err := os.Mkdir(filepath.Dir(place), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := os.Rename(work, place); err != nil {
		return err
	}
	if err := errors.Join(syncDir(filepath.Dir(place)), syncDir(filepath.Join(s.dir, ownDir))); err != nil {
		return err
	}
	s.own[own] = &entry{meta: m}
	return nil
}

// AcquireOwn takes a lease on a tenant's own copy of a template, which MakeOwn has made, and on the template.
func (s *Store) AcquireOwn(tenant, nameOrDigest string) (*Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, name, err := s.find(nameOrDigest)
	if err != nil {
		return nil, err
	}
	own := Own{Tenant: tenant, Digest: e.meta.Digest}
	mine := s.own[own]
	if mine == nil {
		return nil, fmt.Errorf("%w: %.140q, as a copy of tenant %.80s", ErrNotFound, nameOrDigest, tenant)
	}
	e.leases++
	mine.leases++
	return &Lease{Template: e.template(name), Root: filepath.Join(s.ownPath(own), rootDir), release: func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		e.leases--
		mine.leases--
	}}, nil
}

// Owned returns the copies that tenants have, sorted.
func (s *Store) Owned() []Own {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Own, 0, len(s.own))
	for o := range s.own {
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b Own) int { return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Digest, b.Digest)) })
	return out
}

// RemoveOwn removes a tenant's own copy. One on which somebody holds a lease stays, and the error is ErrInUse; one that is not there is no error.
func (s *Store) RemoveOwn(ctx context.Context, own Own) error {
	if err := CheckTenant(own.Tenant); err != nil {
		return err
	}
	if !IsDigest(own.Digest) {
		return fmt.Errorf("%w: %.140q is no digest", ErrInvalid, own.Digest)
	}
	trash, err := s.unlinkOwn(own)
	if err != nil || trash == "" {
		return err
	}
	return removeTree(ctx, trash)
}

func (s *Store) unlinkOwn(own Own) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.own[own]
	switch {
	case e == nil:
		return "", nil
	case e.leases > 0:
		return "", fmt.Errorf("%w: %s of tenant %s, by %d", ErrInUse, own.Digest, own.Tenant, e.leases)
	}
	trash, err := os.MkdirTemp(filepath.Join(s.dir, tempDir), "remove-")
	if err != nil {
		return "", err
	}
	return trash, s.discardOwn(own, trash)
}

// discardOwn moves a copy that nobody has a lease on into trash. The caller holds s.mu.
func (s *Store) discardOwn(own Own, trash string) error {
	place := s.ownPath(own)
	if err := os.Rename(place, filepath.Join(trash, own.Tenant)); err != nil {
		return err
	}
	delete(s.own, own)
	_ = os.Remove(filepath.Dir(place)) // where it was the tenant's last
	return syncDir(filepath.Join(s.dir, ownDir))
}

// ownPath returns the path of a tenant's copy.
func (s *Store) ownPath(own Own) string {
	return filepath.Join(s.dir, ownDir, own.Tenant, strings.TrimPrefix(own.Digest, "sha256:"))
}

// loadOwn reads which copies there are. Those of templates that are gone go, too: a crash came between.
func (s *Store) loadOwn() error {
	tenants, err := os.ReadDir(filepath.Join(s.dir, ownDir))
	if err != nil {
		return fmt.Errorf("list template store: %w", err)
	}
	for _, t := range tenants {
		dir := filepath.Join(s.dir, ownDir, t.Name())
		copies, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("list template store: %w", err)
		}
		for _, c := range copies {
			own := Own{Tenant: t.Name(), Digest: "sha256:" + c.Name()}
			if CheckTenant(own.Tenant) != nil || !IsDigest(own.Digest) {
				return fmt.Errorf("template store %s holds %s/%s, which is no tenant's copy: remove it", s.dir, t.Name(), c.Name())
			}
			if s.trees[own.Digest] == nil {
				if err := os.RemoveAll(s.ownPath(own)); err != nil {
					return fmt.Errorf("sweep template store: %w", err)
				}
				continue
			}
			m, err := readMeta(filepath.Join(s.ownPath(own), metaFile))
			if err != nil {
				return err
			}
			if m.Digest != own.Digest {
				return fmt.Errorf("template %s of tenant %s says that its digest is %s", own.Digest, own.Tenant, m.Digest)
			}
			s.own[own] = &entry{meta: m}
		}
		_ = os.Remove(dir) // where nothing is in it
	}
	return nil
}
