package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
)

// Autopilot says how the server that leads keeps the cluster well.
type Autopilot struct {
	// CleanupDeadServers has servers removed that were silent for DeadAfter, unless fewer than MinQuorum voters would be left.
	CleanupDeadServers bool `codec:"cleanup_dead_servers" json:"cleanup_dead_servers"`
	// DeadAfter is how long a server must be silent until it counts as gone for good.
	DeadAfter time.Duration `codec:"dead_after" json:"dead_after"`
	// LastContact is how long a server may go without the one that leads and be healthy.
	LastContact time.Duration `codec:"last_contact" json:"last_contact"`
	// MaxTrailingLogs is how many entries of the log a healthy server may lag behind.
	MaxTrailingLogs uint64 `codec:"max_trailing_logs" json:"max_trailing_logs"`
	// MinQuorum is how many voters there must be left after a removal.
	MinQuorum uint `codec:"min_quorum" json:"min_quorum"`
	// Stabilization is how long a server that has joined must be healthy until it gets a vote. It does not count while the one that leads has led for
	// less.
	Stabilization time.Duration `codec:"stabilization" json:"stabilization"`
}

// DefaultAutopilot returns the settings of a cluster that says nothing.
func DefaultAutopilot() Autopilot {
	return Autopilot{
		CleanupDeadServers: true, DeadAfter: 24 * time.Hour, LastContact: 5 * time.Second, MaxTrailingLogs: 1000, MinQuorum: 3, Stabilization: 10 * time.Second,
	}
}

// Check returns what is wrong with a.
func (a *Autopilot) Check() error {
	switch {
	case a.LastContact < time.Second:
		return fmt.Errorf("autopilot: last_contact_threshold %s is less than 1s", a.LastContact)
	case a.DeadAfter <= a.LastContact:
		return fmt.Errorf("autopilot: dead_server_last_contact_threshold %s is not longer than last_contact_threshold, %s", a.DeadAfter, a.LastContact)
	case a.Stabilization < 0:
		return fmt.Errorf("autopilot: server_stabilization_time %s is negative", a.Stabilization)
	case a.MaxTrailingLogs < 1:
		return fmt.Errorf("autopilot: max_trailing_logs is 0")
	case a.CleanupDeadServers && a.MinQuorum < 3:
		return fmt.Errorf("autopilot: min_quorum %d is less than 3, of which one may fail", a.MinQuorum)
	}
	return nil
}

// AutopilotState is how the cluster is, as the server that leads sees it.
type AutopilotState struct {
	Healthy          bool // all servers are
	FailureTolerance int  // healthy voters that may fail before nothing can be changed any more
	Leader           string
	Voters           []string // ids; the one that leads first
	Servers          []ServerHealth
}

// ServerHealth is how a server is.
type ServerHealth struct {
	ID, Addr string
	Leads    bool
	Voter    bool
	Healthy  bool
	Since    time.Time // when it became healthy, or failed
	// LastContact is how long ago it last heard from the one that leads; negative: nobody knows.
	LastContact time.Duration
	LastTerm    uint64 // of its log
	LastIndex   uint64
}

// What became of a server without a request.
const (
	MemberJoined   = "joined"
	MemberPromoted = "promoted"
	MemberRemoved  = "removed"
)

// MemberChange is a server that came, got its vote, or was taken out as dead.
type MemberChange struct {
	ID, Addr string
	What     string // Member…
	Reason   string
}

const (
	pilotUpdate    = 2 * time.Second // between two looks at the servers
	pilotReconcile = 5 * time.Second // between two rounds of promotions and removals
)

// pilot is the autopilot of the term in which this server leads, and what it knows of the others.
type pilot struct {
	mu   sync.Mutex
	now  *autopilot.Autopilot // nil: this server does not lead
	seen map[raft.ServerID]seenStats
}

// seenStats is what a server last said of itself.
type seenStats struct {
	at time.Time
	autopilot.ServerStats
}

