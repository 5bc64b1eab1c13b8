package servers

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"testing"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sea is a network namespace with a bridge, which joins the islands that are not cut off.
type sea struct {
	ns      *os.File
	islands []*island
}

// island is a network namespace with a link to the sea, for one server. Its loopback is its own: the test reaches the server there, also where
// nobody else does.
type island struct {
	sea  *sea
	ns   *os.File
	addr string
	port string // its link's name at the bridge
}

// newSea makes n islands that reach each other. Nothing of it is in the machine's own network, and it is gone with the last process in it.
func newSea(t *testing.T, n int) *sea {
	t.Helper()
	s := &sea{ns: newNamespace(t)}
	must.NoError(t, within(s.ns, func() error {
		return addUp(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "sea"}})
	}))
	for i := range n {
		l := &island{sea: s, ns: newNamespace(t), addr: fmt.Sprintf("10.77.0.%d", i+1), port: fmt.Sprintf("to%d", i)}
		s.islands = append(s.islands, l)
		must.NoError(t, within(s.ns, func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: l.port}, PeerName: "sea", PeerNamespace: netlink.NsFd(l.ns.Fd())})
		}))
		must.NoError(t, within(l.ns, func() error {
			link, err := netlink.LinkByName("sea")
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(l.addr), Mask: net.CIDRMask(24, 32)}}); err != nil {
				return err
			}
			return netlink.LinkSetUp(link)
		}))
		must.NoError(t, l.heal())
	}
	return s
}

func addUp(link netlink.Link) error {
	if err := netlink.LinkAdd(link); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// newNamespace makes a network namespace with its loopback up, which the test's end closes.
func newNamespace(t *testing.T) (ns *os.File) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		done <- func() (err error) {
			if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("new network namespace: %w", err)
			}
			if ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
				return err
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.LinkSetUp(lo)
		}()
	}()
	must.NoError(t, <-done)
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// within calls f on a thread that is in a namespace, and ends the thread.
func within(ns *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// do calls f on the island; nil is the test's own network.
func (l *island) do(f func() error) error {
	if l == nil {
		return f()
	}
	return within(l.ns, f)
}

// client returns one whose connections begin on the island.
func (l *island) client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 16,
		DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
			err = l.do(func() error {
				c, err = (&net.Dialer{}).DialContext(ctx, network, addr) // to an address that is a number: on this thread
				return err
			})
			return c, err
		},
	}}
}

// cut takes the island's link from the bridge: what it sends is lost without a word, as behind a switch that broke.
func (l *island) cut() error { return l.join(nil) }

// heal puts it back.
func (l *island) heal() error {
	return l.join(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "sea"}})
}

func (l *island) join(to *netlink.Bridge) error {
	return within(l.sea.ns, func() error {
		port, err := netlink.LinkByName(l.port)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(port); err != nil {
			return err
		}
		if to == nil {
			return netlink.LinkSetNoMaster(port)
		}
		bridge, err := netlink.LinkByName(to.Name)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(port, bridge)
	})
}
