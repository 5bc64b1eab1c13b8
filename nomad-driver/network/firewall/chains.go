package firewall

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// Names of chains.
const (
	chainArrive  = "arrive"  // hook: everything, before conntrack
	chainLeave   = "leave"   // hook: everything, behind address translation
	chainForward = "forward" // hook
	chainInput   = "input"   // hook
	chainSource  = "source"  // hook: address translation of what leaves the node
	chainProxy   = "proxy"   // hook: redirects connections to the proxy
	chainFrom    = "from-sandbox"
	chainTo      = "to-sandbox"
	chainHost    = "to-host"
	chainPeer    = "to-peer" // of sandboxes that are in one private network
	chainPolicy  = "policy"
	chainOpen    = "open" // of sandboxes whose policy has no layers
)

// Reason is why a packet was denied, as the kernel notes it.
type Reason uint32

// Reasons.
const (
	ReasonPlatform  Reason = iota + 1 // a deny of the platform
	ReasonPolicy                      // the sandbox's policy
	ReasonHost                        // it was for the host itself
	ReasonNeighbour                   // it was for another sandbox
	ReasonLimit                       // too many connections
	ReasonUnknown                     // an interface without rules
	ReasonSpoofed                     // not from the sandbox's own address
	ReasonQuota                       // the sandbox has used up its bytes
)

var reasonNames = map[Reason]string{
	ReasonPlatform: "platform", ReasonPolicy: "policy", ReasonHost: "host", ReasonNeighbour: "neighbour", ReasonLimit: "limit",
	ReasonUnknown: "unknown", ReasonSpoofed: "spoofed", ReasonQuota: "quota",
}

// String returns the name that the API has for it.
func (r Reason) String() string { return reasonNames[r] }

func (r Reason) chain() string { return "deny-" + r.String() }

// denyTime is how long a denied destination is remembered after the last attempt, deniedSize how many there are at most.
const (
	denyTime   = 10 * time.Minute
	deniedSize = 65536
	denyRate   = 20 // destinations a second that one sandbox gets noted
	slotsSize  = 1 << 16
)

func (f *Firewall) set(s nftables.Set) *nftables.Set {
	s.Table = f.table
	return &s
}

// declare describes the sets; build makes them.
func (f *Firewall) declare() {
	s := &f.sets
	s.addrs = f.set(nftables.Set{Name: "addresses", IsMap: true, KeyType: nftables.TypeIFIndex, DataType: nftables.TypeIPAddr, KeyByteOrder: binaryutil.NativeEndian})
	s.policies = f.set(nftables.Set{Name: "policies", IsMap: true, KeyType: nftables.TypeIFIndex, DataType: nftables.TypeVerdict, KeyByteOrder: binaryutil.NativeEndian})
	s.open = f.set(nftables.Set{Name: "opened", Interval: true, KeyType: nftables.TypeIPAddr})
	s.private = f.set(nftables.Set{Name: "private", Interval: true, KeyType: nftables.TypeIPAddr})
	s.services = f.set(nftables.Set{Name: "services", KeyType: nftables.TypeInetService, KeyByteOrder: binaryutil.BigEndian})
	perSlot := func(name string) *nftables.Set {
		return f.set(nftables.Set{Name: name, Dynamic: true, HasTimeout: true, Timeout: denyTime, Size: slotsSize, KeyType: nftables.TypeIFIndex, KeyByteOrder: binaryutil.NativeEndian})
	}
	s.packets, s.fresh, s.noise = perSlot("packet-rate"), perSlot("connection-rate"), perSlot("denial-rate")
	perLink := func(name string) *nftables.Set {
		return f.set(nftables.Set{Name: name, KeyType: nftables.TypeIFIndex, KeyByteOrder: binaryutil.NativeEndian})
	}
	s.peers = f.set(nftables.Set{Name: "peers", KeyType: nftables.MustConcatSetType(nftables.TypeIFIndex, nftables.TypeIPAddr)})
	verdicts := func(name string) *nftables.Set {
		return f.set(nftables.Set{Name: name, IsMap: true, KeyType: nftables.TypeIFIndex, DataType: nftables.TypeVerdict, KeyByteOrder: binaryutil.NativeEndian})
	}
	s.priorities = f.set(nftables.Set{Name: "priorities", IsMap: true, KeyType: nftables.TypeIFIndex, DataType: nftables.TypeMark, KeyByteOrder: binaryutil.NativeEndian})
	s.meterIn, s.meterOut = verdicts("meters-in"), verdicts("meters-out")
	s.web, s.all = perLink("proxied-web"), perLink("proxied-all")
	// An element with a connection count goes when its last connection does.
	s.conns = f.set(nftables.Set{Name: "connections", Dynamic: true, Size: slotsSize, KeyType: nftables.TypeIFIndex, KeyByteOrder: binaryutil.NativeEndian})
	s.denied = f.set(nftables.Set{
		Name: "denied", Dynamic: true, HasTimeout: true, Timeout: denyTime, Size: deniedSize,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFIndex, nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark),
	})
}

