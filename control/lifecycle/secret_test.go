package lifecycle_test

import (
	"encoding/json"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
)

// A secret reaches the node of a sandbox that names it, and each change of it does: also where nobody says that it has changed.
func TestSecrets_reachTheNodesOfSandboxesThatNameThem(t *testing.T) {
	s := coretest.New(t, nil)
	tenant := coretest.Caller.Tenant
	rules := json.RawMessage(`{"api.example.com":[{"transform":{"headers":{"Authorization":"Bearer \u0024{e2b.secrets.Token}"}}}]}`)
	network, err := json.Marshal(api.NetworkConfig{Rules: rules})
	must.NoError(t, err)
	sb := running(t, s, func(p *lifecycle.CreateParams) { p.Network = network })
	header := func() (value string, lacks []string) {
		n := s.Node.Network(sb.ID)
		if n == nil || len(n.Rules) != 1 {
			return "", nil
		}
		return n.Rules[0].Headers["Authorization"], n.Rules[0].Lacks
	}
	_, lacks := header()
	must.Eq(t, []string{"secrets.token"}, lacks, must.Sprint("there is none yet"))

	_, err = s.Secrets.Create(t.Context(), tenant, "", "token", "one", nil)
	must.NoError(t, err)
	must.NoError(t, s.Sandboxes.SecretChanged(t.Context(), tenant, "token"))
	value, lacks := header()
	must.Eq(t, "Bearer one", value)
	must.SliceEmpty(t, lacks)
	kept, err := s.State.Sandbox(sb.ID)
	must.NoError(t, err)
	must.StrNotContains(t, string(kept.Network), "one")

	_, err = s.Secrets.Update(t.Context(), tenant, "", "token", "two", nil)
	must.NoError(t, err)
	coretest.Until(t, "the reconciler brings the new version", func() bool { value, _ := header(); return value == "Bearer two" })
	_, err = s.Secrets.Delete(t.Context(), tenant, "token")
	must.NoError(t, err)
	coretest.Until(t, "the reconciler takes the value away", func() bool { _, lacks := header(); return len(lacks) == 1 })
}
