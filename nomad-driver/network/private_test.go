package network

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// in is a place in a network that is called OWNER/NAME.
func in(network, name string) Membership {
	_, short, _ := strings.Cut(network, "/")
	return Membership{Network: network, Short: short, Name: name}
}

// Sandboxes of two tenants, two of each in a network of the same name and one of each in none: who reaches whom, by real connections.
func TestPrivate_membersReachEachOtherAndNobodyElse(t *testing.T) {
	w := newWorld(t)
	p := w.closing(w.pool(func(c *Config) { c.Ahead = 6 }))
	names := []string{"acme/web", "acme/db", "acme/alone", "rival/web", "rival/db", "rival/alone"}
	slots := map[string]*Slot{}
	for _, name := range names {
		s := w.take(p)
		slots[name] = s
		for _, a := range []string{"0.0.0.0:80", "0.0.0.0:5432"} {
			serve(t, s.Namespace(), a)
		}
	}
	// A policy says nothing about members, and one with names, whose web goes through the proxy, neither.
	_, err := p.Apply(slots["acme/web"], policy.New(p.Base(), spec(t, "sandbox", policy.Spec{Allow: []string{"www.example.com"}, Deny: []string{policy.Everything}})))
	must.NoError(t, err)
	join := func(name, network string) {
		t.Helper()
		_, short, _ := strings.Cut(name, "/")
		var list []Membership
		if network != "" {
			list = append(list, in(network, short))
		}
		_, err := p.Join(slots[name], list)
		must.NoError(t, err)
	}
	for _, name := range []string{"acme/web", "acme/db", "rival/web", "rival/db"} {
		owner, _, _ := strings.Cut(name, "/")
		join(name, owner+"/backend")
	}
	table := func(members map[[2]string]bool) {
		t.Helper()
		for _, from := range names {
			line := from + " reaches"
			for _, to := range names {
				if from == to {
					continue
				}
				all := 0
				for _, c := range []struct{ netw, port string }{{"tcp4", "80"}, {"tcp4", "5432"}, {"udp4", "5432"}} {
					source, err := ask(slots[from].Namespace(), c.netw, net.JoinHostPort(slots[to].Addr.String(), c.port))
					if err == nil {
						must.EqOp(t, slots[from].Addr.String(), source) // it sees who is asking
						all++
					}
				}
				want := 0
				if members[[2]string{from, to}] {
					want, line = 3, line+" "+to
				}
				must.EqOp(t, want, all, must.Sprintf("%s to %s", from, to))
			}
			t.Log(line)
		}
	}
	table(map[[2]string]bool{
		{"acme/web", "acme/db"}: true, {"acme/db", "acme/web"}: true, {"rival/web", "rival/db"}: true, {"rival/db", "rival/web"}: true,
	})
	addrs, known := p.Lookup(slots["acme/web"], "db")
	must.True(t, known)
	must.Eq(t, []netip.Addr{slots["acme/db"].Addr}, addrs)
	addrs, _ = p.Lookup(slots["rival/web"], "db.backend")
	must.Eq(t, []netip.Addr{slots["rival/db"].Addr}, addrs)
	addrs, known = p.Lookup(slots["acme/web"], "none.backend")
	must.True(t, known) // and nobody outside hears of it
	must.SliceEmpty(t, addrs)
	_, known = p.Lookup(slots["acme/alone"], "db")
	must.False(t, known)

	// Who leaves loses the connections that it has, and takes nobody else's.
	var held net.Conn
	address := net.JoinHostPort(slots["acme/db"].Addr.String(), "7000")
	var l net.Listener
	must.NoError(t, inNamespace(slots["acme/db"].Namespace(), func() (err error) { l, err = net.Listen("tcp4", "0.0.0.0:7000"); return err }))
	defer l.Close()
	must.NoError(t, inNamespace(slots["acme/web"].Namespace(), func() (err error) { held, err = net.DialTimeout("tcp4", address, 3*time.Second); return err }))
	defer held.Close()
	join("acme/alone", "acme/backend")
	cut, err := p.Join(slots["acme/web"], nil)
	must.NoError(t, err)
	must.Positive(t, cut)
	must.NoError(t, held.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = held.Write([]byte("x"))
	if err == nil {
		_, err = held.Read(make([]byte, 1))
	}
	must.ErrorIs(t, err, unix.ECONNRESET)
	table(map[[2]string]bool{
		{"acme/alone", "acme/db"}: true, {"acme/db", "acme/alone"}: true, {"rival/web", "rival/db"}: true, {"rival/db", "rival/web"}: true,
	})
	must.NoError(t, p.Give(slots["acme/db"]))
	must.SliceLen(t, 1, p.Members(slots["acme/alone"]))
}

func TestPrivate_goesOnAfterTheDaemonIsGone(t *testing.T) {
	w := newWorld(t)
	first := w.pool(nil)
	a, b, c := w.take(first), w.take(first), w.take(first)
	for _, s := range []*Slot{a, b, c} {
		_, err := first.Join(s, []Membership{in("acme/backend", "x")})
		must.NoError(t, err)
	}
	serve(t, b.Namespace(), "0.0.0.0:80")
	serve(t, c.Namespace(), "0.0.0.0:80")
	ns, err := os.Open(procFD(a.Namespace()))
	must.NoError(t, err)
	defer ns.Close()
	nsB, err := os.Open(procFD(b.Namespace()))
	must.NoError(t, err)
	defer nsB.Close()
	nsC, err := os.Open(procFD(c.Namespace()))
	must.NoError(t, err)
	defer nsC.Close()
	must.NoError(t, first.Close())
	_, err = ask(ns, "tcp4", b.Addr.String()+":80")
	must.NoError(t, err)

	p, err := Open(Config{Owner: "0a1b2c", Dir: w.dir, Host: w.host, Ahead: 2, Quiet: 10 * time.Millisecond})
	must.NoError(t, err)
	w.closing(p)
	var again []*Slot
	for _, s := range []*Slot{a, b, c} {
		r, err := p.Recover(s.Ref())
		must.NoError(t, err)
		again = append(again, r)
	}
	for _, s := range again[:2] { // the record of the third says that it is in none
		_, err := p.Join(s, []Membership{in("acme/backend", "x")})
		must.NoError(t, err)
	}
	_, err = p.Sweep()
	must.NoError(t, err)
	_, err = ask(ns, "tcp4", b.Addr.String()+":80")
	must.NoError(t, err)
	_, err = ask(ns, "tcp4", c.Addr.String()+":80")
	must.Error(t, err)
	for _, s := range again {
		must.NoError(t, p.Give(s))
	}
}

// frame is an Ethernet frame with an IPv4 packet of UDP to a port.
func frame(hardware net.HardwareAddr, src, dst netip.Addr, port uint16) []byte {
	b := append(append(append([]byte{}, linkAddress...), hardware...), 0x08, 0x00)
	ip := []byte{0x45, 0, 0, 29, 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	ip = append(append(ip, src.AsSlice()...), dst.AsSlice()...)
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	udp := binary.BigEndian.AppendUint16(nil, 4000)
	udp = binary.BigEndian.AppendUint16(udp, port)
	udp = append(udp, 0, 9, 0, 0, 'x') // no checksum, which UDP allows
	return append(append(b, ip...), udp...)
}

// sendRaw puts frames on a slot's link as whoever has a raw socket there would, which no sandbox has: the rules hold without that wall.
func sendRaw(t *testing.T, s *Slot, frames ...[]byte) {
	t.Helper()
	must.NoError(t, inNamespace(s.Namespace(), func() (err error) {
		link, err := netlink.LinkByName(InnerLink)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.Close(fd)) }()
		for _, f := range frames {
			if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index, Protocol: 0}); err != nil {
				return err
			}
		}
		return nil
	}))
}

