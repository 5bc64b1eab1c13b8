package single

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

// TestBackup_bringsBackWhatWas is what an operator does: a backup, a mistake, the backup again. A sandbox that the backup knows goes on, one that it does
// not know ends, and a key that was made since is none.
func TestBackup_bringsBackWhatWas(t *testing.T) {
	p := startPair(t)
	kept := p.create(t, "-template", "base", "-timeout", "1h")
	file := filepath.Join(p.dir, "backup.sb")
	t.Log(p.soulbox(t, "operator", "snapshot", "save", file))
	fi, err := os.Stat(file)
	must.NoError(t, err)
	must.Eq(t, 0o600, fi.Mode().Perm())
	t.Log(p.soulbox(t, "operator", "snapshot", "inspect", file))

	later := p.create(t, "-template", "base", "-timeout", "1h")
	var key struct {
		Secret string `json:"secret"`
	}
	asked{body: p.soulbox(t, "key", "create", "-json", "-role", "developer", "later")}.into(t, &key)
	p.soulbox(t, "tenant", "create", "later")
	p.soulbox(t, "quota", "set", "default", "sandboxes=0")
	must.Eq(t, 200, p.ask(t, key.Secret, "GET", "/v2/sandboxes", "").status)
	must.Eq(t, 403, p.ask(t, key.Secret, "GET", "/v1/operator/snapshot", "").status)

	_, stderr, code := p.trySoulbox(t, "operator", "snapshot", "restore", file)
	must.NotEq(t, 0, code)
	must.StrContains(t, stderr, "-yes")
	good, err := os.ReadFile(file)
	must.NoError(t, err)
	cut := filepath.Join(p.dir, "cut.sb")
	must.NoError(t, os.WriteFile(cut, good[:len(good)-7], 0o600))
	_, stderr, code = p.trySoulbox(t, "operator", "snapshot", "restore", "-yes", cut)
	must.NotEq(t, 0, code)
	must.StrContains(t, stderr, "not a good backup")
	must.Eq(t, 200, p.ask(t, key.Secret, "GET", "/v2/sandboxes", "").status, must.Sprint("nothing has changed"))

	t.Log(p.soulbox(t, "operator", "snapshot", "restore", "-yes", file))
	must.Eq(t, 401, p.ask(t, key.Secret, "GET", "/v2/sandboxes", "").status)
	must.StrNotContains(t, p.soulbox(t, "tenant", "list"), "later")
	p.create(t, "-template", "base") // the quota is what it was
	must.Eq(t, "alive\n", p.soulbox(t, "exec", kept, "--", "echo", "alive"))
	poll(t, "the end of the sandbox that nobody knows", func() error {
		if _, there := p.pids(t)[later]; there {
			return fmt.Errorf("%s runs", later)
		}
		return nil
	})
	must.Eq(t, "alive\n", p.soulbox(t, "exec", kept, "--", "echo", "alive"))
	p.server.stop(t)
	p.startServer(t) // the restart finds what was restored
	poll(t, "the sandbox behind a new server", func() error {
		out, stderr, code := p.trySoulbox(t, "exec", kept, "--", "echo", "alive")
		if code != 0 || out != "alive\n" {
			return fmt.Errorf("exit code %d: %s%s", code, out, stderr)
		}
		return nil
	})
	p.soulbox(t, "sandbox", "destroy", "-all", "-yes")
	p.host().NothingLeft(t)
}
