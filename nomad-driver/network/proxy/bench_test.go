package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// BenchmarkProxy is what the proxy adds to a request of a sandbox on a connection of its own, and on one that is open.
func BenchmarkProxy(b *testing.B) {
	r := newRig(b, closedTo)
	r.plain("www.example.com", "198.51.100.1")
	r.goesTo("198.51.100.1:80")
	measure := func(address string, keep bool) []time.Duration {
		var took []time.Duration
		var c net.Conn
		var in *bufio.Reader
		for range max(b.N, 10) {
			start := time.Now()
			if c == nil {
				var err error
				c, err = net.Dial("tcp", address)
				must.NoError(b, err)
				in = bufio.NewReader(c)
			}
			_, err := io.WriteString(c, "GET /x HTTP/1.1\r\nHost: www.example.com\r\n\r\n")
			must.NoError(b, err)
			resp, err := http.ReadResponse(in, nil)
			must.NoError(b, err)
			_, err = io.Copy(io.Discard, resp.Body)
			must.NoError(b, err)
			must.EqOp(b, http.StatusOK, resp.StatusCode)
			took = append(took, time.Since(start))
			if !keep {
				must.NoError(b, c.Close())
				c = nil
			}
		}
		if c != nil {
			must.NoError(b, c.Close())
		}
		slices.Sort(took)
		return took
	}
	micros := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	for _, k := range []struct {
		prefix string
		keep   bool
	}{{"new-", false}, {"open-", true}} {
		floor, ours := measure(r.hosts["198.51.100.1:80"], k.keep), measure(r.addr, k.keep)
		b.ReportMetric(micros(floor[len(floor)/2]), k.prefix+"floor-p50-µs")
		b.ReportMetric(micros(ours[len(ours)/2]), k.prefix+"p50-µs")
		b.ReportMetric(micros(ours[len(ours)*99/100]), k.prefix+"p99-µs")
	}
}
