package cli

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

func TestTenantUpdate_changesWhatIsNamed(t *testing.T) {
	now := api.Tenant{ID: "acme", Defaults: api.TenantDefaults{CPUMillis: 500, MemoryMB: 256}, Maximums: api.TenantDefaults{CPUMillis: 4000}, Isolation: api.TenantIsolation{Network: "dedicated"}}
	var got []api.TenantChange
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch {
			var c api.TenantChange
			must.NoError(t, json.NewDecoder(r.Body).Decode(&c))
			got = append(got, c)
		}
		reply(w, 200, now)
	}))
	t.Cleanup(srv.Close)
	c := visitor(t, srv.URL)
	must.Eq(t, 0, c.run(t, "tenant", "update", "-default", "memory=1GiB", "-maximum", "cpu=none", "-maximum=timeout=1h", "-isolation=compute=dedicated", "acme"), must.Sprint(c.stderr))
	want := api.TenantChange{
		Defaults: &api.TenantDefaults{CPUMillis: 500, MemoryMB: 1024}, Maximums: &api.TenantDefaults{TimeoutSeconds: 3600},
		Isolation: &api.TenantIsolation{Network: "dedicated", Compute: "dedicated"},
	}
	must.Eq(t, []api.TenantChange{want}, got)
	must.StrContains(t, c.stdout, "cpu 500m, memory 256 MiB")
	for says, args := range map[string][]string{
		"nothing is to be changed": {"acme"}, "-default cpu: \"x\" is no number": {"-default=cpu=x", "acme"}, "none of cpu, memory": {"-maximum=pids=1", "acme"},
		"none of network, storage": {"-isolation=disk=shared", "acme"}, "not a duration": {"-maximum=timeout=5", "acme"},
	} {
		must.Eq(t, 1, c.run(t, append([]string{"tenant", "update"}, args...)...))
		must.StrContains(t, c.stderr, says)
	}
	must.Len(t, 1, got)
}
