package files

import (
	"io"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/envdtest"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// A full file system is an answer, and leaves no half file.
func TestReal_fullFileSystem(t *testing.T) {
	s := envdtest.Start(t, New(Config{}), func(c *sandbox.Config, _ *scope.Sandbox) { c.Limits.TmpBytes = 2 << 20 })
	r := do(t, s, "POST", "/files?path=/tmp/big", io.LimitReader(zeros{}, 8<<20))
	must.Eq(t, 507, r.status, must.Sprint(r.body))
	must.Eq(t, "", s.Shell(t, "user", "ls -A /tmp"))
}

func FuzzEncoding(f *testing.F) {
	for _, s := range []string{"gzip", "gzip;q=0, *", "identity;q=0", "gzip;q=x,,;", "*;q=0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h := map[string][]string{"Accept-Encoding": {s}}
		switch e := encoding(h); e {
		case "", "gzip", "identity":
		default:
			t.Fatalf("%q", e)
		}
		takesIdentity(h)
	})
}
