package network

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// world is a machine of the test's own and what is outside it, both network namespaces: nothing that a test sends leaves them.
type world struct {
	t             *testing.T
	host, outside *os.File
	dir           string
}

// Addresses outside. outsideAddr is the router's; the others are on its loopback.
const (
	hostAddr    = "203.0.113.1"
	outsideAddr = "203.0.113.2"
)

var elsewhere = []string{"198.51.100.1", "198.51.100.2", "8.8.8.8", "169.254.169.254", "10.9.9.9", "192.168.5.5", "172.16.7.7", "100.64.3.3"}

func newNamespace(t *testing.T) *os.File {
	t.Helper()
	var ns *os.File
	must.NoError(t, inNamespace(nil, func() (err error) {
		if ns, err = ownNamespace(); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	}))
	t.Cleanup(func() { must.NoError(t, ns.Close()) })
	return ns
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces: needs root")
	}
	w := &world{t: t, host: newNamespace(t), outside: newNamespace(t), dir: t.TempDir()}
	must.NoError(t, inNamespace(w.host, func() error {
		return errors.Join(
			netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "down0", PeerNamespace: netlink.NsFd(int(w.outside.Fd()))}),
			plug("up0", hostAddr+"/24"),
			netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(outsideAddr)}),
		)
	}))
	must.NoError(t, inNamespace(w.outside, func() error {
		errs := []error{plug("down0", outsideAddr+"/24"), netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(hostAddr)})}
		for _, a := range elsewhere {
			errs = append(errs, plug("lo", a+"/32"))
		}
		return errors.Join(errs...)
	}))
	return w
}

func plug(link, cidr string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(l, addr), netlink.LinkSetUp(l))
}

// pool opens a pool on the world's machine, with change applied to its configuration.
func (w *world) pool(change func(*Config)) *Pool {
	w.t.Helper()
	cfg := Config{Owner: "0a1b2c", Dir: w.dir, Host: w.host, Ahead: 2, Quiet: 10 * time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	p, err := Open(cfg)
	must.NoError(w.t, err)
	p.Start()
	return p
}

// closing returns p, which ends with the test.
func (w *world) closing(p *Pool) *Pool {
	w.t.Cleanup(func() { must.NoError(w.t, p.Close()); must.NoError(w.t, p.Remove()) })
	return p
}

func (w *world) take(p *Pool) *Slot {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	s, err := p.Take(ctx)
	must.NoError(w.t, err)
	return s
}

// serve answers each TCP connection and each UDP packet to a port of a namespace with the address that it came from.
func serve(t *testing.T, ns *os.File, address string) {
	t.Helper()
	var l net.Listener
	var u net.PacketConn
	must.NoError(t, inNamespace(ns, func() (err error) {
		if l, err = net.Listen("tcp4", address); err != nil {
			return err
		}
		u, err = net.ListenPacket("udp4", address)
		return err
	}))
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, c.RemoteAddr().String()+"\n")
			_ = c.Close()
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		b := make([]byte, 100)
		for {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo([]byte(from.String()+"\n"), from)
		}
	}()
	t.Cleanup(func() {
		_, _ = l.Close(), u.Close()
		<-done
		<-done
	})
}

// ask connects from a namespace and returns what the other end calls the connection's source, without its port.
func ask(ns *os.File, netw, address string) (string, error) {
	var c net.Conn
	err := inNamespace(ns, func() (err error) {
		c, err = (&net.Dialer{Timeout: 3 * time.Second}).Dial(netw, address)
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", err
	}
	if strings.HasPrefix(netw, "udp") {
		if _, err := c.Write([]byte("?")); err != nil {
			return "", err
		}
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", err
	}
	host, _, err := net.SplitHostPort(strings.TrimSpace(line))
	return host, err
}

func spec(t *testing.T, name string, s policy.Spec) policy.Layer {
	t.Helper()
	l, err := policy.ParseLayer(name, s)
	must.NoError(t, err)
	return l
}

func addrs(list ...string) []netip.Addr {
	all := make([]netip.Addr, len(list))
	for i, s := range list {
		all[i] = netip.MustParseAddr(s)
	}
	return all
}
