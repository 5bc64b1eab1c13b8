package keys

import (
	"crypto/x509"
	"net/url"
	"testing"

	"github.com/shoenig/test/must"
)

// FuzzIdentityOf: whatever name a certificate carries, an identity that is read out of it is one that Check lets in, and is
// spelled in no other way.
func FuzzIdentityOf(f *testing.F) {
	for _, s := range []string{
		"soulbox://node/n1", "soulbox://server/s", "soulbox://node/a/b", "soulbox://node/", "soulbox://NODE/n", "soulbox://node/%6e",
		"soulbox://u@node/n", "soulbox://node:1/n", "soulbox://node/n?x", "soulbox://node/n#x", "soulbox:node/n", "spiffe://x/y",
	} {
		f.Add(s, "https://example.com")
	}
	f.Add("soulbox://node/a", "soulbox://server/a")
	f.Fuzz(func(t *testing.T, first, second string) {
		cert := &x509.Certificate{}
		ours := 0
		for _, s := range []string{first, second} {
			u, err := url.Parse(s)
			if err != nil {
				return
			}
			if u.Scheme == "soulbox" {
				ours++
			}
			cert.URIs = append(cert.URIs, u)
		}
		id, err := identityOf(cert)
		if err != nil {
			return
		}
		must.Eq(t, 1, ours)
		must.NoError(t, id.Check())
		must.True(t, id.String() == cert.URIs[0].String() || id.String() == cert.URIs[1].String())
	})
}
