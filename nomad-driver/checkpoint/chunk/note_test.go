package chunk

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

// A note is read by whoever has the key, of no use elsewhere, and goes with its snapshot.
func TestNote_goesWithItsSnapshot(t *testing.T) {
	s := open(t, t.TempDir())
	back := s.back
	src := filepath.Join(t.TempDir(), "src")
	must.NoError(t, os.MkdirAll(src, 0o755))
	must.NoError(t, os.WriteFile(filepath.Join(src, "f"), []byte("content"), 0o644))
	put := func(id string) *Manifest {
		m, err := s.Put(t.Context(), "team", id, "meta", Root{Name: "r", Dir: src})
		must.NoError(t, err)
		return m
	}
	a, b := put("a"), put("b").Head()
	must.Nil(t, b.Entries)
	_, err := s.Note(t.Context(), a)
	must.ErrorIs(t, err, ErrNotFound)
	must.NoError(t, s.PutNote(t.Context(), a, []byte("one")))
	must.NoError(t, s.PutNote(t.Context(), a, []byte("two")))
	must.NoError(t, s.PutNote(t.Context(), b, []byte("of b")))
	got, err := s.Note(t.Context(), a)
	must.NoError(t, err)
	must.Eq(t, "two", string(got))
	must.Error(t, s.PutNote(t.Context(), a, make([]byte, MaxNote+1)))

	// What a backend's operator puts there is refused: another's, a changed one, one of his own.
	name, other := folder("team").note("a"), folder("team").note("b")
	good, err := back.Get(t.Context(), name, MaxNote)
	must.NoError(t, err)
	must.StrNotContains(t, string(good), "two")
	bytes, err := back.Get(t.Context(), other, MaxNote)
	must.NoError(t, err)
	flipped := append([]byte(nil), good...)
	flipped[len(flipped)-1] ^= 1
	for _, bad := range [][]byte{bytes, flipped, []byte("two"), good[:9]} {
		must.NoError(t, back.Put(t.Context(), name, bad))
		_, err = s.Note(t.Context(), a)
		must.ErrorIs(t, err, ErrBad)
	}

	must.NoError(t, s.Delete(t.Context(), "team", "a"))
	_, err = back.Get(t.Context(), name, MaxNote)
	must.ErrorIs(t, err, ErrNotFound)
	// One that comes too late goes with the next sweep, and no other.
	must.NoError(t, s.PutNote(t.Context(), a, []byte("late")))
	_, err = s.Sweep(t.Context(), "team")
	must.NoError(t, err)
	_, err = back.Get(t.Context(), name, MaxNote)
	must.ErrorIs(t, err, ErrNotFound)
	_, err = s.Note(t.Context(), b)
	must.NoError(t, err)
}
