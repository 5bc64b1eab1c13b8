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
	// Lacks are the placeholders of its headers that nothing could be filled in for, without "e2b.": its requests are refused.
	Lacks []string `json:"lacks,omitempty"`
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

	// The rest needs the node's kernel to have netem, but for Loss without any of the others.
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
	// Quota is how many bytes of IP packets the link carries, both ways together, until nothing passes any more; 0: without end. It may be raised at any
	// time: what was used stays used.
	Quota uint64 `json:"quota_bytes,omitempty"`
}

// NetworkQuota is how much of NetworkShape.Quota is used, on the node where the sandbox is: on another one it begins anew.
type NetworkQuota struct {
	Limit  uint64 `json:"limit_bytes"`
	Used   uint64 `json:"used_bytes"`
	UsedUp bool   `json:"used_up"` // nothing passes any more; the sandbox's log says since when
}

// NetworkMember is a sandbox's place in a private network of its tenant: members reach each other whatever their policies say of the rest,
// and find each other by name. They are on one node: a sandbox that is made in a network is put beside its members, and one that runs on another node
// does not get in (409). Where a node was left for another, members that went elsewhere are not reached any more: see NetworkStatus.Elsewhere.
type NetworkMember struct {
	Network string `json:"network"`          // 1 to 63 of a-z, 0-9 and -
	Name    string `json:"name,omitempty"`   // by which the others find it, also as NAME.NETWORK; the sandbox's id where empty. Several may have the same
	Address string `json:"address,omitzero"` // by which the others reach it; in answers only
	Node    NodeID `json:"node,omitempty"`   // of NetworkStatus.Elsewhere
}

// NetworkJoin is PUT /v1/sandboxes/{id}/network/join: the private networks that a sandbox is in, as a whole.
type NetworkJoin struct {
	Networks []NetworkMember `json:"networks"`
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

	Joined   []NetworkMember `json:"joined,omitempty"`   // the sandbox's own places in private networks
	Networks []NetworkMember `json:"networks,omitempty"` // the other members of these that are on the node
	// Elsewhere are the members on other nodes, which are not reached.
	Elsewhere []NetworkMember `json:"elsewhere,omitempty"`

	Shape   *NetworkShape    `json:"shape,omitempty"`
	Quota   *NetworkQuota    `json:"quota,omitempty"`
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

// NetworkDryRun is the answer of POST /v1/sandboxes/{id}/network/dry-run, whose body is a NetworkPolicy: what it would make of the connections
// that the sandbox has now, and of what was denied to it in the last ten minutes. Nothing changes.
type NetworkDryRun struct {
	Flows []NetworkDryFlow `json:"flows"` // those that the policy would decide otherwise come first
	Notes []string         `json:"notes,omitempty"`
}

// NetworkDryFlow is a destination, with what was decided and what would be.
type NetworkDryFlow struct {
	Address netip.Addr     `json:"address"`
	Names   []string       `json:"names,omitempty"` // that the sandbox has found it by
	Proto   string         `json:"proto"`
	Port    uint16         `json:"port,omitempty"`
	Now     NetworkVerdict `json:"now"`
	Then    NetworkVerdict `json:"then"`
}

// PublishedPorts is GET and PUT /v1/sandboxes/{id}/published, which replaces all of them.
type PublishedPorts struct {
	Ports []PublishedPort `json:"ports"`
}

// PublishedPort is a port of a sandbox that its node listens for, and carries into the sandbox. Who connects meets no key and no TLS of the platform: the server inside is as open as the node's address is.
type PublishedPort struct {
	Proto    string     `json:"proto"`              // tcp or udp
	Port     int        `json:"port"`               // inside
	Address  netip.Addr `json:"address,omitzero"`   // of the node, that it listens at; zero: all. The node's operator says
	NodePort int        `json:"node_port,omitzero"` // of the node; 0 in a request: a free one
	// Any tells that a free NodePort was asked for: where the sandbox moves to a node that has given it to somebody else, that node chooses another. A
	// port whose number was asked for is the same on every node, or not published there.
	Any   bool   `json:"any_node_port,omitempty"`
	Node  NodeID `json:"node,omitempty"`  // that listens; in answers only
	Error string `json:"error,omitempty"` // why it does not, since the sandbox has moved there; in answers only
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

// JoinNetworks replaces the private networks that a running sandbox is in, at once. Connections with those who are no members of the same any
// more end.
func (c *Client) JoinNetworks(ctx context.Context, id SandboxID, list []NetworkMember) (NetworkStatus, error) {
	var out NetworkStatus
	return out, c.call(ctx, http.MethodPut, sandboxPath(id, "/network/join"), nil, NetworkJoin{Networks: list}, &out)
}

// TestNetwork says what would become of a connection. Nothing is sent.
func (c *Client) TestNetwork(ctx context.Context, id SandboxID, t NetworkTest) (NetworkVerdict, error) {
	var out NetworkVerdict
	return out, c.call(ctx, http.MethodPost, sandboxPath(id, "/network/test"), nil, t, &out)
}

// DryRunNetwork says what a policy would make of a sandbox's connections and of what was denied to it lately.
func (c *Client) DryRunNetwork(ctx context.Context, id SandboxID, p NetworkPolicy) (NetworkDryRun, error) {
	var out NetworkDryRun
	return out, c.call(ctx, http.MethodPost, sandboxPath(id, "/network/dry-run"), nil, p, &out)
}

// Published returns the ports of a sandbox that its node listens for.
func (c *Client) Published(ctx context.Context, id SandboxID) ([]PublishedPort, error) {
	var out PublishedPorts
	err := c.call(ctx, http.MethodGet, sandboxPath(id, "/published"), nil, nil, &out)
	return out.Ports, err
}

// SetPublished replaces which ports of a running sandbox its node listens for.
func (c *Client) SetPublished(ctx context.Context, id SandboxID, list []PublishedPort) ([]PublishedPort, error) {
	var out PublishedPorts
	err := c.call(ctx, http.MethodPut, sandboxPath(id, "/published"), nil, PublishedPorts{Ports: list}, &out)
	return out.Ports, err
}
