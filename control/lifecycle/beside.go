package lifecycle

import (
	"encoding/json"
	"net/http"
	"slices"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// Private networks do not reach from one node to another. So their members are put on one node: a sandbox that is made in a network goes to the node
// of those that are in it, and one that runs elsewhere does not get in.

// fellow is a member of a private network that some sandbox is, or is to be, in.
type fellow struct {
	network string
	name    string
	sandbox state.Sandbox
}

// fellows returns the members of some private networks of a tenant, but for one sandbox.
func (s *Service) fellows(tenant string, join []api.NetworkMember, but api.SandboxID) ([]fellow, error) {
	if len(join) == 0 {
		return nil, nil
	}
	live, err := s.cfg.State.Live()
	if err != nil {
		return nil, err
	}
	var out []fellow
	for _, sb := range live {
		if sb.Tenant != tenant || sb.ID == but || sb.Node == "" {
			continue
		}
		n, err := networkConfig(sb)
		if err != nil {
			return nil, err
		}
		for _, m := range optionsOf(n).Join {
			if slices.ContainsFunc(join, func(j api.NetworkMember) bool { return j.Network == m.Network }) {
				if m.Name == "" {
					m.Name = string(sb.ID)
				}
				out = append(out, fellow{m.Network, m.Name, sb})
			}
		}
	}
	return out, nil
}

// beside returns the node that the members of a new sandbox's private networks are on; empty: any. only is the node that alone can make it.
func (s *Service) beside(tenant string, network json.RawMessage, only api.NodeID) (node api.NodeID, joins bool, err error) {
	var n api.NetworkConfig
	if isGiven(network) {
		if err := json.Unmarshal(network, &n); err != nil {
			return "", false, invalid("network: %v", err)
		}
	}
	join := optionsOf(n).Join
	list, err := s.fellows(tenant, join, "")
	node = only
	for _, f := range list {
		if node == "" {
			node = f.sandbox.Node
		}
		if node != f.sandbox.Node {
			return "", true, apart(f, node)
		}
	}
	return node, len(join) > 0, err
}

// together refuses networks whose members are on another node than a sandbox's.
func (s *Service) together(sb state.Sandbox, join []api.NetworkMember) error {
	list, err := s.fellows(sb.Tenant, join, sb.ID)
	for _, f := range list {
		if f.sandbox.Node != sb.Node {
			return apart(f, sb.Node)
		}
	}
	return err
}

func apart(f fellow, node api.NodeID) error {
	return api.Errorf(http.StatusConflict, api.CodeConflict,
		"network %s has a member, sandbox %s, on node %s, and this sandbox is for node %s: networks do not reach from one node to another, so members must be on one; "+
			"a sandbox that is made in the network is put there", f.network, f.sandbox.ID, f.sandbox.Node, node)
}

// Elsewhere implements API.
func (s *Service) Elsewhere(tenant string, id api.SandboxID) ([]api.NetworkMember, error) {
	sb, err := s.live(tenant, id)
	if err != nil {
		return nil, err
	}
	n, err := networkConfig(sb)
	if err != nil {
		return nil, err
	}
	list, err := s.fellows(tenant, optionsOf(n).Join, id)
	var out []api.NetworkMember
	for _, f := range list {
		if f.sandbox.Node != sb.Node {
			out = append(out, api.NetworkMember{Network: f.network, Name: f.name, Node: f.sandbox.Node})
		}
	}
	return out, err
}
