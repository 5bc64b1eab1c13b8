package lifecycle_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/edge"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/placement/local"
	"github.com/soulbox-dev/soulbox/control/reconcile"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// pair places on two nodes: where a request says, else on the first.
type pair struct {
	mu            sync.Mutex
	left          []api.NodeID
	dead          bool // whoever asks was killed: nothing ends any more
	first, second api.NodeID
	at            map[api.NodeID]*local.Placer
}

func (p *pair) Place(ctx context.Context, r placement.Request) error {
	if r.On == p.second {
		return p.at[p.second].Place(ctx, r)
	}
	return p.at[p.first].Place(ctx, r)
}

// Draining implements placement.Drainer.
func (p *pair) Draining(context.Context) ([]api.NodeID, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left, nil
}

func (p *pair) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

// Stop forgets the sandbox, as a scheduler does, whether or not a node answers.
func (p *pair) Stop(ctx context.Context, id api.SandboxID) error {
	p.mu.Lock()
	dead := p.dead
	p.mu.Unlock()
	if dead {
		return errors.New("whoever asks was killed")
	}
	for _, l := range p.at {
		if err := l.Stop(ctx, id); err != nil && !errors.Is(err, nodeapi.ErrUnreachable) {
			return err
		}
	}
	return nil
}

func (p *pair) List(ctx context.Context) ([]placement.Placed, error) {
	var all []placement.Placed
	for _, l := range p.at {
		if list, err := l.List(ctx); err == nil {
			all = append(all, list...)
		}
	}
	return all, nil
}

// twoNodes is a server on two nodes, which share a snapshot store where shared.
func twoNodes(t *testing.T, shared bool) (s *coretest.Server, second *fleettest.Node, entries [2]health.Node) {
	t.Helper()
	second = fleettest.New(t)
	s = coretest.New(t, func(s *coretest.Server) {
		if shared {
			fleettest.ShareStore(s.Node, second)
		}
		entries = [2]health.Node{{Name: "a", Address: "unix://" + s.Node.Socket}, {Name: "b", Address: "unix://" + second.Socket}}
		must.NoError(t, s.Directory.Set(entries[0], entries[1]))
		p := &pair{first: s.Node.ID(), second: second.ID(), at: map[api.NodeID]*local.Placer{}}
		for _, n := range []*fleettest.Node{s.Node, second} {
			client := nodeapi.NewUnix(n.Socket)
			t.Cleanup(client.Close)
			p.at[n.ID()] = local.New(client)
			t.Cleanup(p.at[n.ID()].Close)
		}
		s.Config.Placer = p
	})
	must.NoError(t, s.ConnectNodes(t.Context(), 2))
	return s, second, entries
}

// die is the end of the first node, of which the directory knows.
func die(t *testing.T, s *coretest.Server, entries [2]health.Node) {
	t.Helper()
	s.Node.Kill()
	entries[0].Status, entries[0].Reason = health.Critical, "its check fails"
	must.NoError(t, s.Directory.Set(entries[0], entries[1]))
}

func TestResume_comesBackElsewhereWhereItsNodeIsGone(t *testing.T) {
	s, second, entries := twoNodes(t, true)
	sb := running(t, s, func(p *lifecycle.CreateParams) { p.EnvVars = map[string]string{"A": "1"} })
	must.Eq(t, s.Node.ID(), sb.Node)
	_, err := s.Sandboxes.Pause(t.Context(), tenantOf(sb), sb.ID, lifecycle.KeepMemory)
	must.NoError(t, err)
	coretest.Until(t, "the stored copy", func() bool {
		got, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
		return err == nil && got.Stored != "" && got.StoredIn == "shared"
	})
	must.Eq(t, 1, s.Node.Snapshots(), must.Sprint("it is stored once"))
	die(t, s, entries)
	var got state.Sandbox
	coretest.Until(t, "its return", func() bool {
		got, err = s.Sandboxes.Resume(t.Context(), tenantOf(sb), sb.ID, time.Minute, lifecycle.KeepMemory)
		if err != nil {
			must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err), must.Sprintf("%v", err))
		}
		return err == nil
	})
	must.Eq(t, state.Running, got.State)
	must.Eq(t, second.ID(), got.Node)
	must.Eq(t, "", string(got.Stored))
	must.Eq(t, sb.EnvdToken, got.EnvdToken)
	must.MapContainsKey(t, second.Running(), sb.ID)
	must.Eq(t, 0, second.Snapshots(), must.Sprint("the copy is another state by now"))

	// The node comes back with what it had: that is the past, and goes.
	s.Node.Start(t)
	entries[0].Status = health.Passing
	must.NoError(t, s.Directory.Set(entries[0], entries[1]))
	coretest.Until(t, "the end of the old copy", func() bool { return s.Node.Records() == 0 })
	must.MapContainsKey(t, second.Running(), sb.ID)
	must.NoError(t, s.Sandboxes.Delete(t.Context(), tenantOf(sb), sb.ID))
}

