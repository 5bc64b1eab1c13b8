package state

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
)

// Server is one control server's part of the cluster: the tables, and Raft to change them.
type Server struct {
	*Store

	cfg       Config
	log       hclog.Logger
	raft      *raft.Raft
	stores    *stores
	transport raft.Transport
	streams   *streamLayer // under transport; nil: there is none
	alone     bool         // there are no other servers, and cannot be

	leader leadership
	rounds rounds
	silent silent
	pilot  pilot
	known  *knownCluster
	asking *http.Transport // for calls to other servers
	cancel context.CancelFunc
	leads  sync.WaitGroup // the goroutines that follow the leadership, and ask the others for it

	// calls is held for reading by calls under way: raft forgets to answer what is in its queue when it shuts down, so
	// nothing may be in it then.
	calls  sync.RWMutex
	closed bool // guarded by calls
}

// errClosed is the answer to calls after Close.
var errClosed = fmt.Errorf("%w: it has shut down", ErrNoLeader)

// Open starts this server with the state that cfg.Dir holds. A fresh folder becomes a new cluster of cfg.Peers, or of this
// server alone. It returns before a leader is known: see WaitLeader.
func Open(cfg Config) (_ *Server, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	store, err := newStore()
	if err != nil {
		return nil, err
	}
	store.counter = cfg.Counter
	s := &Server{
		Store: store, cfg: cfg, log: cfg.Logger, alone: cfg.Bind == "" && cfg.transport == nil,
		leader: leadership{changed: make(chan struct{})},
	}
	s.asking = s.newAsking()
	if s.stores, err = openStores(&s.cfg); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.closeParts())
		}
	}()
	if s.cfg.ServerID == "" {
		if s.cfg.ServerID, err = serverID(cfg.Dir); err != nil {
			return nil, err
		}
	}
	if s.known, err = openKnownCluster(cfg.Dir); err != nil {
		return nil, err
	}
	if err := s.openTransport(); err != nil {
		return nil, err
	}
	if err := s.sameCluster(context.Background()); err != nil {
		return nil, err
	}
	if err := s.startRaft(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Server) openTransport() (err error) {
	switch cfg := &s.cfg; {
	case cfg.transport != nil:
		s.transport = cfg.transport
	case cfg.Bind == "":
		_, s.transport = raft.NewInmemTransport("local")
	default:
		if s.streams, err = listen(cfg); err != nil {
			return err
		}
		s.transport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: s.streams, MaxPool: 3, Timeout: 10 * time.Second, Logger: cfg.Logger.Named("raft-net"),
		})
	}
	return nil
}

// startRaft starts raft, as a new cluster where there is no state yet.
func (s *Server) startRaft() error {
	log := s.stores.log
	if failpoint.On {
		log = killedStore{log}
	}
	cache, err := raft.NewLogCache(logCacheEntries, log)
	if err != nil {
		return fmt.Errorf("make log cache: %w", err)
	}
	exists, err := raft.HasExistingState(s.stores.log, s.stores.stable, s.stores.snaps)
	if err != nil {
		return fmt.Errorf("look for existing state: %w", err)
	}
	notify := make(chan bool, 16)
	servers := max(1, len(s.cfg.Peers))
	rc := s.cfg.raftConfig(servers, notify)
	if joins := s.cfg.Others != nil && len(s.cfg.Peers) == 0; !exists && !joins {
		if err := raft.BootstrapCluster(rc, cache, s.stores.stable, s.stores.snaps, s.transport, s.firstConfiguration()); err != nil {
			return fmt.Errorf("make new cluster: %w", err)
		}
	} else if exists {
		if servers, err = s.countServers(rc, cache); err != nil {
			return err
		}
		rc = s.cfg.raftConfig(servers, notify)
	}
	if s.raft, err = raft.NewRaft(rc, &fsm{store: s.Store, known: s.known}, cache, s.stores.stable, s.stores.snaps, s.transport); err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.leads.Go(func() { s.followLeadership(ctx, notify) })
	s.leads.Go(func() { s.watchLeadership(ctx) })
	if s.streams != nil {
		s.leads.Go(func() { s.stayMember(ctx) })
	}
	return nil
}

