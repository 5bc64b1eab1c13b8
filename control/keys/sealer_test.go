package keys_test

import (
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/keys/local"
)

func TestSealer_fitsWhatWasSealedOnly(t *testing.T) {
	ring, err := local.OpenRing(filepath.Join(t.TempDir(), "ring.json"))
	must.NoError(t, err)
	s := keys.Sealer{Ring: ring, Purpose: "manifest"}
	data := []byte(`{"pages":7}`)
	v, mac, err := s.Seal(t.Context(), data)
	must.NoError(t, err)
	must.NoError(t, s.Check(t.Context(), data, v, mac))
	changed := append([]byte{}, mac...)
	changed[0] ^= 1
	for name, err := range map[string]error{
		"other data":        s.Check(t.Context(), []byte(`{"pages":8}`), v, mac),
		"no data":           s.Check(t.Context(), nil, v, mac),
		"another seal":      s.Check(t.Context(), data, v, changed),
		"a short seal":      s.Check(t.Context(), data, v, mac[:16]),
		"no seal":           s.Check(t.Context(), data, v, nil),
		"an unknown key":    s.Check(t.Context(), data, v+1, mac),
		"another purpose":   keys.Sealer{Ring: ring, Purpose: "other"}.Check(t.Context(), data, v, mac),
		"a purpose in data": keys.Sealer{Ring: ring, Purpose: "mani"}.Check(t.Context(), append([]byte("fest\n"), data...), v, mac),
	} {
		must.ErrorIs(t, err, keys.ErrSeal, must.Sprint(name))
	}
	_, err = ring.Rotate(t.Context())
	must.NoError(t, err)
	must.NoError(t, s.Check(t.Context(), data, v, mac))
	must.NoError(t, ring.Revoke(t.Context(), v))
	must.ErrorIs(t, s.Check(t.Context(), data, v, mac), keys.ErrSeal)
}