func TestResume_waitsForANodeThatIsOnlySilent(t *testing.T) {
	s, second, _ := twoNodes(t, true)
	sb := running(t, s, nil)
	_, err := s.Sandboxes.Pause(t.Context(), tenantOf(sb), sb.ID, lifecycle.KeepMemory)
	must.NoError(t, err)
	coretest.Until(t, "the stored copy", func() bool {
		got, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
		return err == nil && got.Stored != ""
	})
	s.Node.Kill()
	coretest.Until(t, "the silence", func() bool {
		n, ok := s.Fleet.Node(sb.Node)
		return ok && !n.Connected
	})
	_, err = s.Sandboxes.Resume(t.Context(), tenantOf(sb), sb.ID, time.Minute, lifecycle.KeepMemory)
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err), must.Sprint("it may have it running"))
	must.MapEmpty(t, second.Running())
	s.Node.Start(t)
}

func TestPause_isNotStoredWhereNobodyElseCouldFindIt(t *testing.T) {
	s, _, _ := twoNodes(t, false)
	sb := running(t, s, nil)
	_, err := s.Sandboxes.Pause(t.Context(), tenantOf(sb), sb.ID, lifecycle.KeepMemory)
	must.NoError(t, err)
	time.Sleep(300 * time.Millisecond) // some passes of the reconciler
	got, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
	must.NoError(t, err)
	must.Eq(t, "", string(got.Stored))
	must.Eq(t, 0, s.Node.Snapshots())
}

func TestSnapshot_isUsedAndDeletedElsewhereWhereTheStoreIsShared(t *testing.T) {
	s, second, entries := twoNodes(t, true)
	sb := running(t, s, nil)
	sn, err := s.Sandboxes.TakeSnapshot(t.Context(), lifecycle.SnapshotParams{Caller: coretest.Caller, Sandbox: sb.ID})
	must.NoError(t, err)
	must.Eq(t, "shared", sn.Store)
	die(t, s, entries)
	coretest.Until(t, "the node's absence", func() bool {
		n, ok := s.Fleet.Node(sb.Node)
		return ok && !n.Connected
	})
	child := running(t, s, func(p *lifecycle.CreateParams) { p.Template = string(sn.ID) })
	must.Eq(t, second.ID(), child.Node)
	must.NoError(t, s.Sandboxes.DeleteSnapshot(t.Context(), coretest.Caller.Tenant, string(sn.ID), true))
	must.Eq(t, 0, second.Snapshots())
}

func TestDrain_movesWhatRuns(t *testing.T) {
	s, second, _ := twoNodes(t, true)
	sb := running(t, s, func(p *lifecycle.CreateParams) { p.Timeout = time.Hour })
	p := s.Config.Placer.(*pair)
	p.mu.Lock()
	p.left = []api.NodeID{sb.Node}
	p.mu.Unlock()
	coretest.Until(t, "its move", func() bool {
		got, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
		return err == nil && got.Node == second.ID() && got.State == state.Running
	})
	got, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
	must.NoError(t, err)
	must.True(t, got.EndAt.Equal(sb.EndAt), must.Sprint("it has the time that it had"))
	must.False(t, got.Moving)
	must.Eq(t, sb.EnvdToken, got.EnvdToken)
	must.MapContainsKey(t, second.Running(), sb.ID)
	// The one may come before the other: the reconciler ends what a node has no more to run, and who moved it lets the copy go.
	coretest.Until(t, "the end where it was", func() bool { return s.Node.Records() == 0 })
	coretest.Until(t, "the end of the copy", func() bool { return second.Snapshots() == 0 })
	must.MapContainsKey(t, second.Running(), sb.ID)
}

func TestDrain_leavesWhatNoOtherNodeCanRestore(t *testing.T) {
	s, _, _ := twoNodes(t, false)
	sb := running(t, s, nil)
	must.Error(t, s.Sandboxes.Move(t.Context(), sb.ID, []api.NodeID{sb.Node}))
	got, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
	must.NoError(t, err)
	must.Eq(t, state.Running, got.State)
	must.Eq(t, sb.Node, got.Node)
	must.MapContainsKey(t, s.Node.Running(), sb.ID)
}