// N03: addresses that are not its own, of either layer, and ARP.
func TestSpoofed_framesAndPacketsAreDropped(t *testing.T) {
	w := newWorld(t)
	p := w.closing(w.pool(nil))
	s, other := w.take(p), w.take(p)
	outside := netip.MustParseAddr(outsideAddr)
	var u *net.UDPConn
	must.NoError(t, inNamespace(w.outside, func() (err error) {
		u, err = net.ListenUDP("udp4", &net.UDPAddr{IP: outside.AsSlice(), Port: 99})
		return err
	}))
	defer u.Close()
	arrives := func(within time.Duration) (string, bool) {
		must.NoError(t, u.SetReadDeadline(time.Now().Add(within)))
		_, from, err := u.ReadFromUDPAddrPort(make([]byte, 16))
		return from.Addr().String(), err == nil
	}
	own := frame(linkAddress, Inner, outside, 99)
	sendRaw(t, s, own) // the same way, with what is its own: it arrives
	from, ok := arrives(5 * time.Second)
	must.True(t, ok)
	must.EqOp(t, hostAddr, from)

	mac := net.HardwareAddr{0x02, 0x66, 0x66, 0x66, 0x66, 0x66}
	sendRaw(t, s,
		frame(mac, Inner, outside, 99),
		frame(linkAddress, other.Addr, outside, 99), // as a neighbour
		frame(linkAddress, s.Addr, outside, 99),     // as it is known outside
		frame(linkAddress, netip.MustParseAddr(hostAddr), outside, 99),
		frame(linkAddress, netip.MustParseAddr("127.0.0.1"), outside, 99),
		frame(linkAddress, netip.MustParseAddr("8.8.8.8"), outside, 99),
		append(append(append([]byte{}, linkAddress...), linkAddress...), append([]byte{0x81, 0x00, 0x00, 0x05, 0x08, 0x00}, own[14:]...)...), // of a VLAN
		// "203.0.113.2 is at mac", to everybody and asking for an answer.
		arp(1, mac, outside, Gateway), arp(2, mac, outside, Inner), arp(1, linkAddress, Inner, Gateway),
	)
	sendRaw(t, s, own) // what comes after all of these arrives, and they have not
	_, ok = arrives(5 * time.Second)
	must.True(t, ok)
	_, ok = arrives(300 * time.Millisecond)
	must.False(t, ok)

	must.NoError(t, inNamespace(w.host, func() error {
		list, err := netlink.NeighList(0, netlink.FAMILY_V4)
		must.NoError(t, err)
		for _, n := range list {
			must.NotEqOp(t, mac.String(), n.HardwareAddr.String(), must.Sprint("the host learned from a sandbox's ARP"))
		}
		link, err := netlink.LinkByName(s.Link)
		must.NoError(t, err)
		must.EqOp(t, 0, link.Attrs().Statistics.TxPackets, must.Sprint("the host answered"))
		return nil
	}))
	denied, err := p.Firewall().Denied(s.Firewall())
	must.NoError(t, err)
	must.SliceNotEmpty(t, denied)
	must.EqOp(t, "spoofed", denied[0].Reason.String())
	// Nobody else took the blame.
	denied, err = p.Firewall().Denied(other.Firewall())
	must.NoError(t, err)
	must.SliceEmpty(t, denied)
}

// arp is an ARP frame to everybody: op 1 asks, 2 answers.
func arp(op uint16, hardware net.HardwareAddr, src, dst netip.Addr) []byte {
	b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, hardware...)
	b = append(b, 0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(append(b, hardware...), src.AsSlice()...)
	return append(append(b, 0, 0, 0, 0, 0, 0), dst.AsSlice()...)
}
