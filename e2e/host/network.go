package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/network"
)

// LeftOfNetwork lists what the node has of the machine's network now: links, addresses of lo, tables of nftables. A node that runs has some
// without any sandbox.
func (n Node) LeftOfNetwork(t testing.TB) []string {
	t.Helper()
	owner := network.OwnerOf(n.StateDir)
	left := append(n.links(t, owner), n.addresses(t)...)
	return append(left, tables(t, "soulbox-"+owner)...)
}

// links finds those of slots, and that of the trial at a node's start.
func (n Node) links(t testing.TB, owner string) (left []string) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // others make links meanwhile: the next look is a whole one
		t.Fatal(err)
	}
	for _, l := range links {
		if name := l.Attrs().Name; strings.HasPrefix(name, "sb"+owner) || strings.HasPrefix(name, "sbt"+owner) {
			left = append(left, "link "+name)
		}
	}
	return left
}

// addresses finds those of lo in the range that the node has chosen.
func (n Node) addresses(t testing.TB) (left []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(n.StateDir, "network.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil // it had no network
	}
	var chosen struct{ Range netip.Prefix }
	if err = errors.Join(err, json.Unmarshal(b, &chosen)); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	list, err := netlink.AddrList(lo, unix.AF_INET)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		t.Fatal(err)
	}
	for _, a := range list {
		if at, ok := netip.AddrFromSlice(a.IP.To4()); ok && chosen.Range.Contains(at) {
			left = append(left, fmt.Sprintf("address %s of lo", at))
		}
	}
	return left
}

func tables(t testing.TB, name string) (left []string) {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	list, err := c.ListTables()
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil // a kernel without them
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range list {
		if table.Name == name {
			left = append(left, "nftables table "+name)
		}
	}
	return left
}