func TestMove_waitsInTheStoreWhereTheOtherNodeFails(t *testing.T) {
	s, second, _ := twoNodes(t, true)
	sb := running(t, s, nil)
	second.SetHooks(fleettest.Hooks{BeforeCreate: func(context.Context, nodeapi.CreateRequest) error {
		return api.Errorf(http.StatusConflict, nodeapi.CodeIncompatible, "the processor lacks avx512f")
	}})
	err := s.Sandboxes.Move(t.Context(), sb.ID, []api.NodeID{sb.Node})
	must.ErrorContains(t, err, "avx512f")
	got, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
	must.NoError(t, err)
	must.Eq(t, state.Paused, got.State, must.Sprint("its place is given up by then: the copy is what it comes back from"))
	must.True(t, got.Wakes())
	second.SetHooks(fleettest.Hooks{})
	got, err = s.Sandboxes.Wake(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Eq(t, state.Running, got.State)
}

func TestMove_chosesANodeThatCanRestoreIt(t *testing.T) {
	s, second, _ := twoNodes(t, true)
	sb := running(t, s, nil)
	second.Unfit("snapshot cannot be restored here: the processor lacks avx512f")
	err := s.Sandboxes.Move(t.Context(), sb.ID, []api.NodeID{sb.Node})
	must.ErrorContains(t, err, "avx512f")
	got, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
	must.NoError(t, err)
	must.Eq(t, state.Running, got.State, must.Sprint("nothing was given up"))
	must.Eq(t, sb.Node, got.Node)
}

// Requests wait from before its node stops it, so that nobody is told that it is not there.
func TestMove_holdsRequestsFromItsBeginning(t *testing.T) {
	s, second, _ := twoNodes(t, true)
	sb := running(t, s, nil)
	pausing, goOn := make(chan struct{}), make(chan struct{})
	s.Node.SetHooks(fleettest.Hooks{Call: func(_, path string) error {
		if strings.HasSuffix(path, "/pause") {
			close(pausing)
			<-goOn
		}
		return nil
	}})
	moved := make(chan error, 1)
	go func() { moved <- s.Sandboxes.Move(t.Context(), sb.ID, []api.NodeID{sb.Node}) }()
	<-pausing
	_, err := s.Reach().Find(sb.ID)
	must.ErrorIs(t, err, edge.ErrPaused, must.Sprint("the edge waits"))
	early, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	type found struct {
		node *nodeapi.Client
		err  error
	}
	asked := make(chan found, 1)
	go func() {
		n, err := s.Sandboxes.NodeFor(t.Context(), tenantOf(sb), sb.ID)
		asked <- found{n, err}
	}()
	select {
	case f := <-asked:
		t.Fatalf("answered in the midst of a move: %v", f.err)
	case <-early.Done():
	}
	close(goOn)
	must.NoError(t, <-moved)
	f := <-asked
	must.NoError(t, f.err)
	must.StrHasSuffix(t, second.Socket, f.node.Address())
	got, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
	must.NoError(t, err)
	must.False(t, got.Moving)
}

// The node has paused it, dies before it says so, and is out of reach for a while: nobody has asked for a sandbox that is paused.
func TestMove_thatItsNodeCutsOffIsSettled(t *testing.T) {
	s, _, _ := twoNodes(t, true)
	sb := running(t, s, func(p *lifecycle.CreateParams) { p.Timeout = time.Hour })
	s.Node.SetHooks(fleettest.Hooks{Call: func(_, path string) error {
		if strings.HasSuffix(path, "/pause") {
			s.Node.Pause(sb.ID)
		}
		return errors.New("cut off")
	}})
	must.Error(t, s.Sandboxes.Move(t.Context(), sb.ID, []api.NodeID{sb.Node}))
	s.Node.SetHooks(fleettest.Hooks{})
	coretest.Until(t, "it to run where it is", func() bool {
		got, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
		_, runs := s.Node.Running()[sb.ID]
		return err == nil && !got.Moving && got.State == state.Running && got.Node == sb.Node && runs
	})
}

// A service died after it had recorded that a sandbox is to move.
func TestMove_thatADeadServiceBeganIsSettled(t *testing.T) {
	for _, tc := range []struct {
		name   string
		paused bool // its node had paused it, and nobody recorded that
		act    func(t *testing.T, s *coretest.Server, sb state.Sandbox)
	}{
		{"by a request", false, func(t *testing.T, s *coretest.Server, sb state.Sandbox) {
			_, err := s.Sandboxes.NodeFor(t.Context(), tenantOf(sb), sb.ID)
			must.NoError(t, err)
		}},
		{"by a pause", false, func(t *testing.T, s *coretest.Server, sb state.Sandbox) {
			got, err := s.Sandboxes.Pause(t.Context(), tenantOf(sb), sb.ID, lifecycle.KeepMemory)
			must.NoError(t, err)
			must.False(t, got.Moving)
			_, err = s.Sandboxes.Resume(t.Context(), tenantOf(sb), sb.ID, time.Hour, lifecycle.KeepMemory)
			must.NoError(t, err)
		}},
		{"where nothing drains any more", false, func(*testing.T, *coretest.Server, state.Sandbox) {}},
		{"where its node has paused it", true, func(*testing.T, *coretest.Server, state.Sandbox) {}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _, _ := twoNodes(t, true)
			sb := running(t, s, func(p *lifecycle.CreateParams) { p.Timeout = time.Hour })
			_, err := s.State.Apply(t.Context(), &state.SandboxMove{ID: sb.ID, Moving: true})
			must.NoError(t, err)
			if tc.paused {
				s.Node.Pause(sb.ID)
			}
			tc.act(t, s, sb)
			coretest.Until(t, "it to run where it is", func() bool {
				got, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
				_, runs := s.Node.Running()[sb.ID]
				return err == nil && !got.Moving && got.State == state.Running && got.Node == sb.Node && runs
			})
		})
	}
}

