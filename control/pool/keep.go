package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/state"
)

// kept is what the keeper knows of one pool. Service.mu guards it.
type kept struct {
	making   map[api.SandboxID]struct{}
	filling  bool // below the threshold, until it is full again
	target   int
	wanted   int       // of target, what quota leaves room for
	looked   time.Time // last look at the size
	seen     usage
	failures int
	problem  string    // why the last slot could not be made; empty: it could
	retryAt  time.Time // no slot is made before
	waiting  time.Time // since when claims hold up the making; zero: they do not
	refill   time.Duration
	made     uint64
	dropped  uint64
}

// maxBackoff bounds the pause after slots that could not be made.
const maxBackoff = time.Minute

// countEvery is how often what was counted is recorded.
const countEvery = 2 * time.Second

// Run keeps the pools filled until ctx ends. One run at a time, on the leader.
func (s *Service) Run(ctx context.Context) {
	s.mu.Lock()
	s.kept = map[api.PoolID]*kept{}
	s.mu.Unlock()
	var makers sync.WaitGroup
	defer func() {
		makers.Wait()
		s.mu.Lock()
		s.kept = map[api.PoolID]*kept{}
		s.mu.Unlock()
	}()
	tick := time.NewTicker(s.cfg.Interval)
	defer tick.Stop()
	counting := time.NewTicker(countEvery)
	defer counting.Stop()
	for ctx.Err() == nil {
		s.look(ctx, &makers)
		var again <-chan time.Time
		if s.holding() {
			again = time.After(lull)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-again:
		case <-s.wake:
		case <-counting.C:
			s.record(ctx)
		}
	}
}

// look compares every pool with what it should be.
func (s *Service) look(ctx context.Context, makers *sync.WaitGroup) {
	pools, err := s.cfg.State.Pools()
	if err != nil {
		s.log.Error("pools cannot be read", "error", err)
		return
	}
	s.forget(pools)
	for i := range pools {
		if ctx.Err() != nil {
			return
		}
		if err := s.keep(ctx, &pools[i], makers); api.StatusOf(err) == http.StatusServiceUnavailable {
			s.log.Debug("pool not looked after: no node is there yet", "pool", pools[i].Name, "error", err)
		} else if err != nil && ctx.Err() == nil {
			s.log.Warn("pool not looked after yet", "pool", pools[i].Name, "tenant", pools[i].Tenant, "error", err)
		}
	}
}

// forget lets go of pools that are no more.
func (s *Service) forget(pools []state.Pool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, k := range s.kept {
		if len(k.making) == 0 && !slices.ContainsFunc(pools, func(p state.Pool) bool { return p.ID == id }) {
			delete(s.kept, id)
		}
	}
}

// keep brings one pool closer to what it should be.
func (s *Service) keep(ctx context.Context, p *state.Pool, makers *sync.WaitGroup) error {
	k := s.keeperOf(p)
	mine := s.making(k) // before the rows: a slot that is ready since then was being made
	rows, err := s.cfg.State.Slots(p.ID)
	if err != nil {
		return err
	}
	template, terr := s.cfg.Templates.Resolve(ctx, p.Tenant, p.Template)
	if terr != nil && !api.IsNotFound(terr) {
		return terr // no node may be connected yet: the slots are as good as they were
	}
	where, err := rules(p, template)
	if err != nil {
		return err
	}
	now := s.cfg.Now()
	var drop []api.SandboxID
	ready := make([]state.Slot, 0, len(rows))
	making := 0
	node := s.nodes()
	for _, row := range rows {
		switch why := s.unfit(&row, p, mine, template, string(where), terr, node, now); {
		case why != "":
			s.log.Info("slot dropped", "pool", p.Name, "slot", row.ID, "why", why)
			drop = append(drop, row.ID)
		case row.State == state.SlotReady:
			ready = append(ready, row)
		default:
			making++
		}
	}
	if terr != nil {
		s.fail(k, terr, now)
		return s.drop(ctx, k, drop)
	}
	wanted := s.size(p, k, len(ready), now)
	drop = append(drop, surplus(ready, wanted-making)...)
	if err := s.drop(ctx, k, drop); err != nil {
		return err
	}
	more := s.missing(p, k, wanted, len(ready)+making, now)
	if s.waits(k, more, len(ready), now) {
		return nil
	}
	return s.begin(ctx, p, template, k, more, makers)
}

