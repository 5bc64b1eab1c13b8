package node

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// K17 for tenants that share no storage: their sandboxes have lower layers of their own, so that what is changed in one's pages is in nobody else's.
func TestReal_aTenantsOwnCopyOfATemplate(t *testing.T) {
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t))
	shared := d.create()
	of := func(tenant string) func(*nodeapi.CreateRequest) {
		return func(r *nodeapi.CreateRequest) { r.TemplateOf = tenant }
	}
	a, b := d.create(of("a")), d.create(of("b"))
	must.Eq(t, "a", a.TemplateOf)
	must.Eq(t, shared.Digest, a.Digest)
	info, err := d.client.Node(t.Context())
	must.NoError(t, err)
	must.Eq(t, []nodeapi.OwnTemplate{{Tenant: "a", Digest: a.Digest}, {Tenant: "b", Digest: a.Digest}}, info.OwnTemplates)

	// As an attack on the page cache would: into the pages of a file that is open in a's sandboxes, from below.
	store := filepath.Join(d.dir, "s/templates")
	hex := strings.TrimPrefix(a.Digest, "sha256:")
	mine := filepath.Join(store, "own/a", hex, "root/etc/passwd")
	before, err := os.ReadFile(mine)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(mine, append(before, "tampered:x:0:0::/:/bin/sh\n"...), 0o644))
	sees := func(sb nodeapi.Sandbox) bool {
		t.Helper()
		out, code := d.exec(sb, "cat", "/etc/passwd")
		must.Eq(t, 0, code)
		return strings.Contains(out, "tampered")
	}
	again := d.create(of("a"))
	must.True(t, sees(again), must.Sprint("it is the copy that they are on"))
	for _, sb := range []nodeapi.Sandbox{shared, b, d.create(of("b")), d.create(of("c")), d.create()} {
		must.False(t, sees(sb), must.Sprint(sb.TemplateOf))
	}

	// A restart, and a pause, leave a sandbox on its tenant's copy.
	_, err = d.client.Pause(t.Context(), again.ID, pauseTo(nodeapi.DepthCheckpointed))
	must.NoError(t, err)
	d.kill()
	d.start()
	_, err = d.client.Resume(t.Context(), again.ID, nodeapi.ResumeRequest{})
	must.NoError(t, err)
	must.True(t, sees(again))
	must.False(t, sees(b))
	err = d.client.RemoveOwnTemplate(t.Context(), nodeapi.OwnTemplate{Tenant: "a", Digest: a.Digest})
	must.Eq(t, http.StatusConflict, api.StatusOf(err))
	for _, sb := range []nodeapi.Sandbox{a, again} {
		must.NoError(t, d.client.Delete(t.Context(), sb.ID))
	}
	must.NoError(t, d.client.RemoveOwnTemplate(t.Context(), nodeapi.OwnTemplate{Tenant: "a", Digest: a.Digest}))
	_, err = os.Stat(filepath.Join(store, "own/a"))
	must.ErrorIs(t, err, os.ErrNotExist)
	must.False(t, sees(d.create(of("a"))), must.Sprint("a new copy is made of the template"))
	for _, bad := range []string{"..", "A", "a/b"} {
		req := createRequest()
		req.TemplateOf = bad
		_, err := d.client.Create(t.Context(), req)
		must.Eq(t, http.StatusBadRequest, api.StatusOf(err), must.Sprint(bad))
	}
}