// runAutopilot keeps the cluster well until ctx ends, which is while this server leads.
func (s *Server) runAutopilot(ctx context.Context) {
	a := autopilot.New(pilotRaft{s}, delegate{s, ctx}, autopilot.WithLogger(s.log),
		autopilot.WithUpdateInterval(pilotUpdate), autopilot.WithReconcileInterval(pilotReconcile))
	s.pilot.mu.Lock()
	s.pilot.now, s.pilot.seen = a, map[raft.ServerID]seenStats{}
	s.pilot.mu.Unlock()
	a.Start(ctx)
	<-ctx.Done()
	<-a.Stop()
	s.pilot.mu.Lock()
	s.pilot.now = nil
	s.pilot.mu.Unlock()
}

// metaAutopilot is the name of the row with the settings.
const metaAutopilot = "autopilot"

// AutopilotPut sets how the cluster is kept, in place of the settings that were recorded at IfIndex; 0: of none, when those of the servers' files count. Others by now are
// ErrConflict.
type AutopilotPut struct {
	Settings Autopilot `codec:"settings"`
	IfIndex  uint64    `codec:"if_index"`
}

func (*AutopilotPut) kind() commandType { return typeAutopilotPut }

func (c *AutopilotPut) check() error {
	if err := c.Settings.Check(); err != nil {
		return limitErrorf("autopilot", "%s", strings.TrimPrefix(err.Error(), "autopilot: "))
	}
	return nil
}

func (c *AutopilotPut) apply(tx *writeTx) (Result, error) {
	old, err := first[metaRow](tx.txn, tableMeta, metaAutopilot)
	if err != nil {
		return Result{}, err
	}
	if have := indexOf(old); have != c.IfIndex {
		return Result{}, fmt.Errorf("the autopilot's settings were changed at %d: %w", have, ErrConflict)
	}
	b, err := json.Marshal(c.Settings)
	if err != nil {
		return Result{}, err
	}
	if err := tx.txn.Insert(tableMeta, &metaRow{Name: metaAutopilot, Index: tx.index, Value: string(b)}); err != nil {
		return Result{}, fmt.Errorf("write the autopilot's settings: %w", err)
	}
	return Result{Changed: 1}, nil
}

// AutopilotConfig returns the settings that count: those that were set, or else those of the file of this server, while it leads.
func (s *Server) AutopilotConfig() Autopilot {
	a, _ := s.autopilotConfig()
	return a
}

// autopilotConfig also returns when they were set; 0: they are the file's.
func (s *Server) autopilotConfig() (Autopilot, uint64) {
	a := *s.cfg.Autopilot
	row, err := first[metaRow](s.read(), tableMeta, metaAutopilot)
	if err != nil || row == nil {
		return a, 0
	}
	if err := json.Unmarshal([]byte(row.Value), &a); err != nil { // never: AutopilotPut has written it
		s.log.Error("the autopilot's settings cannot be read, those of the file count", "error", err)
		return *s.cfg.Autopilot, row.Index
	}
	return a, row.Index
}

// SetAutopilot changes the settings of the cluster, and returns what they are. This server must lead. Of two changes at a time the later one sees the earlier.
func (s *Server) SetAutopilot(ctx context.Context, change func(*Autopilot)) (Autopilot, error) {
	for {
		a, index := s.autopilotConfig()
		change(&a)
		_, err := s.Apply(ctx, &AutopilotPut{Settings: a, IfIndex: index})
		if !errors.Is(err, ErrConflict) || ctx.Err() != nil {
			return a, err
		}
	}
}

