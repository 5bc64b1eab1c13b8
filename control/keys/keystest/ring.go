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
	one := r.Current()
	must.Eq(t, 32, len(one.Secret))
	must.Positive(t, one.Version)

	two, err := r.Rotate()
	must.NoError(t, err)
	must.Greater(t, one.Version, two.Version)
	must.NotEq(t, one.Secret, two.Secret)
	must.Eq(t, two, r.Current())
	old, err := r.Key(one.Version)
	must.NoError(t, err)
	must.Eq(t, one, old)

	must.NoError(t, r.Revoke(one.Version))
	_, err = r.Key(one.Version)
	must.ErrorIs(t, err, keys.ErrKeyRevoked)
	must.ErrorIs(t, r.Revoke(one.Version), keys.ErrKeyRevoked)
	must.Eq(t, two, r.Current())

	must.NoError(t, r.Revoke(two.Version)) // the current one: there is another then
	three := r.Current()
	must.Greater(t, two.Version, three.Version)
	_, err = r.Key(999)
	must.ErrorIs(t, err, keys.ErrKeyRevoked)

	again := open()
	must.Eq(t, three, again.Current())
	_, err = again.Key(two.Version)
	must.ErrorIs(t, err, keys.ErrKeyRevoked)
}
