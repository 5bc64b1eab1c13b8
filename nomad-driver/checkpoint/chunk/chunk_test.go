package chunk

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	back, err := OpenFolder(dir)
	must.NoError(t, err)
	key, err := OpenLocalKey(filepath.Join(filepath.Dir(dir), "key"))
	must.NoError(t, err)
	s, err := Open(back, key)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, s.Close()) })
	return s
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// memory writes a file of pages, every fourth of which is zero.
func memory(t *testing.T, pages int) (dir string, content []byte) {
	t.Helper()
	content = random(pages * Page)
	for i := 0; i < pages; i += 4 {
		clear(content[i*Page : (i+1)*Page])
	}
	dir = t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(dir, "pages"), content, 0o640))
	return dir, content
}

func TestStore_givesBackWhatWasPut(t *testing.T) {
	s := open(t, t.TempDir()+"/store")
	dir, content := memory(t, 3000)
	must.NoError(t, os.WriteFile(dir+"/odd", []byte("not a page"), 0o600))
	must.NoError(t, os.Mkdir(dir+"/sub", 0o700))
	must.NoError(t, os.Link(dir+"/odd", dir+"/sub/same"))
	must.NoError(t, os.Symlink("../odd", dir+"/sub/link"))
	_, err := s.Put(t.Context(), "tenant", "one", map[string]int{"x": 1}, Root{Name: "m", Dir: dir})
	must.NoError(t, err)
	m, err := s.Manifest(t.Context(), "tenant", "one")
	must.NoError(t, err)
	must.Eq(t, `{"x":1}`, string(m.Meta))
	out := t.TempDir() + "/out"
	must.NoError(t, s.Get(t.Context(), m, "m", out, 0))
	got, err := os.ReadFile(out + "/pages")
	must.NoError(t, err)
	must.True(t, bytes.Equal(content, got))
	got, err = os.ReadFile(out + "/sub/link")
	must.NoError(t, err)
	must.Eq(t, "not a page", string(got))
	a, err := os.Stat(out + "/odd")
	must.NoError(t, err)
	b, err := os.Stat(out + "/sub/same")
	must.NoError(t, err)
	must.True(t, os.SameFile(a, b))
}

// Names are bytes: what is no text comes back as it was, and two of them are two.
func TestStore_keepsNamesThatAreNoText(t *testing.T) {
	s := open(t, t.TempDir()+"/store")
	dir := t.TempDir()
	odd := []string{"\xff", "\xfe", "\xff/\xc3\x28", "\ufffd", "plain"}
	must.NoError(t, os.Mkdir(dir+"/\xff", 0o700))
	for _, name := range odd[1:] {
		must.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600))
	}
	must.NoError(t, os.Symlink("to/\xfd", dir+"/link"))
	must.NoError(t, os.Link(dir+"/\xfe", dir+"/\xfc"))
	_, err := s.Put(t.Context(), "tenant", "one", nil, Root{Name: "m", Dir: dir})
	must.NoError(t, err)
	m, err := s.Manifest(t.Context(), "tenant", "one")
	must.NoError(t, err)
	out := t.TempDir() + "/out"
	must.NoError(t, s.Get(t.Context(), m, "m", out, 0))
	for _, name := range odd[1:] {
		got, err := os.ReadFile(filepath.Join(out, name))
		must.NoError(t, err)
		must.Eq(t, name, string(got))
	}
	target, err := os.Readlink(out + "/link")
	must.NoError(t, err)
	must.Eq(t, "to/\xfd", target)
	a, err := os.Stat(out + "/\xfe")
	must.NoError(t, err)
	b, err := os.Stat(out + "/\xfc")
	must.NoError(t, err)
	must.True(t, os.SameFile(a, b))
}

