package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Proto is an IP protocol number; Any stands for all of them.
type Proto uint8

// The protocols that entries can name.
const (
	Any  Proto = 0
	ICMP Proto = 1
	TCP  Proto = 6
	UDP  Proto = 17
)

// String returns the name that ParseProto reads.
func (p Proto) String() string {
	switch p {
	case Any:
		return "any"
	case ICMP:
		return "icmp"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return strconv.Itoa(int(p))
}

// ParseProto reads tcp, udp, icmp or any.
func ParseProto(s string) (Proto, error) {
	for _, p := range []Proto{Any, ICMP, TCP, UDP} {
		if s == p.String() {
			return p, nil
		}
	}
	return Any, fmt.Errorf("protocol %.20q is none of tcp, udp, icmp, any", s)
}

// Ports is a range of ports, both ends included.
type Ports struct{ From, To uint16 }

// PortQUIC is the port of UDP that no entry with a name allows.
const PortQUIC = 443

// maxPortRanges bounds the ranges of one entry.
const maxPortRanges = 32

// Entry is one destination of a list. Exactly one of Prefix and Name is set.
type Entry struct {
	Text   string // as written
	Prefix netip.Prefix
	Name   string  // a domain name in lower case, "*." before it for all names below it
	Proto  Proto   // Any where none was named
	Ports  []Ports // sorted, without overlap; empty: all
}

// ParseEntry reads [PROTO://]DEST[:PORTS]. DEST is an address, a range in CIDR notation, a domain name, or a wildcard as
// *.example.com, which stands for all names below it and not for itself. PORTS are ports and ranges with commas between:
// 443,8000-8100. An IPv6 DEST before PORTS is in brackets.
func ParseEntry(s string) (Entry, error) {
	if len(s) > 512 {
		return Entry{}, fmt.Errorf("has %d bytes, at most 512", len(s))
	}
	e, rest := Entry{Text: s}, s
	if proto, dest, ok := strings.Cut(s, "://"); ok {
		var err error
		if e.Proto, err = ParseProto(proto); err != nil {
			return Entry{}, err
		}
		rest = dest
	}
	dest, ports, err := cutPorts(rest)
	if err != nil {
		return Entry{}, err
	}
	if ports != nil {
		if e.Proto == ICMP {
			return Entry{}, errors.New("icmp has no ports")
		}
		if e.Ports, err = parsePorts(*ports); err != nil {
			return Entry{}, err
		}
	}
	if e.Prefix, err = ParsePrefix(dest); err == nil {
		return e, nil
	}
	if looksLikeAddress(dest) {
		return Entry{}, fmt.Errorf("%.80q is neither an IP address nor a CIDR", dest)
	}
	if e.Name, err = ParseName(dest); err != nil {
		return Entry{}, err
	}
	return e, nil
}

// cutPorts splits DEST from PORTS; ports is nil where there are none.
func cutPorts(s string) (dest string, ports *string, err error) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		dest, rest, ok := strings.Cut(inner, "]")
		if !ok {
			return "", nil, errors.New("a bracket is not closed")
		}
		if rest == "" {
			return dest, nil, nil
		}
		p, ok := strings.CutPrefix(rest, ":")
		if !ok {
			return "", nil, fmt.Errorf("%.40q after the bracket is not :PORTS", rest)
		}
		return dest, &p, nil
	}
	if strings.Count(s, ":") == 1 {
		dest, p, _ := strings.Cut(s, ":")
		return dest, &p, nil
	}
	return s, nil, nil // no colon, or an IPv6 address
}

