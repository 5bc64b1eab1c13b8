package firewall

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// Registers of 32 bits, one after the other: a key of several fields is loaded into neighbours.
const (
	reg0 = unix.NFT_REG32_00
	reg1 = unix.NFT_REG32_01
	reg2 = unix.NFT_REG32_02
	reg3 = unix.NFT_REG32_03
	reg4 = unix.NFT_REG32_04
)

// Offsets in headers.
const (
	offSource      = 12 // of an IPv4 header
	offDestination = 16
	offChecksum    = 10
	offPort        = 2 // destination port of TCP and UDP
	offICMPSum     = 2
	offInner       = 8 // the header that an ICMP error is about
)

// A match is a part of a rule, in nft's order: what comes later runs only where all before it matched.
type match []expr.Any

func rule(parts ...match) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func meta(key expr.MetaKey, reg uint32) expr.Any { return &expr.Meta{Key: key, Register: reg} }

func cmp(op expr.CmpOp, reg uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: reg, Data: data}
}

// fromSlot and toSlot match interfaces by the prefix of their names: also those that no map knows.
func (f *Firewall) fromSlot() match {
	return match{meta(expr.MetaKeyIIFNAME, unix.NFT_REG_1), cmp(expr.CmpOpEq, unix.NFT_REG_1, []byte(f.cfg.LinkPrefix))}
}

func (f *Firewall) toSlot() match {
	return match{meta(expr.MetaKeyOIFNAME, unix.NFT_REG_1), cmp(expr.CmpOpEq, unix.NFT_REG_1, []byte(f.cfg.LinkPrefix))}
}

func notPrefix(m match) match {
	c := *m[1].(*expr.Cmp) //nolint:forcetypeassert // made above
	c.Op = expr.CmpOpNeq
	return match{m[0], &c}
}

func isIPv4() match {
	return match{meta(expr.MetaKeyNFPROTO, unix.NFT_REG_1), cmp(expr.CmpOpEq, unix.NFT_REG_1, []byte{unix.NFPROTO_IPV4})}
}

func notIPv4() match {
	return match{meta(expr.MetaKeyNFPROTO, unix.NFT_REG_1), cmp(expr.CmpOpNeq, unix.NFT_REG_1, []byte{unix.NFPROTO_IPV4})}
}

func proto(p policy.Proto) match {
	return match{meta(expr.MetaKeyL4PROTO, unix.NFT_REG_1), cmp(expr.CmpOpEq, unix.NFT_REG_1, []byte{byte(p)})}
}

func network(offset, reg uint32) *expr.Payload {
	return &expr.Payload{OperationType: expr.PayloadLoad, DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
}

func transport(offset, length, reg uint32) *expr.Payload {
	return &expr.Payload{OperationType: expr.PayloadLoad, DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}
}

func address(offset uint32, op expr.CmpOp, a netip.Addr) match {
	return match{network(offset, reg0), cmp(op, reg0, a.AsSlice())}
}

// within matches an address against a range.
func within(offset uint32, p netip.Prefix) match {
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	return match{
		network(offset, reg0),
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		cmp(expr.CmpOpEq, reg0, p.Addr().AsSlice()),
	}
}

// inSet matches an address against a set.
func inSet(offset uint32, s *nftables.Set) match {
	return match{network(offset, reg0), &expr.Lookup{SourceRegister: reg0, SetName: s.Name, SetID: s.ID}}
}

// setAddress writes the address in reg into the IPv4 header and mends the checksums, also those over the pseudo header.
func setAddress(offset, reg uint32) expr.Any {
	return &expr.Payload{
		OperationType: expr.PayloadWrite, SourceRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4,
		CsumType: expr.CsumTypeInet, CsumOffset: offChecksum, CsumFlags: unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR,
	}
}

// setInner writes the address in reg into the header that an ICMP error is about. That header's own checksum is nobody's
// concern; ICMP's is mended.
func setInner(offset, reg uint32) expr.Any {
	return &expr.Payload{
		OperationType: expr.PayloadWrite, SourceRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offInner + offset, Len: 4,
		CsumType: expr.CsumTypeInet, CsumOffset: offICMPSum,
	}
}

// icmpError matches the ICMP messages that carry another packet's header.
func icmpError(anon *nftables.Set) match {
	return append(proto(policy.ICMP), transport(0, 1, reg0), &expr.Lookup{SourceRegister: reg0, SetName: anon.Name, SetID: anon.ID})
}

func load(a netip.Addr, reg uint32) expr.Any {
	return &expr.Immediate{Register: reg, Data: a.AsSlice()}
}

func verdict(k expr.VerdictKind) match { return match{&expr.Verdict{Kind: k}} }

func jump(chain string) match { return match{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }

func goTo(chain string) match { return match{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}} }

// States of a connection, as bits.
const (
	ctInvalid     = 1
	ctEstablished = 2
	ctRelated     = 4
)

func ctState(bits uint32) match {
	return match{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg0},
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		cmp(expr.CmpOpNeq, reg0, make([]byte, 4)),
	}
}

// ctRedirected matches connections whose destination was rewritten.
func ctRedirected() match {
	const dstNAT = 1 << 5 // IPS_DST_NAT
	return match{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg0},
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(dstNAT), Xor: make([]byte, 4)},
		cmp(expr.CmpOpNeq, reg0, make([]byte, 4)),
	}
}

// fromSet matches the interface that a packet came from against a set.
func fromSet(s *nftables.Set) match {
	return match{meta(expr.MetaKeyIIF, reg0), &expr.Lookup{SourceRegister: reg0, SetName: s.Name, SetID: s.ID}}
}

// perSlot matches where the expression, kept for each interface in a set, does.
func perSlot(s *nftables.Set, op uint32, e expr.Any) match {
	return match{meta(expr.MetaKeyIIF, reg0), &expr.Dynset{SrcRegKey: reg0, SetName: s.Name, SetID: s.ID, Operation: op, Exprs: []expr.Any{e}}}
}

// ports matches destination ports of TCP and UDP.
func portRange(r policy.Ports) match {
	from, to := binary.BigEndian.AppendUint16(nil, r.From), binary.BigEndian.AppendUint16(nil, r.To)
	m := match{transport(offPort, 2, reg0)}
	if r.From == r.To {
		return append(m, cmp(expr.CmpOpEq, reg0, from))
	}
	return append(m, &expr.Range{Op: expr.CmpOpEq, Register: reg0, FromData: from, ToData: to})
}

func ifKey(index int) []byte { return binaryutil.NativeEndian.PutUint32(uint32(index)) } //nolint:gosec // an interface's index