// build queues the sets and the chains that all sandboxes share. Where they exist their rules are replaced in the same
// transaction; the elements of maps stay.
func (f *Firewall) build(c *nftables.Conn) error {
	c.AddTable(f.table)
	s := &f.sets
	var errs []error
	for _, set := range []*nftables.Set{s.addrs, s.policies, s.open, s.private, s.services, s.packets, s.fresh, s.noise, s.conns, s.denied, s.web, s.all, s.peers, s.priorities, s.meterIn, s.meterOut} {
		errs = append(errs, c.AddSet(set, nil))
	}
	c.FlushSet(s.open)
	c.FlushSet(s.private)
	errs = append(errs, addElements(c, s.open, intervals(f.cfg.Base.Open)), addElements(c, s.private, intervals(f.cfg.Base.Deny)))

	plain := func(name string) *nftables.Chain { return f.chain(c, nftables.Chain{Name: name}) }
	hook := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio nftables.ChainPriority) *nftables.Chain {
		return f.chain(c, nftables.Chain{Name: name, Type: typ, Hooknum: hook, Priority: &prio})
	}
	for r := range reasonNames {
		f.denyRules(c, plain(r.chain()), r)
	}
	for _, name := range []string{chainFrom, chainTo, chainHost, chainPeer, chainPolicy, chainOpen} {
		plain(name)
	}
	errs = append(errs,
		f.arriveRules(c, hook(chainArrive, nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300)),
		f.leaveRules(c, hook(chainLeave, nftables.ChainTypeFilter, nftables.ChainHookPostrouting, 300)),
	)
	forward := hook(chainForward, nftables.ChainTypeFilter, nftables.ChainHookForward, 0)
	f.add(c, forward, rule(f.fromSlot(), goTo(chainFrom)))
	f.add(c, forward, rule(f.toSlot(), goTo(chainTo)))
	f.add(c, hook(chainInput, nftables.ChainTypeFilter, nftables.ChainHookInput, 0), rule(f.fromSlot(), goTo(chainHost)))
	f.add(c, hook(chainSource, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 100),
		rule(isIPv4(), within(offSource, f.cfg.Range), notPrefix(f.toSlot()), match{&expr.Masq{}}))
	f.proxyRules(c, hook(chainProxy, nftables.ChainTypeNAT, nftables.ChainHookPrerouting, -100))
	f.sandboxRules(c)
	return errors.Join(errs...)
}

func addElements(c *nftables.Conn, s *nftables.Set, elems []nftables.SetElement) error {
	if len(elems) == 0 {
		return nil
	}
	return c.SetAddElements(s, elems)
}

// chain makes a chain, or empties it.
func (f *Firewall) chain(c *nftables.Conn, ch nftables.Chain) *nftables.Chain {
	ch.Table = f.table
	added := c.AddChain(&ch)
	c.FlushChain(added)
	return added
}

func (f *Firewall) add(c *nftables.Conn, ch *nftables.Chain, exprs []expr.Any) {
	c.AddRule(&nftables.Rule{Table: f.table, Chain: ch, Exprs: exprs})
}

func (f *Firewall) addTo(c *nftables.Conn, chain string, parts ...match) {
	f.add(c, &nftables.Chain{Table: f.table, Name: chain}, rule(parts...))
}

