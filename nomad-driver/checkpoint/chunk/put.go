package chunk

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
)

// Root is a folder whose tree goes into a snapshot, below Name.
type Root struct {
	Name string // one path element
	Dir  string
	Base uint32 // subtracted from owners: the host id of id 0
}

// MaxPut bounds how long one Put may take: what is doomed is deleted only when it has been so for longer (see DESIGN.md).
const MaxPut = 30 * time.Minute

// sealed is what lies in the backend for a manifest.
type sealed struct {
	Version int    `json:"version"`
	Key     int    `json:"key"`
	MAC     []byte `json:"mac"`
	Body    []byte `json:"body"` // zstd of the manifest's JSON, encrypted from version 2 on
}

const sealedVersion = 2

// Put stores the trees under an id, and returns their manifest when all of it is durable. Nothing may write to them meanwhile. An id
// that is taken is an error with ErrExists.
func (s *Store) Put(ctx context.Context, tenantName, id string, meta any, roots ...Root) (*Manifest, error) {
	ctx, cancel := context.WithTimeout(ctx, MaxPut)
	defer cancel()
	m, err := s.put(ctx, tenantName, id, meta, roots)
	if err != nil {
		return nil, fmt.Errorf("store snapshot %s: %w", id, err)
	}
	return m, nil
}

func (s *Store) put(ctx context.Context, tenantName, id string, meta any, roots []Root) (*Manifest, error) {
	if !validID(id) {
		return nil, fmt.Errorf("id %.60q has other characters than [a-z0-9-], or more than 64", id)
	}
	t, err := s.writes(ctx, tenantName)
	if err != nil {
		return nil, err
	}
	if _, err := s.back.Get(ctx, t.manifest(id), maxManifest); !errors.Is(err, ErrNotFound) {
		if err == nil {
			err = ErrExists
		}
		return nil, err
	}
	body, err := json.Marshal(meta)
	if err != nil {
		return nil, fmt.Errorf("meta: %w", err)
	}
	w := &writer{s: s, t: t, hasher: t.hasher(), m: &Manifest{Version: ManifestVersion, ID: id, Tenant: tenantName, CreatedAt: s.now().UTC(), Meta: body, key: t.version}, use: map[string]int{}, packs: map[string]Pack{}}
	if w.known, err = s.known(ctx, t); err != nil {
		return nil, err
	}
	if err := w.trees(ctx, roots); err != nil {
		return nil, err
	}
	w.resolve()
	failpoint.At("store.packed")
	if err := w.m.check(); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return w.m, s.putManifest(ctx, t, w.m)
}

func (s *Store) putManifest(ctx context.Context, t tenant, m *Manifest) error {
	b, err := json.Marshal(m.text())
	if err != nil {
		return err
	}
	if len(b) > maxManifest {
		return fmt.Errorf("manifest of %d bytes, at most %d", len(b), maxManifest)
	}
	mac, err := s.seal.Seal(ctx, t.version, b)
	if err != nil {
		return fmt.Errorf("seal manifest: %w", err)
	}
	out, err := json.Marshal(sealed{
		Version: sealedVersion, Key: t.version, MAC: mac, Body: t.encrypt(t.manifest(m.ID), s.enc.EncodeAll(b, nil)),
	})
	if err != nil {
		return err
	}
	return s.back.Put(ctx, t.manifest(m.ID), out)
}

// place is where a page lies.
type place struct {
	pack string
	slot int
}

// writer is one Put under way.
type writer struct {
	s      *Store
	t      tenant
	m      *Manifest
	hasher *blake3.Hasher // of pages: to make one takes longer than to hash one
	known  map[[pageHash]byte]place
	use    map[string]int // packs of the manifest, by id

	storing *errgroup.Group // of packs that are full
	stored  sync.Mutex      // held for packs and m.Stored
	packs   map[string]Pack // that this Put has stored

	read  []byte // what files are read into
	open  string // id of the pack that is filled
	pages []byte
	index []byte
	runs  []pending
}

