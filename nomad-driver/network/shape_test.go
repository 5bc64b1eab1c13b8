package network

import (
	"encoding/binary"
	"errors"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/shape"
)

// rate moves bytes over some connections for a while and returns how many the slot's link carried a second, headers included, by the kernel's
// count: what a burst lets through is over by then, and a reader that had to wait for its turn changes nothing. It measures again where
// that was less than enough: a machine that is busy with others fills no link. The highest counts, so that a cap that was once exceeded is
// not hidden.
func rate(t testing.TB, outside *os.File, p *Pool, s *Slot, address string, flows int, upload bool, settle, measure time.Duration, enough float64) (best float64) {
	t.Helper()
	defer busy(t, outside, s, address, flows, upload).end()
	count := func() uint64 {
		link, err := p.host.LinkByIndex(s.Index)
		must.NoError(t, err)
		h, end, carried := p.host, link, link.Attrs().Statistics.TxBytes
		if upload {
			carried = link.Attrs().Statistics.RxBytes
			h, err = handleAt(s.Namespace())
			must.NoError(t, err)
			defer h.Close()
			end, err = h.LinkByName(InnerLink)
			must.NoError(t, err)
		}
		if shaped, ok := capped(t, h, end); ok {
			return shaped
		}
		return carried
	}
	time.Sleep(settle) // a measurement takes time
	for range 10 {
		// The clock is read outside of the counts: no delay between the two makes more of what was carried.
		start, first := time.Now(), count()
		time.Sleep(measure)
		best = max(best, float64(count()-first)/time.Since(start).Seconds())
		if best >= enough {
			break
		}
	}
	return best
}

// capped returns how many bytes have left a link by its cap, and false where it has none. The link itself counts a large packet that becomes many on
// a wire with one header, so that it has up to 4.4 % less than a cap holds to. A cap that holds nothing back is none.
func capped(t testing.TB, h *netlink.Handle, link netlink.Link) (uint64, bool) {
	t.Helper()
	list, err := h.QdiscList(link)
	must.NoError(t, err)
	for _, q := range list {
		if tbf, ok := q.(*netlink.Tbf); ok && tbf.Rate < shape.MaxRate {
			must.NotNil(t, tbf.Statistics)
			return tbf.Statistics.Basic.Bytes, true
		}
	}
	return 0, false
}

func TestShape_capsHoldInBothDirections(t *testing.T) {
	w := newWorld(t)
	p := w.closing(w.pool(nil))
	s := w.take(p)
	defer func() { must.NoError(t, p.Give(s)) }()
	port := 9000
	for _, mbit := range []uint64{10, 100} {
		for _, flows := range []int{1, 10} {
			for _, upload := range []bool{false, true} {
				d := shape.Direction{Rate: mbit * 1_000_000 / 8}
				in, out := d, shape.Direction{}
				if upload {
					in, out = out, d
				}
				must.NoError(t, p.Shape(s, nil, in, out))
				port++
				got := rate(t, w.outside, p, s, net.JoinHostPort("198.51.100.1", strconv.Itoa(port)), flows, upload, time.Second, 3*time.Second, float64(d.Rate)*0.95) * 8 / 1e6
				t.Logf("%d Mbit/s, %d flows, upload %v: %.2f Mbit/s", mbit, flows, upload, got)
				must.Between(t, float64(mbit)*0.95, got, float64(mbit)*1.05)
			}
		}
	}
	must.NoError(t, p.Shape(s, nil, shape.Direction{}, shape.Direction{}))
	must.Greater(t, 110.0, rate(t, w.outside, p, s, "198.51.100.1:9999", 1, false, 100*time.Millisecond, time.Second, 110e6/8)*8/1e6)
}

func TestShape_delayNeedsAKernelThatHasIt(t *testing.T) {
	w := newWorld(t)
	p := w.closing(w.pool(nil))
	s := w.take(p)
	defer func() { must.NoError(t, p.Give(s)) }()
	serve(t, w.outside, outsideAddr+":80")
	err := p.Shape(s, nil, shape.Direction{Delay: 50 * time.Millisecond, Jitter: 10 * time.Millisecond}, shape.Direction{})
	if errors.Is(err, shape.ErrUnsupported) {
		must.ErrorContains(t, err, "sch_netem")
		_, err := ask(s.Namespace(), "tcp4", outsideAddr+":80") // and nothing is worse for it
		must.NoError(t, err)
		return
	}
	must.NoError(t, err)
}

