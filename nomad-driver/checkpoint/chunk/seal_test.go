package chunk

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// TestRotateKey_losesNoSnapshot rotates under a store that is open, as one of a node that runs.
func TestRotateKey_losesNoSnapshot(t *testing.T) {
	base := t.TempDir()
	s := open(t, base+"/store")
	key := filepath.Join(base, "key")
	now := time.Now()
	s.now = func() time.Time { return now }
	dir, _ := memory(t, 100)
	put := func(id string) *Manifest {
		m, err := s.Put(t.Context(), "tenant", id, nil, Root{Name: "m", Dir: dir})
		must.NoError(t, err)
		return m
	}
	whole := func(id string) {
		t.Helper()
		m, err := s.Manifest(t.Context(), "tenant", id)
		must.NoError(t, err)
		out := t.TempDir() + "/out"
		must.NoError(t, s.Get(t.Context(), m, "m", out, uint32(0)))
		entries, err := os.ReadDir(out)
		must.NoError(t, err)
		for _, e := range entries {
			want, err := os.ReadFile(filepath.Join(dir, e.Name()))
			must.NoError(t, err)
			got, err := os.ReadFile(filepath.Join(out, e.Name()))
			must.NoError(t, err)
			must.Eq(t, want, got)
		}
		must.SliceNotEmpty(t, entries)
	}
	identity, err := s.Identity(t.Context())
	must.NoError(t, err)
	put("one")
	version, err := RotateKey(key)
	must.NoError(t, err)
	must.Eq(t, 2, version)
	must.Positive(t, put("two").Stored, must.Sprint("what the old key has encrypted is not shared"))
	must.Zero(t, put("three").Stored)
	for _, id := range []string{"one", "two", "three"} {
		whole(id)
	}
	after, err := s.Identity(t.Context())
	must.NoError(t, err)
	must.Eq(t, identity, after)

	// A manifest that says that it is of another version is none.
	name := folder("tenant").manifest("one")
	b, err := s.back.Get(t.Context(), name, maxManifest)
	must.NoError(t, err)
	var box sealed
	must.NoError(t, json.Unmarshal(b, &box))
	for _, v := range []int{-1, 0, 2, 3} {
		forged := box
		forged.Key = v
		f, err := json.Marshal(forged)
		must.NoError(t, err)
		must.NoError(t, s.back.Put(t.Context(), name, f))
		_, err = s.Manifest(t.Context(), "tenant", "one")
		must.ErrorIs(t, err, ErrBad, must.Sprintf("version %d", v))
		_, err = s.Sweep(t.Context(), "tenant")
		must.ErrorIs(t, err, ErrBad, must.Sprint("what it needs is not known"))
	}
	must.NoError(t, s.back.Put(t.Context(), name, b))

	_, err = RevokeKey(key, 2)
	must.ErrorContains(t, err, "the current one is 2")
	_, err = RevokeKey(key, 1)
	must.NoError(t, err)
	_, err = s.Manifest(t.Context(), "tenant", "one")
	must.ErrorIs(t, err, ErrRevoked)
	must.ErrorIs(t, err, ErrBad)
	list, err := s.List(t.Context(), "tenant")
	must.NoError(t, err)
	must.Len(t, 2, list)
	now = now.Add(MaxPut + time.Minute)
	_, err = s.Sweep(t.Context(), "tenant")
	must.NoError(t, err)
	now = now.Add(Grace + time.Minute)
	deleted, err := s.Sweep(t.Context(), "tenant")
	must.NoError(t, err)
	must.Eq(t, 1, deleted, must.Sprint("what nobody can read goes"))
	whole("two")
	whole("three")
	after, err = s.Identity(t.Context())
	must.NoError(t, err)
	must.Eq(t, identity, after, must.Sprint("it is the same store yet"))
	version, err = RotateKey(key)
	must.NoError(t, err)
	must.Eq(t, 3, version, must.Sprint("a version is never used again"))
}

func TestOpenLocalKey_refusesWhatIsNone(t *testing.T) {
	key := make([]byte, keyBytes)
	ring := func(r keyRing) string { b, _ := json.Marshal(r); return string(b) }
	for name, tc := range map[string]struct {
		content string
		mode    os.FileMode
		want    string
	}{
		"cut off":                     {"short", 0o600, "neither a key of 32 bytes nor a ring"},
		"others read it":              {string(key), 0o640, "may be read by others"},
		"another format":              {ring(keyRing{Format: 2, Last: 1, Keys: map[string][]byte{"1": key}}), 0o600, "format 2"},
		"no key":                      {ring(keyRing{Format: 1}), 0o600, "0 keys"},
		"a short key":                 {ring(keyRing{Format: 1, Last: 1, Keys: map[string][]byte{"1": key[:5]}}), 0o600, "version \"1\""},
		"a version that is no number": {ring(keyRing{Format: 1, Last: 1, Keys: map[string][]byte{"+1": key}}), 0o600, "version \"+1\""},
		"a version that never was":    {ring(keyRing{Format: 1, Last: 1, Keys: map[string][]byte{"2": key}}), 0o600, "version \"2\""},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key")
			must.NoError(t, os.WriteFile(path, []byte(tc.content), tc.mode))
			_, err := OpenLocalKey(path)
			must.ErrorContains(t, err, tc.want)
		})
	}
}