// Attributes that name owners are a sandbox's own, wherever its ids begin.
func TestOwners_moveWithTheIDs(t *testing.T) {
	le := binary.LittleEndian
	caps := le.AppendUint32(append(le.AppendUint32(nil, 0x03000001), make([]byte, 16)...), 700_000_000)
	acl := le.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 7, 1<<32 - 1}, {2, 6, 700_001_234}, {4, 5, 1<<32 - 1}, {8, 5, 700_005_678}, {16, 7, 1<<32 - 1}, {32, 0, 1<<32 - 1}} {
		acl = le.AppendUint32(le.AppendUint16(le.AppendUint16(acl, uint16(e[0])), uint16(e[1])), e[2])
	}
	for name, value := range map[string][]byte{"security.capability": caps, "system.posix_acl_access": acl} {
		stored := owners(name, value, inside(700_000_000))
		must.False(t, bytes.Equal(value, stored))
		must.Eq(t, value, owners(name, stored, outside(700_000_000)))
		must.False(t, bytes.Equal(value, owners(name, stored, outside(500_000_000))))
		must.Eq(t, value, owners(name, value, outside(500_000_000)), must.Sprint("of before: it was stored as it was"))
	}
	must.Eq(t, uint32(0), le.Uint32(owners("security.capability", caps, inside(700_000_000))[20:]))
	for name, value := range map[string][]byte{"security.capability": caps[:20], "user.x": acl, "system.posix_acl_default": {2, 0}} {
		must.Eq(t, value, owners(name, value, func(uint32) uint32 { return 7 }))
	}
}

// A file that is nearly all hole, as anybody can make one of terabytes, is stored and given back as what it has.
func TestStore_passesOverHoles(t *testing.T) {
	s := open(t, t.TempDir()+"/store")
	dir := t.TempDir()
	f, err := os.Create(dir + "/sparse")
	must.NoError(t, err)
	defer f.Close()
	const size = 4<<40 + 123
	must.NoError(t, f.Truncate(size))
	at := map[int64][]byte{0: []byte("begin"), 3*Page - 2: []byte("across"), 1 << 40: random(5 * Page), size - 3: []byte("end")}
	for off, b := range at {
		_, err := f.WriteAt(b, off)
		must.NoError(t, err)
	}
	m, err := s.Put(t.Context(), "tenant", "one", nil, Root{Name: "m", Dir: dir})
	must.NoError(t, err)
	must.Less(t, 1<<20, m.Bytes)
	out := t.TempDir() + "/out"
	must.NoError(t, s.Get(t.Context(), m, "m", out, 0))
	got, err := os.Open(out + "/sparse")
	must.NoError(t, err)
	defer got.Close()
	fi, err := got.Stat()
	must.NoError(t, err)
	must.Eq(t, size, fi.Size())
	for off, want := range at {
		b := make([]byte, len(want))
		_, err := got.ReadAt(b, off)
		must.NoError(t, err)
		must.Eq(t, want, b)
	}
	b := make([]byte, Page)
	_, err = got.ReadAt(b, 2<<40)
	must.NoError(t, err)
	must.Eq(t, make([]byte, Page), b)
}

func TestStore_storesWhatHasChanged(t *testing.T) {
	s := open(t, t.TempDir()+"/store")
	dir, content := memory(t, 4000)
	var stored, whole int64
	for i := range 10 {
		for range 200 { // at most 5 %, anywhere
			at := int(random(1)[0])*15 + int(random(1)[0])%15
			copy(content[at*Page:], random(64))
		}
		must.NoError(t, os.WriteFile(dir+"/pages", content, 0o640))
		m, err := s.Put(t.Context(), "tenant", "s"+string(rune('0'+i)), nil, Root{Name: "m", Dir: dir})
		must.NoError(t, err)
		stored, whole = stored+m.Stored, whole+m.Bytes
	}
	t.Logf("10 snapshots with at most 5%% changed: %d bytes, stored %d, %.1f times fewer", whole, stored, float64(whole)/float64(stored))
	must.Greater(t, 7*stored, whole)
	// Another tenant shares nothing.
	m, err := s.Put(t.Context(), "other", "s0", nil, Root{Name: "m", Dir: dir})
	must.NoError(t, err)
	must.Greater(t, int64(3000*Page/2), m.Stored)
	_, err = s.Manifest(t.Context(), "other", "s1")
	must.ErrorIs(t, err, ErrNotFound)
}

