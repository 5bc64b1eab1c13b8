package pool_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
)

// claimInput is an operation on one slot: to claim it, or to look whether somebody has.
type claimInput struct {
	slot  int
	claim bool
}

// TestClaims_areLinearizable has many clients claim the same slots and look at them: each slot behaves as a word that can be set once.
func TestClaims_areLinearizable(t *testing.T) {
	const clients, slots = 12, 20
	s := world(t, slots, nil)
	p, err := s.State.PoolNamed(state.DefaultTenant, "quick")
	must.NoError(t, err)
	rows, err := s.State.Slots(p.ID)
	must.NoError(t, err)
	must.Len(t, slots, rows)
	now := time.Now().UTC()
	begin := time.Now()
	var mu sync.Mutex
	var history []porcupine.Operation
	note := func(client int, in claimInput, call time.Duration, out bool) {
		back := time.Since(begin).Nanoseconds()
		mu.Lock()
		defer mu.Unlock()
		history = append(history, porcupine.Operation{ClientId: client, Input: in, Call: call.Nanoseconds(), Output: out, Return: back})
	}
	var wg sync.WaitGroup
	for client := range clients {
		wg.Go(func() {
			for n := range slots {
				i := (n + client) % slots // they meet at each, and not all in one order
				row := rows[i]
				look := func() {
					call := time.Since(begin)
					_, err := s.State.Sandbox(row.ID)
					note(client, claimInput{slot: i}, call, err == nil)
				}
				look()
				call := time.Since(begin)
				_, err := s.State.Apply(t.Context(), &state.SlotClaim{Sandbox: state.Sandbox{
					ID: row.ID, Tenant: state.DefaultTenant, Template: "base", Digest: row.Digest, State: state.Running, Node: row.Node, Pool: p.ID, Warm: true,
					CreatedAt: now, StartedAt: now, EndAt: now.Add(time.Hour), MaxEndAt: now.Add(time.Hour), CPUMillis: 1000, MemoryMB: 512, DiskMB: 1024,
				}})
				if err != nil && !errors.Is(err, state.ErrNotFound) {
					t.Errorf("claim: %v", err)
				}
				note(client, claimInput{slot: i, claim: true}, call, err == nil)
				look()
			}
		})
	}
	wg.Wait()
	model := porcupine.Model{
		Partition: func(h []porcupine.Operation) [][]porcupine.Operation {
			parts := make([][]porcupine.Operation, slots)
			for _, op := range h {
				i := op.Input.(claimInput).slot //nolint:forcetypeassert // put there above
				parts[i] = append(parts[i], op)
			}
			return parts
		},
		Init: func() any { return false },
		Step: func(st, in, out any) (bool, any) {
			taken, op, ok := st.(bool), in.(claimInput), out.(bool)
			if op.claim {
				return ok == !taken, true
			}
			return ok == taken, taken
		},
	}
	must.Eq(t, porcupine.Ok, porcupine.CheckOperationsTimeout(model, history, 30*time.Second))
	must.Len(t, clients*slots*3, history)
}

// The keeper looks at slots, and drops them a moment later: one that was claimed in between is somebody's sandbox.
func TestPool_whatWasClaimedMeanwhileIsNotDropped(t *testing.T) {
	s := world(t, 2, nil)
	sb, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.NoError(t, err)
	must.True(t, sb.Warm)
	full(t, s, 2)
	p, err := s.State.PoolNamed(state.DefaultTenant, "quick")
	must.NoError(t, err)
	rows, err := s.State.Slots(p.ID)
	must.NoError(t, err)
	must.NoError(t, s.Pools.Drop(t.Context(), sb.ID, rows[0].ID))
	running := s.Node.Running()
	must.MapContainsKey(t, running, sb.ID)
	must.MapNotContainsKey(t, running, rows[0].ID)
	got, err := s.Sandboxes.Get(t.Context(), state.DefaultTenant, sb.ID)
	must.NoError(t, err)
	must.Eq(t, state.Running, got.State)
}

