package chunk

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Manifest returns a snapshot's manifest, after its seal was checked.
func (s *Store) Manifest(ctx context.Context, tenantName, id string) (*Manifest, error) {
	if !validID(id) {
		return nil, fmt.Errorf("snapshot %.60q: %w", id, ErrNotFound)
	}
	name := folder(tenantName).manifest(id)
	b, err := s.back.Get(ctx, name, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", id, err)
	}
	m := s.recent.manifest(name, b)
	if m != nil {
		if _, err := s.tenant(ctx, tenantName, m.key); err == nil { // the version of the key may be revoked since
			return m, nil
		}
	}
	if m, err = s.unseal(ctx, tenantName, id, b); err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", id, err)
	}
	if m.Tenant != tenantName {
		return nil, fmt.Errorf("snapshot %s: %w", id, ErrNotFound)
	}
	s.recent.remember(name, b, m)
	return m, nil
}

func (s *Store) manifest(ctx context.Context, tenantName, id string) (*Manifest, error) {
	b, err := s.back.Get(ctx, folder(tenantName).manifest(id), maxManifest)
	if err != nil {
		return nil, err
	}
	return s.unseal(ctx, tenantName, id, b)
}

// unseal reads a stored manifest, after its seal was checked.
func (s *Store) unseal(ctx context.Context, tenantName, id string, b []byte) (*Manifest, error) {
	var box sealed
	if err := json.Unmarshal(b, &box); err != nil || box.Version < 1 || box.Version > sealedVersion {
		return nil, fmt.Errorf("%w: manifest of version %d", ErrBad, box.Version)
	}
	t, err := s.tenant(ctx, tenantName, box.Key)
	if err != nil {
		return nil, err
	}
	packed, err := t.decrypt(t.manifest(id), box.Body)
	if err != nil {
		return nil, err
	}
	body, err := s.dec.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrBad, err)
	}
	if err := s.seal.Check(ctx, body, box.Key, box.MAC); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	m, err := decode(body)
	if err != nil {
		return nil, err
	}
	if m.ID != id {
		return nil, fmt.Errorf("%w: manifest is of %s", ErrBad, m.ID)
	}
	m.key = box.Key
	return m, nil
}

// List returns the manifests of a tenant's snapshots, newest first, without their entries.
func (s *Store) List(ctx context.Context, tenantName string) ([]*Manifest, error) {
	names, err := s.back.List(ctx, folder(tenantName).manifest(""))
	if err != nil {
		return nil, err
	}
	var out []*Manifest
	for _, o := range names {
		m, err := s.manifest(ctx, tenantName, path.Base(o.Name))
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrRevoked) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", path.Base(o.Name), err)
		}
		m.Entries, m.Packs = nil, nil
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *Manifest) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return out, nil
}

// Delete removes a snapshot. Its pages stay until Sweep finds that no other needs them. One that is not there is no error.
func (s *Store) Delete(ctx context.Context, tenantName, id string) error {
	if !validID(id) {
		return nil
	}
	t := folder(tenantName)
	if err := s.back.Delete(ctx, t.manifest(id)); err != nil {
		return err
	}
	return s.back.Delete(ctx, t.note(id))
}

// Get writes what a snapshot has below root into dir, which it makes, with owners from base on. On error dir is half there.
func (s *Store) Get(ctx context.Context, m *Manifest, root, dir string, base uint32) error {
	t, err := s.tenant(ctx, m.Tenant, m.key)
	if err != nil {
		return err
	}
	r := &reader{s: s, t: t, m: m, dir: dir, base: base}
	err = r.tree(root)
	if err == nil {
		err = r.content(ctx)
	}
	if err == nil {
		err = r.finish(root)
	}
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", m.ID, err)
	}
	return nil
}

// reader is one Get under way.
type reader struct {
	s    *Store
	t    tenant
	m    *Manifest
	dir  string
	base uint32
	use  map[int][]use // by pack
}

// use is a run of a file that is being written.
type use struct {
	path string
	run  Run
	size int64
}

func (r *reader) path(root, name string) (string, bool) {
	if name == root {
		return r.dir, true
	}
	rel, ok := strings.CutPrefix(name, root+"/")
	return filepath.Join(r.dir, rel), ok
}

// tree makes all of the entries, without content. The folder is new and nobody else's, so no name leads anywhere else.
func (r *reader) tree(root string) error {
	r.use = map[int][]use{}
	for i := range r.m.Entries {
		e := &r.m.Entries[i]
		p, ok := r.path(root, e.Name)
		if !ok {
			continue
		}
		if err := r.make(root, e, p); err != nil {
			return fmt.Errorf("make %s: %w", e.Name, err)
		}
	}
	return nil
}