const (
	// calm is how long after a claim no slot is made, while half of them are left: what has just been created is used first, and would share the
	// machine with the making.
	calm = 100 * time.Millisecond
	// lull is that where fewer than half are left: what comes in one burst is on its way through the service for as long, and the making would be in its way.
	lull = 20 * time.Millisecond
	// maxWait is how long claims hold up the making of slots, from the first of them on.
	maxWait = 250 * time.Millisecond
)

// waits reports whether there is nothing to make, or the making waits for the creates that are trying slots now or that have one since a moment ago. Where
// creates come without an end it waits once.
func (s *Service) waits(k *kept, more, ready int, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	since := now.Sub(s.claimed)
	quiet := len(s.taken) == 0 && (since >= calm || 2*ready < k.wanted && since >= lull)
	switch {
	case more == 0 || quiet:
		k.waiting = time.Time{}
		return more == 0
	case k.waiting.IsZero():
		k.waiting = now
	}
	return now.Sub(k.waiting) < maxWait
}

// holding reports whether the making of slots waits.
func (s *Service) holding() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.kept {
		if !k.waiting.IsZero() {
			return true
		}
	}
	return false
}

func (s *Service) keeperOf(p *state.Pool) *kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kept[p.ID]
	if k == nil {
		k = &kept{making: map[api.SandboxID]struct{}{}, filling: true, target: bound(p, p.Target), looked: s.cfg.Now()}
		k.seen = usage{hits: p.Hits, misses: p.Misses, least: k.target}
		s.kept[p.ID] = k
	}
	return k
}

// nodes returns what the fleet says of a node, asked once for each: there are many slots to one.
func (s *Service) nodes() func(api.NodeID) (fleet.Node, bool) {
	type seen struct {
		node  fleet.Node
		known bool
	}
	all := map[api.NodeID]seen{}
	return func(id api.NodeID) (fleet.Node, bool) {
		n, ok := all[id]
		if !ok {
			n.node, n.known = s.cfg.Fleet.Node(id)
			all[id] = n
		}
		return n.node, n.known
	}
}

// unfit says why a slot cannot be given to anybody, now and later. Empty: it can, or is being made.
func (s *Service) unfit(row *state.Slot, p *state.Pool, mine map[api.SandboxID]struct{}, template state.Template, where string, terr error, nodes func(api.NodeID) (fleet.Node, bool), now time.Time) string {
	s.mu.Lock()
	_, taken := s.taken[row.ID]
	s.mu.Unlock()
	_, made := mine[row.ID]
	switch {
	case taken:
		return ""
	case row.State == state.SlotMaking && !made:
		return "the service that was making it ended"
	case row.State == state.SlotMaking:
		return ""
	case terr != nil:
		return terr.Error()
	case row.Digest != template.Digest:
		return "its template is another one now"
	case row.Where != where:
		return "it may have to run elsewhere now"
	case now.Sub(row.ReadyAt) > p.MaxAge:
		return fmt.Sprintf("it is older than %s", p.MaxAge)
	}
	node, known := nodes(row.Node)
	if !known || !node.Connected {
		if !known || now.Sub(node.Since) > s.cfg.AwayAfter {
			return fmt.Sprintf("node %s does not answer", row.Node)
		}
		return ""
	}
	if node.Mark.State != "" {
		return fmt.Sprintf("node %s is %s", row.Node, node.Status.State)
	}
	if _, there := s.there(row); !there && now.Sub(node.Since) > time.Second {
		return fmt.Sprintf("node %s does not have it any more", row.Node)
	}
	return ""
}

