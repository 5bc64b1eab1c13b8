package network

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

const (
	hostAddr    = networktest.HostAddr
	outsideAddr = networktest.OutsideAddr
)

var (
	elsewhere = networktest.Elsewhere
	serve     = networktest.Serve
	ask       = networktest.Ask
	plug      = networktest.Plug
)

// world is a machine of the test's own.
type world struct {
	t             *testing.T
	host, outside *os.File
	dir           string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := networktest.New(t)
	return &world{t: t, host: w.Host, outside: w.Outside, dir: t.TempDir()}
}

// pool opens a pool on the world's machine, with change applied to its configuration.
func (w *world) pool(change func(*Config)) *Pool {
	w.t.Helper()
	cfg := Config{Owner: "0a1b2c", Dir: w.dir, Host: w.host, Ahead: 2, Quiet: 10 * time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	p, err := Open(cfg)
	must.NoError(w.t, err)
	p.Start()
	return p
}

// closing returns p, which ends with the test.
func (w *world) closing(p *Pool) *Pool {
	w.t.Cleanup(func() { must.NoError(w.t, p.Close()); must.NoError(w.t, p.Remove()) })
	return p
}

func (w *world) take(p *Pool) *Slot {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	s, err := p.Take(ctx)
	must.NoError(w.t, err)
	return s
}

func spec(t *testing.T, name string, s policy.Spec) policy.Layer {
	t.Helper()
	l, err := policy.ParseLayer(name, s)
	must.NoError(t, err)
	return l
}

func addrs(list ...string) []netip.Addr {
	all := make([]netip.Addr, len(list))
	for i, s := range list {
		all[i] = netip.MustParseAddr(s)
	}
	return all
}
