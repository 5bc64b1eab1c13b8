package drain

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

var faults = flag.Int("faults", 1, "how often to kill at each step of a move (make faults: 100)")

// TestFaults_theControlServiceIsKilledInAMove kills the control service at each step of a move. The one that is started then ends the move: the
// sandbox runs on the other node, with all that it had, and is nowhere else.
func TestFaults_theControlServiceIsKilledInAMove(t *testing.T) {
	c := startWith(t, "", true)
	from, to := c.nodes[0], c.nodes[1]
	c.only(from)
	v := c.create(t)
	c.only(nil)
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "way\tstep\tkilled\trounds\tand then\tlost, frozen or twice")
	for _, step := range []string{"move.told", "move.packed", "move.recorded", "move.stopped", "move.placed", "move.unrecorded"} {
		for range *faults {
			must.NoError(t, os.WriteFile(c.arm, []byte(step), 0o600))
			c.run("node", "drain", "-enable", "-yes", "-detach", "-deadline", "10m", string(from.id))
			<-c.control.Done()
			_, err := os.Stat(c.arm)
			must.ErrorIs(t, err, os.ErrNotExist, must.Sprintf("nothing was killed at %s", step))
			c.runControl()
			c.until("the move, after a kill at "+step, func() error {
				sb, err := c.client.GetSandbox(t.Context(), v.id)
				if err == nil && (sb.Node != to.id || sb.State != "running") {
					err = fmt.Errorf("%s is %s on %s", v.id, sb.State, sb.Node)
				}
				return err
			})
			v.whole(t)
			c.until("nothing of it to be left", func() error {
				there, err := to.client.List(t.Context())
				left, lerr := from.client.List(t.Context())
				if err = errors.Join(err, lerr); err == nil && (len(left) != 0 || len(there) != 1 || there[0].State != nodeapi.StateRunning) {
					err = fmt.Errorf("%d sandboxes on the node that was left, %d on the other", len(left), len(there))
				}
				return err
			})
			c.run("node", "drain", "-disable", "-yes", string(from.id))
			from, to = to, from
		}
		fmt.Fprintf(w, "move\t%s\tcontrol service\t%d\t%d running\t0\n", step, *faults, *faults)
	}
	must.NoError(t, w.Flush())
	t.Logf("after kill -9:\n%s", out.String())
}

// TestFaults_killsWhileSandboxesMove kills the node that is left, the one that is moved to, or the control service at any moment of a drain that moves sandboxes
// side by side. All of them run on the other node in the end, whole, and nowhere else.
func TestFaults_killsWhileSandboxesMove(t *testing.T) {
	c := start(t, "")
	from, to := c.nodes[0], c.nodes[1]
	c.only(from)
	var all []*visitor
	for range 3 {
		all = append(all, c.create(t))
	}
	c.only(nil)
	killed := map[string]int{}
	for range *faults * 4 {
		c.run("node", "drain", "-enable", "-yes", "-detach", "-deadline", "10m", string(from.id))
		c.until("the moves to begin", func() error {
			for _, v := range all {
				sb, err := c.client.GetSandbox(t.Context(), v.id)
				if err != nil || sb.Node == to.id || sb.State != "running" {
					return err
				}
				on, err := from.client.Get(t.Context(), v.id)
				if err == nil && on.State == nodeapi.StatePaused {
					return nil
				}
			}
			return errors.New("none has begun")
		})
		time.Sleep(time.Duration(rand.IntN(700)) * time.Millisecond) // any moment
		switch rand.IntN(3) {
		case 0:
			killed["the node that is left"]++
			from.restart()
		case 1:
			killed["the node that is moved to"]++
			to.restart()
		case 2:
			killed["control service"]++
			must.NoError(t, c.control.Signal(syscall.SIGKILL))
			<-c.control.Done()
			c.runControl()
		}
		c.until("the moves", func() error {
			for _, v := range all {
				sb, err := c.client.GetSandbox(t.Context(), v.id)
				if err == nil && (sb.Node != to.id || sb.State != "running") {
					err = fmt.Errorf("%s is %s on %s", v.id, sb.State, sb.Node)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		for _, v := range all {
			v.whole(t)
		}
		c.until("nothing to be left", func() error {
			there, err := to.client.List(t.Context())
			left, lerr := from.client.List(t.Context())
			if err = errors.Join(err, lerr); err == nil && (len(left) != 0 || len(there) != len(all)) {
				err = fmt.Errorf("%d sandboxes on the node that was left, %d on the other", len(left), len(there))
			}
			return err
		})
		c.run("node", "drain", "-disable", "-yes", string(from.id))
		from, to = to, from
	}
	t.Logf("killed: %v", killed)
}

// restart kills the daemon and starts it again.
func (m *machine) restart() {
	m.c.t.Helper()
	must.NoError(m.c.t, m.daemon.Signal(syscall.SIGKILL))
	<-m.daemon.Done()
	m.startDaemon(0)
}
