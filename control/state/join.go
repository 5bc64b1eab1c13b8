package state

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// lostTime is how long a server that was in a cluster hears from nobody that leads before it asks to be let in again: an election is over by then.
	lostTime = 5 * time.Second
	askMin   = 250 * time.Millisecond // before the second round of asking
	askMax   = 10 * time.Second       // before later ones
	// reachTime is how long the one that leads tries to reach a server that wants to join.
	reachTime = 2 * time.Second
)

// stayMember has this server be one of its cluster, until ctx ends: while it hears from nobody that leads it asks the others to let it in. So a new one joins, and one
// comes back that was taken for dead.
func (s *Server) stayMember(ctx context.Context) {
	if s.cfg.Others == nil && len(s.cfg.Peers) < 2 {
		return
	}
	patience := lostTime
	if s.fresh() {
		patience = 0
	}
	pause := askMin
	for {
		lead, changed := s.Leadership()
		var wait <-chan time.Time
		if lead.ID == "" {
			wait = time.After(patience)
		} else {
			patience, pause = lostTime, askMin
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
			continue
		case <-wait:
		}
		addr, err := s.askToJoin(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.log.Warn("no server has let this one into its cluster yet; it goes on asking", "error", err)
			patience, pause = pause, min(2*pause, askMax)
		default:
			s.log.Info("the cluster has let this server in", "asked", addr)
			patience = lostTime // until the one that leads has told it
		}
	}
}

// fresh reports whether this server has nothing of any cluster.
func (s *Server) fresh() bool { return s.raft.LastIndex() == 0 }

// askToJoin asks the others, one after the other, and whom they say that leads, and returns who has let this one in.
func (s *Server) askToJoin(ctx context.Context) (string, error) {
	addrs, err := s.others(ctx)
	var errs []error
	if err != nil {
		errs = append(errs, err)
	}
	if len(addrs) == 0 && err == nil {
		errs = append(errs, errors.New("no other server is known"))
	}
	req := joinRequest{ID: s.cfg.ServerID, Addr: s.RaftAddr(), Fresh: s.fresh(), Cluster: s.known.get()}
	for _, addr := range addrs {
		for hops := 0; addr != "" && hops < 2; hops++ {
			lead, err := s.askJoin(ctx, addr, req)
			if err == nil {
				return addr, nil
			}
			if ctx.Err() != nil {
				return "", ctx.Err()
			}
			errs = append(errs, err)
			addr = lead
		}
	}
	return "", errors.Join(errs...)
}

// others returns where to ask, without this server itself.
func (s *Server) others(ctx context.Context) (addrs []string, err error) {
	if s.cfg.Others != nil {
		addrs, err = s.cfg.Others(ctx)
		addrs = slices.Clone(addrs)
	}
	for _, p := range s.cfg.Peers {
		if !slices.Contains(addrs, p.Addr) {
			addrs = append(addrs, p.Addr)
		}
	}
	return slices.DeleteFunc(addrs, func(a string) bool { return a == s.RaftAddr() }), err
}

// AddServer lets a server into the cluster, without a vote at first, which the autopilot gives it. This server must lead. fresh says that the other one has an empty folder:
// where it had a vote it has lost what it voted for, and gets a new one only once it has caught up. ErrPeer says that it cannot be let in.
func (s *Server) AddServer(ctx context.Context, id, addr string, fresh bool) error {
	list, err := s.configuration()
	if err != nil {
		return err
	}
	if id == s.cfg.ServerID {
		return fmt.Errorf("%w: %s is the id of the server that leads", errJoin, id)
	}
	member, known, voter := false, false, false // known: at this address
	for _, p := range list {
		member = member || string(p.ID) == id
		if string(p.ID) == id && string(p.Address) == addr {
			known, voter = true, p.Suffrage == raft.Voter
		}
	}
	if known && !(fresh && voter) {
		return nil
	}
	if err := s.reach(ctx, id, addr); err != nil {
		return err
	}
	for _, p := range list {
		switch {
		case string(p.ID) == id && string(p.Address) != addr && s.silent.since(p.ID) == 0 && s.reach(ctx, id, string(p.Address)) == nil:
			return fmt.Errorf("%w: another server %s answers at %s; each needs an id of its own", errJoin, id, p.Address)
		case string(p.ID) == id:
			voter = p.Suffrage == raft.Voter
		case string(p.Address) == addr: // who was there is not any more
			if err := s.RemoveServer(ctx, string(p.ID)); err != nil {
				return fmt.Errorf("%s was the address of server %s: %w", addr, p.ID, err)
			}
		}
	}
	r := pilotRaft{s}
	if fresh && voter {
		if err := r.DemoteVoter(raft.ServerID(id), 0, applyTimeout).Error(); err != nil {
			return fmt.Errorf("take the vote of server %s: %w", id, raftError(err))
		}
	}
	if !known {
		if !member {
			s.silent.begin(raft.ServerID(id))
		}
		if err := r.AddNonvoter(raft.ServerID(id), raft.ServerAddress(addr), 0, applyTimeout).Error(); err != nil {
			return fmt.Errorf("add server %s: %w", id, raftError(err))
		}
	}
	s.member(MemberChange{ID: id, Addr: addr, What: MemberJoined})
	return nil
}

// errJoin means that a server cannot join as it asks to.
var errJoin = errors.New("the server cannot join")

// reach returns nil where the server of that id, as its certificate says, answers at addr.
func (s *Server) reach(ctx context.Context, id, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	c, err := s.streams.dial(ctx, &net.Dialer{}, addr)
	if err != nil {
		return fmt.Errorf("%w: it says that it is at %s, where the server that leads, %s, cannot reach it: %w", errJoin, addr, s.cfg.ServerID, err)
	}
	defer c.Close()
	t, ok := c.(*tls.Conn)
	if !ok || s.cfg.TLS.Name == nil {
		return nil
	}
	name, err := s.cfg.TLS.Name(t.ConnectionState().PeerCertificates[0])
	if err == nil && name != id {
		err = fmt.Errorf("the certificate there is of server %s", name)
	}
	if err != nil {
		return fmt.Errorf("%w: it says that it is at %s: %w", errJoin, addr, err)
	}
	return nil
}

// caughtUp reports whether this server has applied what the one that leads, at addr, had when it was first asked; until keeps that. One that has joined nobody has its tables.
func (s *Server) caughtUp(ctx context.Context, addr string, until **uint64) bool {
	if s.cfg.Others == nil {
		return true
	}
	if *until == nil {
		ctx, cancel := context.WithTimeout(ctx, reachTime)
		defer cancel()
		st, err := s.askStats(ctx, addr)
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(askMin):
			}
			return false
		}
		*until = &st.Tables
	}
	return s.Index() >= **until
}
