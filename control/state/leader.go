package state

import (
	"context"
	"sync"
)

// followLeadership runs cfg.OnLeader while this server leads, until ctx ends. Every loss ends the run before the next gain
// starts another.
func (s *Server) followLeadership(ctx context.Context, notify <-chan bool) {
	end := func() {}
	defer func() { end() }()
	for {
		select {
		case <-ctx.Done():
			return
		case leads := <-notify:
			end()
			end = func() {}
			if leads {
				end = s.startTerm(ctx)
			}
		}
	}
}

// startTerm runs cfg.OnLeader in a goroutine of its own, once the tables are complete. The function that it returns ends and joins it.
func (s *Server) startTerm(parent context.Context) func() {
	ctx, cancel := context.WithCancel(parent)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.barrier(); err != nil {
			s.log.Warn("leadership lost before the log was applied", "error", err)
			return
		}
		s.setLeadership(func(l *Leadership) { l.Here = ctx.Err() == nil })
		s.nameCluster(ctx)
		var pilot sync.WaitGroup
		defer pilot.Wait()
		if !s.alone {
			pilot.Go(func() { s.runAutopilot(ctx) })
		}
		if s.cfg.OnLeader != nil {
			s.cfg.OnLeader(ctx)
		}
	}()
	return func() {
		cancel()
		s.setLeadership(func(l *Leadership) { l.Here = false })
		<-done
	}
}
