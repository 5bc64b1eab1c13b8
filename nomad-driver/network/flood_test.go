package network

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/firewall"
)

// R06: a sandbox that makes as many flows as it can has as many as it may, and others go on.
func TestFlood_flowsAreCappedAndOthersConnect(t *testing.T) {
	w := newWorld(t)
	const most = 300
	p := w.closing(w.pool(func(c *Config) { c.Limits = firewall.Limits{Connections: most, NewConnections: 1_000_000} }))
	flooder, other := w.take(p), w.take(p)
	defer func() { must.NoError(t, errors.Join(p.Give(flooder), p.Give(other))) }()
	serve(t, w.outside, "198.51.100.1:80")
	var c *net.UDPConn
	must.NoError(t, inNamespace(flooder.Namespace(), func() (err error) { c, err = net.ListenUDP("udp4", nil); return err }))
	defer c.Close()
	var dialer net.Dialer
	dialer.Timeout = time.Millisecond
	for i := range 30_000 {
		_, _ = c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(netip.MustParseAddr("8.8.8.8"), uint16(1024+i))) //nolint:gosec // below 2^16
		if i%100 == 0 {                                                                                              // SYNs to where nobody answers
			_ = inNamespace(flooder.Namespace(), func() error {
				if s, err := dialer.Dial("tcp4", netip.AddrPortFrom(netip.MustParseAddr("198.51.100.2"), uint16(1024+i)).String()); err == nil { //nolint:gosec // as above
					_ = s.Close()
				}
				return nil
			})
		}
		if i%10_000 == 5_000 {
			_, err := ask(other.Namespace(), "tcp4", "198.51.100.1:80")
			must.NoError(t, err)
		}
	}
	conns, err := p.Firewall().Connections(flooder.Firewall())
	must.NoError(t, err)
	must.Between(t, most/2, len(conns), most)
	_, err = ask(flooder.Namespace(), "tcp4", "198.51.100.1:80")
	must.Error(t, err)
	denied, err := p.Firewall().Denied(flooder.Firewall())
	must.NoError(t, err)
	must.True(t, slices.ContainsFunc(denied, func(d firewall.Denial) bool { return d.Reason == firewall.ReasonLimit }))
	_, err = ask(other.Namespace(), "tcp4", "198.51.100.1:80")
	must.NoError(t, err)
}
