package lifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// The layers of what a sandbox may reach, outermost first.
const (
	layerOperator = "operator" // what the tenant's sandboxes may reach at all
	layerTenant   = "tenant"
	layerTemplate = "template"
	layerSandbox  = "sandbox"
)

// SetNetwork implements API. What the update cannot say stays: who may reach the sandbox's ports, and by which names. The state
// is written first: where the node cannot be told, the caller learns of it, and a restart of the sandbox has the new settings.
func (s *Service) SetNetwork(ctx context.Context, tenant string, id api.SandboxID, n api.NetworkConfig, internet *bool) (state.Sandbox, error) {
	defer s.locks.lock(id)()
	sb, err := s.live(tenant, id)
	if err != nil {
		return state.Sandbox{}, err
	}
	if sb.State != state.Running && sb.State != state.Paused {
		return state.Sandbox{}, notRunning(sb)
	}
	had, err := networkConfig(sb)
	if err != nil {
		return state.Sandbox{}, err
	}
	n.AllowPublicTraffic, n.MaskRequestHost, n.HTTPSPorts, n.SoulBox = had.AllowPublicTraffic, had.MaskRequestHost, had.HTTPSPorts, had.SoulBox
	return s.storeNetwork(ctx, sb, n, internet)
}

// ShapeNetwork implements API.
func (s *Service) ShapeNetwork(ctx context.Context, tenant string, id api.SandboxID, shape api.NetworkShape) error {
	defer s.locks.lock(id)()
	sb, err := s.live(tenant, id)
	if err != nil {
		return err
	}
	if sb.State != state.Running {
		return notRunning(sb)
	}
	owner, err := s.tenantOf(tenant)
	if err != nil {
		return err
	}
	n, err := networkConfig(sb)
	if err != nil {
		return err
	}
	r, err := fillShape(&shape, owner)
	if err != nil {
		return err
	}
	o := optionsOf(n)
	o.Shape, n.SoulBox = &shape, &o
	changed, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("network of sandbox %s: %w", id, err)
	}
	node, err := s.cfg.Fleet.Client(sb.Node)
	if err != nil {
		return err
	}
	held, drop, err := s.hold(ctx, sb, state.Hold{RateIn: orAll(r.in), RateOut: orAll(r.out)})
	if err != nil {
		return err
	}
	// The node before the record: it knows what its kernel can do.
	next := sb
	next.Network = changed
	want, err := networkOf(next, owner, s.cfg.Secrets)
	if err == nil {
		_, err = node.SetNetwork(ctx, id, *want)
	}
	if err != nil {
		drop()
		return fmt.Errorf("shape network of sandbox %s: %w", id, err)
	}
	_, err = s.cfg.State.Apply(context.WithoutCancel(ctx), &state.SandboxNetwork{
		ID: id, Network: changed, AllowInternetAccess: sb.AllowInternetAccess, Shaped: true, RateIn: r.in, RateOut: r.out, Hold: held,
	})
	return stateError(id, err)
}

// optionsOf returns what the contract's settings cannot say, to be changed.
func optionsOf(n api.NetworkConfig) api.NetworkOptions {
	if n.SoulBox == nil {
		return api.NetworkOptions{}
	}
	return *n.SoulBox
}

// JoinNetworks implements API.
func (s *Service) JoinNetworks(ctx context.Context, tenant string, id api.SandboxID, list []api.NetworkMember) error {
	defer s.locks.lock(id)()
	sb, err := s.live(tenant, id)
	if err != nil {
		return err
	}
	if sb.State != state.Running {
		return notRunning(sb)
	}
	n, err := networkConfig(sb)
	if err != nil {
		return err
	}
	if err := s.together(sb, list); err != nil {
		return err
	}
	o := optionsOf(n)
	o.Join = make([]api.NetworkMember, len(list))
	for i, m := range list {
		o.Join[i] = api.NetworkMember{Network: m.Network, Name: m.Name} // addresses are the node's to say
	}
	n.SoulBox = &o
	next := sb
	if next.Network, err = json.Marshal(n); err != nil {
		return fmt.Errorf("network of sandbox %s: %w", id, err)
	}
	want, err := s.networkOf(next)
	if err != nil {
		return err
	}
	node, err := s.cfg.Fleet.Client(sb.Node)
	if err != nil {
		return err
	}
	// The node before the record: it says what is wrong with the names.
	if _, err := node.SetNetwork(ctx, id, *want); err != nil {
		return fmt.Errorf("join networks of sandbox %s: %w", id, err)
	}
	_, err = s.cfg.State.Apply(context.WithoutCancel(ctx), &state.SandboxNetwork{ID: id, Network: next.Network, AllowInternetAccess: sb.AllowInternetAccess})
	return stateError(id, err)
}

func (s *Service) storeNetwork(ctx context.Context, sb state.Sandbox, n api.NetworkConfig, internet *bool) (state.Sandbox, error) {
	id := sb.ID
	b, err := json.Marshal(n)
	if err != nil {
		return state.Sandbox{}, fmt.Errorf("network of sandbox %s: %w", id, err)
	}
	r, err := s.cfg.State.Apply(ctx, &state.SandboxNetwork{ID: id, Network: b, AllowInternetAccess: internet})
	if err != nil {
		return state.Sandbox{}, stateError(id, err)
	}
	if r.Sandbox.State != state.Running {
		return r.Sandbox, nil // a resume brings the settings
	}
	return r.Sandbox, s.applyNetwork(ctx, r.Sandbox)
}