// countServers returns how many servers the stored configuration has.
func (s *Server) countServers(rc *raft.Config, log raft.LogStore) (int, error) {
	c, err := raft.GetConfiguration(rc, skipFSM{}, log, s.stores.stable, s.stores.snaps, s.transport)
	if err != nil {
		return 0, fmt.Errorf("read cluster configuration: %w", err)
	}
	return max(1, len(c.Servers)), nil
}

func (s *Server) firstConfiguration() raft.Configuration {
	if len(s.cfg.Peers) == 0 {
		return raft.Configuration{Servers: []raft.Server{{
			ID: raft.ServerID(s.cfg.ServerID), Address: s.transport.LocalAddr(),
		}}}
	}
	var c raft.Configuration
	for _, p := range s.cfg.Peers {
		c.Servers = append(c.Servers, raft.Server{ID: raft.ServerID(p.ID), Address: raft.ServerAddress(p.Addr)})
	}
	return c
}

// Apply makes one change on this server, which must lead, and returns what it left behind. ErrNoLeader means that nothing
// was changed, ErrUnknownOutcome that nobody knows. A change that is on its way is not given up when ctx ends: Raft
// answers within its own timeouts.
func (s *Server) Apply(ctx context.Context, c Command) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	entry, err := encodeCommand(c)
	if err != nil {
		return Result{}, err
	}
	s.calls.RLock()
	defer s.calls.RUnlock()
	if s.closed {
		return Result{}, errClosed
	}
	f := s.raft.Apply(entry, applyTimeout)
	if err := f.Error(); err != nil {
		return Result{}, raftError(err)
	}
	o, ok := f.Response().(outcome)
	if !ok {
		return Result{}, fmt.Errorf("raft answered with a %T", f.Response())
	}
	return o.result, o.err
}

// ServerID returns this server's own id.
func (s *Server) ServerID() string { return s.cfg.ServerID }

// RaftAddr returns the address on which the other servers reach this one.
func (s *Server) RaftAddr() string { return string(s.transport.LocalAddr()) }

// Leads reports whether this server believes to lead.
func (s *Server) Leads() bool { return s.raft.State() == raft.Leader }

// Leader returns the id and Raft address of the leader, empty where none is known.
func (s *Server) Leader() (id, addr string) {
	a, i := s.raft.LeaderWithID()
	return string(i), string(a)
}

// WaitLeader returns once this server leads and its tables hold everything that was committed, or a leader elsewhere is
// known; or with ctx's error. One that joins others has by then what they had when the one that leads first told how far it was.
func (s *Server) WaitLeader(ctx context.Context) error {
	var behind *uint64 // the tables of the one that leads, once it has told
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if s.Leads() {
			if s.barrier() == nil {
				return nil
			}
		} else if id, addr := s.Leader(); id != "" && s.caughtUp(ctx, addr, &behind) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for a leader: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// barrier returns once this server, which must lead, has applied everything that was committed before.
func (s *Server) barrier() error {
	s.calls.RLock()
	defer s.calls.RUnlock()
	if s.closed {
		return errClosed
	}
	return s.raft.Barrier(applyTimeout).Error()
}

// Snapshot makes a snapshot now and returns its bytes.
func (s *Server) Snapshot() (io.ReadCloser, error) {
	f := s.raft.Snapshot()
	if err := f.Error(); err != nil {
		return nil, fmt.Errorf("make snapshot: %w", err)
	}
	_, r, err := f.Open()
	if err != nil {
		return nil, fmt.Errorf("open snapshot: %w", err)
	}
	return r, nil
}

// Stats returns raft's own figures.
func (s *Server) Stats() map[string]string { return s.raft.Stats() }

// Close hands the leadership over where there is somebody, lets the calls under way end, and stops. Everything that was
// committed is on disk. Closing twice is no error.
func (s *Server) Close() error {
	if s.cfg.transport == nil {
		if err := s.HandOver(); err != nil {
			s.log.Warn(err.Error())
		}
	}
	s.calls.Lock()
	was := s.closed
	s.closed = true
	s.calls.Unlock()
	if was {
		return nil
	}
	err := s.raft.Shutdown().Error()
	s.cancel()
	s.leads.Wait()
	return errors.Join(err, s.closeParts())
}

func (s *Server) closeParts() error {
	s.asking.CloseIdleConnections()
	var err error
	if c, ok := s.transport.(raft.WithClose); ok {
		err = c.Close()
	}
	if s.stores != nil {
		err = errors.Join(err, s.stores.close())
	}
	return err
}
