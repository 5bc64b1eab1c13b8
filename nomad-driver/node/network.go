package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/network"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/firewall"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/proxy"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/resolver"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/shape"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Values of Network.Mode.
const (
	NetworkAuto = "auto" // where the machine can
	NetworkOn   = "on"   // or the node does not start
	NetworkOff  = "off"  // sandboxes have their loopback only
)

// Network configures the networks of sandboxes.
type Network struct {
	Mode  string         // NetworkAuto where empty
	Range netip.Prefix   // of the node's addresses for sandboxes; the zero Prefix: a free one is chosen
	Ahead int            // slots that wait; 0: network.DefaultAhead
	Open  []netip.Prefix // private ranges that sandboxes may reach all the same, as far as their policies allow
	// Limits of each sandbox; zero values are package firewall's defaults.
	Limits firewall.Limits
	// Resolvers are the name servers that know names for sandboxes; none: those of the machine's resolv.conf.
	Resolvers []netip.AddrPort
	Publish   Publish         // ports of sandboxes
	Uplink    network.Uplink  // that sandboxes share out by their classes
	Names     resolver.Limits // of each sandbox's questions; zero values are package resolver's defaults
}

// openNetwork makes the pool of network slots. It is taken into use by startNetwork, once recovery is through.
func (n *Node) openNetwork() error {
	switch n.cfg.Network.Mode {
	case NetworkAuto, NetworkOn:
	default:
		n.noNetwork = "the operator has turned it off"
		return nil
	}
	p, err := network.Open(network.Config{
		Owner: network.OwnerOf(n.cfg.StateDir), Dir: n.cfg.StateDir, Range: n.cfg.Network.Range, Ahead: n.cfg.Network.Ahead,
		Max: n.cfg.MaxSandboxes + max(n.cfg.Network.Ahead, network.DefaultAhead), Open: n.cfg.Network.Open, Limits: n.cfg.Network.Limits,
		Uplink: n.cfg.Network.Uplink, Logger: n.log.Named("network"),
	})
	if err == nil {
		n.network = p
		n.closers = append(n.closers, func() error { return closeNetwork(p) })
		err = errors.Join(n.openNames(), n.openProxy())
	}
	switch {
	case err == nil:
		n.log.Info("network of sandboxes", "range", p.Range(), "own_address", p.Self())
	case n.cfg.Network.Mode == NetworkOn:
		return err
	default:
		n.network, n.noNetwork = nil, err.Error() // what was opened is closed at the end
		n.log.Warn("sandboxes have their loopback only", "error", err)
	}
	return nil
}

// networkProbe says whether sandboxes have a network, beside what the kernel can do.
func (n *Node) networkProbe() nodeapi.Probe {
	p := nodeapi.Probe{Name: api.ProbeNetwork, OK: n.network != nil, Reason: n.noNetwork}
	if p.OK {
		p.Value = n.network.Range().String()
	}
	return p
}

// startNetwork removes slots of no sandbox and begins to make new ones.
func (n *Node) startNetwork() {
	if n.network == nil {
		return
	}
	if removed, err := n.network.Sweep(); err != nil {
		n.log.Error("old network slots cannot be removed", "error", err)
	} else if removed > 0 {
		n.log.Warn("removed network slots of no sandbox", "slots", removed)
	}
	n.network.Start()
}

// closeNetwork lets go of the slots. Where no sandbox has one, nothing of the network stays on the machine.
func closeNetwork(p *network.Pool) error {
	_, used, _ := p.Counts()
	err := p.Close()
	if used == 0 {
		err = errors.Join(err, p.Remove())
	}
	return err
}

// networkUnsupported is the answer where sandboxes have no network.
func (n *Node) networkUnsupported() error {
	return api.Errorf(http.StatusNotImplemented, api.CodeUnsupported, "sandboxes of this node have no network: %s", n.noNetwork)
}

// compile makes the policy of some layers.
func (n *Node) compile(layers []nodeapi.NetworkLayer) (*policy.Policy, error) {
	if len(layers) > nodeapi.MaxNetworkLayers {
		return nil, invalid("network.layers: %d layers, at most %d", len(layers), nodeapi.MaxNetworkLayers)
	}
	parsed := make([]policy.Layer, 0, len(layers))
	for i, l := range layers {
		if len(l.Name) == 0 || len(l.Name) > 32 || strings.Trim(l.Name, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return nil, invalid("network.layers[%d].name: %.40q is not 1 to 32 of a-z, 0-9, - and _", i, l.Name)
		}
		pl, err := policy.ParseLayer(l.Name, policy.Spec(l.NetworkPolicy))
		if err != nil {
			return nil, invalid("network.layers[%d].%s", i, err)
		}
		parsed = append(parsed, pl)
	}
	base := policy.Base{}
	if n.network != nil {
		base = n.network.Base()
	}
	return policy.New(base, parsed...), nil
}

