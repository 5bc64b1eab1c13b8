// Package networktest gives tests a machine of their own: a network namespace for the host, one for what is outside it, and
// programs that talk between them. Nothing that is sent leaves these namespaces.
package networktest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/osthread"
)

// In runs do on a thread in the network namespace ns, or in a new one where ns is nil. Processes that it starts are there, too.
func In(ns *os.File, do func() error) (err error) {
	osthread.ThrowAway(func() {
		err = unix.Unshare(unix.CLONE_FS)
		if err == nil && ns == nil {
			err = unix.Unshare(unix.CLONE_NEWNET)
		} else if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			err = fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err = do()
	})
	return err
}

// World is a machine of the test's own and what is outside it, both network namespaces: nothing that a test sends leaves them.
type World struct {
	Host, Outside *os.File
}

// Addresses of the machine and outside. OutsideAddr is the router's; those of Elsewhere are on its loopback.
const (
	HostAddr    = "203.0.113.1"
	OutsideAddr = "203.0.113.2"
)

// Elsewhere are addresses outside, some of which no sandbox may reach.
var Elsewhere = []string{"198.51.100.1", "198.51.100.2", "8.8.8.8", "169.254.169.254", "10.9.9.9", "192.168.5.5", "172.16.7.7", "100.64.3.3"}

// NewNamespace makes a network namespace with its loopback up, for the time of the test.
func NewNamespace(t testing.TB) *os.File {
	t.Helper()
	var ns *os.File
	must.NoError(t, In(nil, func() (err error) {
		if ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
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

// Mount gives a network namespace a path, as those of Nomad's groups have, for the time of the test.
func Mount(t testing.TB, ns *os.File) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "ns")
	must.NoError(t, os.WriteFile(path, nil, 0o600))
	MountAt(t, ns, path)
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) }) // a test may have done so
	return path
}

// MountAt lays a network namespace over a file.
func MountAt(t testing.TB, ns *os.File, path string) {
	t.Helper()
	must.NoError(t, unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), path, "", unix.MS_BIND, ""))
}

// New makes a world for the time of the test.
func New(t testing.TB) *World {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces: needs root")
	}
	w := &World{Host: NewNamespace(t), Outside: NewNamespace(t)}
	must.NoError(t, In(w.Host, func() error {
		return errors.Join(
			netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "down0", PeerNamespace: netlink.NsFd(int(w.Outside.Fd()))}),
			Plug("up0", HostAddr+"/24"),
			netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(OutsideAddr)}),
		)
	}))
	must.NoError(t, In(w.Outside, func() error {
		errs := []error{Plug("down0", OutsideAddr+"/24"), netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(HostAddr)})}
		for _, a := range Elsewhere {
			errs = append(errs, Plug("lo", a+"/32"))
		}
		return errors.Join(errs...)
	}))
	return w
}

// Plug gives a link of the calling thread's namespace an address and brings it up.
func Plug(link, cidr string) error {
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

// ServeStreams hands each connection to an address of a namespace to serve, and closes it afterwards; at the end of the test it closes all of them.
func ServeStreams(t testing.TB, ns *os.File, address string, serve func(net.Conn)) {
	t.Helper()
	var l net.Listener
	must.NoError(t, In(ns, func() (err error) { l, err = net.Listen("tcp4", address); return err }))
	ctx, end := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { _ = c.Close() })()
				serve(c)
			})
		}
	})
	t.Cleanup(func() { end(); _ = l.Close(); wg.Wait() })
}

// Serve answers each TCP connection and each UDP packet to a port of a namespace with the address that it came from.
func Serve(t testing.TB, ns *os.File, address string) {
	t.Helper()
	ServeStreams(t, ns, address, func(c net.Conn) { _, _ = io.WriteString(c, c.RemoteAddr().String()+"\n") })
	var u net.PacketConn
	must.NoError(t, In(ns, func() (err error) { u, err = net.ListenPacket("udp4", address); return err }))
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 100)
		for {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo([]byte(from.String()+"\n"), from)
		}
	}()
	t.Cleanup(func() { _ = u.Close(); <-done })
}

// Ask connects from a namespace and returns what the other end calls the connection's source, without its port.
func Ask(ns *os.File, netw, address string) (string, error) {
	var c net.Conn
	err := In(ns, func() (err error) {
		c, err = (&net.Dialer{Timeout: askTime}).Dial(netw, address)
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	end := time.Now().Add(askTime)
	if !strings.HasPrefix(netw, "udp") {
		if err := c.SetDeadline(end); err != nil {
			return "", err
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		return source(line, err)
	}
	b := make([]byte, 100)
	for { // a packet may be lost without a rule that says so
		if _, err := c.Write([]byte("?")); err != nil {
			return "", err
		}
		if err := c.SetReadDeadline(time.Now().Add(resendTime)); err != nil {
			return "", err
		}
		n, err := c.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(end) {
			continue
		}
		return source(string(b[:n]), err)
	}
}

const (
	askTime    = 3 * time.Second // without an answer, the other end is not reached
	resendTime = 300 * time.Millisecond
)

// source reads an answer of Serve.
func source(line string, err error) (string, error) {
	if err != nil {
		return "", err
	}
	host, _, err := net.SplitHostPort(strings.TrimSpace(line))
	return host, err
}