// addressOf loads the address of the slot whose interface key names; an interface that the map does not know ends the rule.
func (f *Firewall) addressOf(key expr.MetaKey, reg uint32) match {
	return match{meta(key, reg0), &expr.Lookup{SourceRegister: reg0, DestRegister: reg, IsDestRegSet: true, SetName: f.sets.addrs.Name, SetID: f.sets.addrs.ID}}
}

func (f *Firewall) icmpErrors(c *nftables.Conn) (*nftables.Set, error) {
	s := f.set(nftables.Set{Anonymous: true, Constant: true, KeyType: nftables.TypeICMPType})
	return s, c.AddSet(s, []nftables.SetElement{{Key: []byte{3}}, {Key: []byte{11}}, {Key: []byte{12}}})
}

// arriveRules give what comes from a sandbox the slot's own address. Every sandbox has the same one inside, and
// conntrack must tell them apart.
func (f *Firewall) arriveRules(c *nftables.Conn, ch *nftables.Chain) error {
	errs, err := f.icmpErrors(c)
	f.add(c, ch, rule(notPrefix(f.fromSlot()), verdict(expr.VerdictReturn)))
	f.add(c, ch, rule(notIPv4(), verdict(expr.VerdictDrop)))
	if f.cfg.Hardware != nil {
		f.add(c, ch, rule(match{
			&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
			cmp(expr.CmpOpNeq, unix.NFT_REG_1, f.cfg.Hardware),
		}, verdict(expr.VerdictDrop)))
	}
	f.add(c, ch, rule(address(offSource, expr.CmpOpNeq, f.cfg.Inner), jump(ReasonSpoofed.chain()), verdict(expr.VerdictDrop)))
	f.add(c, ch, rule(perSlot(f.sets.packets, unix.NFT_DYNSET_OP_UPDATE, &expr.Limit{
		Type: expr.LimitTypePkts, Rate: f.cfg.Limits.Packets, Unit: expr.LimitTimeSecond, Over: true, Burst: uint32(f.cfg.Limits.Packets / 5),
	}), verdict(expr.VerdictDrop)))
	f.add(c, ch, rule(f.meters(expr.MetaKeyIIF, f.sets.meterOut)))
	f.add(c, ch, rule(f.addressOf(expr.MetaKeyIIF, reg1), match{setAddress(offSource, reg1)}))
	f.add(c, ch, rule(icmpError(errs), f.addressOf(expr.MetaKeyIIF, reg1), match{setInner(offDestination, reg1)}))
	f.add(c, ch, rule(address(offDestination, expr.CmpOpEq, f.cfg.Gateway), match{load(f.cfg.Self, reg1), setAddress(offDestination, reg1)}))
	// No map knew the interface.
	f.add(c, ch, rule(address(offSource, expr.CmpOpEq, f.cfg.Inner), verdict(expr.VerdictDrop)))
	return err
}

// leaveRules give what goes to a sandbox the addresses that it knows.
func (f *Firewall) leaveRules(c *nftables.Conn, ch *nftables.Chain) error {
	errs, err := f.icmpErrors(c)
	f.sortRules(c, ch)
	f.add(c, ch, rule(notPrefix(f.toSlot()), verdict(expr.VerdictReturn)))
	f.add(c, ch, rule(notIPv4(), verdict(expr.VerdictDrop)))
	f.add(c, ch, rule(f.meters(expr.MetaKeyOIF, f.sets.meterIn)))
	f.add(c, ch, rule(icmpError(errs), match{transport(offInner+offSource, 4, reg0)}, rangeOf(f.cfg.Range),
		match{load(f.cfg.Inner, reg1), setInner(offSource, reg1)}))
	f.add(c, ch, rule(within(offDestination, f.cfg.Range), match{load(f.cfg.Inner, reg1), setAddress(offDestination, reg1)}))
	f.add(c, ch, rule(address(offSource, expr.CmpOpEq, f.cfg.Self), match{load(f.cfg.Gateway, reg1), setAddress(offSource, reg1)}))
	return err
}

