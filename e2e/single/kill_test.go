package single

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// TestKill_losesNothing kills the server and the node, each alone and with creates on their way: what runs goes on, every
// sandbox that somebody was told of is there exactly once, and the two sides agree soon after.
func TestKill_losesNothing(t *testing.T) {
	p := startPair(t)
	var running []string
	for range 3 {
		running = append(running, p.create(t, "-template", "base", "-timeout", "1h"))
	}
	before := p.pids(t)
	for _, tc := range []struct {
		name    string
		kill    func()
		restart func()
	}{
		{"server", func() { p.server.kill(t) }, func() { p.startServer(t) }},
		{"node", func() { p.node.kill(t) }, func() { p.startNode(t) }},
		{"both", func() { p.server.kill(t); p.node.kill(t) }, func() { p.startNode(t); p.startServer(t) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			told := p.createDuring(t, tc.kill)
			tc.restart()
			for _, id := range append(told, running...) {
				poll(t, "exec in "+id, func() error {
					out, stderr, code := p.trySoulbox(t, "exec", id, "--", "echo", "alive")
					if code != 0 || out != "alive\n" {
						return fmt.Errorf("exit code %d: %s%s", code, out, stderr)
					}
					return nil
				})
			}
			after := p.pids(t)
			for _, id := range running {
				must.Eq(t, before[id], after[id], must.Sprintf("PID 1 of %s", id))
			}
			poll(t, "server and node to agree", p.agree)
		})
	}
	p.soulbox(t, "sandbox", "destroy", "-all", "-yes")
	p.host().NothingLeft(t)
}

// createDuring starts creates, kills in the midst of them, and returns the ids that were answered.
func (p *pair) createDuring(t *testing.T, kill func()) []string {
	var mu sync.Mutex
	var told []string
	var wg sync.WaitGroup
	first := make(chan struct{}, 12)
	for range 12 {
		wg.Go(func() {
			out, _, code := p.trySoulbox(t, "sandbox", "create", "-json", "-template", "base", "-timeout", "1h")
			first <- struct{}{}
			var sb struct {
				ID string `json:"id"`
			}
			if code == 0 && json.Unmarshal([]byte(out), &sb) == nil {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, sb.ID)
			}
		})
	}
	<-first // one has been answered; the others are on their way
	kill()
	wg.Wait()
	return told
}

// pids returns the host's pid of each running sandbox's PID 1.
func (p *pair) pids(t *testing.T) map[string]int {
	t.Helper()
	pids := map[string]int{}
	poll(t, "the node's list", func() error {
		all, err := nodeapi.NewUnix(p.socket()).List(t.Context())
		for _, sb := range all {
			pids[sb.ID.String()] = sb.PID
		}
		return err
	})
	return pids
}

// agree checks that what the server says runs is what runs on the node, and that nothing is half-made.
func (p *pair) agree() error {
	client, err := api.New(api.Config{Address: "http://" + p.listen, APIKey: p.key})
	if err != nil {
		return err
	}
	ctx, cancel := contextFor()
	defer cancel()
	onNode := map[api.SandboxID]bool{}
	all, err := nodeapi.NewUnix(p.socket()).List(ctx)
	if err != nil {
		return err
	}
	for _, sb := range all {
		if sb.State == nodeapi.StateStarting || sb.State == nodeapi.StateStopping {
			return fmt.Errorf("node: %s is %s", sb.ID, sb.State)
		}
		onNode[sb.ID] = sb.State == nodeapi.StateRunning
	}
	known := 0
	for sb, err := range client.AllSandboxes(ctx, api.ListOptions{}) {
		if err != nil {
			return err
		}
		switch sb.State {
		case "running":
			if known++; !onNode[sb.ID] {
				return fmt.Errorf("server: %s runs, the node does not have it", sb.ID)
			}
		case "starting":
			return fmt.Errorf("server: %s is starting", sb.ID)
		}
	}
	for id, runs := range onNode {
		if runs {
			known--
		} else {
			return fmt.Errorf("node: %s is stopped and kept", id)
		}
	}
	if known != 0 {
		return fmt.Errorf("server and node differ by %d running sandboxes", known)
	}
	return nil
}

// TestLives_500leaveNothing creates and destroys 500 sandboxes through the whole of the system.
func TestLives_500leaveNothing(t *testing.T) {
	p := startPair(t)
	const lives, workers = 500, 4
	client, err := api.New(api.Config{Address: "http://" + p.listen, APIKey: p.key})
	must.NoError(t, err)
	one := func() error {
		sb, err := client.CreateSandbox(t.Context(), api.CreateRequest{Template: "base"})
		if err != nil {
			return err
		}
		return client.DeleteSandbox(t.Context(), sb.ID)
	}
	must.NoError(t, one())
	filesBefore := p.openFiles(t)
	errs := make(chan error, lives)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range lives / workers {
				errs <- one()
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		must.NoError(t, err)
	}
	p.host().NothingLeft(t)
	poll(t, "descriptors to be closed", func() error {
		for name, n := range p.openFiles(t) {
			if n > filesBefore[name]+8 { // idle connections between the two
				return fmt.Errorf("%s has %d open descriptors, %d before", name, n, filesBefore[name])
			}
		}
		return nil
	})
}

func (p *pair) openFiles(t *testing.T) map[string]int {
	t.Helper()
	n := map[string]int{}
	for _, s := range []*service{p.node, p.server} {
		fds, err := os.ReadDir(filepath.Join("/proc", fmt.Sprint(s.cmd.Process.Pid), "fd"))
		must.NoError(t, err)
		n[s.name] = len(fds)
	}
	return n
}