// checkNetwork checks a request's network before anything is made.
func (n *Node) checkNetwork(req *nodeapi.CreateRequest) error {
	if err := errors.Join(n.checkPublished(req.Publish, false), checkPublishIn(req.PublishIn)); err != nil {
		return err
	}
	if req.Network == nil {
		return nil
	}
	_, err := n.settings(req.Network)
	return err
}

// takeSlot takes a network slot for a sandbox under way and gives it its policy. There is none where the node has no network.
func (n *Node) takeSlot(ctx context.Context, b *box, want *nodeapi.Network) error {
	if n.network == nil {
		return nil
	}
	s, err := n.network.Take(ctx)
	if errors.Is(err, network.ErrExhausted) {
		return api.Errorf(http.StatusServiceUnavailable, api.CodeCapacity, "%s", err)
	}
	if err != nil {
		return err
	}
	return n.holdSlot(b, s, nil, want)
}

// adoptSlot returns what makes a slot of the network namespace that a restore has made, for the sandbox that comes back in it; nil
// where the node has no network. The slot is there, with its policy, before anything of the sandbox is.
func (n *Node) adoptSlot(ctx context.Context, b *box, want *nodeapi.Network) func(*os.File) error {
	if n.network == nil {
		return nil
	}
	return func(netns *os.File) error {
		s, err := n.network.Adopt(ctx, netns)
		if errors.Is(err, network.ErrExhausted) {
			return api.Errorf(http.StatusServiceUnavailable, api.CodeCapacity, "%s", err)
		}
		if err != nil {
			return err
		}
		if err := n.holdSlot(b, s, netns, want); err != nil {
			return err
		}
		failpoint.At("network.wired")
		return nil
	}
}

// loseSlot gives back the slot of a sandbox that a failed restore has left on disk.
func (n *Node) loseSlot(b *box) {
	n.giveSlot(b)
	b.mu.Lock()
	b.rec.Slot, b.rec.Sandbox.Policy = nil, ""
	b.mu.Unlock()
}

// digestOf names what settings let a sandbox reach.
func digestOf(want *nodeapi.Network) string {
	if want == nil {
		want = &nodeapi.Network{}
	}
	return nodeapi.PolicyDigest(want.Layers, want.Filled)
}

// holdSlot gives a box its slot, with its policy and its shape. netns is the slot's namespace where the slot itself does not have it. The
// slot is given back on error.
func (n *Node) holdSlot(b *box, s *network.Slot, netns *os.File, want *nodeapi.Network) error {
	st, err := n.settings(want)
	if err == nil && (len(st.Policy.Layers()) > 0 || st.Policy.Proxied() != policy.ProxyNothing) {
		_, err = n.network.Apply(s, st.Policy)
	}
	if err != nil {
		return errors.Join(err, n.network.Give(s))
	}
	ref := s.Ref()
	if err := n.network.Classify(s, shape.Class(b.rec.Sandbox.QoS)); err != nil {
		return errors.Join(err, n.network.Give(s))
	}
	if _, err := n.network.Join(s, memberships(want)); err != nil {
		return errors.Join(err, n.network.Give(s))
	}
	b.mu.Lock()
	b.slot, b.rec.Network, b.rec.Slot = s, want, &ref
	b.rec.Sandbox.Policy = digestOf(want)
	n.attach(b, st)
	used := b.rec.Carried
	b.mu.Unlock()
	if want != nil { // on error the creation fails, and the slot is given back with it
		return n.shapeSlot(s, netns, want.Shape, nil, used)
	}
	return nil
}

// giveSlot gives the slot of a sandbox back once nothing of it runs.
func (n *Node) giveSlot(b *box) {
	if s := n.detachSlot(b); s != nil {
		n.returnSlot(b, s)
	}
}