func TestPool_templateDeletedUnderIt(t *testing.T) {
	s := world(t, 3, nil)
	sb, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.NoError(t, err)
	must.True(t, sb.Warm)
	must.NoError(t, s.Templates.Delete(t.Context(), state.DefaultTenant, "base"))
	coretest.Until(t, "its slots go, and it says why", func() bool {
		st := status(t, s)
		return st.Ready == 0 && warm(s) == 0 && st.Problem != ""
	})
	_, _, err = s.Sandboxes.Create(t.Context(), coretest.Params())
	must.True(t, api.IsNotFound(err), must.Sprintf("%v", err))
	got, err := s.Sandboxes.Get(t.Context(), state.DefaultTenant, sb.ID)
	must.NoError(t, err)
	must.Eq(t, state.Running, got.State, must.Sprint("who came from it goes on"))
	s.Node.PutTemplate("base", []byte("base"))
	_, err = s.Templates.Import(t.Context(), state.DefaultTenant, "base", "again", strings.NewReader("base"))
	must.NoError(t, err)
	full(t, s, 3)
}

// small places so many sandboxes and no more, as a cluster that is full.
type small struct {
	placement.Placer
	mu   sync.Mutex
	room int
}

func (p *small) Place(ctx context.Context, r placement.Request) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.room == 0 {
		return api.Errorf(http.StatusServiceUnavailable, api.CodeCapacity, "no node can take it: memory is exhausted on 1")
	}
	p.room--
	return p.Placer.Place(ctx, r)
}

func TestPool_largerThanTheClusterKeepsWhatFits(t *testing.T) {
	s := coretest.New(t, func(s *coretest.Server) { s.Config.Placer = &small{Placer: s.Config.Placer, room: 4} })
	_, err := s.Pools.Create(t.Context(), state.DefaultTenant, "test", spec(50))
	must.NoError(t, err)
	coretest.Until(t, "what fits, and why there is no more", func() bool {
		st := status(t, s)
		return st.Ready == 4 && st.Problem != ""
	})
	must.StrContains(t, status(t, s).Problem, "no node can take it")
	sb, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.NoError(t, err)
	must.True(t, sb.Warm, must.Sprint("what there is can be had"))
}

func TestPool_leavesANodeThatIsMarked(t *testing.T) {
	s := world(t, 2, nil)
	must.NoError(t, s.Sandboxes.MarkNode(t.Context(), s.Node.ID(), state.NodeDrain, "new kernel", "ops"))
	coretest.Until(t, "its slots go", func() bool { return warm(s) == 0 && status(t, s).Ready == 0 })
	n, _ := s.Fleet.Node(s.Node.ID())
	must.Eq(t, fleet.Draining, n.Status.State)
	must.NoError(t, s.Sandboxes.MarkNode(t.Context(), s.Node.ID(), "", "", "ops"))
	full(t, s, 2)
}

func TestPool_isForCreatesWithItsRules(t *testing.T) {
	s := coretest.New(t, nil)
	where := &api.Placement{Constraints: []api.PlacementRule{{Attribute: "node.datacenter", Value: "local"}}}
	n := spec(2)
	n.Placement = where
	p, err := s.Pools.Create(t.Context(), state.DefaultTenant, "test", n)
	must.NoError(t, err)
	must.Eq(t, "=", p.Placement.Constraints[0].Operator)
	full(t, s, 2)
	plain, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.NoError(t, err)
	must.False(t, plain.Warm)
	rules, err := placement.ParseRules(where)
	must.NoError(t, err)
	params := coretest.Params()
	params.Where = rules
	same, _, err := s.Sandboxes.Create(t.Context(), params)
	must.NoError(t, err)
	must.True(t, same.Warm)
	must.Eq(t, string(rules), same.Where)
	n.Name, n.Placement = "odd", &api.Placement{Strategy: "random"}
	_, err = s.Pools.Create(t.Context(), state.DefaultTenant, "test", n)
	must.ErrorContains(t, err, "placement.strategy")
}