// pending is a run whose pack has no number yet.
type pending struct {
	entry int
	run   Run
	pack  string
}

// parallelPacks bounds the packs that one Put stores, or one Get reads, at a time. Each takes a little more memory than its pages.
const parallelPacks = 4

// trees takes in all roots. Packs are compressed, encrypted and stored while the next is filled.
func (w *writer) trees(ctx context.Context, roots []Root) error {
	var whole context.Context
	w.storing, whole = errgroup.WithContext(ctx)
	w.storing.SetLimit(parallelPacks)
	var err error
	for _, r := range roots {
		if err = w.tree(whole, r); err != nil {
			break
		}
	}
	if err == nil {
		w.flush(whole)
	}
	if serr := w.storing.Wait(); serr != nil {
		return serr // of which the other is a consequence
	}
	return err
}

// tree takes in a root.
func (w *writer) tree(ctx context.Context, r Root) error {
	seen := map[[2]uint64]string{}
	return filepath.WalkDir(r.Dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(r.Dir, p)
		if err != nil {
			return err
		}
		e, st, err := describe(p, filepath.Join(r.Name, rel), r.Base)
		if err != nil {
			return err
		}
		if st.Nlink > 1 && e.Mode&typeMask != typeDir {
			key := [2]uint64{st.Dev, st.Ino}
			if first, ok := seen[key]; ok {
				e.Same, e.Size = first, 0
				w.m.Entries = append(w.m.Entries, e)
				return nil
			}
			seen[key] = e.Name
		}
		w.m.Entries = append(w.m.Entries, e)
		if e.Mode&typeMask != typeReg || e.Size == 0 {
			return nil
		}
		return w.file(ctx, p, len(w.m.Entries)-1)
	})
}

// describe looks at a file without following it.
func describe(p, name string, base uint32) (Entry, unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return Entry{}, st, fmt.Errorf("stat %s: %w", p, err)
	}
	e := Entry{Name: name, Mode: st.Mode, UID: st.Uid - base, GID: st.Gid - base, MTime: st.Mtim.Nano()}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Size = st.Size
	case unix.S_IFLNK:
		target, err := os.Readlink(p)
		if err != nil {
			return e, st, err
		}
		e.Target = target
	case unix.S_IFCHR:
		e.Rdev = st.Rdev
		if e.UID >= 1<<16 { // a whiteout belongs to whoever mounted the overlay
			e.UID, e.GID = 0, 0
		}
	}
	var err error
	e.Xattrs, err = xattrs(p)
	for k, v := range e.Xattrs {
		e.Xattrs[k] = owners(k, v, inside(base))
	}
	return e, st, err
}

func xattrs(p string) (map[string][]byte, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("attributes of %s: %w", p, err)
	}
	out := map[string][]byte{}
	for name := range bytes.SplitSeq(buf[:n], []byte{0}) {
		if len(name) == 0 {
			continue
		}
		val := make([]byte, 64<<10)
		k, err := unix.Lgetxattr(p, string(name), val)
		if err != nil {
			return nil, fmt.Errorf("attribute %s of %s: %w", name, p, err)
		}
		out[string(name)] = bytes.Clone(val[:k])
	}
	return out, nil
}

var zeroPage [Page]byte

// file takes in a file's pages. What it has as holes, of which a file can have many times what any disk has, is passed over.
func (w *writer) file(ctx context.Context, p string, entry int) error {
	f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for at := int64(0); ; {
		from, to, err := nextData(f, at)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = w.pagesOf(ctx, io.NewSectionReader(f, from, to-from), entry, from/Page)
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", p, err)
		}
		at = to
	}
}

// nextData returns the pages of a file from an offset on that may hold something; io.EOF: there are none. A file system that does not tell of holes has none.
func nextData(f *os.File, at int64) (from, to int64, err error) {
	from, err = unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return 0, 0, io.EOF
	}
	if err != nil {
		return 0, 0, fmt.Errorf("look for data from %d on: %w", at, err)
	}
	if to, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE); err != nil {
		return 0, 0, fmt.Errorf("look for a hole from %d on: %w", from, err)
	}
	return max(at, from/Page*Page), (to + Page - 1) / Page * Page, nil
}