// detachSlot takes the slot from a sandbox of which nothing runs, with what it has carried; nil: it has none.
func (n *Node) detachSlot(b *box) *network.Slot {
	b.networking.Lock()
	defer b.networking.Unlock()
	b.mu.Lock()
	s := b.slot
	b.slot, b.asker, b.carrier = nil, nil, nil
	b.mu.Unlock()
	if s != nil {
		n.keepUsed(b, s)
	}
	return s
}

// returnSlot gives back a slot that was taken from a sandbox. It takes the kernel some milliseconds.
func (n *Node) returnSlot(b *box, s *network.Slot) {
	n.resolver.Detach(s.Addr)
	n.proxy.Detach(s.Addr)
	if err := n.network.Give(s); err != nil {
		n.log.Error("network slot cannot be given back", "sandbox", b.id, "slot", s.Number, "error", err)
	}
}

// recoverSlot finds the slot of a sandbox of an earlier daemon again. Until then the kernel has kept its rules; where that does not
// succeed the sandbox has no network any more.
func (n *Node) recoverSlot(b *box) {
	if n.network == nil || b.rec.Slot == nil {
		return
	}
	select {
	case <-b.inst.Done(): // it has ended meanwhile, and its slot with it
		return
	default:
	}
	s, err := n.network.Recover(*b.rec.Slot)
	if err != nil {
		n.log.Error("sandbox has lost its network", "sandbox", b.id, "error", err)
		return
	}
	b.slot, b.rec.Sandbox.Policy = s, digestOf(b.rec.Network)
	if err := n.network.Classify(s, shape.Class(b.rec.Sandbox.QoS)); err != nil {
		n.log.Error("sandbox has the share of the host's own packets", "sandbox", b.id, "error", err)
	}
	st, err := n.settings(b.rec.Network)
	if err == nil {
		_, jerr := n.network.Join(s, memberships(b.rec.Network)) // before: what is a peer's is not cut
		_, err = n.network.Apply(s, st.Policy)
		err = errors.Join(jerr, err)
	}
	if err != nil {
		n.log.Error("sandbox keeps the network rules it had, and looks up no names", "sandbox", b.id, "error", err)
		return
	}
	n.attach(b, st)
	if want := b.rec.Network; want != nil && want.Shape != nil { // as the kernel has it; this daemon must know what it has done
		if err := n.reshape(b, s, want.Shape, nil); err != nil {
			n.log.Error("link of sandbox is not shaped as it was", "sandbox", b.id, "error", err)
		}
	}
}

// slotOf returns the slot of a running sandbox, and its policy.
func (n *Node) slotOf(id api.SandboxID) (*box, *network.Slot, *policy.Policy, []nodeapi.NetworkLayer, error) {
	b, err := n.box(id)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	if _, err := b.running(); err != nil {
		return nil, nil, nil, nil, err
	}
	b.mu.Lock()
	s, want := b.slot, b.rec.Network
	b.mu.Unlock()
	var layers []nodeapi.NetworkLayer
	if want != nil {
		layers = want.Layers
	}
	st, err := n.settings(want)
	return b, s, st.Policy, layers, err
}

// SetNetwork replaces what a sandbox may reach. The record is written first: a daemon that is killed in between leaves the old rules in
// the kernel, and the next one applies what the record says.
func (n *Node) SetNetwork(id api.SandboxID, want nodeapi.Network) (nodeapi.NetworkStatus, error) {
	st, err := n.settings(&want)
	if err != nil {
		return nodeapi.NetworkStatus{}, err
	}
	b, err := n.box(id)
	if err != nil {
		return nodeapi.NetworkStatus{}, err
	}
	b.networking.Lock()
	defer b.networking.Unlock()
	_, s, _, _, err := n.slotOf(id)
	if err != nil {
		return nodeapi.NetworkStatus{}, err
	}
	if s == nil {
		return nodeapi.NetworkStatus{}, n.networkUnsupported()
	}
	added, err := n.replaceNetwork(b, s, want, st)
	if err != nil {
		return nodeapi.NetworkStatus{}, err
	}
	if added {
		n.trustAdded(b)
	}
	return n.NetworkStatus(id)
}