// echoes sends packets from a slot, one each interval, and returns how long each took to come back; of one that came twice both, and of one
// that did not none.
func echoes(t *testing.T, w *world, s *Slot, address string, packets int, interval time.Duration) [][]time.Duration {
	t.Helper()
	at := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address))
	var server, client *net.UDPConn
	must.NoError(t, inNamespace(w.outside, func() (err error) { server, err = net.ListenUDP("udp4", at); return err }))
	must.NoError(t, inNamespace(s.Namespace(), func() (err error) { client, err = net.DialUDP("udp4", nil, at); return err }))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer server.Close()
	wg.Go(func() {
		b := make([]byte, 64)
		for {
			n, from, err := server.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = server.WriteToUDPAddrPort(b[:n], from)
		}
	})
	defer client.Close()
	start := time.Now()
	sent := make([]time.Duration, packets)
	took := make([][]time.Duration, packets)
	var mu sync.Mutex
	wg.Go(func() {
		b := make([]byte, 64)
		for {
			n, err := client.Read(b)
			if err != nil {
				return
			}
			if i := int(binary.BigEndian.Uint32(b[:n])); i < packets {
				mu.Lock()
				took[i] = append(took[i], time.Since(start)-sent[i])
				mu.Unlock()
			}
		}
	})
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for i := range packets {
		<-tick.C
		mu.Lock()
		sent[i] = time.Since(start)
		mu.Unlock()
		_, err := client.Write(binary.BigEndian.AppendUint32(nil, uint32(i))) //nolint:gosec // small
		must.NoError(t, err)
	}
	time.Sleep(time.Second) // what is on its way for longer is late beyond all that is asked for
	mu.Lock()
	defer mu.Unlock()
	out := make([][]time.Duration, packets)
	for i := range took {
		out[i] = slices.Clone(took[i])
	}
	return out
}

// Needs a kernel with netem: the virtual machine's.
func TestShape_linksAreAsLateAndAsUnreliableAsAskedFor(t *testing.T) {
	w := newWorld(t)
	p := w.closing(w.pool(nil))
	s := w.take(p)
	defer func() { must.NoError(t, p.Give(s)) }()
	late := shape.Direction{Delay: 50 * time.Millisecond, Jitter: 10 * time.Millisecond, Loss: 0.02}
	if err := p.Shape(s, nil, late, shape.Direction{}); errors.Is(err, shape.ErrUnsupported) {
		t.Skip("this kernel has no netem: ", err)
	}
	const packets = 2000
	port := 7000
	measure := func(name string, in, out shape.Direction) (lost, twice, early float64, least, median time.Duration) {
		t.Helper()
		must.NoError(t, p.Shape(s, nil, in, out))
		port++
		got := echoes(t, w, s, net.JoinHostPort("198.51.100.1", strconv.Itoa(port)), packets, 5*time.Millisecond)
		var all []time.Duration
		for _, g := range got {
			switch len(g) {
			case 0:
				lost++
				continue
			case 1:
			default:
				twice++
			}
			all = append(all, g[0])
			if g[0] < 30*time.Millisecond {
				early++
			}
		}
		must.SliceNotEmpty(t, all)
		slices.Sort(all)
		least, median = all[0], all[len(all)/2]
		t.Logf("%s: lost %.1f %%, twice %.1f %%, early %.1f %%, least %s, 5 %% below %s, median %s, 95 %% below %s", name, 100*lost/packets, 100*twice/packets,
			100*early/packets, least, all[len(all)/20], median, all[len(all)*19/20])
		return lost, twice, early, least, median
	}
	_, _, _, _, floor := measure("as it is", shape.Direction{}, shape.Direction{})
	// Four deviations of what chance does.
	about := func(share float64) (least, most float64) {
		d := 4 * math.Sqrt(packets*share*(1-share))
		return packets*share - d, packets*share + d
	}
	for _, c := range []struct {
		name    string
		in, out shape.Direction
	}{{"50 ms ± 10 ms with 2 % loss, in", late, shape.Direction{}}, {"50 ms ± 10 ms with 2 % loss, out", shape.Direction{}, late}} {
		low, high := about(0.02)
		for tries := 1; ; tries++ { // a machine that is busy with others adds to every packet's time, and takes nothing away
			lost, twice, _, least, median := measure(c.name, c.in, c.out)
			must.GreaterEq(t, 40*time.Millisecond, least)
			must.EqOp(t, 0, twice)
			must.Between(t, low, lost, high)
			if median -= floor; tries == 5 || median <= 60*time.Millisecond {
				// The most is for a machine that is emulated: a packet that is due waits for its turn there.
				must.Between(t, 40*time.Millisecond, median, 70*time.Millisecond)
				break
			}
		}
	}
	lost, twice, _, _, _ := measure("10 % duplicates", shape.Direction{Duplicate: 0.1}, shape.Direction{})
	low, high := about(0.1)
	must.Between(t, low, twice, high)
	must.EqOp(t, 0, lost)
	_, _, early, _, _ := measure("25 % overtake", shape.Direction{Delay: 80 * time.Millisecond, Reorder: 0.25}, shape.Direction{})
	low, high = about(0.25)
	must.Between(t, low, early, high)
}

func TestDirection_saysWhatIsWrong(t *testing.T) {
	for want, d := range map[string]shape.Direction{
		"rate_bytes is 1, must be 0 or between 8192 and 4294967295": {Rate: 1},
		"burst_bytes without rate_bytes":                            {Burst: 1},
		"jitter is 2ms, must be between 0 and the delay":            {Delay: time.Millisecond, Jitter: 2 * time.Millisecond},
		"loss is 1.5, must be between 0 and 1":                      {Loss: 1.5},
		"reorder without delay: nothing could be overtaken":         {Reorder: 0.1},
		"delay is 11s, must be between 0 and 10s":                   {Delay: 11 * time.Second},
	} {
		must.EqError(t, d.Check(), want)
	}
}
