package version

import (
	"errors"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestCompatible(t *testing.T) {
	for _, tc := range []struct {
		have, least string
		ok          bool
	}{
		{"0.1.0-dev", "0.1.0-dev", true},
		{"0.1.0", "0.1.0-dev", true},
		{"0.1.0-dev", "0.1.0", false},
		{"0.1.0-alpha", "0.1.0-beta", false},
		{"0.1.0-rc.2", "0.1.0-rc.10", false},
		{"0.1.0-rc.10", "0.1.0-rc.2", true},
		{"0.1.0-rc", "0.1.0-rc.1", false},
		{"0.1.0+build", "0.1.0", true},
		{"0.1.0", "0.1.0+build", true},
		{"0.1.0-dev+build", "0.1.0", false},
		{"0.10.0", "0.9.0", true},
		{"1.0.0", "0.99.99", true},
		{"0.99.99", "1.0.0", false},
		{"v1.2.3", "1.2.3", true},
	} {
		err := Compatible("client", tc.have, tc.least)
		must.Eq(t, tc.ok, err == nil, must.Sprintf("%s with at least %s: %v", tc.have, tc.least, err))
		var e *IncompatibleError
		if !tc.ok {
			must.True(t, errors.As(err, &e))
			must.StrContains(t, err.Error(), tc.least)
			must.StrContains(t, err.Error(), "client")
		}
	}
}

func TestCompatible_refusesWhatIsNoVersion(t *testing.T) {
	for _, s := range []string{"", "latest", "1.x", "1.0.0\n", "99999999999999999999.0.0", strings.Repeat("1", 200), "1.0.0-" + strings.Repeat("a", 200)} {
		must.Error(t, Compatible("client", s, "0.0.0"), must.Sprintf("%q", s))
		must.Error(t, Compatible("client", "1.0.0", s), must.Sprintf("%q", s))
	}
}

func TestCompatibleAPI(t *testing.T) {
	must.NoError(t, CompatibleAPI("client", API))
	must.NoError(t, CompatibleAPI("client", MinAPI))
	must.ErrorContains(t, CompatibleAPI("client", MinAPI-1), "too old")
	must.ErrorContains(t, CompatibleAPI("client", API+1), "too new")
}

// The numbers of this version must serve themselves.
func TestThisVersion(t *testing.T) {
	must.NoError(t, Compatible("client", Version, MinClient))
	must.NoError(t, Compatible("node", Version, MinNode))
	must.LessEq(t, API, MinAPI)
}

func FuzzCompatible(f *testing.F) {
	for _, s := range []string{"1.2.3", "0.1.0-dev", "1.2.3-rc.1+meta", "", "v1", "1.2.3-01", "-1.0.0", "1..2"} {
		f.Add(s, "0.1.0")
		f.Add("0.1.0", s)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		ab, ba := Compatible("x", a, b), Compatible("x", b, a)
		var e *IncompatibleError
		if errors.As(ab, &e) && errors.As(ba, &e) {
			t.Fatalf("%q and %q are each older than the other", a, b)
		}
		if Compatible("x", a, a) == nil {
			return
		}
		if ab == nil || ba == nil {
			t.Fatalf("%q compares with %q, but not with itself", a, b)
		}
	})
}
