package resolver

import (
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// askers is how many ask at a time.
const askers = 16

// BenchmarkAnswers is how many questions of one sandbox are answered a second, beside the server behind being asked at once.
func BenchmarkAnswers(b *testing.B) {
	r := newRig(b, policy.Spec{Allow: []string{"*.example.com"}, Deny: []string{policy.Everything}}, func(c *Config) {
		c.Limits = Limits{Queries: 1 << 30, Bytes: 1 << 40}
	}, "www.example.com. 120 IN A 198.51.100.1")
	perSecond := func(address string) float64 {
		var wg sync.WaitGroup
		start := time.Now()
		for range askers {
			wg.Go(func() {
				c, err := dns.Dial("udp", address)
				if err != nil {
					b.Error(err)
					return
				}
				defer c.Close()
				for range max(b.N/askers, 1) {
					m := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
					if err := c.WriteMsg(m); err != nil {
						b.Error(err)
						return
					}
					got, err := c.ReadMsg()
					if err != nil || len(got.Answer) != 1 {
						b.Errorf("%v: %v", got, err)
						return
					}
				}
			})
		}
		wg.Wait()
		return float64(max(b.N/askers, 1)*askers) / time.Since(start).Seconds()
	}
	floor, ours := perSecond(r.names.Addr), perSecond(r.addr)
	must.False(b, b.Failed())
	b.ReportMetric(floor, "floor/s")
	b.ReportMetric(ours, "answers/s")
}
