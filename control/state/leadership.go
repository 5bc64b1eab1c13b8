package state

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Leadership is who leads, as one server knows it.
type Leadership struct {
	ID   string // of the server that leads; empty: nobody is known to
	Addr string // of its Raft listener
	Here bool   // it is this one, and its tables hold everything that was ever committed
}

// leadership keeps the Leadership of the moment.
type leadership struct {
	mu      sync.Mutex
	now     Leadership
	changed chan struct{} // closed and replaced with each change
}

// Leadership returns who leads, and a channel that is closed with the next change.
func (s *Server) Leadership() (Leadership, <-chan struct{}) {
	s.leader.mu.Lock()
	defer s.leader.mu.Unlock()
	return s.leader.now, s.leader.changed
}

func (s *Server) setLeadership(change func(*Leadership)) {
	s.leader.mu.Lock()
	defer s.leader.mu.Unlock()
	before := s.leader.now
	change(&s.leader.now)
	if s.leader.now != before {
		close(s.leader.changed)
		s.leader.changed = make(chan struct{})
	}
}

// watchLeadership keeps who leads, and whom a leader does not reach, until ctx ends. Raft drops what does not fit into the channel: who leads is read
// from raft itself, and a silent server is told of again and again.
func (s *Server) watchLeadership(ctx context.Context) {
	seen := make(chan raft.Observation, 64)
	o := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.FailedHeartbeatObservation, raft.ResumedHeartbeatObservation:
			return true
		}
		return false
	})
	s.raft.RegisterObserver(o)
	defer s.raft.DeregisterObserver(o)
	for {
		addr, id := s.raft.LeaderWithID()
		s.setLeadership(func(l *Leadership) { l.ID, l.Addr = string(id), string(addr) })
		select {
		case <-ctx.Done():
			return
		case o := <-seen:
			s.silent.note(o.Data)
		}
	}
}

// Verify returns once this server has proved, after the call began, that it leads: most of the servers said so. What it reads from its
// tables then is not older than the call. Calls that come while one is under way share the next.
func (s *Server) Verify(ctx context.Context) error {
	if s.alone { // nobody else can lead
		if s.Leads() {
			return nil
		}
		return ErrNoLeader
	}
	r, err := s.joinRound()
	if err != nil {
		return err
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// round is one question to the other servers.
type round struct {
	done chan struct{}
	err  error
}

// rounds asks the other servers, one question at a time.
type rounds struct {
	mu      sync.Mutex
	next    *round // that has not begun
	running bool
}

func (s *Server) joinRound() (*round, error) {
	s.calls.RLock()
	defer s.calls.RUnlock()
	if s.closed {
		return nil, errClosed
	}
	s.rounds.mu.Lock()
	defer s.rounds.mu.Unlock()
	if s.rounds.next == nil {
		s.rounds.next = &round{done: make(chan struct{})}
	}
	if !s.rounds.running {
		s.rounds.running = true
		s.leads.Go(s.runRounds)
	}
	return s.rounds.next, nil
}

func (s *Server) runRounds() {
	for {
		s.rounds.mu.Lock()
		r := s.rounds.next
		s.rounds.next, s.rounds.running = nil, r != nil
		s.rounds.mu.Unlock()
		if r == nil {
			return
		}
		r.err = s.verify()
		close(r.done)
	}
}

func (s *Server) verify() error {
	s.calls.RLock()
	defer s.calls.RUnlock()
	if s.closed {
		return errClosed
	}
	if err := s.raft.VerifyLeader().Error(); err != nil {
		return errors.Join(ErrNoLeader, err) // nothing was asked for that could have been done
	}
	return nil
}

// Age returns how long ago this server last heard from the one that leads, which is how far its tables may lag; zero where it leads itself.
// ok is false where it never has.
func (s *Server) Age() (age time.Duration, ok bool) {
	if l, _ := s.Leadership(); l.Here {
		return 0, true
	}
	at := s.raft.LastContact()
	return time.Since(at), !at.IsZero()
}

// HandOver gives the leadership to another server, where this one has it and there is another.
func (s *Server) HandOver() error {
	if s.alone || !s.Leads() || s.Stats()["num_peers"] == "0" {
		return nil
	}
	s.calls.RLock()
	defer s.calls.RUnlock()
	if s.closed {
		return nil
	}
	if err := s.raft.LeadershipTransfer().Error(); err != nil {
		return fmt.Errorf("leadership not handed over: %w", err)
	}
	return nil
}

// Requests returns the listener for HTTP requests of other servers: it is Raft's, whose connections' first byte tells what they speak. Who connects
// has shown a server's certificate, where there is TLS. Closing it does not close Raft's. nil: this server has no listener.
func (s *Server) Requests() net.Listener {
	if s.streams == nil {
		return nil
	}
	return requestListener{streamLayer: s.streams, once: new(sync.Once), end: make(chan struct{})}
}

// Dial connects to another server's Requests by its Raft address.
func (s *Server) Dial(ctx context.Context, addr string) (net.Conn, error) {
	if s.streams == nil {
		return nil, errors.New("this server has no listener for others")
	}
	return s.streams.dialRequests(ctx, addr)
}