// replaceNetwork replaces the network settings of a sandbox with a slot. added tells that it has rules now, and had none. b.networking is held.
func (n *Node) replaceNetwork(b *box, s *network.Slot, want nodeapi.Network, st proxy.Settings) (added bool, err error) {
	b.mu.Lock()
	old := b.rec.Network
	b.mu.Unlock()
	var had *nodeapi.NetworkShape
	if old != nil {
		had = old.Shape
	}
	if err := n.reshape(b, s, want.Shape, had); err != nil {
		return false, err
	}
	b.mu.Lock()
	b.rec.Network = &want
	if err := n.records.put(&b.rec); err != nil {
		b.rec.Network = old
		b.mu.Unlock()
		return false, err
	}
	b.mu.Unlock()
	parted, err := n.network.Join(s, memberships(&want))
	if err != nil {
		return false, fmt.Errorf("network of sandbox %s: %w", b.id, err)
	}
	cut, err := n.network.Apply(s, st.Policy)
	if err != nil {
		return false, fmt.Errorf("network of sandbox %s: %w", b.id, err)
	}
	cut += parted
	b.mu.Lock()
	n.attach(b, st)
	if digest := digestOf(&want); digest != b.rec.Sandbox.Policy {
		b.rec.Sandbox.Policy = digest
		n.tell(b, nodeapi.EventUpdated)
	}
	b.mu.Unlock()
	n.log.Info("network policy changed", "sandbox", b.id, "layers", len(want.Layers), "connections_ended", cut)
	return len(want.Rules) > 0 && (old == nil || len(old.Rules) == 0), nil
}

// trustAdded has a sandbox that has got rules trust the proxy.
func (n *Node) trustAdded(b *box) {
	if err := n.trust(b); err != nil { // it may speak plain HTTP all the same
		n.log.Warn("sandbox does not trust the proxy", "sandbox", b.id, "error", err)
	}
}

