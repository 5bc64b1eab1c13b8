package local_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/audit"
	"github.com/soulbox-dev/soulbox/control/keys/keystest"
	"github.com/soulbox-dev/soulbox/control/keys/local"
)

func openSigner(t *testing.T, path string) *local.Signer {
	t.Helper()
	s, err := local.OpenSigner(path)
	must.NoError(t, err)
	return s
}

func TestSigner_keepsContract(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "audit-keys.json")
	keystest.Signer(t, keystest.SignerUnderTest{
		Open:   func(t *testing.T) audit.Signer { return openSigner(t, path) },
		Rotate: func(t *testing.T) { must.NoError(t, openSigner(t, path).Rotate(t.Context())) },
	})
	st, err := os.Stat(path)
	must.NoError(t, err)
	must.Eq(t, os.FileMode(0o600), st.Mode().Perm())
}

func TestOpenSigner_twoAtOnceGetTheSame(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	var mu sync.Mutex
	prints := map[string]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			s, err := local.OpenSigner(path)
			if err != nil {
				t.Error(err)
				return
			}
			list, err := s.PublicKeys(t.Context())
			if err != nil || len(list) != 1 {
				t.Errorf("%d keys, %v", len(list), err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			prints[list[0].Fingerprint()] = true
		})
	}
	wg.Wait()
	must.MapLen(t, 1, prints)
}

func TestOpenSigner_refusesWhatIsDamaged(t *testing.T) {
	const good = `{"format":1,"seeds":["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]}`
	for name, c := range map[string]struct {
		content string
		mode    os.FileMode
		want    string
	}{
		"no JSON":         {"x", 0o600, "invalid character"},
		"another format":  {`{"format":2}`, 0o600, "format 2"},
		"no key":          {`{"format":1}`, 0o600, "0 keys"},
		"a short key":     {`{"format":1,"seeds":["AAAA"]}`, 0o600, "version 1 is damaged"},
		"others may read": {good, 0o640, "may be read by others"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "keys.json")
			must.NoError(t, os.WriteFile(path, []byte(c.content), c.mode))
			_, err := local.OpenSigner(path)
			must.ErrorContains(t, err, path)
			must.ErrorContains(t, err, c.want)
		})
	}
}