// SetNetworkPolicy implements API. What the policy does not say, rules of domains and a proxy, stays.
func (s *Service) SetNetworkPolicy(ctx context.Context, tenant string, id api.SandboxID, p api.NetworkPolicy) error {
	sb, err := s.live(tenant, id)
	if err != nil {
		return err
	}
	had, err := networkConfig(sb)
	if err != nil {
		return err
	}
	_, err = s.SetNetwork(ctx, tenant, id, api.NetworkConfig{
		AllowOut: p.Allow, DenyOut: p.Deny, EgressProxy: had.EgressProxy, Rules: had.Rules,
	}, p.Internet)
	return err
}

// Secrets puts values in the place of the placeholders of header rules; secret.Service does. filled names what was put in.
type Secrets interface {
	Fill(tenant string, rules []nodeapi.NetworkRule) (out []nodeapi.NetworkRule, filled string, err error)
}

// NetworkOf returns the policy that a node is to apply to a sandbox of a tenant which it has already, in place of the one that it applied before.
func NetworkOf(sb state.Sandbox, owner state.Tenant, secrets Secrets) (*nodeapi.Network, error) {
	want, err := networkOf(sb, owner, secrets)
	if err == nil && want == nil {
		want = &nodeapi.Network{}
	}
	return want, err
}

// networkOf is NetworkOf with the tenant as it is by now.
func (s *Service) networkOf(sb state.Sandbox) (*nodeapi.Network, error) {
	owner, err := s.tenantOf(sb.Tenant)
	if err != nil {
		return nil, err
	}
	return NetworkOf(sb, owner, s.cfg.Secrets)
}

// applyNetwork tells a running sandbox's node what the state says.
func (s *Service) applyNetwork(ctx context.Context, sb state.Sandbox) error {
	want, err := s.networkOf(sb)
	if err != nil {
		return err
	}
	node, err := s.cfg.Fleet.Client(sb.Node)
	if err != nil {
		return err
	}
	_, err = node.SetNetwork(ctx, sb.ID, *want)
	switch {
	case api.StatusOf(err) == http.StatusNotImplemented:
		return nil // a sandbox without a network reaches nothing: no policy allows it less
	case api.IsNotFound(err):
		return notFound(sb.ID)
	case err != nil:
		return fmt.Errorf("set network of sandbox %s: %w", sb.ID, err)
	}
	return nil
}

func networkConfig(sb state.Sandbox) (n api.NetworkConfig, err error) {
	if len(sb.Network) > 0 {
		if err := json.Unmarshal(sb.Network, &n); err != nil {
			return n, fmt.Errorf("stored network of sandbox %s: %w", sb.ID, err)
		}
	}
	return n, nil
}

// networkOf returns the policy that a node is asked for; nil where the sandbox asks for nothing in particular.
func networkOf(sb state.Sandbox, owner state.Tenant, secrets Secrets) (*nodeapi.Network, error) {
	n, err := networkConfig(sb)
	if err != nil {
		return nil, err
	}
	want := nodeapi.Network{Layers: OuterLayers(owner, sb.TemplateNetwork)}
	if len(n.AllowOut) > 0 || len(n.DenyOut) > 0 || sb.AllowInternetAccess != nil {
		want.Layers = append(want.Layers, nodeapi.NetworkLayer{Name: layerSandbox, NetworkPolicy: api.NetworkPolicy{
			Internet: sb.AllowInternetAccess, Allow: n.AllowOut, Deny: n.DenyOut,
		}})
	}
	if want.Rules, err = rulesOf(n.Rules); err == nil && isGiven(n.EgressProxy) {
		err = json.Unmarshal(n.EgressProxy, &want.Proxy)
	}
	if err != nil {
		return nil, fmt.Errorf("stored network of sandbox %s: %w", sb.ID, err)
	}
	if secrets != nil && len(want.Rules) > 0 {
		if want.Rules, want.Filled, err = secrets.Fill(sb.Tenant, want.Rules); err != nil {
			return nil, fmt.Errorf("header rules of sandbox %s: %w", sb.ID, err)
		}
	}
	if n.SoulBox != nil {
		want.Shape = n.SoulBox.Shape
		for _, m := range n.SoulBox.Join {
			name := m.Name
			if name == "" {
				name = string(sb.ID)
			}
			want.Join = append(want.Join, nodeapi.Membership{Network: sb.Tenant + "/" + m.Network, Name: name})
		}
	}
	if len(want.Join) == 0 && len(want.Layers) == 0 && len(want.Rules) == 0 && want.Proxy == nil && want.Shape == nil {
		return nil, nil
	}
	return &want, nil
}

// rulesOf reads the contract's rules, of which each domain has one, in the order of their domains.
func rulesOf(raw json.RawMessage) ([]nodeapi.NetworkRule, error) {
	if !isGiven(raw) {
		return nil, nil
	}
	var domains map[string][]struct {
		Transform struct {
			Headers map[string]string `json:"headers"`
		} `json:"transform"`
	}
	if err := json.Unmarshal(raw, &domains); err != nil {
		return nil, err
	}
	var rules []nodeapi.NetworkRule
	for _, domain := range slices.Sorted(maps.Keys(domains)) {
		for _, r := range domains[domain] {
			if len(r.Transform.Headers) > 0 {
				rules = append(rules, nodeapi.NetworkRule{Domain: domain, Headers: r.Transform.Headers})
			}
		}
	}
	return rules, nil
}

func isGiven(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }
