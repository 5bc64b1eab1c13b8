package api

import (
	"context"
	"net/http"
	"net/netip"
	"time"
)

// NetworkPolicy is what a sandbox may reach, beyond E2B's contract also by protocol and port: PUT /v1/sandboxes/{id}/network.
// An entry is [PROTO://]DEST[:PORTS]: DEST an address, a CIDR, a domain or *.domain; PORTS as 443,8000-8100. Allow wins over
// Deny; the denies of the platform and of outer layers are above both.
type NetworkPolicy struct {
	Internet *bool    `json:"internet,omitempty"` // false: only what Allow names
	Allow    []string `json:"allow,omitempty"`
	Deny     []string `json:"deny,omitempty"`
}

// NetworkLayer is one layer of a policy. Each can only narrow what those before it allow.
type NetworkLayer struct {
	Name string `json:"name"` // who wrote it, such as tenant, template, sandbox; 1 to 32 of a-z, 0-9, "-", "_"
	NetworkPolicy
}

// NetworkRule adds headers to a sandbox's requests for a domain, in the node: the sandbox never has them. They are sent over TLS
// alone; the sandbox trusts the node's authority for it, or asks over plain HTTP.
type NetworkRule struct {
	Domain  string            `json:"domain"` // or *.domain
	Headers map[string]string `json:"headers"`
}

// EgressProxy is a proxy that all of a sandbox's connections go through. What is not TCP is denied then.
type EgressProxy struct {
	Address  string `json:"address"` // [socks5://|http://]host:port
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
}

// NetworkDirection is how a sandbox's link carries packets one way. The zero NetworkDirection leaves it as fast and reliable as it is.
type NetworkDirection struct {
	Rate  uint64 `json:"rate_bytes,omitempty"`  // bytes a second, headers included; 8 KiB to 4 GiB
	Burst uint64 `json:"burst_bytes,omitempty"` // that may pass at once after a pause; 0: 10 ms worth

	// The rest needs the node's kernel to have netem.
	Delay     time.Duration `json:"delay_nanos,omitempty"`  // at most 10 s
	Jitter    time.Duration `json:"jitter_nanos,omitempty"` // around Delay
	Loss      float64       `json:"loss,omitempty"`         // share of packets, 0 to 1
	Duplicate float64       `json:"duplicate,omitempty"`
	Reorder   float64       `json:"reorder,omitempty"` // share that overtakes the delayed ones
}

// NetworkShape is PUT /v1/sandboxes/{id}/network/shape, and NetworkStatus.Shape. What the node's kernel cannot do is answered with 501 and
// CodeUnsupported, and nothing has changed.
type NetworkShape struct {
	In  NetworkDirection `json:"in"`  // what the sandbox receives
	Out NetworkDirection `json:"out"` // what it sends
}

// NetworkProxied is what the node's proxy decided about a connection or a request.
type NetworkProxied struct {
	Time    time.Time  `json:"time"`
	Name    string     `json:"name,omitempty"` // that it was for
	Address netip.Addr `json:"address"`        // as the sandbox had it
	Port    uint16     `json:"port"`
	Allow   bool       `json:"allow"`
	Layer   string     `json:"layer"`
	Rule    string     `json:"rule,omitempty"`
}

// NetworkStatus is GET /v1/sandboxes/{id}/network.
type NetworkStatus struct {
	Enabled bool           `json:"enabled"`          // false: loopback only
	Reason  string         `json:"reason,omitempty"` // why it is not
	Address netip.Addr     `json:"address,omitzero"` // inside
	Gateway netip.Addr     `json:"gateway,omitzero"` // and name server, inside
	Host    netip.Addr     `json:"host_address,omitzero"`
	Link    string         `json:"link,omitempty"` // the host's end
	Layers  []NetworkLayer `json:"layers,omitempty"`
	Notes   []string       `json:"notes,omitempty"` // entries without effect
	Counts  NetworkCounts  `json:"counts"`
	Denied  []NetworkDeny  `json:"denied,omitempty"` // of the last ten minutes, latest first
	Names   NetworkNames   `json:"names"`

	Shape   *NetworkShape    `json:"shape,omitempty"`
	Rules   []NetworkRule    `json:"rules,omitempty"`        // the headers' names, with their values left out
	Proxy   string           `json:"egress_proxy,omitempty"` // its address
	Proxied []NetworkProxied `json:"proxied,omitempty"`      // the last 64 decisions of the node's proxy, latest first
}

// NetworkNames is what a sandbox asked the name server for, since the node's daemon started.
type NetworkNames struct {
	Queries uint64        `json:"queries"`
	Denied  uint64        `json:"denied"`         // by a policy
	Refused uint64        `json:"refused"`        // answers with addresses that no sandbox may have
	Limited uint64        `json:"limited"`        // too many
	Failed  uint64        `json:"failed"`         // no server had an answer
	Last    []NetworkName `json:"last,omitempty"` // latest first, at most 256
}

// NetworkName is a name that a sandbox asked for, and what was decided the last time.
type NetworkName struct {
	Name  string    `json:"name"`
	Last  time.Time `json:"last"`
	Count uint64    `json:"count"`
	Allow bool      `json:"allow"`
	Layer string    `json:"layer"`
	Rule  string    `json:"rule,omitempty"`
}

// NetworkCounts are the kernel's counters of a sandbox's interface, and its connections.
type NetworkCounts struct {
	SentBytes       uint64 `json:"sent_bytes"` // by the sandbox
	SentPackets     uint64 `json:"sent_packets"`
	ReceivedBytes   uint64 `json:"received_bytes"`
	ReceivedPackets uint64 `json:"received_packets"`
	Dropped         uint64 `json:"dropped_packets"` // on the way to it
	Connections     int    `json:"connections"`
}

// NetworkDeny is a destination that was denied.
type NetworkDeny struct {
	Last    time.Time  `json:"last"`
	Address netip.Addr `json:"address"`
	Proto   string     `json:"proto"`
	Port    uint16     `json:"port,omitempty"`
	Reason  string     `json:"reason"` // platform, policy, host, neighbour, limit, spoofed, unknown
	Layer   string     `json:"layer"`
	Rule    string     `json:"rule"`
}

// NetworkTest asks what would become of a connection: POST /v1/sandboxes/{id}/network/test. Nothing is sent anywhere. Where Layers is
// set they are asked in place of those in force.
type NetworkTest struct {
	Address netip.Addr     `json:"address,omitzero"`
	Name    string         `json:"name,omitempty"`  // the name that Address was found by; alone: whether it may be looked up
	Proto   string         `json:"proto,omitempty"` // tcp where empty
	Port    uint16         `json:"port,omitempty"`
	Layers  []NetworkLayer `json:"layers,omitempty"`
}

// NetworkVerdict is the answer.
type NetworkVerdict struct {
	Allow bool     `json:"allow"`
	Layer string   `json:"layer"` // who decided
	Rule  string   `json:"rule,omitempty"`
	Notes []string `json:"notes,omitempty"`
}

// Network returns what a sandbox's network is and does.
func (c *Client) Network(ctx context.Context, id SandboxID) (NetworkStatus, error) {
	var out NetworkStatus
	return out, c.call(ctx, http.MethodGet, sandboxPath(id, "/network"), nil, nil, &out)
}

// SetNetwork replaces what a sandbox may reach. Connections that are forbidden from then on end within a second.
func (c *Client) SetNetwork(ctx context.Context, id SandboxID, p NetworkPolicy) (NetworkStatus, error) {
	var out NetworkStatus
	return out, c.call(ctx, http.MethodPut, sandboxPath(id, "/network"), nil, p, &out)
}

// ShapeNetwork changes how a sandbox's link carries packets, at once.
func (c *Client) ShapeNetwork(ctx context.Context, id SandboxID, s NetworkShape) (NetworkStatus, error) {
	var out NetworkStatus
	return out, c.call(ctx, http.MethodPut, sandboxPath(id, "/network/shape"), nil, s, &out)
}

// TestNetwork says what would become of a connection. Nothing is sent.
func (c *Client) TestNetwork(ctx context.Context, id SandboxID, t NetworkTest) (NetworkVerdict, error) {
	var out NetworkVerdict
	return out, c.call(ctx, http.MethodPost, sandboxPath(id, "/network/test"), nil, t, &out)
}
