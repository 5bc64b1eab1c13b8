package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/tree"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/unpack"
)

// Import unpacks the archive r (see package unpack for what it may be and hold), stores its tree and lets name point to it. A
// tree that is stored already is not stored again. A name that pointed elsewhere moves; the tree that it left stays until it is
// removed by digest or pruned. The import is durable when Import returns; on error nothing of it is left.
func (s *Store) Import(ctx context.Context, name string, r io.Reader, o ImportOptions) (Template, error) {
	if err := CheckName(name); err != nil {
		return Template{}, err
	}
	if err := (tree.Defaults{User: o.User, Cwd: o.Cwd, Env: o.Env}).Validate(); err != nil {
		return Template{}, err
	}
	if s.isClosed() {
		return Template{}, fmt.Errorf("import template %s: %w", name, os.ErrClosed)
	}
	work, err := os.MkdirTemp(filepath.Join(s.dir, tempDir), "import-")
	if err != nil {
		return Template{}, fmt.Errorf("import template %s: %w", name, unpack.SpaceError(err))
	}
	t, err := s.importInto(ctx, work, name, r, o)
	if rerr := os.RemoveAll(work); rerr != nil {
		err = errors.Join(err, rerr)
	}
	if err != nil {
		return Template{}, fmt.Errorf("import template %s: %w", name, unpack.SpaceError(err))
	}
	return t, nil
}

func (s *Store) importInto(ctx context.Context, work, name string, r io.Reader, o ImportOptions) (Template, error) {
	res, err := unpack.Into(ctx, work, r, unpack.Options{Limits: s.limits.With(o.Limits), Ref: o.Ref, Progress: o.Progress})
	if err != nil {
		return Template{}, err
	}
	d := res.Defaults
	if o.User != "" {
		d.User = o.User
	}
	if o.Cwd != "" {
		d.Cwd = o.Cwd
	}
	if o.Env != nil {
		d.Env = o.Env
	}
	root, err := os.Open(filepath.Join(work, rootDir))
	if err != nil {
		return Template{}, err
	}
	defer root.Close()
	sum, err := tree.Digest(ctx, root, d)
	if err != nil {
		return Template{}, err
	}
	m := meta{Version: formatVersion, Digest: sum.Digest, Bytes: sum.Bytes, Files: sum.Files, CreatedAt: time.Now().UTC(), Defaults: d}
	if !s.has(m.Digest) {
		if err := writeJSON(work, filepath.Join(work, metaFile), m); err != nil {
			return Template{}, err
		}
		// One flush of the file system instead of one for each of some ten thousand files.
		if err := unix.Syncfs(int(root.Fd())); err != nil {
			return Template{}, fmt.Errorf("flush to disk: %w", err)
		}
	}
	return s.commit(work, name, m)
}

func (s *Store) has(digest string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trees[digest] != nil
}

// commit makes the tree in work part of the store, unless it is already, and points name to it.
func (s *Store) commit(work, name string, m meta) (Template, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Template{}, os.ErrClosed
	}
	e := s.trees[m.Digest]
	if e == nil {
		if _, err := os.Lstat(filepath.Join(work, metaFile)); err != nil {
			return Template{}, fmt.Errorf("template %s was removed during the import: %w", m.Digest, ErrNotFound)
		}
		// The tree leaves the temporary folder under the name that it keeps: a second import of the same content finds it.
		place := s.treePath(m.Digest)
		if err := os.Mkdir(work+".done", 0o700); err != nil {
			return Template{}, err
		}
		done := work + ".done"
		defer os.RemoveAll(done) //nolint:errcheck // empty or renamed; what stays is swept at the next start
		for _, part := range []string{rootDir, metaFile} {
			if err := os.Rename(filepath.Join(work, part), filepath.Join(done, part)); err != nil {
				return Template{}, err
			}
		}
		if err := syncDir(done); err != nil {
			return Template{}, err
		}
		if err := os.Rename(done, place); err != nil {
			return Template{}, err
		}
		if err := syncDir(filepath.Dir(place)); err != nil {
			return Template{}, err
		}
		e = &entry{meta: m}
		s.trees[m.Digest] = e
	}
	if err := s.setName(name, m.Digest); err != nil {
		return Template{}, err
	}
	return e.template(name), nil
}

// Name points name to a tree that is in the store, besides its other names.
func (s *Store) Name(name, digest string) (Template, error) {
	if err := CheckName(name); err != nil {
		return Template{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Template{}, os.ErrClosed
	}
	e := s.trees[digest]
	if e == nil {
		return Template{}, fmt.Errorf("%w: template %.80q", ErrNotFound, digest)
	}
	if err := s.setName(name, digest); err != nil {
		return Template{}, err
	}
	return e.template(name), nil
}

// setName points name to digest, or removes it where digest is empty. The caller holds s.mu.
func (s *Store) setName(name, digest string) error {
	old, had := s.names[name]
	if old == digest {
		return nil
	}
	if digest == "" {
		delete(s.names, name)
	} else {
		s.names[name] = digest
	}
	err := writeJSON(filepath.Join(s.dir, tempDir), filepath.Join(s.dir, namesFile), names{Version: formatVersion, Names: s.names})
	if err != nil {
		delete(s.names, name)
		if had {
			s.names[name] = old
		}
		return fmt.Errorf("write template names: %w", err)
	}
	return nil
}

func (e *entry) template(name string) Template {
	m := e.meta
	return Template{
		Name: name, Digest: m.Digest, Bytes: m.Bytes, Files: m.Files, CreatedAt: m.CreatedAt,
		User: m.Defaults.User, Cwd: m.Defaults.Cwd, Env: m.Defaults.Env,
	}
}
