package local_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/keys/keystest"
	"github.com/soulbox-dev/soulbox/control/keys/local"
)

func TestRing_keepsContract(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "ring.json")
	keystest.Ring(t, func() keys.Ring {
		r, err := local.OpenRing(path)
		must.NoError(t, err)
		return r
	})
	st, err := os.Stat(path)
	must.NoError(t, err)
	must.Eq(t, os.FileMode(0o600), st.Mode().Perm())
}

func TestOpenRing_refusesWhatIsDamaged(t *testing.T) {
	for name, content := range map[string]string{
		"no JSON":        "x",
		"another format": `{"format":2,"last":1,"keys":{"1":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}`,
		"a short key":    `{"format":1,"last":1,"keys":{"1":"AAAA"}}`,
		"version 0":      `{"format":1,"last":1,"keys":{"0":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}`,
		"after the last": `{"format":1,"last":1,"keys":{"2":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}`,
		"no key":         `{"format":1,"last":1,"keys":{}}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ring.json")
			must.NoError(t, os.WriteFile(path, []byte(content), 0o600))
			_, err := local.OpenRing(path)
			must.ErrorContains(t, err, path)
		})
	}
}
