package servers

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// claimSteps are the steps of a claim, in order, at each of which the server that leads is killed.
var claimSteps = []struct{ name, where string }{
	{"create.before_claim", "a slot is chosen, nothing is written"},
	{"claim.stored", "the entry is on the disk of the one that leads alone"},
	{"claim.applied", "the entry is committed, nobody was answered"},
	{"create.after_claim", "the slot is given away, its node not told"},
	{"create.after_fact", "its node has given it, the client was not answered"},
}

// TestClaim_leaderIsKilledAtEveryStep kills the leader with SIGKILL at each step of a claim. Asked again, the same create gets one sandbox; no slot is given twice, and none
// is lost for good: the pool is full again, and the node has nothing that nobody knows of.
func TestClaim_leaderIsKilledAtEveryStep(t *testing.T) {
	const size = 4
	c := startWith(t, nil, true)
	c.fillPool(t, size)
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	given := map[api.SandboxID]string{}
	for _, step := range claimSteps {
		lead := c.leader(t)
		other := c.servers[(slices.Index(c.servers, lead)+1)%3]
		ask := api.CreateRequest{Template: "base", CreateOptions: api.CreateOptions{ID: api.NewSandboxID()}}
		must.NoError(t, os.WriteFile(lead.arm, []byte(step.name), 0o600))
		_, err := c.client(t, other).CreateSandbox(t.Context(), ask)
		<-lead.ended()
		_, gone := os.Stat(lead.arm)
		must.ErrorIs(t, gone, os.ErrNotExist, must.Sprintf("nothing was killed at %s: %v", step.name, err))
		first := "no answer: " + fmt.Sprint(err)
		if err == nil {
			first = "was sent again and answered"
		}
		var sb api.Created
		poll(t, "the same create, asked again", func() (err error) {
			sb, err = c.client(t, other).CreateSandbox(t.Context(), ask)
			return err
		})
		again, err := c.client(t, other).CreateSandbox(t.Context(), ask)
		must.NoError(t, err)
		must.Eq(t, sb.ID, again.ID)
		must.Eq(t, "", given[sb.ID], must.Sprint("given twice"))
		given[sb.ID] = step.name
		lead.start(t)
		c.ready(t)
		fmt.Fprintf(w, "%s\t%s\t%s\twarm %v\n", step.name, step.where, first, sb.Warm)
	}
	poll(t, "every slot to be somebody's or ready", func() error { return c.settled(t, size, given) })
	must.NoError(t, w.Flush())
	t.Logf("the leader was killed at:\n%s", table.String())
}

// settled reports what of the node's sandboxes is neither given once to who asked for it, nor a slot of the full pool.
func (c *cluster) settled(t *testing.T, size int, given map[api.SandboxID]string) error {
	p, err := c.client(t, c.servers[0]).Pool(t.Context(), "warm")
	if err != nil {
		return err
	}
	if p.Status.Ready != size {
		return fmt.Errorf("%d slots are ready", p.Status.Ready)
	}
	warm := 0
	for id, sb := range c.node.Running() {
		switch claims, _ := c.node.Claims(id); {
		case sb.State != nodeapi.StateRunning:
		case sb.Warm && given[id] != "":
			return fmt.Errorf("%s was given away at %s, and its node does not know", id, given[id])
		case sb.Warm:
			warm++
		case given[id] == "":
			return fmt.Errorf("%s is nobody's", id)
		case claims > 1:
			t.Fatalf("%s was claimed %d times", id, claims)
		}
	}
	if warm != size {
		return fmt.Errorf("the node has %d slots", warm)
	}
	for id := range given {
		if sb, err := c.client(t, c.servers[1]).GetSandbox(t.Context(), id); err != nil || sb.State != "running" {
			return errors.Join(err, fmt.Errorf("%s is %s", id, sb.State))
		}
	}
	return nil
}
