package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/audit"
	"github.com/soulbox-dev/soulbox/control/keys/local"
)

// writeLog makes an audit log of three events and returns its folder and its last hash.
func writeLog(t *testing.T) (dir string, last audit.Hash) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "audit")
	signer, err := local.OpenSigner(filepath.Join(filepath.Dir(dir), "keys.json"))
	must.NoError(t, err)
	l, err := audit.Open(audit.Config{Dir: dir, Signer: signer, Server: "s1"})
	must.NoError(t, err)
	for i := range 3 {
		must.NoError(t, l.Append(audit.Event{Action: "sandbox.create", Resource: "sandbox", ResourceID: fmt.Sprint("i", i), Result: audit.ResultOK}))
	}
	_, last = l.Last()
	must.NoError(t, l.Close())
	return dir, last
}

func TestAuditVerify(t *testing.T) {
	dir, last := writeLog(t)
	f := newFake(t)
	c := f.call(t)
	must.Eq(t, 0, c.run(t, "audit", "verify", dir), must.Sprint(c.stderr))
	must.StrContains(t, c.stdout, "GOOD")
	must.StrContains(t, c.stdout, last.String())
	must.StrContains(t, c.stdout, "-head only")
	must.Eq(t, 0, f.call(t).run(t, "audit", "verify", "-expect=3:"+last.String(), dir))
	must.Eq(t, 1, f.call(t).run(t, "audit", "verify", "-expect=4:"+last.String(), dir))

	segment := filepath.Join(dir, "segment-00000000000000000001.log")
	b, err := os.ReadFile(segment)
	must.NoError(t, err)
	b[len(b)-40] ^= 1
	must.NoError(t, os.WriteFile(segment, b, 0o600))
	c = f.call(t)
	must.Eq(t, 1, c.run(t, "audit", "verify", dir))
	must.StrContains(t, c.stdout, "BAD at event 3")
	c = f.call(t)
	must.Eq(t, 1, c.run(t, "audit", "verify", "-json", dir))
	must.StrContains(t, c.stdout, `"bad_index": 3`)
}

func TestAuditVerify_badCalls(t *testing.T) {
	f := newFake(t)
	for name, args := range map[string][]string{
		"no folder":      {"audit", "verify"},
		"no log":         {"audit", "verify", t.TempDir()},
		"no such folder": {"audit", "verify", "/nonexistent"},
		"no hash":        {"audit", "verify", "-expect=3", t.TempDir()},
		"no head":        {"audit", "verify", "-head=/nonexistent", t.TempDir()},
	} {
		c := f.call(t)
		must.Eq(t, 1, c.run(t, args...), must.Sprint(name))
		must.StrContains(t, c.stderr, "Error: ", must.Sprint(name))
	}
}
