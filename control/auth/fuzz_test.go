package auth

import "testing"

func FuzzParseKey(f *testing.F) {
	s := newSecret()
	f.Add(s.Key())
	f.Add(s.E2BKey())
	f.Add("sb__")
	f.Fuzz(func(t *testing.T, key string) {
		if s, err := parseKey(key); err == nil && s.Key() != key && s.E2BKey() != key {
			t.Fatalf("%q is a third spelling of a key", key)
		}
	})
}
