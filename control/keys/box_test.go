package keys_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/keys/local"
)

func TestBox_opensWhatWasClosedOnly(t *testing.T) {
	ring, err := local.OpenRing(filepath.Join(t.TempDir(), "ring.json"))
	must.NoError(t, err)
	b := keys.Box{Ring: ring, Purpose: "secrets"}
	v, data, err := b.Close("a/1", []byte("hunter2"))
	must.NoError(t, err)
	must.False(t, bytes.Contains(data, []byte("hunter2")))
	_, again, err := b.Close("a/1", []byte("hunter2"))
	must.NoError(t, err)
	must.NotEq(t, data, again, must.Sprint("equal texts are not equal once closed"))
	got, err := b.Open("a/1", v, data)
	must.NoError(t, err)
	must.Eq(t, "hunter2", string(got))
	_, err = ring.Rotate(t.Context())
	must.NoError(t, err)
	got, err = b.Open("a/1", v, data)
	must.NoError(t, err)
	must.Eq(t, "hunter2", string(got))

	changed := bytes.Clone(data)
	changed[len(changed)-1] ^= 1
	for name, open := range map[string]func() ([]byte, error){
		"for another":     func() ([]byte, error) { return b.Open("b/1", v, data) },
		"changed":         func() ([]byte, error) { return b.Open("a/1", v, changed) },
		"short":           func() ([]byte, error) { return b.Open("a/1", v, data[:5]) },
		"nothing":         func() ([]byte, error) { return b.Open("a/1", v, nil) },
		"another version": func() ([]byte, error) { return b.Open("a/1", v+1, data) },
		"unknown version": func() ([]byte, error) { return b.Open("a/1", v+9, data) },
		"another purpose": func() ([]byte, error) { return keys.Box{Ring: ring, Purpose: "links"}.Open("a/1", v, data) },
	} {
		_, err := open()
		must.ErrorIs(t, err, keys.ErrSeal, must.Sprint(name))
	}
	must.NoError(t, ring.Revoke(t.Context(), v))
	_, err = b.Open("a/1", v, data)
	must.ErrorIs(t, err, keys.ErrSeal)
}
