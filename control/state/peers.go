package state

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// PeerStatus is a server of the cluster, as the one that leads sees it.
type PeerStatus struct {
	ID     string
	Addr   string
	Leads  bool
	Voter  bool
	Silent time.Duration // since when it does not answer; zero: it does
}

// ErrPeer means that the cluster cannot do without a server.
var ErrPeer = errors.New("the server cannot be removed")

// Servers returns the servers of the cluster. This one must lead, and has proved it.
func (s *Server) Servers() ([]PeerStatus, error) {
	list, err := s.configuration()
	if err != nil {
		return nil, err
	}
	out := make([]PeerStatus, 0, len(list))
	for _, p := range list {
		leads := string(p.ID) == s.cfg.ServerID
		st := PeerStatus{ID: string(p.ID), Addr: string(p.Address), Leads: leads, Voter: p.Suffrage == raft.Voter}
		if !leads {
			st.Silent = s.silent.since(p.ID)
		}
		out = append(out, st)
	}
	return out, nil
}

func (s *Server) configuration() ([]raft.Server, error) {
	s.calls.RLock()
	defer s.calls.RUnlock()
	if s.closed {
		return nil, errClosed
	}
	if !s.Leads() {
		return nil, ErrNoLeader
	}
	f := s.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, raftError(err)
	}
	return f.Configuration().Servers, nil
}

// RemoveServer takes a server out of the cluster: it has no vote any more, and is told nothing. This server must lead. The one that leads, and one
// without which those that answer would not be most of the rest, are refused with ErrPeer.
func (s *Server) RemoveServer(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	list, err := s.Servers()
	if err != nil {
		return err
	}
	found, rest, answer := false, 0, 0
	for _, p := range list {
		switch {
		case p.ID == id && p.Leads:
			return fmt.Errorf("%w: %s leads; stop it first, and another will", ErrPeer, id)
		case p.ID == id:
			found = true
		case p.Voter:
			rest++
			if p.Silent == 0 {
				answer++
			}
		}
	}
	if !found {
		return fmt.Errorf("server %.80q: %w", id, ErrNotFound)
	}
	if answer <= rest/2 {
		return fmt.Errorf("%w: of the other %d only %d answer, which could agree on nothing without it", ErrPeer, rest, answer)
	}
	s.calls.RLock()
	defer s.calls.RUnlock()
	if s.closed {
		return errClosed
	}
	if err := s.raft.RemoveServer(raft.ServerID(id), 0, applyTimeout).Error(); err != nil {
		return fmt.Errorf("remove server %s: %w", id, raftError(err))
	}
	s.log.Warn("a server was taken out of the cluster", "server", id)
	return nil
}

// silent is which servers do not answer this one while it leads, by when they last did.
type silent struct {
	mu   sync.Mutex
	last map[raft.ServerID]time.Time
	back map[raft.ServerID]time.Time // when one that was taken out came back
}

func (s *silent) note(what any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch o := what.(type) {
	case raft.FailedHeartbeatObservation:
		// For up to a minute Raft goes on asking for one that it was told to remove, where that was, which does not answer.
		if o.LastContact.Before(s.back[o.PeerID]) {
			return
		}
		if s.last == nil {
			s.last = map[raft.ServerID]time.Time{}
		}
		if _, known := s.last[o.PeerID]; !known {
			s.last[o.PeerID] = o.LastContact
		}
	case raft.ResumedHeartbeatObservation:
		delete(s.last, o.PeerID)
	case raft.LeaderObservation: // another term, in which all are asked anew
		clear(s.last)
	}
}

// begin is for a server that is about to become one of the cluster: what was before does not count.
func (s *silent) begin(id raft.ServerID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.last, id)
	if s.back == nil {
		s.back = map[raft.ServerID]time.Time{}
	}
	s.back[id] = time.Now()
}

// since returns for how long a server has not answered, zero where it does.
func (s *silent) since(id raft.ServerID) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.last[id]
	if !ok {
		return 0
	}
	return max(time.Since(at), time.Millisecond)
}