func (r *reader) make(root string, e *Entry, p string) error {
	if e.Same != "" {
		first, ok := r.path(root, e.Same)
		if !ok {
			return fmt.Errorf("%w: hard link out of its tree", ErrBad)
		}
		return os.Link(first, p)
	}
	switch e.Mode & typeMask {
	case typeDir:
		if err := os.Mkdir(p, 0o700); err != nil {
			return err
		}
	case typeReg:
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Truncate(e.Size), f.Close()); err != nil {
			return err
		}
		for _, run := range e.Runs {
			r.use[run.Pack] = append(r.use[run.Pack], use{p, run, e.Size})
		}
	case typeLink:
		if err := os.Symlink(e.Target, p); err != nil {
			return err
		}
	case typeFIFO:
		if err := unix.Mkfifo(p, 0o600); err != nil {
			return err
		}
	case typeSock: // a restored process that listens on it makes it anew
		if err := unix.Mknod(p, unix.S_IFSOCK|0o600, 0); err != nil {
			return err
		}
	case typeChar: // a whiteout
		if err := unix.Mknod(p, unix.S_IFCHR, 0); err != nil {
			return err
		}
	}
	return r.attributes(e, p)
}

// attributes come after the owner, which takes some of them away.
func (r *reader) attributes(e *Entry, p string) error {
	if err := os.Lchown(p, int(r.base+e.UID), int(r.base+e.GID)); err != nil {
		return err
	}
	if e.Mode&typeMask != typeLink {
		if err := unix.Chmod(p, e.Mode&0o7777); err != nil {
			return err
		}
	}
	for k, v := range e.Xattrs {
		if err := unix.Lsetxattr(p, k, owners(k, v, outside(r.base)), 0); err != nil {
			return fmt.Errorf("attribute %s: %w", k, err)
		}
	}
	return nil
}

// content fills the files, pack by pack, each of which is read once, a few at a time.
func (r *reader) content(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelPacks)
	for i, p := range r.m.Packs {
		uses := r.use[i]
		if len(uses) == 0 {
			continue
		}
		g.Go(func() error {
			pages, err := r.s.recent.get(ctx, recentKey{r.t.name, p.ID, p.Hash, r.t.version}, func() ([]byte, error) { return r.s.readPack(ctx, r.t, p) })
			if err != nil {
				return err
			}
			return write(uses, pages)
		})
	}
	return g.Wait()
}

// readPack returns a pack's pages, after they were found to be those that the manifest means.
func (s *Store) readPack(ctx context.Context, t tenant, p Pack) ([]byte, error) {
	b, err := s.back.Get(ctx, t.pack(p.ID), 2*packBytes)
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", p.ID, err)
	}
	if b, err = t.decrypt(t.pack(p.ID), b); err != nil {
		return nil, err
	}
	pages, err := s.dec.DecodeAll(b, make([]byte, 0, p.Pages*Page))
	if err != nil {
		return nil, fmt.Errorf("%w: pack %s: %w", ErrBad, p.ID, err)
	}
	sum := t.hash(pages)
	if len(pages) != p.Pages*Page || hex.EncodeToString(sum[:]) != p.Hash {
		return nil, fmt.Errorf("%w: pack %s is not what was stored", ErrBad, p.ID)
	}
	return pages, nil
}

// write writes what files have of a pack. The runs of a file follow each other.
func write(uses []use, pages []byte) error {
	for len(uses) > 0 {
		path, n := uses[0].path, 1
		for n < len(uses) && uses[n].path == path {
			n++
		}
		f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		for _, u := range uses[:n] {
			err = errors.Join(err, u.write(f, pages))
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		uses = uses[n:]
	}
	return nil
}

func (u use) write(f *os.File, pages []byte) error {
	at := u.run.At * Page
	b := pages[u.run.Slot*Page : (u.run.Slot+u.run.Count)*Page]
	if over := at + int64(len(b)) - u.size; over > 0 {
		b = b[:int64(len(b))-over]
	}
	_, err := f.WriteAt(b, at)
	return err
}

// finish sets times, of directories after what is in them, and those attributes that writing has taken away.
func (r *reader) finish(root string) error {
	for i := len(r.m.Entries) - 1; i >= 0; i-- {
		e := &r.m.Entries[i]
		p, ok := r.path(root, e.Name)
		if !ok || e.Same != "" {
			continue
		}
		if e.Mode&typeMask == typeReg && e.Mode&0o6000 != 0 {
			if err := unix.Chmod(p, e.Mode&0o7777); err != nil {
				return err
			}
		}
		ts := []unix.Timespec{unix.NsecToTimespec(e.MTime), unix.NsecToTimespec(e.MTime)}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("time of %s: %w", e.Name, err)
		}
	}
	return nil
}
