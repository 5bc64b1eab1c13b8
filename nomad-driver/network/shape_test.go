package network

import (
	"errors"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/shape"
)

// rate moves bytes over some connections for a while and returns how many the slot's link carried a second, by the kernel's
// count: what a burst lets through is over by then, and a reader that had to wait for its turn changes nothing.
func rate(t *testing.T, w *world, p *Pool, s *Slot, address string, flows int, upload bool, settle, measure time.Duration) float64 {
	t.Helper()
	var l net.Listener
	must.NoError(t, inNamespace(w.outside, func() (err error) { l, err = net.Listen("tcp4", address); return err }))
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	send := func(c net.Conn) {
		b := make([]byte, 64<<10)
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}
	receive := func(c net.Conn) {
		b := make([]byte, 256<<10)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
		}
	}
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
		wg.Go(func() { send(from) })
		wg.Go(func() { receive(to) })
	}
	count := func() uint64 {
		link, err := p.host.LinkByIndex(s.Index)
		must.NoError(t, err)
		if upload {
			return link.Attrs().Statistics.RxBytes
		}
		return link.Attrs().Statistics.TxBytes
	}
	time.Sleep(settle) // a measurement takes time
	start, first := time.Now(), count()
	time.Sleep(measure)
	return float64(count()-first) / time.Since(start).Seconds()
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
				got := rate(t, w, p, s, net.JoinHostPort("198.51.100.1", strconv.Itoa(port)), flows, upload, time.Second, 3*time.Second) * 8 / 1e6
				t.Logf("%d Mbit/s, %d flows, upload %v: %.2f Mbit/s", mbit, flows, upload, got)
				must.Between(t, float64(mbit)*0.95, got, float64(mbit)*1.05)
			}
		}
	}
	must.NoError(t, p.Shape(s, nil, shape.Direction{}, shape.Direction{}))
	must.Greater(t, 110.0, rate(t, w, p, s, "198.51.100.1:9999", 1, false, 100*time.Millisecond, time.Second)*8/1e6)
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
	start := time.Now()
	_, err = ask(s.Namespace(), "tcp4", outsideAddr+":80")
	must.NoError(t, err)
	must.Greater(t, 40*time.Millisecond, time.Since(start))
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
