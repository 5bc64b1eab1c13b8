package lifecycle_test

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// layer is one that denies a range.
func layer(name, deny string) nodeapi.NetworkLayer {
	return nodeapi.NetworkLayer{Name: name, NetworkPolicy: api.NetworkPolicy{Deny: []string{deny}}}
}

func denies(deny string) state.NetworkPolicy { return state.NetworkPolicy{Deny: []string{deny}} }

// ownTemplate records a template of the tenant's own, of the content that the node has.
func ownTemplate(t *testing.T, s *coretest.Server, name string, p state.NetworkPolicy) {
	t.Helper()
	base, err := s.Templates.Resolve(t.Context(), state.DefaultTenant, "base")
	must.NoError(t, err)
	_, err = s.State.Apply(t.Context(), &state.TemplatePut{Template: state.Template{
		Tenant: state.DefaultTenant, Name: name, Digest: base.Digest, CreatedAt: time.Now(), UpdatedAt: time.Now(),
	}})
	must.NoError(t, err)
	_, err = s.Templates.SetNetwork(t.Context(), state.DefaultTenant, name, p)
	must.NoError(t, err)
}

// setTenant changes the policies of the tenant in the record alone.
func setTenant(t *testing.T, s *coretest.Server, bound, own state.NetworkPolicy) {
	t.Helper()
	now, err := s.State.Tenant(state.DefaultTenant)
	must.NoError(t, err)
	index := now.ModifyIndex
	now.NetworkBound, now.Network = bound, own
	_, err = s.State.Apply(t.Context(), &state.TenantPut{Tenant: now, Index: index})
	must.NoError(t, err)
}

func layersOf(s *coretest.Server, id api.SandboxID) []nodeapi.NetworkLayer {
	if n := s.Node.Network(id); n != nil {
		return n.Layers
	}
	return nil
}

func TestLayers_areTheOperatorsTheTenantsTheTemplatesAndTheSandboxs(t *testing.T) {
	s := coretest.New(t, nil)
	ownTemplate(t, s, "mine", denies("203.0.113.0/24"))
	setTenant(t, s, denies("192.0.2.0/24"), denies("198.51.100.0/24"))
	outer := []nodeapi.NetworkLayer{layer("operator", "192.0.2.0/24"), layer("tenant", "198.51.100.0/24"), layer("template", "203.0.113.0/24")}

	sb := running(t, s, func(p *lifecycle.CreateParams) { p.Template = "mine" })
	must.Eq(t, outer, layersOf(s, sb.ID))

	must.NoError(t, s.Sandboxes.SetNetworkPolicy(t.Context(), sb.Tenant, sb.ID, api.NetworkPolicy{Deny: []string{"1.1.1.1"}}))
	must.Eq(t, append(outer, layer("sandbox", "1.1.1.1")), layersOf(s, sb.ID))
	dry, err := s.Sandboxes.NetworkWith(sb.Tenant, sb.ID, api.NetworkPolicy{Deny: []string{"8.8.8.8"}})
	must.NoError(t, err)
	must.Eq(t, append(outer, layer("sandbox", "8.8.8.8")), dry.Layers, must.Sprint("a dry run is one below the others"))

	// The template's word stays with what was made of it.
	must.NoError(t, s.Templates.Delete(t.Context(), state.DefaultTenant, "mine"))
	copies, err := s.Sandboxes.Fork(t.Context(), coretest.Caller, sb.ID, 1, time.Minute)
	must.NoError(t, err)
	must.NoError(t, copies[0].Err)
	must.Eq(t, append(outer, layer("sandbox", "1.1.1.1")), layersOf(s, copies[0].Sandbox.ID))

	must.NoError(t, second(s.Sandboxes.Pause(t.Context(), sb.Tenant, sb.ID, lifecycle.KeepMemory)))
	setTenant(t, s, state.NetworkPolicy{}, denies("198.51.100.0/24"))
	must.NoError(t, second(s.Sandboxes.Resume(t.Context(), sb.Tenant, sb.ID, time.Minute, lifecycle.KeepMemory)))
	must.Eq(t, append(outer[1:3:3], layer("sandbox", "1.1.1.1")), layersOf(s, sb.ID), must.Sprint("who slept wakes up with what holds by now"))
}

func TestTemplateNetwork_holdsForItsTagsAndStaysWhenItIsImportedAgain(t *testing.T) {
	s := coretest.New(t, nil)
	ownTemplate(t, s, "mine", state.NetworkPolicy{})
	must.NoError(t, second(s.Templates.Tag(t.Context(), state.DefaultTenant, "mine", []string{"v1"})))
	must.NoError(t, second(s.Templates.SetNetwork(t.Context(), state.DefaultTenant, "mine", denies("192.0.2.0/24"))))
	for _, name := range []string{"mine", "mine:v1"} {
		sb := running(t, s, func(p *lifecycle.CreateParams) { p.Template = name })
		must.Eq(t, []nodeapi.NetworkLayer{layer("template", "192.0.2.0/24")}, layersOf(s, sb.ID), must.Sprint(name))
	}
	again, err := s.State.Template(state.DefaultTenant, "mine")
	must.NoError(t, err)
	again.Network = state.NetworkPolicy{}
	must.NoError(t, second(s.State.Apply(t.Context(), &state.TemplatePut{Template: again})))
	again, err = s.State.Template(state.DefaultTenant, "mine")
	must.NoError(t, err)
	must.Eq(t, denies("192.0.2.0/24"), again.Network)
	_, err = s.Templates.SetNetwork(t.Context(), state.DefaultTenant, "nosuch", state.NetworkPolicy{})
	must.True(t, api.IsNotFound(err), must.Sprint(err))
}

func TestTenantNetwork_reachesTheSandboxesThatRun(t *testing.T) {
	s := coretest.New(t, nil)
	var all []state.Sandbox
	for range 20 {
		all = append(all, running(t, s, nil))
	}
	setTenant(t, s, denies("192.0.2.0/24"), state.NetworkPolicy{})
	must.NoError(t, s.Sandboxes.TenantNetwork(t.Context(), state.DefaultTenant))
	for _, sb := range all {
		must.Eq(t, []nodeapi.NetworkLayer{layer("operator", "192.0.2.0/24")}, layersOf(s, sb.ID))
	}
	setTenant(t, s, state.NetworkPolicy{}, state.NetworkPolicy{})
	must.NoError(t, s.Sandboxes.TenantNetwork(t.Context(), state.DefaultTenant))
	for _, sb := range all {
		must.Len(t, 0, layersOf(s, sb.ID))
	}
}

// The service died between the record and the nodes, or a node did not answer.
func TestTenantNetwork_isMadeUpForByTheReconciler(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, nil)
	setTenant(t, s, denies("192.0.2.0/24"), state.NetworkPolicy{})
	coretest.Until(t, "the node has the tenant's policy", func() bool { return len(layersOf(s, sb.ID)) == 1 })
	must.Eq(t, []nodeapi.NetworkLayer{layer("operator", "192.0.2.0/24")}, layersOf(s, sb.ID))
}
