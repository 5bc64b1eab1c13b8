package node

import (
	"testing"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// A node that is told what the machine's link carries shares it out, also after a restart, and leaves the link as it was.
func TestRealNetwork_theMachinesLinkIsSharedOut(t *testing.T) {
	w := networktest.New(t)
	networktest.Serve(t, w.Outside, "198.51.100.1:9000")
	d := startDaemonIn(t, w.Host, "-network", "on", "-config", configFile(t, "network {\n uplink {\n in_bytes_per_second = 125000000\n out_bytes_per_second = 125000000\n }\n}"))
	shared := func() (members int) {
		must.NoError(t, networktest.In(w.Host, func() error {
			l, err := netlink.LinkByName("up0")
			if err != nil {
				return err
			}
			list, err := netlink.ClassList(l, 0)
			for _, c := range list {
				if _, minor := netlink.MajorMinor(c.Attrs().Handle); minor >= 256 {
					members++
				}
			}
			return err
		}))
		return members
	}
	before := shared()
	must.EqOp(t, 0, before)
	sb := d.create(func(r *nodeapi.CreateRequest) { r.QoS = string(sandbox.BestEffort) })
	must.EqOp(t, 1, shared())
	_, ok := connect(d, sb, "198.51.100.1", 9000)
	must.True(t, ok)
	d.kill()
	d.start()
	must.EqOp(t, 1, shared())
	_, ok = connect(d, sb, "198.51.100.1", 9000)
	must.True(t, ok)
	must.NoError(t, d.client.Delete(t.Context(), sb.ID))
	must.EqOp(t, 0, shared())
	d.cleanup()
	d.cmd = nil
	var links []netlink.Link
	var disciplines []netlink.Qdisc
	must.NoError(t, networktest.In(w.Host, func() (err error) {
		if links, err = netlink.LinkList(); err == nil {
			disciplines, err = netlink.QdiscList(nil)
		}
		return err
	}))
	must.Len(t, 2, links)
	for _, q := range disciplines {
		must.NotEq(t, "htb", q.Type())
	}
}