// AutopilotState returns how the cluster is. This server must lead; ErrNoLeader is also the answer while it has not looked yet.
func (s *Server) AutopilotState() (AutopilotState, error) {
	if s.alone {
		if !s.Leads() {
			return AutopilotState{}, ErrNoLeader
		}
		st := s.ownStats()
		return AutopilotState{Healthy: true, Leader: s.cfg.ServerID, Voters: []string{s.cfg.ServerID}, Servers: []ServerHealth{{
			ID: s.cfg.ServerID, Addr: s.RaftAddr(), Leads: true, Voter: true, Healthy: true, LastTerm: st.LastTerm, LastIndex: st.LastIndex,
		}}}, nil
	}
	s.pilot.mu.Lock()
	a := s.pilot.now
	s.pilot.mu.Unlock()
	if a == nil {
		return AutopilotState{}, ErrNoLeader
	}
	st := a.GetState()
	if st.Leader == "" {
		return AutopilotState{}, fmt.Errorf("%w: it has not looked at the others yet", ErrNoLeader)
	}
	out := AutopilotState{Healthy: st.Healthy, FailureTolerance: st.FailureTolerance, Leader: string(st.Leader)}
	for _, id := range st.Voters {
		out.Voters = append(out.Voters, string(id))
	}
	for id, p := range st.Servers {
		out.Servers = append(out.Servers, ServerHealth{
			ID: string(id), Addr: string(p.Server.Address), Leads: p.State == autopilot.RaftLeader, Voter: p.HasVotingRights(),
			Healthy: p.Health.Healthy, Since: p.Health.StableSince,
			LastContact: p.Stats.LastContact, LastTerm: p.Stats.LastTerm, LastIndex: p.Stats.LastIndex,
		})
	}
	slices.SortFunc(out.Servers, func(a, b ServerHealth) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// delegate is what the autopilot asks this server for, in the term that ctx is of.
type delegate struct {
	s   *Server
	ctx context.Context
}

var _ autopilot.ApplicationIntegration = delegate{}

// AutopilotConfig implements autopilot.ApplicationIntegration.
func (d delegate) AutopilotConfig() *autopilot.Config {
	c := d.s.AutopilotConfig()
	return &autopilot.Config{
		CleanupDeadServers: c.CleanupDeadServers, LastContactThreshold: c.LastContact, MaxTrailingLogs: c.MaxTrailingLogs,
		MinQuorum: c.MinQuorum, ServerStabilizationTime: c.Stabilization,
	}
}

// NotifyState implements autopilot.ApplicationIntegration.
func (d delegate) NotifyState(*autopilot.State) {}

// KnownServers implements autopilot.ApplicationIntegration. There is no other list of servers than Raft's own, so none is stale; one fails by its silence.
func (d delegate) KnownServers() map[raft.ServerID]*autopilot.Server {
	out := map[raft.ServerID]*autopilot.Server{}
	list, err := d.s.configuration()
	if err != nil {
		return out
	}
	dead := d.s.AutopilotConfig().DeadAfter
	for _, p := range list {
		status := autopilot.NodeAlive
		if d.s.silent.since(p.ID) >= dead {
			status = autopilot.NodeFailed
		}
		out[p.ID] = &autopilot.Server{
			ID: p.ID, Name: string(p.ID), Address: p.Address, NodeStatus: status, RaftVersion: int(raft.ProtocolVersionMax),
			IsLeader: string(p.ID) == d.s.cfg.ServerID,
		}
	}
	return out
}

// FetchServerStats implements autopilot.ApplicationIntegration: every server is asked at the same time. One that does not answer is as it was when it last did.
func (d delegate) FetchServerStats(ctx context.Context, servers map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	var (
		wg  sync.WaitGroup
		mu  sync.Mutex
		out = map[raft.ServerID]*autopilot.ServerStats{}
	)
	for id, p := range servers {
		wg.Go(func() {
			st, err := autopilot.ServerStats{}, error(nil)
			if string(id) == d.s.cfg.ServerID {
				st = d.s.ownStats()
			} else {
				var out statsAnswer
				if out, err = d.s.askStats(ctx, string(p.Address)); err == nil {
					st = out.stats()
				}
			}
			if err != nil {
				d.s.log.Debug("another server does not say how it is", "server", string(id), "error", err)
			}
			st = d.s.pilot.note(id, st, err)
			mu.Lock()
			defer mu.Unlock()
			out[id] = &st
		})
	}
	wg.Wait()
	return out
}

// note keeps what a server has said, or returns what it last said where it did not.
func (p *pilot) note(id raft.ServerID, st autopilot.ServerStats, err error) autopilot.ServerStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.seen[id] = seenStats{time.Now(), st}
		return st
	}
	old, ok := p.seen[id]
	if !ok {
		return autopilot.ServerStats{LastContact: -1}
	}
	st = old.ServerStats
	st.LastContact += time.Since(old.at)
	return st
}

