package state

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// ringScript is the part of script that is about rings of keys.
func ringScript() []Command {
	return []Command{
		&RingPut{Name: "links", Data: "one"},
		&RingPut{Name: "links", Data: "two", IfIndex: 3}, // refused
		&RingPut{Name: "snapshots", Data: "one"},
	}
}

func TestRingPut_countsOnlyOnWhatItWasMadeOf(t *testing.T) {
	s := open(t, Config{})
	t.Cleanup(func() { must.NoError(t, s.Close()) })
	data, index, err := s.Ring("links")
	must.NoError(t, err)
	must.Eq(t, "", data)
	must.Eq(t, 0, index)
	mustApply(t, s, &RingPut{Name: "links", Data: "one"})
	_, first, err := s.Ring("links")
	must.NoError(t, err)
	must.Positive(t, first)
	_, err = s.Apply(t.Context(), &RingPut{Name: "links", Data: "two"})
	must.ErrorIs(t, err, ErrConflict)
	mustApply(t, s, &RingPut{Name: "links", Data: "two", IfIndex: first})
	data, second, err := s.Ring("links")
	must.NoError(t, err)
	must.Eq(t, "two", data)
	must.Greater(t, first, second)
	_, err = s.Apply(t.Context(), &RingPut{Name: "links", Data: "three", IfIndex: first})
	must.ErrorIs(t, err, ErrConflict)
}

func TestRingPut_limits(t *testing.T) {
	for _, bad := range []*RingPut{
		{Data: "x"}, {Name: "a/b", Data: "x"}, {Name: strings.Repeat("a", MaxKeyName+1), Data: "x"}, {Name: "a"},
		{Name: "a", Data: strings.Repeat("x", maxRing+1)},
	} {
		must.Error(t, bad.check())
	}
}
