package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/shape"
)

const uplinkRate = 20_000_000 / 8 // bytes a second: far less than any machine carries

// transfers are the bytes that are moved between a slot and the outside over some connections.
type transfers struct {
	arrived atomic.Int64
	end     func()
}

// busy moves bytes until the test calls end, which waits for that.
func busy(t testing.TB, outside *os.File, s *Slot, address string, flows int, upload bool) *transfers {
	t.Helper()
	var l net.Listener
	must.NoError(t, inNamespace(outside, func() (err error) { l, err = net.Listen("tcp4", address); return err }))
	var wg sync.WaitGroup
	var open []net.Conn
	tr := &transfers{}
	for range flows {
		var in net.Conn
		must.NoError(t, inNamespace(s.Namespace(), func() (err error) { in, err = net.DialTimeout("tcp4", address, 5*time.Second); return err }))
		out, err := l.Accept()
		must.NoError(t, err)
		open = append(open, in, out)
		from, to := out, in
		if upload {
			from, to = in, out
		}
		wg.Go(func() {
			b := make([]byte, 64<<10)
			for {
				if _, err := from.Write(b); err != nil {
					return
				}
			}
		})
		wg.Go(func() {
			b := make([]byte, 256<<10)
			for {
				n, err := to.Read(b)
				if tr.arrived.Add(int64(n)); err != nil {
					return
				}
			}
		})
	}
	tr.end = func() {
		_ = l.Close()
		for _, c := range open {
			_ = c.Close()
		}
		wg.Wait()
	}
	return tr
}

// carries returns how many bytes a second arrive of each, over a while.
func carries(all []*transfers) []float64 {
	count := func() []int64 {
		n := make([]int64, len(all))
		for i, tr := range all {
			n[i] = tr.arrived.Load()
		}
		return n
	}
	time.Sleep(2 * time.Second) // what was allowed to burst is over by then: a measurement takes time
	begin, first := time.Now(), count()
	time.Sleep(4 * time.Second)
	last, took := count(), time.Since(begin).Seconds()
	rates := make([]float64, len(all))
	for i := range all {
		rates[i] = float64(last[i]-first[i]) / took
	}
	return rates
}

func TestUplink_aFullLinkIsSharedByClass(t *testing.T) {
	for _, upload := range []bool{false, true} {
		t.Run(map[bool]string{false: "received", true: "sent"}[upload], func(t *testing.T) {
			w := newWorld(t)
			p := w.closing(w.pool(func(c *Config) { c.Uplink, c.Ahead = Uplink{Link: "up0", In: uplinkRate, Out: uplinkRate}, 4 }))
			guaranteed, burstable, effort, greedy := w.take(p), w.take(p), w.take(p), w.take(p)
			slots := []*Slot{guaranteed, burstable, effort, greedy}
			defer func() {
				for _, s := range slots {
					must.NoError(t, p.Give(s))
				}
			}()
			for s, c := range map[*Slot]shape.Class{guaranteed: shape.Guaranteed, burstable: shape.Burstable, effort: shape.BestEffort, greedy: shape.Burstable} {
				must.NoError(t, p.Classify(s, c))
			}
			var running []*transfers
			stop := func() {
				for _, tr := range running {
					tr.end()
				}
				running = nil
			}
			defer stop()
			for i, s := range slots {
				flows := 1
				if s == greedy {
					flows = 8
				}
				running = append(running, busy(t, w.outside, s, fmt.Sprint("198.51.100.1:", 9100+i), flows, upload))
			}
			r := carries(running)
			sum := r[0] + r[1] + r[2] + r[3]
			t.Logf("guaranteed %.2f, burstable %.2f, best effort %.2f, burstable with eight connections %.2f of %.2f Mbit/s", r[0]*8e-6, r[1]*8e-6, r[2]*8e-6, r[3]*8e-6, sum*8e-6)
			must.Less(t, uplinkRate*1.05, sum)
			// By weight it would be 40, 10, 1 and 10 of 61.
			must.Greater(t, 0.5*sum, r[0])
			must.Between(t, 0.6*r[1], r[3], 1.6*r[1], must.Sprint("connections are no weight"))
			must.Less(t, 0.1*sum, r[2])
			stop()

			// Alone, one of the least class has all that there is.
			running = append(running, busy(t, w.outside, effort, "198.51.100.1:9200", 1, upload))
			r = carries(running)
			t.Logf("best effort alone: %.2f Mbit/s", r[0]*8e-6)
			must.Greater(t, 0.8*0.9*uplinkRate, r[0])
		})
	}
}

