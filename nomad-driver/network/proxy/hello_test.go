package proxy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

func cmpHello() cmp.Option { return cmp.AllowUnexported(hello{}) }

// FuzzHello checks that no bytes break what reads a ClientHello, and that a name that comes out is one.
func FuzzHello(f *testing.F) {
	plain := clientHello(f, "www.example.com")
	f.Add(plain)
	f.Add(inRecords(plain, 9))
	f.Add(encryptedHello(f, "www.example.com", "evil.example.org"))
	f.Add(plain[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b)
		if err != nil {
			must.False(t, h.read)
			return
		}
		must.True(t, h.read)
		if h.name != "" {
			again, err := policy.ParseName(h.name)
			must.NoError(t, err)
			must.EqOp(t, h.name, again)
			must.False(t, strings.HasPrefix(h.name, "*"))
		}
	})
}