// RemoveFailedServer implements autopilot.ApplicationIntegration.
func (d delegate) RemoveFailedServer(p *autopilot.Server) {
	reason := fmt.Sprintf("it was silent for %s", d.s.silent.since(p.ID).Round(time.Second))
	if err := d.s.RemoveServer(d.ctx, string(p.ID)); err != nil {
		d.s.log.Warn("a server that is gone stays in the cluster", "server", string(p.ID), "error", err)
		return
	}
	d.s.member(MemberChange{ID: string(p.ID), Addr: string(p.Address), What: MemberRemoved, Reason: reason})
}

func (s *Server) member(c MemberChange) {
	s.log.Info("member of the cluster", "server", c.ID, "address", c.Addr, "what", c.What, "reason", c.Reason)
	if s.cfg.OnMember != nil {
		s.cfg.OnMember(c)
	}
}

// pilotRaft is Raft for the autopilot. Its changes return when they are answered, and none is under way when Raft shuts down, which would not answer them.
type pilotRaft struct{ s *Server }

var _ autopilot.Raft = pilotRaft{}

// failed is the future of what was not begun.
type failed struct{ err error }

func (f failed) Error() error                      { return f.err }
func (f failed) Index() uint64                     { return 0 }
func (f failed) Configuration() raft.Configuration { return raft.Configuration{} }

func guarded[F raft.Future](s *Server, otherwise F, f func() F) F {
	s.calls.RLock()
	defer s.calls.RUnlock()
	if s.closed {
		return otherwise
	}
	out := f()
	_ = out.Error() // the caller asks again
	return out
}

func (p pilotRaft) change(f func() raft.IndexFuture) raft.IndexFuture {
	return guarded[raft.IndexFuture](p.s, failed{errClosed}, f)
}

// AddNonvoter implements autopilot.Raft.
func (p pilotRaft) AddNonvoter(id raft.ServerID, addr raft.ServerAddress, prev uint64, d time.Duration) raft.IndexFuture {
	return p.change(func() raft.IndexFuture { return p.s.raft.AddNonvoter(id, addr, prev, d) })
}

// AddVoter implements autopilot.Raft.
func (p pilotRaft) AddVoter(id raft.ServerID, addr raft.ServerAddress, prev uint64, d time.Duration) raft.IndexFuture {
	f := p.change(func() raft.IndexFuture { return p.s.raft.AddVoter(id, addr, prev, d) })
	if f.Error() == nil {
		p.s.member(MemberChange{ID: string(id), Addr: string(addr), What: MemberPromoted, Reason: "it is healthy and stable"})
	}
	return f
}

// DemoteVoter implements autopilot.Raft.
func (p pilotRaft) DemoteVoter(id raft.ServerID, prev uint64, d time.Duration) raft.IndexFuture {
	return p.change(func() raft.IndexFuture { return p.s.raft.DemoteVoter(id, prev, d) })
}

// RemoveServer implements autopilot.Raft.
func (p pilotRaft) RemoveServer(id raft.ServerID, prev uint64, d time.Duration) raft.IndexFuture {
	return p.change(func() raft.IndexFuture { return p.s.raft.RemoveServer(id, prev, d) })
}

// GetConfiguration implements autopilot.Raft.
func (p pilotRaft) GetConfiguration() raft.ConfigurationFuture {
	return guarded[raft.ConfigurationFuture](p.s, failed{errClosed}, p.s.raft.GetConfiguration)
}

// LeadershipTransferToServer implements autopilot.Raft.
func (p pilotRaft) LeadershipTransferToServer(id raft.ServerID, addr raft.ServerAddress) raft.Future {
	return guarded[raft.Future](p.s, failed{errClosed}, func() raft.Future { return p.s.raft.LeadershipTransferToServer(id, addr) })
}

// LastIndex implements autopilot.Raft.
func (p pilotRaft) LastIndex() uint64 { return p.s.raft.LastIndex() }

// Leader implements autopilot.Raft.
func (p pilotRaft) Leader() raft.ServerAddress {
	addr, _ := p.s.raft.LeaderWithID()
	return addr
}

// Stats implements autopilot.Raft.
func (p pilotRaft) Stats() map[string]string { return p.s.raft.Stats() }

// State implements autopilot.Raft.
func (p pilotRaft) State() raft.RaftState { return p.s.raft.State() }
