package keystest

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/keys"
)

// Ring checks that a ring keeps the contract of keys.Ring. open returns the same ring again, as after a restart.
func Ring(t *testing.T, open func() keys.Ring) {
	t.Helper()
	r := open()
	current := func(r keys.Ring) keys.MACKey {
		t.Helper()
		k, err := r.Current()
		must.NoError(t, err)
		return k
	}
	one := current(r)
	must.Eq(t, 32, len(one.Secret))
	must.Positive(t, one.Version)

	two, err := r.Rotate(t.Context())
	must.NoError(t, err)
	must.Greater(t, one.Version, two.Version)
	must.NotEq(t, one.Secret, two.Secret)
	must.Eq(t, two, current(r))
	three, err := r.Rotate(t.Context())
	must.NoError(t, err)
	for _, k := range []keys.MACKey{one, two, three} {
		same, err := r.Key(k.Version)
		must.NoError(t, err, must.Sprint("a rotation takes no version away"))
		must.Eq(t, k, same)
	}

	list := func(r keys.Ring) []keys.MACKey {
		t.Helper()
		l, err := r.Keys()
		must.NoError(t, err)
		return l
	}
	must.Eq(t, []keys.MACKey{one, two, three}, list(r))

	must.NoError(t, r.Revoke(t.Context(), two.Version))
	must.Eq(t, []keys.MACKey{three}, list(r))
	for _, v := range []keys.KeyVersion{one.Version, two.Version} {
		_, err = r.Key(v)
		must.ErrorIs(t, err, keys.ErrKeyRevoked, must.Sprint("the version and those before it"))
		must.ErrorIs(t, r.Revoke(t.Context(), v), keys.ErrKeyRevoked)
	}
	must.Eq(t, three, current(r))

	must.NoError(t, r.Revoke(t.Context(), three.Version)) // the current one: there is another then
	four := current(r)
	must.Greater(t, three.Version, four.Version)
	for _, v := range []keys.KeyVersion{0, 999} {
		_, err = r.Key(v)
		must.ErrorIs(t, err, keys.ErrKeyRevoked)
		must.ErrorIs(t, r.Revoke(t.Context(), v), keys.ErrKeyRevoked)
	}

	again := open()
	must.Eq(t, four, current(again))
	must.Eq(t, []keys.MACKey{four}, list(again))
	_, err = again.Key(three.Version)
	must.ErrorIs(t, err, keys.ErrKeyRevoked)
}