// proxyRules send connections of some sandboxes to the proxy, whatever their destination: it decides in the place of the policy's chains,
// and where it does not run they are refused.
func (f *Firewall) proxyRules(c *nftables.Conn, ch *nftables.Chain) {
	if f.cfg.Proxy == 0 {
		return
	}
	to := match{
		load(f.cfg.Self, unix.NFT_REG_1), &expr.Immediate{Register: unix.NFT_REG_2, Data: binary.BigEndian.AppendUint16(nil, f.cfg.Proxy)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: unix.NFT_REG_1, RegProtoMin: unix.NFT_REG_2},
	}
	f.add(c, ch, rule(f.toPeer(), verdict(expr.VerdictReturn)))
	elsewhere := append(isIPv4(), address(offDestination, expr.CmpOpNeq, f.cfg.Self)...)
	for _, port := range []uint16{80, 443} {
		f.add(c, ch, rule(fromSet(f.sets.web), elsewhere, proto(policy.TCP), portRange(policy.Ports{From: port, To: port}), to))
	}
	f.add(c, ch, rule(fromSet(f.sets.all), elsewhere, proto(policy.TCP), to))
}

// redirect queues what a sandbox sends to the proxy from now on.
func (f *Firewall) redirect(c *nftables.Conn, s Slot, what policy.Proxied) error {
	elem := []nftables.SetElement{{Key: ifKey(s.Index)}}
	var errs []error
	for _, set := range []struct {
		set *nftables.Set
		in  bool
	}{{f.sets.web, what == policy.ProxyWeb}, {f.sets.all, what == policy.ProxyAll}} {
		errs = append(errs, c.SetAddElements(set.set, elem))
		if !set.in { // it was added so that there is one to remove
			errs = append(errs, c.SetDeleteElements(set.set, elem))
		}
	}
	return errors.Join(errs...)
}

// toPeer matches what goes from a sandbox to one that it is in a private network with.
func (f *Firewall) toPeer() match {
	return match{meta(expr.MetaKeyIIF, reg0), network(offDestination, reg1), &expr.Lookup{SourceRegister: reg0, SetName: f.sets.peers.Name, SetID: f.sets.peers.ID}}
}

// rangeOf matches an address that is in reg0 already.
func rangeOf(p netip.Prefix) match { return within(0, p)[1:] }

// sandboxRules are those of the filter that all sandboxes share.
func (f *Firewall) sandboxRules(c *nftables.Conn) {
	f.addTo(c, chainFrom, f.toPeer(), goTo(chainPeer))
	f.addTo(c, chainFrom, f.toSlot(), goTo(ReasonNeighbour.chain()))
	f.addTo(c, chainFrom, ctState(ctEstablished|ctRelated), verdict(expr.VerdictAccept))
	f.addTo(c, chainFrom, ctState(ctInvalid), verdict(expr.VerdictDrop))
	f.connectionLimits(c, chainFrom)
	for _, p := range []policy.Proto{policy.TCP, policy.UDP} {
		for _, port := range []uint16{53, 853} {
			f.addTo(c, chainFrom, proto(p), portRange(policy.Ports{From: port, To: port}), goTo(ReasonPlatform.chain()))
		}
	}
	f.addTo(c, chainFrom, inSet(offDestination, f.sets.open), goTo(chainPolicy))
	f.addTo(c, chainFrom, inSet(offDestination, f.sets.private), goTo(ReasonPlatform.chain()))
	f.addTo(c, chainFrom, goTo(chainPolicy))

	f.addTo(c, chainPolicy, match{meta(expr.MetaKeyIIF, reg0), &expr.Lookup{
		SourceRegister: reg0, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: f.sets.policies.Name, SetID: f.sets.policies.ID,
	}})
	f.addTo(c, chainPolicy, goTo(ReasonUnknown.chain()))
	for _, p := range []policy.Proto{policy.TCP, policy.UDP, policy.ICMP} {
		f.addTo(c, chainOpen, proto(p), verdict(expr.VerdictAccept))
	}
	f.addTo(c, chainOpen, goTo(ReasonPlatform.chain()))

	f.addTo(c, chainPeer, ctState(ctEstablished|ctRelated), verdict(expr.VerdictAccept))
	f.addTo(c, chainPeer, ctState(ctInvalid), verdict(expr.VerdictDrop))
	f.connectionLimits(c, chainPeer)
	for _, p := range []policy.Proto{policy.TCP, policy.UDP, policy.ICMP} {
		f.addTo(c, chainPeer, proto(p), verdict(expr.VerdictAccept))
	}
	f.addTo(c, chainPeer, goTo(ReasonNeighbour.chain()))

	f.addTo(c, chainTo, ctState(ctEstablished|ctRelated), verdict(expr.VerdictAccept))
	f.addTo(c, chainTo, verdict(expr.VerdictDrop))

	self := address(offDestination, expr.CmpOpEq, f.cfg.Self)
	f.addTo(c, chainHost, ctState(ctEstablished|ctRelated), verdict(expr.VerdictAccept))
	if f.cfg.Proxy != 0 { // only what was redirected: nobody connects there by himself
		proxied := append(ctRedirected(), append(self, append(proto(policy.TCP), portRange(policy.Ports{From: f.cfg.Proxy, To: f.cfg.Proxy})...)...)...)
		f.connectionLimits(c, chainHost, proxied...)
		f.addTo(c, chainHost, proxied, verdict(expr.VerdictAccept))
	}
	for _, p := range []policy.Proto{policy.TCP, policy.UDP} {
		f.addTo(c, chainHost, self, proto(p), portRange(policy.Ports{From: 53, To: 53}), verdict(expr.VerdictAccept))
	}
	f.addTo(c, chainHost, self, proto(policy.TCP), match{transport(offPort, 2, reg0), &expr.Lookup{
		SourceRegister: reg0, SetName: f.sets.services.Name, SetID: f.sets.services.ID,
	}}, verdict(expr.VerdictAccept))
	f.addTo(c, chainHost, self, proto(policy.ICMP), verdict(expr.VerdictAccept))
	f.addTo(c, chainHost, goTo(ReasonHost.chain()))
}