// pagesOf takes in what is read of a file, which begins at page number at.
func (w *writer) pagesOf(ctx context.Context, r io.Reader, entry int, at int64) error {
	if w.read == nil {
		w.read = make([]byte, 64*Page)
	}
	for buf := w.read; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			clear(buf[n : (n+Page-1)/Page*Page])
			for o := 0; o < n; o += Page {
				if err := w.page(ctx, buf[o:o+Page], entry, at); err != nil {
					return err
				}
				at++
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// page takes in one page of a file.
func (w *writer) page(ctx context.Context, b []byte, entry int, at int64) error {
	if at >= (w.m.Entries[entry].Size+Page-1)/Page {
		return fmt.Errorf("%s has grown while it was read", w.m.Entries[entry].Name)
	}
	w.m.Bytes += Page
	if bytes.Equal(b, zeroPage[:]) {
		return nil
	}
	full := sum(w.hasher, b)
	h := [pageHash]byte(full[:pageHash])
	pl, ok := w.known[h]
	if !ok {
		if w.open == "" {
			w.open = newID()
		}
		pl = place{w.open, len(w.pages) / Page}
		w.known[h] = pl
		w.pages = append(w.pages, b...)
		w.index = append(w.index, h[:]...)
	}
	if n := len(w.runs); n > 0 {
		last := &w.runs[n-1]
		if last.entry == entry && last.pack == pl.pack && last.run.Slot+last.run.Count == pl.slot && last.run.At+int64(last.run.Count) == at {
			last.run.Count++
			w.full(ctx)
			return nil
		}
	}
	w.runs = append(w.runs, pending{entry: entry, run: Run{At: at, Slot: pl.slot, Count: 1}, pack: pl.pack})
	w.full(ctx)
	return nil
}

func (w *writer) full(ctx context.Context) {
	if len(w.pages) >= packBytes {
		w.flush(ctx)
	}
}

// flush has the pack that is filled stored, as soon as there are not too many under way.
func (w *writer) flush(ctx context.Context) {
	if w.open == "" {
		return
	}
	id, pages, index := w.open, w.pages, w.index
	w.open, w.pages, w.index = "", nil, nil
	w.storing.Go(func() error { return w.store(ctx, id, pages, index) })
}

// store stores a pack: first its pages, then its index, so that an index never promises what is not there.
func (w *writer) store(ctx context.Context, id string, pages, index []byte) error {
	packed := w.t.encrypt(w.t.pack(id), w.s.enc.EncodeAll(pages, nil))
	if err := w.s.back.Put(ctx, w.t.pack(id), packed); err != nil {
		return err
	}
	sum := w.t.hash(pages)
	p := Pack{ID: id, Hash: fmt.Sprintf("%x", sum), Pages: len(pages) / Page}
	failpoint.At("store.pack")
	if err := w.s.putIndex(ctx, w.t, p, index); err != nil {
		return err
	}
	w.stored.Lock()
	defer w.stored.Unlock()
	w.m.Stored += int64(len(packed) + len(index))
	w.packs[p.ID] = p
	return nil
}

// resolve gives the packs that are used their numbers.
func (w *writer) resolve() {
	for _, r := range w.runs {
		i, ok := w.use[r.pack]
		if !ok {
			i = len(w.m.Packs)
			w.use[r.pack] = i
			p, ours := w.packs[r.pack]
			if !ours {
				p = w.s.packOf(w.t, r.pack)
			}
			w.m.Packs = append(w.m.Packs, p)
		}
		r.run.Pack = i
		e := &w.m.Entries[r.entry]
		e.Runs = append(e.Runs, r.run)
	}
}

// newID returns a random id.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return "p" + strconv.FormatUint(uint64(b[0]), 16) + fmt.Sprintf("%x", b[1:])
}
