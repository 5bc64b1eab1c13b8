package network

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inNamespace runs do on a thread that is in the network namespace ns, or in a new one where ns is nil. A thread that cannot come
// back is not used again.
func inNamespace(ns *os.File, do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		if ns == nil {
			err = unix.Unshare(unix.CLONE_NEWNET)
		} else {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err = do()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// ownNamespace returns the network namespace of the calling thread.
func ownNamespace() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") }

// sysctl writes a setting of the network namespace that the calling thread is in. name is a path below /proc/sys/net.
func sysctl(name, value string) error {
	f, err := os.OpenFile("/proc/sys/net/"+name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("set %s to %s: %w", name, value, err)
	}
	return nil
}

// prepare sets up what a sandbox's namespace has beside the link to the host. The calling thread is in it.
func prepare() error {
	for _, s := range [][2]string{
		// Interfaces to come have no IPv6; the loopback keeps its own.
		{"ipv6/conf/default/disable_ipv6", "1"},
		// The namespace is the host's, so that no capability inside counts for it: ports below 1024 and ping must not need one.
		{"ipv4/ip_unprivileged_port_start", "0"},
		{"ipv4/ping_group_range", "0 2147483647"},
	} {
		if err := sysctl(s[0], s[1]); err != nil && !(errors.Is(err, os.ErrNotExist) && s[0] == "ipv6/conf/default/disable_ipv6") {
			return err
		}
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	return h.LinkSetUp(lo)
}

// configure gives the inner end of the link its address and its routes. The calling thread is in the sandbox's namespace.
func configure() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(InnerLink)
	if err != nil {
		return fmt.Errorf("inner link: %w", err)
	}
	if err := h.LinkSetARPOff(link); err != nil {
		return fmt.Errorf("inner link: %w", err)
	}
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(Inner), Peer: ipNet(Gateway)}); err != nil {
		return fmt.Errorf("inner address: %w", err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("inner link: %w", err)
	}
	if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: Gateway.AsSlice(), Src: Inner.AsSlice()}); err != nil {
		return fmt.Errorf("inner route: %w", err)
	}
	return nil
}

// handleAt returns a netlink handle in a network namespace, in the process's own where ns is nil.
func handleAt(ns *os.File) (*netlink.Handle, error) {
	if ns == nil {
		return netlink.NewHandle(unix.NETLINK_ROUTE)
	}
	return netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
}
