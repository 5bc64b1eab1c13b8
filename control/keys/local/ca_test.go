package local_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/keys/keystest"
	"github.com/soulbox-dev/soulbox/control/keys/local"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, dir string) *local.CA {
	t.Helper()
	ca, err := local.Open(dir)
	must.NoError(t, err)
	return ca
}

func TestCA_keepsContract(t *testing.T) {
	keystest.Run(t, func(t *testing.T) keys.Issuer { return open(t, t.TempDir()) })
}

func TestOpen_makesOneCAAndKeepsIt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	var mu sync.Mutex
	roots := map[string]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			c, err := open(t, dir).Issue(t.Context(), keys.Request{Identity: keys.Node("n")})
			must.NoError(t, err)
			mu.Lock()
			defer mu.Unlock()
			roots[string(c.CA)] = true
		})
	}
	wg.Wait()
	must.MapLen(t, 1, roots)
	entries, err := os.ReadDir(dir)
	must.NoError(t, err)
	must.Len(t, 3, entries, must.Sprint("and no temporary file"))
	for _, e := range entries {
		fi, err := e.Info()
		must.NoError(t, err)
		must.Eq(t, os.FileMode(0o600), fi.Mode().Perm(), must.Sprint(e.Name()))
	}
}

func TestOpen_goesOnWhereItWasInterrupted(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	must.NoError(t, os.Remove(filepath.Join(dir, "ca.pem"))) // it is written last
	open(t, dir)
	open(t, dir)
}

func TestOpen_refusesWhatDoesNotFit(t *testing.T) {
	tests := []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   string
	}{
		{"a key that others can read", func(t *testing.T, dir string) {
			must.NoError(t, os.Chmod(filepath.Join(dir, "ca-key.pem"), 0o644))
		}, "may be read by others"},
		{"no key", func(t *testing.T, dir string) { must.NoError(t, os.Remove(filepath.Join(dir, "ca-key.pem"))) }, "no such file"},
		{"a cut certificate", func(t *testing.T, dir string) {
			must.NoError(t, os.WriteFile(filepath.Join(dir, "ca.pem"), []byte("-----BEGIN"), 0o600))
		}, "ca.pem is no certificate"},
		{"another CA's key", func(t *testing.T, dir string) {
			other := t.TempDir()
			open(t, other)
			data, err := os.ReadFile(filepath.Join(other, "ca-key.pem"))
			must.NoError(t, err)
			must.NoError(t, os.WriteFile(filepath.Join(dir, "ca-key.pem"), data, 0o600))
		}, "ca-key.pem is not the key of ca.pem"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			open(t, dir)
			tc.damage(t, dir)
			_, err := local.Open(dir)
			must.ErrorContains(t, err, tc.want)
		})
	}
}