// networkAgain gives a paused sandbox the network settings that it is resumed with. One that waits in memory has its link yet, whose rules
// change before it runs; of others the record says what their next link is to be. added is as replaceNetwork's. b.turn is held.
func (n *Node) networkAgain(b *box, want *nodeapi.Network) (added bool, err error) {
	if want == nil || n.network == nil {
		return false, nil
	}
	st, err := n.settings(want)
	if err != nil {
		return false, err
	}
	b.networking.Lock()
	defer b.networking.Unlock()
	b.mu.Lock()
	old, s := b.rec.Network, b.slot
	b.mu.Unlock()
	same, err := sameNetwork(old, want)
	if same || err != nil {
		return false, err
	}
	if s != nil {
		return n.replaceNetwork(b, s, *want, st)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rec.Network = want
	if err := n.records.put(&b.rec); err != nil {
		b.rec.Network = old
		return false, err
	}
	return len(want.Rules) > 0 && (old == nil || len(old.Rules) == 0), nil
}

// sameNetwork compares settings as they are recorded.
func sameNetwork(a, b *nodeapi.Network) (bool, error) {
	if a == nil {
		a = &nodeapi.Network{}
	}
	x, err := json.Marshal(a)
	if err != nil {
		return false, err
	}
	y, err := json.Marshal(b)
	return bytes.Equal(x, y), err
}

// NetworkStatus says what a sandbox's network is and does.
func (n *Node) NetworkStatus(id api.SandboxID) (nodeapi.NetworkStatus, error) {
	b, s, pol, layers, err := n.slotOf(id)
	if err != nil {
		return nodeapi.NetworkStatus{}, err
	}
	st := nodeapi.NetworkStatus{Layers: layers, Notes: pol.Notes()}
	if s == nil {
		st.Reason = n.noNetwork
		if st.Reason == "" {
			st.Reason = "the sandbox was made without a network"
		}
		return st, nil
	}
	st.Enabled, st.Address, st.Gateway, st.Host, st.Link = true, network.Inner, network.Gateway, s.Addr, s.Link
	if link, err := netlink.LinkByName(s.Link); err == nil && link.Attrs().Statistics != nil {
		c := link.Attrs().Statistics // the host's end receives what the sandbox sends
		st.Counts = nodeapi.NetworkCounts{
			SentBytes: c.RxBytes, SentPackets: c.RxPackets, ReceivedBytes: c.TxBytes, ReceivedPackets: c.TxPackets, Dropped: c.TxDropped,
		}
	}
	conns, err := n.network.Firewall().Connections(s.Firewall())
	if err != nil {
		return st, err
	}
	st.Counts.Connections = len(conns)
	for _, m := range n.network.Members(s) {
		member := nodeapi.NetworkMember{Network: m.Short, Name: m.Name, Address: m.Addr.String()}
		if m.Addr == s.Addr {
			st.Joined = append(st.Joined, member)
		} else {
			st.Networks = append(st.Networks, member)
		}
	}
	denied, err := n.network.Firewall().Denied(s.Firewall())
	if err != nil {
		return st, err
	}
	for _, d := range denied {
		st.Denied = append(st.Denied, n.explain(s, pol, d))
	}
	b.mu.Lock()
	asker, carrier, want := b.asker, b.carrier, b.rec.Network
	b.mu.Unlock()
	if asker != nil {
		st.Names = namesOf(asker)
	}
	if carrier != nil {
		st.Proxied = proxiedOf(carrier)
	}
	if want != nil {
		st.Rules, st.Shape = withoutValues(want.Rules), want.Shape
		if st.Quota, err = n.quotaOf(s); err != nil {
			return st, err
		}
		if want.Proxy != nil {
			st.Proxy = want.Proxy.Address
		}
	}
	return st, nil
}

// explain names the rule that denied a flow. Where the policy of today would not, it was another one's.
func (n *Node) explain(s *network.Slot, pol *policy.Policy, d firewall.Denial) nodeapi.NetworkDeny {
	d.Flow.Names = n.network.Firewall().Names(s.Firewall(), d.Flow.Addr)
	out := nodeapi.NetworkDeny{
		Last: d.Last, Address: d.Flow.Addr, Proto: d.Flow.Proto.String(), Port: d.Flow.Port, Reason: d.Reason.String(), Layer: policy.LayerPlatform,
	}
	switch decision := pol.Decide(d.Flow); {
	case d.Reason == firewall.ReasonLimit:
		out.Rule = "too many connections"
	case !decision.Allow:
		out.Layer, out.Rule = decision.Layer, decision.Rule
	case d.Reason == firewall.ReasonPolicy:
		out.Layer, out.Rule = "earlier policy", "the policy in force allows it"
	default:
		out.Rule = d.Reason.String()
	}
	return out
}

// amongPeers decides about what a private network of the slot's has, and reports whether it is one's.
func (n *Node) amongPeers(s *network.Slot, t nodeapi.NetworkTest, d *policy.Decision) bool {
	if m, ok := n.network.Peer(s, t.Address); ok {
		*d = policy.Decision{Allow: true, Layer: "network " + m.Short, Rule: "its member " + m.Name}
		return true
	}
	if t.Address.IsValid() || t.Name == "" {
		return false
	}
	addrs, known := n.network.Lookup(s, strings.ToLower(strings.TrimSuffix(t.Name, ".")))
	if known {
		*d = policy.Decision{Allow: len(addrs) > 0, Layer: "network", Rule: "a name of the sandbox's private networks"}
	}
	return known
}

// TestNetwork says what would become of a connection.
func (n *Node) TestNetwork(id api.SandboxID, t nodeapi.NetworkTest) (nodeapi.NetworkVerdict, error) {
	_, s, pol, _, err := n.slotOf(id)
	if err != nil {
		return nodeapi.NetworkVerdict{}, err
	}
	if len(t.Layers) > 0 {
		if pol, err = n.compile(t.Layers); err != nil {
			return nodeapi.NetworkVerdict{}, err
		}
	}
	f := policy.Flow{Addr: t.Address, Proto: policy.TCP, Port: t.Port}
	if t.Proto != "" {
		if f.Proto, err = policy.ParseProto(t.Proto); err != nil || f.Proto == policy.Any {
			return nodeapi.NetworkVerdict{}, invalid("proto: %.20q is none of tcp, udp, icmp", t.Proto)
		}
	}
	if t.Name != "" {
		name, err := policy.ParseName(t.Name)
		if err != nil || strings.HasPrefix(name, "*") {
			return nodeapi.NetworkVerdict{}, invalid("name: %.80q is no domain name", t.Name)
		}
		f.Names = []string{name}
	}
	var d policy.Decision
	switch {
	case s == nil:
		d = policy.Decision{Layer: policy.LayerPlatform, Rule: "the sandbox has no network"}
	case n.amongPeers(s, t, &d):
	case !t.Address.IsValid() && t.Name == "":
		return nodeapi.NetworkVerdict{}, invalid("address: neither an address nor a name is given")
	case !t.Address.IsValid():
		d = pol.DecideName(f.Names[0])
	default:
		f.Names = append(f.Names, n.network.Firewall().Names(s.Firewall(), t.Address)...)
		d = pol.Decide(f)
	}
	return nodeapi.NetworkVerdict{Allow: d.Allow, Layer: d.Layer, Rule: d.Rule, Notes: pol.Notes()}, nil
}