func parsePorts(s string) ([]Ports, error) {
	var list []Ports
	for part := range strings.SplitSeq(s, ",") {
		if len(list) == maxPortRanges {
			return nil, fmt.Errorf("more than %d ports and ranges of them", maxPortRanges)
		}
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, err := parsePort(from)
		if err != nil {
			return nil, err
		}
		b, err := parsePort(to)
		if err != nil {
			return nil, err
		}
		if a > b {
			return nil, fmt.Errorf("the range of ports %d-%d is empty", a, b)
		}
		list = append(list, Ports{a, b})
	}
	slices.SortFunc(list, func(a, b Ports) int { return int(a.From) - int(b.From) })
	merged := list[:1]
	for _, r := range list[1:] {
		last := &merged[len(merged)-1]
		if uint32(r.From) <= uint32(last.To)+1 {
			last.To = max(last.To, r.To)
			continue
		}
		merged = append(merged, r)
	}
	if merged[0] == (Ports{1, 65535}) {
		return nil, nil
	}
	return merged, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' || s[0] == '0' {
		return 0, fmt.Errorf("%.20q is no port between 1 and 65535", s)
	}
	return uint16(n), nil
}

// ParsePrefix reads an address or a CIDR; bits behind the prefix are cleared.
func ParsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() { // ::ffff:10.0.0.0/104 has a plainer spelling
		return netip.Prefix{}, fmt.Errorf("%.80q is neither an IP address nor a CIDR", s)
	}
	return p.Masked(), nil
}

// looksLikeAddress tells a mistyped address from a domain name: the last label of a public name is never a number.
func looksLikeAddress(s string) bool {
	if strings.ContainsAny(s, "/:") {
		return true
	}
	last := s[strings.LastIndexByte(s, '.')+1:]
	return last != "" && strings.Trim(last, "0123456789") == ""
}

// ParseName reads a domain name, also with a leading wildcard label, and returns it in lower case without a final dot.
func ParseName(s string) (string, error) {
	name := strings.TrimSuffix(strings.ToLower(s), ".")
	rest := strings.TrimPrefix(name, "*.")
	if rest == "" || len(rest) > 253 {
		return "", fmt.Errorf("%.80q is neither an IP address, nor a CIDR, nor a domain", s)
	}
	for label := range strings.SplitSeq(rest, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return "", fmt.Errorf("%.80q is neither an IP address, nor a CIDR, nor a domain", s)
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return "", fmt.Errorf("%.80q is neither an IP address, nor a CIDR, nor a domain", s)
			}
		}
	}
	return name, nil
}

// MatchName reports whether a name, as ParseName returns it, is the one of the entry or below its wildcard.
func (e Entry) MatchName(name string) bool {
	if e.Name == "" {
		return false
	}
	if below, ok := strings.CutPrefix(e.Name, "*"); ok {
		return len(name) > len(below) && strings.HasSuffix(name, below)
	}
	return e.Name == name
}

// matches reports whether the entry is about f.
func (e Entry) matches(f Flow) bool {
	if e.Proto != Any && e.Proto != f.Proto {
		return false
	}
	if len(e.Ports) > 0 {
		if f.Proto != TCP && f.Proto != UDP || !slices.ContainsFunc(e.Ports, func(r Ports) bool { return r.From <= f.Port && f.Port <= r.To }) {
			return false
		}
	}
	if e.Name != "" {
		// QUIC hides the name that it is for.
		return slices.ContainsFunc(f.Names, e.MatchName) && !(f.Proto == UDP && f.Port == PortQUIC)
	}
	return e.Prefix.Contains(f.Addr)
}

func (e Entry) everything() bool {
	return e.Prefix.IsValid() && e.Prefix.Addr().Is4() && e.Prefix.Bits() == 0 && e.Proto == Any && len(e.Ports) == 0
}

// covers reports whether whatever d is about, e is about as well, as far as that can be told from the entries alone.
func (e Entry) covers(d Entry) bool {
	if e.Proto != Any && e.Proto != d.Proto || len(e.Ports) > 0 && !slices.Equal(e.Ports, d.Ports) {
		return false
	}
	if e.Name != "" {
		return d.Name == e.Name || d.Name != "" && e.MatchName(strings.TrimPrefix(d.Name, "*."))
	}
	return d.Prefix.IsValid() && e.Prefix.Bits() <= d.Prefix.Bits() && e.Prefix.Contains(d.Prefix.Addr())
}