func TestUplink_neighboursAreNotPartOfIt(t *testing.T) {
	w := newWorld(t)
	p := w.closing(w.pool(func(c *Config) { c.Uplink = Uplink{In: shape.MinRate, Out: shape.MinRate} })) // that of the default route
	a, b := w.take(p), w.take(p)
	defer func() { must.NoError(t, errors.Join(p.Give(a), p.Give(b))) }()
	for i, s := range []*Slot{a, b} {
		must.NoError(t, p.Classify(s, shape.BestEffort))
		_, err := p.Join(s, []Membership{{Network: "t/n", Short: "n", Name: fmt.Sprint("m", i)}})
		must.NoError(t, err)
	}
	var l net.Listener
	must.NoError(t, inNamespace(b.Namespace(), func() (err error) { l, err = net.Listen("tcp4", ":7000"); return err }))
	defer l.Close()
	var from net.Conn
	must.NoError(t, inNamespace(a.Namespace(), func() (err error) {
		from, err = net.DialTimeout("tcp4", fmt.Sprint(b.Addr, ":7000"), 5*time.Second)
		return err
	}))
	defer from.Close()
	to, err := l.Accept()
	must.NoError(t, err)
	defer to.Close()
	const n = 4 << 20 // eight minutes at the uplink's rate
	sent := make(chan error, 1)
	go func() {
		_, err := from.Write(make([]byte, n))
		sent <- err
	}()
	must.NoError(t, to.SetReadDeadline(time.Now().Add(time.Minute)))
	got, buf := 0, make([]byte, 64<<10)
	for got < n {
		k, err := to.Read(buf)
		must.NoError(t, err)
		got += k
	}
	must.NoError(t, <-sent)
}

// shaped lists what shapes the world's links: "<link> <discipline>", but what the kernel has by itself.
func (w *world) shaped() (list []string) {
	w.t.Helper()
	must.NoError(w.t, networktest.In(w.host, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			qs, err := netlink.QdiscList(l)
			if err != nil {
				return err
			}
			for _, q := range qs {
				if q.Attrs().Handle != 0 {
					list = append(list, l.Attrs().Name+" "+q.Type())
				}
			}
		}
		return nil
	}))
	return list
}

func TestUplink_isLeftAsItWasFound(t *testing.T) {
	w := newWorld(t)
	before := w.shaped()
	both := Uplink{Link: "up0", In: uplinkRate, Out: uplinkRate}
	p := w.pool(func(c *Config) { c.Uplink = both })
	s := w.take(p)
	must.NoError(t, p.Classify(s, shape.Guaranteed))
	ns, ref := s.Namespace(), s.Ref()
	keep, err := os.Open(fmt.Sprint("/proc/self/fd/", ns.Fd())) // as the sandbox's processes hold it
	must.NoError(t, err)
	defer keep.Close()
	must.NoError(t, p.Close())
	must.SliceContainsAll(t, w.shaped(), []string{"up0 htb", "sbq0a1b2c htb", s.Link + " clsact"}, must.Sprint("the daemon is gone, the kernel goes on"))
	serve(t, w.outside, outsideAddr+":80")
	_, err = ask(keep, "tcp4", outsideAddr+":80")
	must.NoError(t, err)

	// The next daemon goes on with it, also where it is not to be shared out any more.
	again := func(u Uplink) *Pool { // makes no slots: what is to be recovered comes first
		p, err := Open(Config{Owner: "0a1b2c", Dir: w.dir, Host: w.host, Uplink: u})
		must.NoError(t, err)
		return p
	}
	for _, u := range []Uplink{both, {Link: "up0", Out: uplinkRate}, {}, both, {}} {
		p = again(u)
		s, err = p.Recover(ref)
		must.NoError(t, err)
		must.NoError(t, p.Classify(s, shape.Burstable))
		_, err = ask(keep, "tcp4", outsideAddr+":80")
		must.NoError(t, err, must.Sprint(u))
		must.NoError(t, p.Close())
	}
	must.Eq(t, strings.Join(before, "\n"), strings.Join(w.shaped(), "\n"))
	p = again(both)
	s, err = p.Recover(ref)
	must.NoError(t, err)
	must.NoError(t, p.Classify(s, shape.Burstable))
	must.NoError(t, p.Give(s))
	must.NoError(t, errors.Join(p.Close(), p.Remove()))
	must.Eq(t, before, w.shaped())
}

func TestUplink_somebodyElsesTrafficControlIsRefused(t *testing.T) {
	w := newWorld(t)
	must.NoError(t, networktest.In(w.host, func() error {
		l, err := netlink.LinkByName("up0")
		if err != nil {
			return err
		}
		return netlink.QdiscAdd(netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}))
	}))
	before := w.shaped()
	for want, u := range map[string]Uplink{
		"uplink up0: out: its link has traffic control of somebody else": {Out: uplinkRate},
		"uplink \"up9\":": {Link: "up9", In: uplinkRate},
		"uplink: in: rate is 1 bytes a second, must be between 8192 and 4294967295": {In: 1},
	} {
		_, err := Open(Config{Owner: "0a1b2c", Dir: w.dir, Host: w.host, Uplink: u})
		must.ErrorContains(t, err, want)
		must.Eq(t, before, w.shaped())
	}
}