// Every byte of a store may be flipped: nothing wrong is ever given back.
func TestStore_damageIsFound(t *testing.T) {
	home := t.TempDir()
	s := open(t, home+"/store")
	dir, _ := memory(t, 40)
	_, err := s.Put(t.Context(), "tenant", "one", nil, Root{Name: "m", Dir: dir})
	must.NoError(t, err)
	for _, kind := range []string{"packs", "manifests"} {
		names, err := filepath.Glob(home + "/store/t/*/" + kind + "/*")
		must.NoError(t, err)
		must.Len(t, 1, names)
		good, err := os.ReadFile(names[0])
		must.NoError(t, err)
		for _, bad := range map[string][]byte{
			"flipped": append(append(bytes.Clone(good[:len(good)/2]), good[len(good)/2]^1), good[len(good)/2+1:]...),
			"cut":     good[:len(good)/2],
			"empty":   {},
		} {
			must.NoError(t, os.WriteFile(names[0], bad, 0o600))
			m, err := s.Manifest(t.Context(), "tenant", "one")
			if err == nil {
				err = s.Get(t.Context(), m, "m", t.TempDir()+"/out", 0)
			}
			must.ErrorIs(t, err, ErrBad, must.Sprint(kind))
		}
		must.NoError(t, os.Remove(names[0]))
		m, err := s.Manifest(t.Context(), "tenant", "one")
		if err == nil {
			err = s.Get(t.Context(), m, "m", t.TempDir()+"/out", 0)
		}
		must.ErrorIs(t, err, ErrNotFound, must.Sprint(kind))
		must.NoError(t, os.WriteFile(names[0], good, 0o600))
	}
}

// Whoever has the backend alone reads nothing of what was stored, neither names nor content; what an earlier version stored is read.
func TestStore_contentIsEncrypted(t *testing.T) {
	home := t.TempDir()
	s := open(t, home+"/store")
	dir := t.TempDir()
	secret := bytes.Repeat([]byte("a secret in memory "), 1000)
	must.NoError(t, os.WriteFile(dir+"/name-of-a-file", secret, 0o600))
	m, err := s.Put(t.Context(), "tenant", "one", map[string]string{"token": "of-the-meta"}, Root{Name: "m", Dir: dir})
	must.NoError(t, err)
	objects, err := filepath.Glob(home + "/store/t/*/*/*")
	must.NoError(t, err)
	must.SliceNotEmpty(t, objects)
	for _, o := range objects {
		b, err := os.ReadFile(o)
		must.NoError(t, err)
		var box sealed
		if json.Unmarshal(b, &box) == nil {
			b = box.Body
		}
		if plain, err := s.dec.DecodeAll(b, nil); err == nil {
			b = plain
		}
		for _, word := range []string{"secret", "name-of-a-file", "of-the-meta"} {
			must.False(t, bytes.Contains(b, []byte(word)), must.Sprintf("%s shows %s", o, word))
		}
	}
	ten, err := s.writes(t.Context(), "tenant")
	must.NoError(t, err)
	// A pack under another pack's name is none of its.
	name := ten.pack(m.Packs[0].ID)
	b, err := s.back.Get(t.Context(), name, 1<<20)
	must.NoError(t, err)
	_, err = ten.decrypt(ten.pack("p1"), b)
	must.ErrorIs(t, err, ErrBad)
	for n := range len(b) {
		if n == 0 || n > 20 {
			continue
		}
		_, err = ten.decrypt(name, b[:len(cipherMark)+n])
		must.ErrorIs(t, err, ErrBad)
	}
	// As an earlier version has stored it.
	plain, err := ten.decrypt(name, b)
	must.NoError(t, err)
	must.NoError(t, s.back.Put(t.Context(), name, plain))
	must.NoError(t, s.Get(t.Context(), m, "m", t.TempDir()+"/out", 0))
}

