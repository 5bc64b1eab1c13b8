package network

import (
	"os"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

func benchPool(b *testing.B, ahead int) *Pool {
	b.Helper()
	if os.Geteuid() != 0 {
		b.Skip("makes network namespaces: needs root")
	}
	w := networktest.New(b)
	p, err := Open(Config{Owner: "0a1b2c", Dir: b.TempDir(), Host: w.Host, Ahead: ahead, Quiet: 100 * time.Millisecond})
	must.NoError(b, err)
	b.Cleanup(func() { must.NoError(b, p.Close()); must.NoError(b, p.Remove()) })
	return p
}

// BenchmarkSlotMade is a slot from nothing: namespace, link, addresses, rules.
func BenchmarkSlotMade(b *testing.B) {
	p := benchPool(b, 1)
	for i := range b.N {
		s, err := p.make(i, nil)
		must.NoError(b, err)
		p.held[i] = s
		p.live++
	}
	b.StopTimer()
	for _, s := range p.held {
		must.NoError(b, p.Give(s))
	}
}

// BenchmarkSlotTaken is what a create waits for where slots are ready.
func BenchmarkSlotTaken(b *testing.B) {
	p := benchPool(b, 4096)
	var took time.Duration
	n := min(b.N, 200)
	for i := range n {
		s, err := p.make(i, nil)
		must.NoError(b, err)
		p.live++
		p.ready <- s
	}
	for range n {
		start := time.Now()
		s, err := p.Take(b.Context())
		took += time.Since(start)
		must.NoError(b, err)
		must.NoError(b, p.Give(s))
	}
	b.ReportMetric(float64(took.Nanoseconds())/float64(n), "ns/take")
}

// BenchmarkPolicyChanged is 200 rules in place of the last 200.
func BenchmarkPolicyChanged(b *testing.B) {
	p := benchPool(b, 1)
	s, err := p.make(0, nil)
	must.NoError(b, err)
	p.held[0] = s
	p.live++
	var spec policy.Spec
	for i := range 200 {
		spec.Allow = append(spec.Allow, addr4(0x08080000+uint32(i)*4).String()) //nolint:gosec // small
	}
	spec.Deny = []string{policy.Everything}
	l, err := policy.ParseLayer("sandbox", spec)
	must.NoError(b, err)
	pol := policy.New(p.Base(), l)
	for b.Loop() {
		_, err := p.Apply(s, pol)
		must.NoError(b, err)
	}
	must.NoError(b, p.Give(s))
}