// A service died after it had had a sandbox placed on the other node, and before it recorded that: what has run there is not ended to begin again.
func TestMove_thatADeadServicePlacedIsRecorded(t *testing.T) {
	for _, tc := range []struct {
		name   string
		drains bool // the node is to be left yet
		runs   bool // it is there already when the next service looks, and not on its way yet
	}{
		{"where it runs", true, true},
		{"where it is on its way", true, false},
		{"where it runs, and nothing drains any more", false, true},
		{"where it is on its way, and nothing drains any more", false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, second, _ := twoNodes(t, true)
			sb := running(t, s, func(p *lifecycle.CreateParams) { p.Timeout = time.Hour })
			coming, comes := make(chan struct{}), make(chan struct{})
			second.SetHooks(fleettest.Hooks{BeforeCreate: func(context.Context, nodeapi.CreateRequest) error {
				close(coming) // a second one panics
				<-comes
				return nil
			}})
			p := s.Config.Placer.(*pair)
			ctx, die := context.WithCancel(t.Context())
			moved := make(chan error, 1)
			go func() { moved <- s.Sandboxes.Move(ctx, sb.ID, []api.NodeID{sb.Node}) }()
			<-coming
			p.set(func() { p.dead = true })
			die()
			must.Error(t, <-moved)
			s.Stop()
			s.Config.Pace = func(c *reconcile.Config) { // nobody but who moves it shall see it
				coretest.Quick(c)
				c.StopGrace = time.Hour
			}
			p.set(func() {
				p.dead = false
				if tc.drains {
					p.left = []api.NodeID{sb.Node}
				}
			})
			if tc.runs {
				close(comes)
				coretest.Until(t, "it to run", func() bool { return len(second.Running()) == 1 })
			}
			s.Start(t)
			must.NoError(t, s.ConnectNodes(t.Context(), 2))
			if !tc.runs {
				coretest.Until(t, "its coming to be seen", func() bool { return len(s.Fleet.Find(sb.ID)) > 0 })
				close(comes)
			}
			coretest.Until(t, "its record", func() bool {
				now, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
				return err == nil && !now.Moving && now.State == state.Running && now.Node == second.ID()
			})
			coretest.Until(t, "the end of its copy", func() bool { return second.Snapshots() == 0 })
			must.MapContainsKey(t, second.Running(), sb.ID)
			must.Eq(t, 1, second.Created(sb.ID))
		})
	}
}

// A service or a node was killed between a resume, or an end, and the removal of the copy.
func TestCollect_removesCopiesThatNoRecordKnows(t *testing.T) {
	s, second, _ := twoNodes(t, true)
	sb := running(t, s, nil)
	_, err := s.Sandboxes.Pause(t.Context(), tenantOf(sb), sb.ID, lifecycle.KeepMemory)
	must.NoError(t, err)
	coretest.Until(t, "the stored copy", func() bool {
		got, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
		return err == nil && got.Stored != ""
	})
	s.Node.AddCopy(api.NewSnapshotID(), tenantOf(sb))
	s.Node.AddCopy(api.NewSnapshotID(), "of nobody here")
	before := s.Node.Collects() + second.Collects()
	coretest.Until(t, "two more collections", func() bool { return s.Node.Collects()+second.Collects() >= before+2 })
	must.Eq(t, 2, s.Node.Snapshots(), must.Sprint("the sandbox's own, and the other tenant's"))
	must.True(t, s.Node.Collects() == 0 || second.Collects() == 0, must.Sprint("one node does it for a store"))
	_, err = s.Sandboxes.Resume(t.Context(), tenantOf(sb), sb.ID, time.Minute, lifecycle.KeepMemory)
	must.NoError(t, err)
}