// connectionLimits refuse new connections that are too many, of those that match.
func (f *Firewall) connectionLimits(c *nftables.Conn, chain string, of ...expr.Any) {
	f.addTo(c, chain, of, perSlot(f.sets.fresh, unix.NFT_DYNSET_OP_UPDATE, &expr.Limit{
		Type: expr.LimitTypePkts, Rate: f.cfg.Limits.NewConnections, Unit: expr.LimitTimeSecond, Over: true, Burst: uint32(f.cfg.Limits.NewConnections),
	}), goTo(ReasonLimit.chain()))
	f.addTo(c, chain, of, perSlot(f.sets.conns, unix.NFT_DYNSET_OP_ADD, &expr.Connlimit{Count: f.cfg.Limits.Connections, Flags: 1}), goTo(ReasonLimit.chain()))
}

// denyRules note the destination, at a bounded rate for each sandbox, and refuse: a client that is told does not wait.
func (f *Firewall) denyRules(c *nftables.Conn, ch *nftables.Chain, r Reason) {
	note := func(p policy.Proto, port expr.Any) {
		f.add(c, ch, rule(proto(p), perSlot(f.sets.noise, unix.NFT_DYNSET_OP_UPDATE, &expr.Limit{
			Type: expr.LimitTypePkts, Rate: denyRate, Unit: expr.LimitTimeSecond, Burst: 5 * denyRate,
		}), match{
			meta(expr.MetaKeyIIF, reg0), network(offDestination, reg1), meta(expr.MetaKeyL4PROTO, reg2), port,
			&expr.Immediate{Register: reg4, Data: binaryutil.NativeEndian.PutUint32(uint32(r))},
			&expr.Dynset{SrcRegKey: reg0, SetName: f.sets.denied.Name, SetID: f.sets.denied.ID, Operation: unix.NFT_DYNSET_OP_UPDATE},
		}))
	}
	note(policy.TCP, transport(offPort, 2, reg3))
	note(policy.UDP, transport(offPort, 2, reg3))
	note(policy.ICMP, &expr.Immediate{Register: reg3, Data: make([]byte, 4)})
	if r == ReasonSpoofed || r == ReasonQuota { // from where nothing can be answered, and before there is an address to answer to
		f.add(c, ch, rule(verdict(expr.VerdictDrop)))
		return
	}
	f.add(c, ch, rule(proto(policy.TCP), match{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}))
	f.add(c, ch, rule(match{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}))
}

func goVerdict(chain string) *expr.Verdict {
	return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}
}
