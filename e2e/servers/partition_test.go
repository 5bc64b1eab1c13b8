package servers

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// TestPartition_minorityStepsDownAndNothingIsGivenTwice cuts the leader from the others under load, by losing packets in a network of the test, and then everybody from
// everybody.
func TestPartition_minorityStepsDownAndNothingIsGivenTwice(t *testing.T) {
	sandboxtest.RequireRoot(t) // for network namespaces
	c := startWith(t, newSea(t, 3), false)
	c.fillPool(t, 30)
	l := c.load(t, 6, "base")
	for range 2 {
		l.more(t, 30)
		lead := c.leader(t)
		other := c.servers[(slices.Index(c.servers, lead)+1)%3]
		must.NoError(t, lead.net.cut())
		cut := time.Now()
		poll(t, "a create beside the one that is cut off", func() error {
			_, err := c.client(t, other).CreateSandbox(t.Context(), api.CreateRequest{Template: "base"})
			return err
		})
		t.Logf("leader %s cut off: the first create at %s is answered after %s", lead.name, other.name, time.Since(cut).Round(time.Millisecond))
		poll(t, "the one that is cut off to step down", func() error {
			_, err := c.age(lead)
			return err
		})
		t.Logf("it has stepped down after %s", time.Since(cut).Round(time.Millisecond))
		// Whom it answers, it says how old that may be, and that grows.
		old, err := c.age(lead)
		must.NoError(t, err)
		poll(t, "its age to grow", func() error {
			now, err := c.age(lead)
			if err == nil && now <= old {
				err = fmt.Errorf("%s, before %s", now, old)
			}
			return err
		})
		// It takes nothing, and answers nothing as if it were current.
		_, err = c.client(t, lead).CreateSandbox(t.Context(), api.CreateRequest{Template: "base"})
		must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err), must.Sprint(err))
		_, err = c.client(t, lead).ListSandboxes(t.Context(), api.ListOptions{})
		must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err), must.Sprint(err))
		l.more(t, 20)
		must.NoError(t, lead.net.heal())
		c.follows(t, lead)
	}
	// Nobody has a majority: nobody takes anything, and all of it goes on afterwards.
	for _, s := range c.servers {
		must.NoError(t, s.net.cut())
	}
	for _, s := range c.servers {
		poll(t, "server "+s.name+" to know that it is alone", func() error {
			_, err := c.age(s)
			return err
		})
		_, err := c.client(t, s).CreateSandbox(t.Context(), api.CreateRequest{Template: "base"})
		must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err), must.Sprint(s.name, err))
	}
	for _, s := range c.servers {
		must.NoError(t, s.net.heal())
	}
	l.more(t, 30)
	l.stop()
	l.nothingLost(t)
	claimed := 0
	for id := range l.accepted {
		times, _ := c.node.Claims(id)
		claimed += times
		must.LessEq(t, 1, times)
	}
	must.Positive(t, claimed)
	t.Logf("%d of those that are there yet were claimed from the pool", claimed)
}

// age is what a server says of a stale read. One that leads has none.
func (c *cluster) age(s *server) (time.Duration, error) {
	h, err := c.ask(s, "GET", "/v2/sandboxes?stale")
	if err != nil {
		return 0, err
	}
	ms, err := strconv.Atoi(h.Get(api.AgeHeader))
	if err == nil && ms == 0 {
		err = errors.New("it leads")
	}
	return time.Duration(ms) * time.Millisecond, err
}

// follows waits until a server answers as one of three again.
func (c *cluster) follows(t *testing.T, s *server) {
	t.Helper()
	poll(t, "server "+s.name+" to be one of three again", func() error {
		_, err := c.client(t, s).ListSandboxes(t.Context(), api.ListOptions{})
		return err
	})
}

// fillPool makes a pool for the load's sandboxes and waits until it is full.
func (c *cluster) fillPool(t *testing.T, size int) {
	t.Helper()
	base := "base"
	_, err := c.client(t, c.servers[0]).CreatePool(t.Context(), api.NewPool{Name: "warm", PoolSpec: api.PoolSpec{Template: &base, Min: &size, Max: &size}})
	must.NoError(t, err)
	poll(t, "the pool to be full", func() error {
		p, err := c.client(t, c.servers[1]).Pool(t.Context(), "warm")
		if err == nil && p.Status.Ready < size {
			err = fmt.Errorf("%d ready", p.Status.Ready)
		}
		return err
	})
}