// size is how many slots the pool should have now.
func (s *Service) size(p *state.Pool, k *kept, ready int, now time.Time) int {
	room := s.room(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	k.seen.least = min(k.seen.least, ready)
	if c := s.counts[p.ID]; c != nil {
		p.Hits, p.Misses = p.Hits+c.hits, p.Misses+c.misses
	}
	k.target = bound(p, k.target)
	if now.Sub(k.looked) >= p.Interval || p.Strategy != state.StrategyDynamic || p.Misses > k.seen.misses {
		u := usage{hits: p.Hits - min(k.seen.hits, p.Hits), misses: p.Misses - min(k.seen.misses, p.Misses), least: k.seen.least}
		k.target = nextTarget(p, k.target, u, now)
		k.looked, k.seen = now, usage{hits: p.Hits, misses: p.Misses, least: ready}
	}
	k.wanted = min(k.target, room)
	return k.wanted
}

// room is how many slots a tenant could claim: none while it is suspended. Slots of a shared pool are for many.
func (s *Service) room(p *state.Pool) int {
	if t, err := s.cfg.State.Tenant(p.Tenant); err == nil && t.Suspended {
		return 0
	}
	if s.cfg.Quotas == nil || p.Shared {
		return state.MaxPoolSlots
	}
	_, limits, err := s.cfg.Quotas.Get(p.Tenant)
	if err != nil {
		return state.MaxPoolSlots
	}
	use, err := s.cfg.Quotas.Usage(p.Tenant)
	if err != nil {
		return state.MaxPoolSlots
	}
	ask := state.UseOf(&state.Sandbox{State: state.Running, CPUMillis: p.CPUMillis, MemoryMB: p.MemoryMB, DiskMB: p.DiskMB})
	room := int64(state.MaxPoolSlots)
	for l, each := range ask {
		if each > 0 && limits[l] >= 0 {
			room = min(room, max(0, (limits[l]-use[l])/each))
		}
	}
	return int(room)
}

// surplus returns the oldest of the slots that are too many.
func surplus(ready []state.Slot, wanted int) []api.SandboxID {
	n := len(ready) - max(0, wanted)
	if n <= 0 {
		return nil
	}
	slices.SortFunc(ready, func(a, b state.Slot) int { return a.ReadyAt.Compare(b.ReadyAt) })
	ids := make([]api.SandboxID, 0, n)
	for _, r := range ready[:n] {
		ids = append(ids, r.ID)
	}
	return ids
}

// missing is how many slots to begin now.
func (s *Service) missing(p *state.Pool, k *kept, wanted, have int, now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if have >= wanted {
		k.filling = false
		return 0
	}
	if p.Threshold == 0 || have < p.Threshold {
		k.filling = true
	}
	if !k.filling || now.Before(k.retryAt) {
		return 0
	}
	atOnce := s.cfg.Parallel
	if k.failures > 0 {
		atOnce = 1 // a try
	}
	return max(0, min(wanted-have, atOnce-len(k.making)))
}

// drop forgets slots, and ends them. What cannot be ended now the reconciler ends.
func (s *Service) drop(ctx context.Context, k *kept, ids []api.SandboxID) error {
	for chunk := range slices.Chunk(ids, state.MaxBatch) {
		r, err := s.cfg.State.Apply(ctx, &state.SlotsDrop{IDs: chunk})
		if err != nil {
			return fmt.Errorf("drop slots: %w", err)
		}
		s.mu.Lock()
		k.dropped += uint64(r.Changed)
		s.mu.Unlock()
		for _, id := range chunk {
			if err := s.end(ctx, id); err != nil {
				s.log.Debug("slot not ended yet", "slot", id, "error", err) // the reconciler does it
			}
		}
	}
	return nil
}

// end ends a slot whose row an entry has taken away. One that was claimed before the entry is somebody's, and stays; one that was not cannot be any more.
func (s *Service) end(ctx context.Context, id api.SandboxID) error {
	if _, err := s.cfg.State.Sandbox(id); !errors.Is(err, state.ErrNotFound) {
		return err
	}
	return s.cfg.Placer.Stop(ctx, id)
}

// making returns the slots of a pool that are being made here.
func (s *Service) making(k *kept) map[api.SandboxID]struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(k.making)
}

// fail takes note of a slot that could not be made.
func (s *Service) fail(k *kept, err error, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k.failures++
	k.problem = err.Error()
	k.retryAt = now.Add(min(s.cfg.Backoff<<min(k.failures-1, 10), maxBackoff))
}

// record writes down what was counted. What cannot be written now is kept.
func (s *Service) record(ctx context.Context) {
	s.mu.Lock()
	todo := map[api.PoolID]count{}
	for id, c := range s.counts {
		if *c != (count{}) {
			todo[id] = *c
		}
	}
	targets := map[api.PoolID]int{}
	for id, k := range s.kept {
		targets[id] = k.target
	}
	s.mu.Unlock()
	for id, c := range todo {
		_, err := s.cfg.State.Apply(ctx, &state.PoolCount{ID: id, Hits: c.hits, Misses: c.misses, Window: state.WindowOf(s.cfg.Now()), Target: targets[id]})
		if err != nil && !errors.Is(err, state.ErrNotFound) {
			return
		}
		s.mu.Lock()
		if now := s.counts[id]; now != nil {
			now.hits -= c.hits
			now.misses -= c.misses
		}
		s.mu.Unlock()
	}
}
