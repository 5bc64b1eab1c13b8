package network

import (
	"errors"
	"math"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/firewall"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/shape"
)

// Where the kernel has no netem the firewall loses packets, at random and as many as asked for.
func TestShape_losesPacketsOnEveryKernel(t *testing.T) {
	w := newWorld(t)
	p := w.closing(w.pool(nil))
	s := w.take(p)
	defer func() { must.NoError(t, p.Give(s)) }()
	const packets = 3000
	for i, c := range []struct{ in, out, lost float64 }{{0.1, 0, 0.1}, {0, 0.3, 0.3}, {0.2, 0.2, 0.36}, {0, 0, 0}} {
		must.NoError(t, p.Shape(s, nil, shape.Direction{Loss: c.in, Rate: 10 << 20}, shape.Direction{Loss: c.out}))
		var lost float64
		for _, got := range echoes(t, w, s, netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), uint16(6000+i)).String(), packets, time.Millisecond) { //nolint:gosec // small
			if len(got) == 0 {
				lost++
			}
		}
		t.Logf("%g in, %g out: %.1f %% lost", c.in, c.out, 100*lost/packets)
		d := 5 * math.Sqrt(packets*c.lost*(1-c.lost)) // deviations of what chance does
		must.Between(t, packets*c.lost-d, lost, packets*c.lost+d)
	}
	if err := p.Shape(s, nil, shape.Direction{Loss: 0.1, Delay: time.Millisecond}, shape.Direction{}); err != nil {
		must.ErrorIs(t, err, shape.ErrUnsupported)
		must.ErrorContains(t, err, "sch_netem")
	}
}

// carried moves bytes from the outside to a slot, and returns how many came before nothing did for a while.
func carried(t *testing.T, w *world, s *Slot, address string, most int) (n int) {
	t.Helper()
	var l net.Listener
	must.NoError(t, inNamespace(w.outside, func() (err error) { l, err = net.Listen("tcp4", address); return err }))
	defer l.Close()
	var in net.Conn
	// Time for more than one SYN: the next is a second after the first, which a busy machine may lose.
	err := inNamespace(s.Namespace(), func() (err error) { in, err = net.DialTimeout("tcp4", address, 5*time.Second); return err })
	if err != nil {
		t.Log(err)
		return 0
	}
	defer in.Close()
	out, err := l.Accept()
	must.NoError(t, err)
	defer out.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = out.Write(make([]byte, most))
	}()
	b := make([]byte, 64<<10)
	for n < most {
		must.NoError(t, in.SetReadDeadline(time.Now().Add(2*time.Second)))
		k, err := in.Read(b)
		if n += k; err != nil {
			break
		}
	}
	_ = out.Close()
	<-done
	return n
}

func TestQuota_nothingPassesOnceItIsUsedUpAndItCanBeRaised(t *testing.T) {
	w := newWorld(t)
	p := w.closing(w.pool(nil))
	s, other := w.take(p), w.take(p)
	defer func() { must.NoError(t, errors.Join(p.Give(s), p.Give(other))) }()
	const mb = 1 << 20
	limit, used, err := p.Quota(s)
	must.NoError(t, err)
	must.Eq(t, [2]uint64{}, [2]uint64{limit, used})

	must.NoError(t, p.SetQuota(s, 10*mb, 0))
	got := carried(t, w, s, "198.51.100.1:5000", 30*mb)
	must.Between(t, 8*mb, got, 10*mb, must.Sprint("headers count as well"))
	limit, used, err = p.Quota(s)
	must.NoError(t, err)
	must.EqOp(t, 10*mb, limit)
	must.GreaterEq(t, limit, used)
	must.EqOp(t, 0, carried(t, w, s, "198.51.100.1:5001", mb), must.Sprint("nothing new begins"))
	denied, err := p.Firewall().Denied(s.Firewall())
	must.NoError(t, err)
	must.EqOp(t, firewall.ReasonQuota, denied[0].Reason)
	must.EqOp(t, 5*mb, carried(t, w, other, "198.51.100.1:5002", 5*mb), must.Sprint("others have their own"))

	// What was used stays used.
	must.NoError(t, p.SetQuota(s, 20*mb, 0))
	_, again, err := p.Quota(s)
	must.NoError(t, err)
	must.GreaterEq(t, used, again)
	must.Between(t, 5*mb, carried(t, w, s, "198.51.100.1:5003", 30*mb), 20*mb-int(used))
	must.NoError(t, p.SetQuota(s, 0, 0))
	must.EqOp(t, 3*mb, carried(t, w, s, "198.51.100.1:5004", 3*mb))

	// One that was away begins where it was.
	must.NoError(t, p.SetQuota(s, 10*mb, 9*mb))
	must.Less(t, mb, carried(t, w, s, "198.51.100.1:5005", 5*mb))
}

// ruleset names the chains and the counters of the world's table.
func (w *world) ruleset() (names []string) {
	w.t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(w.host.Fd())))
	must.NoError(w.t, err)
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	must.NoError(w.t, err)
	var table *nftables.Table
	for _, ch := range chains {
		names, table = append(names, ch.Name), ch.Table
	}
	objects, err := c.GetNamedObjects(table)
	must.NoError(w.t, err)
	for _, o := range objects {
		names = append(names, o.(*nftables.NamedObj).Name) //nolint:forcetypeassert // as documented
	}
	slices.Sort(names)
	return names
}

func TestMeter_leavesNothingInTheKernel(t *testing.T) {
	w := newWorld(t)
	p := w.closing(w.pool(nil))
	before := w.ruleset()
	for range 3 {
		s := w.take(p)
		must.NoError(t, p.SetQuota(s, 1000, 0))
		must.NoError(t, p.Shape(s, nil, shape.Direction{Loss: 0.1}, shape.Direction{}))
		must.NoError(t, p.Give(s))
	}
	must.Eq(t, before, w.ruleset())
	// A daemon that was killed with a meter in the kernel, whose sandbox is gone.
	s := w.take(p)
	must.NoError(t, p.SetQuota(s, 1000, 0))
	must.NoError(t, p.Firewall().Sweep(nil))
	must.Eq(t, before, w.ruleset())
}
