package network

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/shape"
)

func benchPool(b *testing.B, ahead int) *Pool {
	b.Helper()
	if os.Geteuid() != 0 {
		b.Skip("makes network namespaces: needs root")
	}
	return benchPoolIn(b, networktest.New(b), ahead)
}

func benchPoolIn(b *testing.B, w *networktest.World, ahead int) *Pool {
	b.Helper()
	p, err := Open(Config{Owner: "0a1b2c", Dir: b.TempDir(), Host: w.Host, Ahead: ahead, Max: 4096, Quiet: 100 * time.Millisecond})
	must.NoError(b, err)
	b.Cleanup(func() { must.NoError(b, p.Close()); must.NoError(b, p.Remove()) })
	return p
}

// many is how many slots there are already where more are made.
const many = 500

// BenchmarkSlots is what a slot costs: to take one that is ready, and to make one where there is none yet and where there are many.
func BenchmarkSlots(b *testing.B) {
	p := benchPool(b, 4096)
	number := 0
	put := func() time.Duration {
		start := time.Now()
		s, err := p.make(number, nil)
		took := time.Since(start)
		must.NoError(b, err)
		number++
		p.mu.Lock()
		p.live++
		p.mu.Unlock()
		p.ready <- s
		return took
	}
	n := max(b.N, 20)
	var few, more, taken []time.Duration
	for range n {
		few = append(few, put())
	}
	for number < many {
		put()
	}
	start := time.Now()
	for range n {
		more = append(more, put())
	}
	b.ReportMetric(float64(n)/time.Since(start).Seconds(), "made/s")
	for range number {
		start := time.Now()
		s, err := p.Take(b.Context())
		taken = append(taken, time.Since(start))
		must.NoError(b, err)
		must.NoError(b, p.Give(s))
	}
	report(b, "few-", few)
	report(b, "many-", more)
	report(b, "taken-", taken)
	// What there is in any case: a namespace, and a pair of links with the other end in it.
	var floor []time.Duration
	for i := range n {
		start := time.Now()
		ns := networktest.NewNamespace(b)
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "floor" + strconv.Itoa(i)}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}
		must.NoError(b, p.host.LinkAdd(link))
		floor = append(floor, time.Since(start))
	}
	report(b, "floor-", floor)
}

func report(b *testing.B, prefix string, list []time.Duration) {
	b.Helper()
	slices.Sort(list)
	micros := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	b.ReportMetric(micros(list[len(list)/2]), prefix+"p50-µs")
	b.ReportMetric(micros(list[len(list)*99/100]), prefix+"p99-µs")
}

// BenchmarkPolicy is 200 rules in place of others, until the kernel does by them: a connection that they forbid is refused, and one
// that was open is cut.
func BenchmarkPolicy(b *testing.B) {
	w := networktest.New(b)
	p := benchPoolIn(b, w, 4)
	networktest.Serve(b, w.Outside, "198.51.100.1:80")
	s, err := p.make(0, nil)
	must.NoError(b, err)
	p.held[0] = s
	p.live++
	rules := func(last string) *policy.Policy {
		var spec policy.Spec
		for i := range 199 {
			spec.Allow = append(spec.Allow, addr4(0x08080000+uint32(i)*4).String()) //nolint:gosec // small
		}
		spec.Allow, spec.Deny = append(spec.Allow, last), []string{policy.Everything}
		l, err := policy.ParseLayer("sandbox", spec)
		must.NoError(b, err)
		return policy.New(p.Base(), l)
	}
	open, shut := rules("198.51.100.1"), rules("198.51.100.2")
	var took []time.Duration
	for range max(b.N, 10) {
		_, err := p.Apply(s, open)
		must.NoError(b, err)
		_, err = networktest.Ask(s.Namespace(), "tcp4", "198.51.100.1:80")
		must.NoError(b, err)
		start := time.Now()
		_, err = p.Apply(s, shut)
		must.NoError(b, err)
		_, err = networktest.Ask(s.Namespace(), "tcp4", "198.51.100.1:80")
		must.ErrorIs(b, err, unix.ECONNREFUSED)
		took = append(took, time.Since(start))
	}
	report(b, "effect-", took)
	must.NoError(b, p.Give(s))
}

// BenchmarkLink is how many bytes a link carries, as it is and shaped, beside a plain pair of links, and how far caps are from what was asked for.
func BenchmarkLink(b *testing.B) {
	w := networktest.New(b)
	p := benchPoolIn(b, w, 4)
	s, err := p.make(0, nil)
	must.NoError(b, err)
	p.held[0] = s
	p.live++
	port := 9000
	measure := func(rateBytes uint64, flows int) float64 {
		must.NoError(b, p.Shape(s, nil, shape.Direction{Rate: rateBytes}, shape.Direction{}))
		port++
		settle, enough := time.Second, float64(rateBytes)*0.95
		if rateBytes == 0 {
			settle, enough = 100*time.Millisecond, 0
		}
		return rate(b, w.Outside, p, s, net.JoinHostPort("198.51.100.1", strconv.Itoa(port)), flows, false, settle, 2*time.Second, enough)
	}
	b.ReportMetric(plain(b)/1e6, "plain-MB/s")
	b.ReportMetric(measure(0, 1)/1e6, "link-MB/s")
	b.ReportMetric(measure(shape.MaxRate, 1)/1e6, "shaped-MB/s")
	for _, mbit := range []uint64{10, 100, 1000} {
		for _, flows := range []int{1, 10} {
			want := float64(mbit) * 1e6 / 8
			b.ReportMetric(100*math.Abs(measure(uint64(want), flows)-want)/want, fmt.Sprintf("%d-%d-%%", mbit, flows))
		}
	}
	must.NoError(b, p.Give(s))
}

// plain measures a pair of links without anything, between two namespaces, in bytes a second.
func plain(b *testing.B) float64 {
	b.Helper()
	one, two := networktest.NewNamespace(b), networktest.NewNamespace(b)
	must.NoError(b, networktest.In(one, func() error {
		err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b", PeerNamespace: netlink.NsFd(int(two.Fd()))})
		return errors.Join(err, networktest.Plug("a", "192.0.2.1/24"))
	}))
	must.NoError(b, networktest.In(two, func() error { return networktest.Plug("b", "192.0.2.2/24") }))
	var l net.Listener
	must.NoError(b, networktest.In(one, func() (err error) { l, err = net.Listen("tcp4", "192.0.2.1:80"); return err }))
	defer l.Close()
	var in net.Conn
	must.NoError(b, networktest.In(two, func() (err error) { in, err = net.Dial("tcp4", "192.0.2.1:80"); return err }))
	out, err := l.Accept()
	must.NoError(b, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64<<10)
		for {
			if _, err := out.Write(buf); err != nil {
				return
			}
		}
	}()
	buf, total, start := make([]byte, 256<<10), 0, time.Now()
	for time.Since(start) < 2*time.Second {
		n, err := in.Read(buf)
		must.NoError(b, err)
		total += n
	}
	took := time.Since(start).Seconds()
	must.NoError(b, errors.Join(in.Close(), out.Close()))
	<-done
	return float64(total) / took
}
