package servers

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// What a client does with a sandbox.
const (
	created = iota
	read
	deleted
	maybeDeleted // nobody knows
)

// operation is one of the history, with whether the sandbox was there.
type operation struct {
	id   api.SandboxID
	kind int
}

// model is a sandbox: it is there from its create to its delete, and an id is given once.
var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		by := map[api.SandboxID][]porcupine.Operation{}
		for _, op := range history {
			id := op.Input.(operation).id
			by[id] = append(by[id], op)
		}
		var out [][]porcupine.Operation
		for _, list := range by {
			out = append(out, list)
		}
		return out
	},
	Init: func() any { return 0 }, // 0: never was, 1: there, 2: gone
	Step: func(state, in, out any) (bool, any) {
		switch in.(operation).kind {
		case created:
			return state == 0, 1
		case read:
			return out.(bool) == (state == 1), state
		case deleted:
			return state == 1, 2
		}
		if state == 1 {
			return true, 2
		}
		return true, state
	},
}

// load is creates, reads and deletes over all servers.
type load struct {
	c     *cluster
	begin time.Time
	end   chan struct{}
	wg    sync.WaitGroup

	mu       sync.Mutex
	history  []porcupine.Operation
	accepted map[api.SandboxID]bool // and whether it shall still be there
	creates  int
	refused  map[string]int
	slowest  time.Duration // answer
	problems []string
}

func (c *cluster) load(t *testing.T, workers int, template string) *load {
	l := &load{c: c, begin: time.Now(), end: make(chan struct{}), accepted: map[api.SandboxID]bool{}, refused: map[string]int{}}
	for n := range workers {
		l.wg.Go(func() {
			for i := n; ; i++ {
				select {
				case <-l.end:
					return
				case <-t.Context().Done():
					return
				default:
				}
				l.life(t, n, i, template)
			}
		})
	}
	t.Cleanup(l.wg.Wait)
	return l
}

// stop ends the load and returns when all of it was answered.
func (l *load) stop() {
	close(l.end)
	l.wg.Wait()
}