// A page that is needed again while it is being given up is never lost.
func TestSweep_neverTakesWhatIsNeeded(t *testing.T) {
	s := open(t, t.TempDir()+"/store")
	now := time.Now()
	s.now = func() time.Time { return now }
	dir, _ := memory(t, 100)
	put := func(id string) *Manifest {
		m, err := s.Put(t.Context(), "tenant", id, nil, Root{Name: "m", Dir: dir})
		must.NoError(t, err)
		return m
	}
	sweep := func(want int) {
		t.Helper()
		n, err := s.Sweep(t.Context(), "tenant")
		must.NoError(t, err)
		must.Eq(t, want, n)
	}
	put("one")
	must.NoError(t, s.Delete(t.Context(), "tenant", "one"))
	sweep(0) // too young: it could be of a Put that has not written its manifest
	shared := put("two")
	must.Zero(t, shared.Stored)
	must.NoError(t, s.Delete(t.Context(), "tenant", "two"))
	now = now.Add(MaxPut + time.Minute)
	sweep(0)                              // doomed
	must.Positive(t, put("three").Stored) // and so not shared any more
	sweep(0)
	must.NoError(t, s.Delete(t.Context(), "tenant", "three"))
	now = now.Add(Grace + time.Minute)
	must.NoError(t, s.back.Put(t.Context(), shared.doomed(t, s)+"p00", []byte("1\n"))) // of a sweep that was killed after it had deleted the pack
	sweep(1)                                                                           // the first; the second is doomed only now
	now = now.Add(Grace + time.Minute)
	sweep(1)
	left, err := s.back.List(t.Context(), shared.prefix(t, s))
	must.NoError(t, err)
	must.Len(t, 0, left)
	left, err = s.back.List(t.Context(), shared.doomed(t, s))
	must.NoError(t, err)
	must.Len(t, 0, left)
}

func (m *Manifest) doomed(t *testing.T, s *Store) string {
	t.Helper()
	ten, err := s.writes(t.Context(), m.Tenant)
	must.NoError(t, err)
	return ten.tombstone("")
}

func (m *Manifest) prefix(t *testing.T, s *Store) string {
	t.Helper()
	ten, err := s.writes(t.Context(), m.Tenant)
	must.NoError(t, err)
	return ten.pack("")
}

func TestManifest_limits(t *testing.T) {
	pack := Pack{ID: "p1", Hash: strings.Repeat("ab", hashSize), Pages: 10}
	file := func(runs ...Run) Entry { return Entry{Name: "f", Mode: typeReg | 0o600, Size: 10 * Page, Runs: runs} }
	for name, m := range map[string]Manifest{
		"version":           {Version: 2},
		"path":              {Entries: []Entry{{Name: "../f", Mode: typeReg}}},
		"absolute":          {Entries: []Entry{{Name: "/f", Mode: typeReg}}},
		"twice":             {Entries: []Entry{file(), file()}},
		"below a link":      {Entries: []Entry{{Name: "l", Mode: typeLink, Target: "/"}, {Name: "l/f", Mode: typeReg}}},
		"device":            {Entries: []Entry{{Name: "d", Mode: typeChar, Rdev: 0x103}}},
		"block device":      {Entries: []Entry{{Name: "d", Mode: 0o060000}}},
		"owner":             {Entries: []Entry{{Name: "f", Mode: typeReg, UID: 1 << 16}}},
		"size":              {Entries: []Entry{{Name: "f", Mode: typeReg, Size: 1 << 60}}},
		"overlap":           {Entries: []Entry{file(Run{At: 0, Count: 2}, Run{At: 1, Count: 1})}},
		"beyond the end":    {Entries: []Entry{file(Run{At: 9, Count: 2})}},
		"beyond the pack":   {Entries: []Entry{file(Run{Slot: 9, Count: 2})}},
		"overflow":          {Entries: []Entry{file(Run{At: 1 << 62, Count: 1 << 62})}},
		"no such pack":      {Entries: []Entry{file(Run{Pack: 1, Count: 1})}},
		"link to nothing":   {Entries: []Entry{{Name: "f", Mode: typeReg, Same: "g"}}},
		"link to itself":    {Entries: []Entry{{Name: "f", Mode: typeReg, Same: "f"}}},
		"content of a link": {Entries: []Entry{{Name: "l", Mode: typeLink, Size: 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			if m.Version == 0 {
				m.Version = 1
			}
			m.ID, m.Packs = "x", []Pack{pack}
			b, err := json.Marshal(m)
			must.NoError(t, err)
			_, err = decode(b)
			must.ErrorIs(t, err, ErrBad)
		})
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"x","packs":[],"entries":[{"name":"f","mode":33152,"size":5}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			return
		}
		for _, e := range m.Entries {
			must.True(t, filepath.IsLocal(e.Name))
			for _, r := range e.Runs {
				must.True(t, r.At >= 0 && r.Slot >= 0 && (r.At+int64(r.Count)-1)*Page < e.Size && r.Slot+r.Count <= m.Packs[r.Pack].Pages)
			}
		}
	})
}
