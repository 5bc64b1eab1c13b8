package network

import (
	"testing"

	"github.com/google/nftables"
	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
)

// forwardDropped makes a firewall of the machine's own that forwards nothing, as that of Docker does, and returns what makes it forward
// what comes from and goes to sandboxes.
func forwardDropped(t *testing.T, w *world) *nftables.Conn {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(w.host.Fd())))
	must.NoError(t, err)
	drop := nftables.ChainPolicyDrop
	table := c.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4})
	c.AddChain(&nftables.Chain{
		Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	must.NoError(t, c.Flush())
	return c
}

func links(t *testing.T, w *world) (names []string) {
	t.Helper()
	must.NoError(t, inNamespace(w.host, func() error {
		list, err := netlink.LinkList()
		for _, l := range list {
			names = append(names, l.Attrs().Name)
		}
		return err
	}))
	return names
}

func TestOpen_tellsOfAMachineThatForwardsNothing(t *testing.T) {
	w := newWorld(t)
	c := forwardDropped(t, w)
	before := links(t, w)
	cfg := Config{Owner: "0a1b2c", Dir: w.dir, Host: w.host}
	_, err := Open(cfg)
	must.ErrorContains(t, err, "let the machine's own firewall forward what comes from and goes to sb0a1b2c-*")
	must.Eq(t, before, links(t, w))
	tables, err := c.ListTables()
	must.NoError(t, err)
	must.Len(t, 1, tables)
	must.NoError(t, inNamespace(w.host, func() error {
		list, err := netlink.AddrList(nil, netlink.FAMILY_V4)
		must.Len(t, 2, list, must.Sprint("beside the loopback's and the machine's there are addresses"))
		return err
	}))

	c.DelTable(tables[0])
	must.NoError(t, c.Flush())
	p := w.closing(w.pool(nil))
	must.NoError(t, p.Give(w.take(p)))
}

func TestOpen_triesNoAddressThatTheMachineUses(t *testing.T) {
	w := newWorld(t)
	must.NoError(t, inNamespace(w.host, func() error { return plug("lo", "192.0.2.2/24") }))
	p := w.closing(w.pool(nil))
	a, err := p.nobody(7)
	must.NoError(t, err)
	must.EqOp(t, "198.51.100.7", a.String()) // the machine's own network is 203.0.113.0/24
	must.NoError(t, inNamespace(w.host, func() error { return plug("lo", "198.51.100.9/24") }))
	a, err = p.nobody(7)
	must.NoError(t, err)
	must.False(t, a.IsValid())
}

func TestOpen_leavesNothingOfItsTrial(t *testing.T) {
	w := newWorld(t)
	before := links(t, w)
	p, err := Open(Config{Owner: "0a1b2c", Dir: w.dir, Host: w.host})
	must.NoError(t, err)
	must.Eq(t, before, links(t, w))
	must.NoError(t, p.Close())
	must.NoError(t, p.Remove())
}