// do is one call, through the server whose turn it is. A server that was killed is no answer: the client asks the next.
func (l *load) do(t *testing.T, client int, turn int, op operation, f func(*api.Client) (api.SandboxID, bool, error)) error {
	for ; ; turn++ {
		s := l.c.asked()[turn%3]
		call := time.Now()
		id, out, err := f(l.c.client(t, s))
		back := time.Now()
		status := answered(err)
		if err != nil && status == 0 && !s.up() && op.kind == read && t.Context().Err() == nil {
			continue
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if status != 0 || err == nil {
			l.slowest = max(l.slowest, back.Sub(call))
		}
		if op.id == "" {
			op.id = id
		}
		rec := porcupine.Operation{ClientId: client, Input: op, Call: call.Sub(l.begin).Nanoseconds(), Output: out, Return: back.Sub(l.begin).Nanoseconds()}
		switch {
		case err == nil:
			l.history = append(l.history, rec)
		case op.kind == deleted:
			rec.Input, rec.Return = operation{op.id, maybeDeleted}, math.MaxInt64
			l.history = append(l.history, rec)
		}
		if err != nil {
			l.refused[fmt.Sprint(op.kind, " ", status)]++
			if status != 0 && status != http.StatusServiceUnavailable {
				l.problems = append(l.problems, err.Error())
			}
		}
		return err
	}
}

// answered returns the status of a server's answer, 0 where there is an error and no answer.
func answered(err error) int {
	var e *api.Error
	if !errors.Is(err, api.ErrUnreachable) && errors.As(err, &e) {
		return e.Code
	}
	return 0
}

func (s *server) up() bool {
	select {
	case <-s.ended():
		return false
	default:
		return true
	}
}

// life is a create, reads, and, for two of three, a delete.
func (l *load) life(t *testing.T, client, turn int, template string) {
	var id api.SandboxID
	err := l.do(t, client, turn, operation{kind: created}, func(c *api.Client) (api.SandboxID, bool, error) {
		hour := int64(3600)
		sb, err := c.CreateSandbox(t.Context(), api.CreateRequest{Template: template, Timeout: &hour})
		id = sb.ID
		return sb.ID, true, err
	})
	if err != nil {
		return
	}
	l.mu.Lock()
	if _, twice := l.accepted[id]; twice {
		l.problems = append(l.problems, "given twice: "+string(id))
	}
	l.accepted[id] = true
	l.creates++
	l.mu.Unlock()
	look := func(c *api.Client) (api.SandboxID, bool, error) {
		sb, err := c.GetSandbox(t.Context(), id)
		if api.IsNotFound(err) {
			return id, false, nil
		}
		return id, sb.State == "running", err
	}
	_ = l.do(t, client, turn+1, operation{id, read}, look)
	if turn%3 == 0 {
		return
	}
	if l.do(t, client, turn+2, operation{id, deleted}, func(c *api.Client) (api.SandboxID, bool, error) {
		return id, true, c.DeleteSandbox(t.Context(), id)
	}) != nil {
		l.mu.Lock()
		delete(l.accepted, id) // nobody knows whether it is there
		l.mu.Unlock()
		return
	}
	l.mu.Lock()
	l.accepted[id] = false
	l.mu.Unlock()
	_ = l.do(t, client, turn, operation{id, read}, look)
}

// nothingLost checks what was answered against what there is, at every server and on the node.
func (l *load) nothingLost(t *testing.T) {
	t.Helper()
	t.Logf("%d creates accepted, %d operations; slowest answer %s; refused (operation, status): %v", l.creates, len(l.history), l.slowest.Round(time.Millisecond), l.refused)
	must.Eq(t, nil, l.problems)
	must.Positive(t, l.creates)
	for i, s := range l.c.asked() {
		client := l.c.client(t, s)
		n := 0
		for id, there := range l.accepted {
			if n++; n%3 != i {
				continue // each server is asked for a third
			}
			sb, err := client.GetSandbox(t.Context(), id)
			if there {
				must.NoError(t, err)
				must.Eq(t, "running", sb.State, must.Sprint(id))
			} else if err == nil {
				must.NotEq(t, "running", sb.State, must.Sprint(id))
			}
		}
	}
	for id, times := range l.c.node.AllCreated() {
		must.Eq(t, 1, times, must.Sprint(id))
	}
	poll(t, "service and node to agree", func() error {
		known := map[api.SandboxID]bool{}
		for sb, err := range l.c.client(t, l.c.servers[0]).AllSandboxes(t.Context(), api.ListOptions{}) {
			if err != nil {
				return err
			}
			known[sb.ID] = sb.State == "running"
		}
		for id, sb := range l.c.node.Running() {
			if sb.State == nodeapi.StateRunning && !known[id] && !sb.Warm {
				return fmt.Errorf("%s runs, and no server knows why", id)
			}
		}
		return nil
	})
	for _, life := range model.Partition(l.history) {
		if result := porcupine.CheckOperationsTimeout(model, life, time.Minute); result != porcupine.Ok {
			t.Errorf("the history of %s is %s:\n%s", life[0].Input.(operation).id, result, l.story(life))
		}
	}
}

// story is the history of a sandbox in words, with what its record says.
func (l *load) story(life []porcupine.Operation) string {
	var out strings.Builder
	slices.SortFunc(life, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	for _, op := range life {
		end := "never answered"
		if op.Return != math.MaxInt64 {
			end = time.Duration(op.Return).Round(time.Millisecond).String()
		}
		fmt.Fprintf(&out, "%s to %s: %s: %v\n", time.Duration(op.Call).Round(time.Millisecond), end, []string{"created", "read", "deleted", "maybe deleted"}[op.Input.(operation).kind], op.Output)
	}
	return out.String()
}

// TestAnyServer_takesEverything asks each server for everything, the leader or not.
func TestAnyServer_takesEverything(t *testing.T) {
	c := start(t)
	var ids []api.SandboxID
	for _, s := range c.servers {
		sb, err := c.client(t, s).CreateSandbox(t.Context(), api.CreateRequest{Template: "base"})
		must.NoError(t, err)
		ids = append(ids, sb.ID)
	}
	for _, s := range c.servers {
		for _, id := range ids {
			_, err := c.client(t, s).GetSandbox(t.Context(), id)
			must.NoError(t, err)
		}
	}
	// A stale read says how old it may be; one that is not says nothing.
	for _, s := range c.servers {
		h, err := c.ask(s, "GET", "/v2/sandboxes?stale")
		must.NoError(t, err)
		must.NotEq(t, "", h.Get(api.AgeHeader))
		must.SliceLen(t, 1, h.Values("X-Request-Id"))
		h, err = c.ask(s, "GET", "/v2/sandboxes")
		must.NoError(t, err)
		must.Eq(t, "", h.Get(api.AgeHeader))
		must.SliceLen(t, 1, h.Values("Access-Control-Allow-Origin"))
		must.SliceLen(t, 1, h.Values("X-Request-Id"))
	}
	// The cluster, as any of them shows it.
	for _, s := range c.servers {
		out, err := c.client(t, s).ControlServers(t.Context())
		must.NoError(t, err)
		must.Len(t, 3, out.Servers)
		must.Eq(t, 1, out.FailureTolerance)
	}
	// A backup through one, a restore through the next.
	lead := c.leader(t)
	at := slices.Index(c.servers, lead)
	one, next := c.servers[(at+1)%3], c.servers[(at+2)%3]
	backup, err := c.client(t, one).SaveState(t.Context())
	must.NoError(t, err)
	saved, err := io.ReadAll(backup)
	must.NoError(t, err)
	must.NoError(t, backup.Close())
	must.NoError(t, c.client(t, next).DeleteSandbox(t.Context(), ids[0]))
	later, err := c.client(t, one).CreateSandbox(t.Context(), api.CreateRequest{Template: "base"})
	must.NoError(t, err)
	_, err = c.client(t, next).RestoreState(t.Context(), bytes.NewReader(saved))
	must.NoError(t, err)
	for _, s := range c.servers {
		_, err := c.client(t, s).GetSandbox(t.Context(), later.ID)
		must.True(t, api.IsNotFound(err), must.Sprint(err))
	}
}

// TestLeaderKill_losesNothing kills the leader with kill -9, again and again, under load.
func TestLeaderKill_losesNothing(t *testing.T) {
	for _, warm := range []bool{false, true} {
		t.Run(map[bool]string{false: "cold creates", true: "claims of a pool"}[warm], func(t *testing.T) { leaderKills(t, warm) })
	}
}

func leaderKills(t *testing.T, warm bool) {
	c := start(t)
	if warm {
		c.fillPool(t, 30)
	}
	l := c.load(t, 6, "base")
	for range 3 {
		l.more(t, 40)
		lead := c.leader(t)
		lead.kill(t)
		killed := time.Now()
		other := c.servers[(slices.Index(c.servers, lead)+1)%3]
		_, err := c.ask(other, "GET", "/v2/sandboxes")
		t.Logf("leader %s killed: the first read elsewhere is answered after %s: %v", lead.name, time.Since(killed).Round(time.Millisecond), err)
		poll(t, "a create after the kill", func() error {
			_, err := c.client(t, other).CreateSandbox(t.Context(), api.CreateRequest{Template: "base"})
			return err
		})
		t.Logf("the first create after %s", time.Since(killed).Round(time.Millisecond))
		l.more(t, 20)
		lead.start(t)
		c.ready(t)
	}
	l.stop()
	l.nothingLost(t)
	claimed := 0
	for id := range l.accepted {
		times, _ := c.node.Claims(id)
		claimed += times
		must.LessEq(t, 1, times)
	}
	t.Logf("%d of those that are there yet were claimed from the pool", claimed)
}

// TestRollingRestart_losesNothing restarts one server after the other, as an upgrade does.
func TestRollingRestart_losesNothing(t *testing.T) {
	c := start(t)
	l := c.load(t, 6, "base")
	for _, s := range c.servers {
		l.more(t, 30)
		s.stop(t)
		l.more(t, 20)
		s.start(t)
		c.ready(t)
	}
	l.stop()
	l.nothingLost(t)
}

// more waits until so many more creates were accepted.
func (l *load) more(t *testing.T, n int) {
	t.Helper()
	have := -1
	poll(t, "the load to go on", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if have < 0 {
			have = l.creates
		}
		if l.creates < have+n {
			return fmt.Errorf("%d of %d creates; refused: %v; %v", l.creates-have, n, l.refused, l.problems)
		}
		return nil
	})
}

// TestPeers_oneThatWillNotComeBackIsRemoved kills a server that does not lead for good.
func TestPeers_oneThatWillNotComeBackIsRemoved(t *testing.T) {
	c := start(t)
	lead := c.leader(t)
	at := slices.Index(c.servers, lead)
	gone, left := c.servers[(at+1)%3], c.servers[(at+2)%3]
	client := c.client(t, left)
	must.Eq(t, http.StatusConflict, api.StatusOf(client.RemoveControlServer(t.Context(), lead.name)))
	must.True(t, api.IsNotFound(client.RemoveControlServer(t.Context(), "nobody")))
	gone.kill(t)
	poll(t, "the silence to be seen", func() error {
		out, err := client.ControlServers(t.Context())
		if err == nil && out.FailureTolerance != 0 {
			err = fmt.Errorf("%+v", out)
		}
		return err
	})
	must.Eq(t, http.StatusConflict, api.StatusOf(client.RemoveControlServer(t.Context(), left.name)), must.Sprint("only two answer"))
	must.NoError(t, client.RemoveControlServer(t.Context(), gone.name))
	out, err := client.ControlServers(t.Context())
	must.NoError(t, err)
	must.Len(t, 2, out.Servers)
	_, err = client.CreateSandbox(t.Context(), api.CreateRequest{Template: "base"})
	must.NoError(t, err)
}
