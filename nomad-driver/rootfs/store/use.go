package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/tree"
)

// Lookup returns the template that a name or a digest names, and the path of its root on disk. The tree may be removed as
// soon as Lookup returned: who mounts it takes a Lease.
func (s *Store) Lookup(nameOrDigest string) (Template, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, name, err := s.find(nameOrDigest)
	if err != nil {
		return Template{}, "", err
	}
	return e.template(name), s.root(e.meta.Digest), nil
}

// find returns what nameOrDigest names, and the name if it is one. The caller holds s.mu.
func (s *Store) find(nameOrDigest string) (*entry, string, error) {
	digest, name := nameOrDigest, ""
	if !IsDigest(nameOrDigest) {
		name = nameOrDigest
		digest = s.names[name]
	}
	e := s.trees[digest]
	if e == nil {
		return nil, "", fmt.Errorf("%w: %.140q", ErrNotFound, nameOrDigest)
	}
	return e, name, nil
}

// List returns all templates, sorted by name, one for each name; those without a name come last, sorted by digest.
func (s *Store) List() []Template {
	s.mu.Lock()
	defer s.mu.Unlock()
	named := map[string]bool{}
	out := make([]Template, 0, len(s.trees))
	for name, digest := range s.names {
		named[digest] = true
		out = append(out, s.trees[digest].template(name))
	}
	for digest, e := range s.trees {
		if !named[digest] {
			out = append(out, e.template(""))
		}
	}
	slices.SortFunc(out, func(a, b Template) int {
		if (a.Name == "") != (b.Name == "") {
			return cmp.Compare(b.Name, a.Name)
		}
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Digest, b.Digest))
	})
	return out
}

// Lease keeps a tree from being removed.
type Lease struct {
	Template Template
	Root     string // path of the tree's root on disk
	once     sync.Once
	release  func()
}

// Release ends the lease. Calling it again does nothing.
func (l *Lease) Release() { l.once.Do(l.release) }

// Acquire takes a lease on what a name or a digest names. Leases are in memory: after a restart the owner takes them again,
// by digest, before it lets anybody remove a template.
func (s *Store) Acquire(nameOrDigest string) (*Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, name, err := s.find(nameOrDigest)
	if err != nil {
		return nil, err
	}
	e.leases++
	return &Lease{Template: e.template(name), Root: s.root(e.meta.Digest), release: func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		e.leases--
	}}, nil
}

// Remove removes a name, and the tree with its last name; or, given a digest, a tree with all its names. A tree on which
// somebody holds a lease stays, with its names, and the error is ErrInUse.
func (s *Store) Remove(ctx context.Context, nameOrDigest string) error {
	trash, err := s.unlink(nameOrDigest)
	if err != nil || trash == "" {
		return err
	}
	return removeTree(ctx, trash)
}

// unlink takes a template out of the store and returns the temporary folder in which its tree is now, if it was the tree's
// last name.
func (s *Store) unlink(nameOrDigest string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, name, err := s.find(nameOrDigest)
	if err != nil {
		return "", err
	}
	digest := e.meta.Digest
	var all []string
	for n, d := range s.names {
		if d == digest {
			all = append(all, n)
		}
	}
	if name != "" && len(all) > 1 {
		return "", s.setName(name, "")
	}
	if e.leases > 0 {
		return "", fmt.Errorf("%w: %s, by %d", ErrInUse, nameOrDigest, e.leases)
	}
	for _, n := range all {
		if err := s.setName(n, ""); err != nil {
			return "", err
		}
	}
	return s.discard(digest)
}

// discard moves a tree that has no name and no lease out of the store, and with it the copies that tenants have. The caller holds s.mu.
func (s *Store) discard(digest string) (string, error) {
	trash, err := os.MkdirTemp(filepath.Join(s.dir, tempDir), "remove-")
	if err != nil {
		return "", err
	}
	if err := os.Rename(s.treePath(digest), filepath.Join(trash, "tree")); err != nil {
		return "", errors.Join(err, os.Remove(trash))
	}
	delete(s.trees, digest)
	for own := range s.own {
		if own.Digest == digest {
			if err := s.discardOwn(own, trash); err != nil {
				return trash, err
			}
		}
	}
	return trash, syncDir(filepath.Join(s.dir, treesDir))
}

// Prune removes the trees older than age that no name points to and nobody has a lease on, and returns their digests.
func (s *Store) Prune(ctx context.Context, age time.Duration) ([]string, error) {
	var pruned []string
	for _, t := range s.List() {
		if t.Name != "" || time.Since(t.CreatedAt) < age {
			continue
		}
		err := s.Remove(ctx, t.Digest)
		if errors.Is(err, ErrInUse) || errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return pruned, err
		}
		pruned = append(pruned, t.Digest)
	}
	return pruned, nil
}

// removeTree deletes a folder that is out of the store already. Where it is cut short, the next Open deletes the rest.
func removeTree(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return nil //nolint:nilerr // the template is removed; only its bytes wait
	}
	return os.RemoveAll(path)
}

// Export writes a template as a tar that Import of any store turns into the same digest. The same stored tree always gives
// the same bytes. A lease is held meanwhile.
func (s *Store) Export(ctx context.Context, nameOrDigest string, w io.Writer) error {
	l, err := s.Acquire(nameOrDigest)
	if err != nil {
		return err
	}
	defer l.Release()
	root, err := os.Open(l.Root)
	if err != nil {
		return fmt.Errorf("export template %s: %w", nameOrDigest, err)
	}
	defer root.Close()
	t := l.Template
	d := tree.Defaults{User: t.User, Cwd: t.Cwd, Env: t.Env}
	if err := tree.Pack(ctx, root, w, tree.PackOptions{Defaults: &d}); err != nil {
		return fmt.Errorf("export template %s: %w", nameOrDigest, err)
	}
	return nil
}

// Verify reads a stored tree again and compares its digest.
func (s *Store) Verify(ctx context.Context, nameOrDigest string) error {
	l, err := s.Acquire(nameOrDigest)
	if err != nil {
		return err
	}
	defer l.Release()
	root, err := os.Open(l.Root)
	if err != nil {
		return fmt.Errorf("verify template %s: %w", nameOrDigest, err)
	}
	defer root.Close()
	t := l.Template
	sum, err := tree.Digest(ctx, root, tree.Defaults{User: t.User, Cwd: t.Cwd, Env: t.Env})
	if err != nil {
		return fmt.Errorf("verify template %s: %w", nameOrDigest, err)
	}
	if sum.Digest != t.Digest {
		return fmt.Errorf("%w: template %s was changed on disk: it is now %s", ErrInvalid, t.Digest, sum.Digest)
	}
	return nil
}
