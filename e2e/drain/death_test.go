package drain

import (
	"fmt"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// TestDeath_pausedSandboxesComeBackOnTheOther kills a machine's daemon and Nomad client, as a cut cable does, while it has paused sandboxes, and one
// that runs: the stored copies are the sandboxes, and the next request brings each back where the store is; the one that runs is given up, and is
// taken back when the machine is. None is ever in two places.
func TestDeath_pausedSandboxesComeBackOnTheOther(t *testing.T) {
	c := start(t, "")
	dies, lives := c.nodes[0], c.nodes[1]
	c.only(dies)
	var all []*visitor
	for range 2 {
		all = append(all, c.create(t))
	}
	runs := c.create(t)
	c.only(nil)
	for _, v := range all {
		must.NoError(t, c.client.PauseSandbox(t.Context(), v.id, false))
		c.until("the stored copy", func() error {
			sb, err := dies.client.Get(t.Context(), v.id)
			if err == nil && (sb.Pause == nil || sb.Pause.Snapshot == "") {
				err = fmt.Errorf("%s: %+v", v.id, sb.Pause)
			}
			return err
		})
	}
	// The control service has heard of the copies, or hears of them no more.
	c.until("nobody to be needed any more", func() error {
		for _, v := range all {
			if sb := c.get(v.id); sb.State != "paused" {
				return fmt.Errorf("%s is %s", v.id, sb.State)
			}
		}
		return nil
	})
	dies.die()
	begin := time.Now()
	c.until("Consul to tell that the machine is gone", func() error {
		nodes, err := c.client.Nodes(t.Context())
		for _, n := range nodes {
			if n.ID == dies.id && (n.Connected || n.Directory != "critical") {
				err = fmt.Errorf("connected: %v, %s", n.Connected, n.Directory)
			}
		}
		return err
	})
	t.Logf("known to be gone after %s", time.Since(begin).Round(time.Millisecond))
	for _, v := range all {
		begin := time.Now()
		v.whole(t) // the request itself wakes it
		t.Logf("%s came back for a request after %s", v.id, time.Since(begin).Round(time.Millisecond))
		sb := c.get(v.id)
		must.Eq(t, lives.id, sb.Node)
		must.Eq(t, "running", sb.State)
	}

	c.until("the one that ran to be given up", func() error {
		if sb := c.get(runs.id); sb.State != "lost" {
			return fmt.Errorf("%s is %s", runs.id, sb.State)
		}
		return nil
	})

	// What was on the dead machine's disk is the past: it goes when the machine is back, and the sandboxes stay where they are.
	dies.comeBack()
	c.until("the old copies to go, and the one that runs to be taken back", func() error {
		list, err := dies.client.List(t.Context())
		if err == nil && (len(list) != 1 || list[0].ID != runs.id) {
			err = fmt.Errorf("%+v", list)
		}
		if sb := c.get(runs.id); err == nil && (sb.State != "running" || sb.Node != dies.id) {
			err = fmt.Errorf("%s is %s at %s", runs.id, sb.State, sb.Node)
		}
		return err
	})
	runs.whole(t)
	on, err := lives.client.List(t.Context())
	must.NoError(t, err)
	must.Len(t, len(all), on)
	for _, v := range all {
		v.whole(t)
		on, err := lives.client.Get(t.Context(), v.id)
		must.NoError(t, err)
		must.Eq(t, nodeapi.StateRunning, on.State)
		must.Eq(t, lives.id, c.get(v.id).Node)
	}
}
