package nodeapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Network is what a sandbox may reach: CreateRequest.Network, and PUT /v1/sandboxes/{id}/network, which replaces it as a whole and
// is answered with NetworkStatus. What is running and forbidden by it ends within a second. A node whose sandboxes have no network
// answers 501 with api.CodeUnsupported.
type Network struct {
	Layers []NetworkLayer `json:"layers,omitempty"` // outermost first; each can only narrow; at most MaxNetworkLayers
	Rules  []NetworkRule  `json:"rules,omitempty"`  // at most MaxNetworkRules
	Proxy  *EgressProxy   `json:"egress_proxy,omitempty"`
	Shape  *NetworkShape  `json:"shape,omitempty"`
	Join   []Membership   `json:"join,omitempty"` // private networks; at most MaxMemberships
	// Filled names what was filled into Rules in place of placeholders, by version. It is opaque to the node.
	Filled string `json:"filled,omitempty"`
}

// Membership is a place in a private network.
type Membership struct {
	Network string `json:"network"` // TENANT/NAME: nobody else's networks are reached
	Name    string `json:"name"`    // of the member
}

// PolicyDigest names layers, and what was filled into rules, by what they say: whoever compares it with what they should be need not ask for them.
func PolicyDigest(layers []NetworkLayer, filled string) string {
	b, err := json.Marshal(append([]NetworkLayer{}, layers...)) // none is [] whether or not it is nil
	if err != nil {
		panic(fmt.Sprintf("layers of strings do not marshal: %v", err))
	}
	sum := sha256.Sum256(append(b, filled...))
	return hex.EncodeToString(sum[:8])
}

// MaxMemberships bounds Network.Join.
const MaxMemberships = 8

// MaxNetworkRules bounds Network.Rules, MaxRuleHeaders the headers of each.
const (
	MaxNetworkRules = 10
	MaxRuleHeaders  = 20
	// MaxRuleValue bounds the value of a header, in bytes.
	MaxRuleValue = 16 << 10
)

// MaxNetworkLayers bounds Network.Layers.
const MaxNetworkLayers = 8

// The rest is as the public API has it.
type (
	NetworkLayer   = api.NetworkLayer
	NetworkStatus  = api.NetworkStatus
	NetworkCounts  = api.NetworkCounts
	NetworkDeny    = api.NetworkDeny
	NetworkNames   = api.NetworkNames
	NetworkName    = api.NetworkName
	NetworkRule    = api.NetworkRule
	EgressProxy    = api.EgressProxy
	NetworkProxied = api.NetworkProxied
	NetworkShape   = api.NetworkShape
	NetworkQuota   = api.NetworkQuota
	NetworkTest    = api.NetworkTest
	NetworkMember  = api.NetworkMember
	NetworkVerdict = api.NetworkVerdict
	PublishedPort  = api.PublishedPort
	NetworkDryRun  = api.NetworkDryRun
	NetworkDryFlow = api.NetworkDryFlow
)

// Network returns what a sandbox's network is and does: GET /v1/sandboxes/{id}/network.
func (c *Client) Network(ctx context.Context, id api.SandboxID) (NetworkStatus, error) {
	var s NetworkStatus
	return s, c.call(ctx, http.MethodGet, sandboxPath(id, "/network"), nil, nil, &s)
}

// SetNetwork replaces what a sandbox may reach.
func (c *Client) SetNetwork(ctx context.Context, id api.SandboxID, n Network) (NetworkStatus, error) {
	var s NetworkStatus
	return s, c.call(ctx, http.MethodPut, sandboxPath(id, "/network"), nil, n, &s)
}

// TestNetwork says what would become of a connection: POST /v1/sandboxes/{id}/network/test.
func (c *Client) TestNetwork(ctx context.Context, id api.SandboxID, t NetworkTest) (NetworkVerdict, error) {
	var v NetworkVerdict
	return v, c.call(ctx, http.MethodPost, sandboxPath(id, "/network/test"), nil, t, &v)
}

// DryRunNetwork says what layers would make of what a sandbox has done: POST /v1/sandboxes/{id}/network/dry-run.
func (c *Client) DryRunNetwork(ctx context.Context, id api.SandboxID, n Network) (NetworkDryRun, error) {
	var r NetworkDryRun
	return r, c.call(ctx, http.MethodPost, sandboxPath(id, "/network/dry-run"), nil, n, &r)
}

// Published returns the ports of a sandbox that the node listens for: GET /v1/sandboxes/{id}/published.
func (c *Client) Published(ctx context.Context, id api.SandboxID) ([]PublishedPort, error) {
	var list []PublishedPort
	return list, c.call(ctx, http.MethodGet, sandboxPath(id, "/published"), nil, nil, &list)
}

// SetPublished replaces which ports of a running sandbox the node listens for: PUT /v1/sandboxes/{id}/published. A port of the node that
// is taken is 409; a node whose operator publishes none answers 501 with api.CodeUnsupported.
func (c *Client) SetPublished(ctx context.Context, id api.SandboxID, list []PublishedPort) ([]PublishedPort, error) {
	var out []PublishedPort
	return out, c.call(ctx, http.MethodPut, sandboxPath(id, "/published"), nil, list, &out)
}

// RenewPublished has the node listen again for ports of a sandbox that it does not listen for, though it should, and returns all of them, with
// Error where one cannot be had: POST /v1/sandboxes/{id}/published/renew.
func (c *Client) RenewPublished(ctx context.Context, id api.SandboxID) ([]PublishedPort, error) {
	var list []PublishedPort
	return list, c.call(ctx, http.MethodPost, sandboxPath(id, "/published/renew"), nil, nil, &list)
}
