package firewall

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// intervals returns prefixes of IPv4 as elements of an interval set: a start and an end each, with neighbours joined, since
// the kernel takes no overlap.
func intervals(prefixes []netip.Prefix) []nftables.SetElement {
	var elems []nftables.SetElement
	var end uint64 // behind the last interval
	for _, p := range policy.Merge(prefixes) {
		if !p.Addr().Is4() {
			continue
		}
		start := uint64(binary.BigEndian.Uint32(p.Addr().AsSlice()))
		after := start + 1<<(32-p.Bits())
		if len(elems) > 0 && start == end {
			elems = elems[:len(elems)-1] // the end that this one goes on from
		} else {
			elems = append(elems, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, uint32(start))})
		}
		end = after
		if after <= 0xffffffff {
			elems = append(elems, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, uint32(after)), IntervalEnd: true})
		}
	}
	return elems
}
