package lifecycle

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// parallelNetworks is how many sandboxes' nodes are told of their tenant's policy at a time.
const parallelNetworks = 16

// OuterLayers returns what a sandbox of a tenant and of a template may reach before it has said a word itself.
func OuterLayers(owner state.Tenant, template state.NetworkPolicy) []nodeapi.NetworkLayer {
	var layers []nodeapi.NetworkLayer
	for _, l := range []struct {
		name   string
		policy state.NetworkPolicy
	}{{layerOperator, owner.NetworkBound}, {layerTenant, owner.Network}, {layerTemplate, template}} {
		if !l.policy.IsZero() {
			layers = append(layers, nodeapi.NetworkLayer{Name: l.name, NetworkPolicy: api.NetworkPolicy(l.policy)})
		}
	}
	return layers
}

// NetworkWith implements API.
func (s *Service) NetworkWith(tenant string, id api.SandboxID, p api.NetworkPolicy) (nodeapi.Network, error) {
	sb, err := s.live(tenant, id)
	if err != nil {
		return nodeapi.Network{}, err
	}
	owner, err := s.tenantOf(tenant)
	if err != nil {
		return nodeapi.Network{}, err
	}
	layers := OuterLayers(owner, sb.TemplateNetwork)
	return nodeapi.Network{Layers: append(layers, nodeapi.NetworkLayer{Name: layerSandbox, NetworkPolicy: p})}, nil
}

// TenantNetwork implements API. What is not reached here is the reconciler's: it compares what nodes enforce with what is recorded.
func (s *Service) TenantNetwork(ctx context.Context, tenant string) error {
	return s.renewNetworks(ctx, func(sb state.Sandbox) bool { return sb.Tenant == tenant })
}

// SecretChanged implements API.
func (s *Service) SecretChanged(ctx context.Context, tenant, name string) error {
	return s.renewNetworks(ctx, func(sb state.Sandbox) bool { return sb.Tenant == tenant && saysSecret(sb, name) })
}

// saysSecret reports whether a header rule of a sandbox names a secret.
func saysSecret(sb state.Sandbox, name string) bool {
	n, err := networkConfig(sb)
	if err != nil {
		return false
	}
	rules, err := rulesOf(n.Rules)
	if err != nil {
		return false
	}
	for _, r := range rules {
		for _, v := range r.Headers {
			if strings.Contains(strings.ToLower(v), "${e2b.secrets."+name+"}") {
				return true
			}
		}
	}
	return false
}

// renewNetworks tells the nodes of the running sandboxes that are meant what is recorded.
func (s *Service) renewNetworks(ctx context.Context, meant func(state.Sandbox) bool) error {
	live, err := s.cfg.State.Live()
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(parallelNetworks)
	for _, sb := range live {
		if sb.State != state.Running || !meant(sb) {
			continue
		}
		g.Go(func() error {
			if err := s.applyLatest(ctx, sb.ID); err != nil {
				s.cfg.Logger.Warn("sandbox has its new network policy not yet", "sandbox", sb.ID, "error", err)
			}
			return nil
		})
	}
	return g.Wait()
}

// applyLatest tells a running sandbox's node what is recorded, again where it has changed meanwhile: whoever changes it holds the sandbox's lock,
// which may take a pause's time, and is not waited for.
func (s *Service) applyLatest(ctx context.Context, id api.SandboxID) error {
	for done := uint64(0); ; {
		sb, err := s.cfg.State.Sandbox(id)
		if errors.Is(err, state.ErrNotFound) || err == nil && (sb.State != state.Running || sb.ModifyIndex == done) {
			return nil
		}
		if err == nil {
			err = s.applyNetwork(ctx, sb)
		}
		if err != nil {
			return err
		}
		done = sb.ModifyIndex
	}
}
