package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// begin records slots and makes each in a goroutine of its own.
func (s *Service) begin(ctx context.Context, p *state.Pool, t state.Template, k *kept, n int, makers *sync.WaitGroup) error {
	where, err := rules(p, t)
	if err != nil {
		return err
	}
	rows := make([]state.Slot, n)
	for i := range rows {
		rows[i] = state.Slot{
			ID: s.cfg.NewID(), Pool: p.ID, Tenant: p.Tenant, Template: p.Template, Digest: t.Digest, Where: string(where), State: state.SlotMaking, Creator: s.cfg.Run,
			CreatedAt: s.cfg.Now().UTC(),
		}
	}
	s.mu.Lock()
	for _, r := range rows {
		k.making[r.ID] = struct{}{}
	}
	s.mu.Unlock()
	if _, err := s.cfg.State.Apply(ctx, &state.SlotsMake{Slots: rows}); err != nil {
		s.mu.Lock()
		for _, r := range rows {
			delete(k.making, r.ID)
		}
		s.mu.Unlock()
		return fmt.Errorf("record slots: %w", err)
	}
	for _, r := range rows {
		makers.Go(func() { s.makeOne(ctx, p, t, k, r) })
	}
	return nil
}

// makeOne makes one slot, or undoes it.
func (s *Service) makeOne(ctx context.Context, p *state.Pool, t state.Template, k *kept, row state.Slot) {
	start := s.cfg.Now()
	err := s.start(ctx, p, t, row)
	now := s.cfg.Now()
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("slot cannot be made", "pool", p.Name, "slot", row.ID, "error", err)
			s.fail(k, err, now)
		}
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if derr := s.drop(clean, k, []api.SandboxID{row.ID}); derr != nil {
			s.log.Debug("slot that was not made stays for the next look", "slot", row.ID, "error", derr)
		}
	}
	s.mu.Lock()
	delete(k.making, row.ID)
	if err == nil {
		took := now.Sub(start)
		if k.refill == 0 {
			k.refill = took
		}
		k.refill += (took - k.refill) / 8
		k.made++
		k.failures, k.problem, k.retryAt = 0, "", time.Time{}
	}
	s.mu.Unlock()
	s.Wake()
}

// start places a slot, waits until it runs, warms it up and records it as ready.
func (s *Service) start(ctx context.Context, p *state.Pool, t state.Template, row state.Slot) error {
	within, cancel := context.WithTimeoutCause(ctx, s.cfg.StartTimeout, api.Errorf(http.StatusGatewayTimeout, "sandbox_start_timeout",
		"slot %s was not warm within %s", row.ID, s.cfg.StartTimeout))
	defer cancel()
	network, err := s.network(p.Tenant, t)
	if err != nil {
		return err
	}
	waiter := s.cfg.Fleet.Await(row.ID)
	defer waiter.Close()
	err = s.cfg.Placer.Place(within, placement.Request{
		Tenant: p.Tenant, Rules: placement.Rules(row.Where), Prefer: lifecycle.Spread(placement.Rules(row.Where), s.cfg.Fleet.Nodes),
		Node: nodeapi.CreateRequest{
			ID: row.ID, Template: row.Digest, Profile: p.Profile, QoS: p.QoS, Warm: true, Network: network,
			Limits: nodeapi.Limits{CPUMillis: p.CPUMillis, MemoryBytes: p.MemoryMB << 20},
			// A node that is cut off ends it by itself, some time after this service would have.
			Deadline: s.cfg.Now().UTC().Add(p.MaxAge + time.Hour),
			Owner:    nodeapi.Owner{Kind: placement.OwnerKind},
			Metadata: map[string]string{"tenant": p.Tenant, "template": p.Template, nodeapi.MetaTemplateID: t.TemplateID, "pool": p.Name},
		}})
	if err != nil {
		return lifecycle.ContextCause(within, err)
	}
	found, err := lifecycle.Report(within, s.cfg.Placer, row.ID, waiter)
	if err != nil {
		return lifecycle.ContextCause(within, err)
	}
	node, err := s.cfg.Fleet.Client(found.Node)
	if err != nil {
		return err
	}
	if err := lifecycle.Serve(within, node, row.ID, t); err != nil {
		return lifecycle.ContextCause(within, err)
	}
	for _, command := range p.WarmUp {
		if err := warm(within, node, row.ID, command); err != nil {
			return lifecycle.ContextCause(within, err)
		}
	}
	_, err = s.cfg.State.Apply(ctx, &state.SlotIsReady{ID: row.ID, Node: found.Node, At: s.cfg.Now().UTC()})
	return err
}

// network returns what a slot may reach before anybody has it.
func (s *Service) network(tenant string, t state.Template) (*nodeapi.Network, error) {
	owner, err := s.cfg.State.Tenant(tenant)
	if err != nil && !errors.Is(err, state.ErrNotFound) {
		return nil, err
	}
	layers := lifecycle.OuterLayers(owner, t.Network)
	if len(layers) == 0 {
		return nil, nil
	}
	return &nodeapi.Network{Layers: layers}, nil
}

// maxSaid bounds what of a failed command's output is told.
const maxSaid = 300

// warm runs a warm-up command in a slot.
func warm(ctx context.Context, node *nodeapi.Client, id api.SandboxID, command string) error {
	var said head
	exit, err := node.Run(ctx, id, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"/bin/bash", "-l", "-c", command}}}, nil, &said, &said)
	if err != nil {
		return fmt.Errorf("warm-up command %.60q: %w", command, err)
	}
	if exit.Code != 0 || exit.Signal != 0 {
		return fmt.Errorf("warm-up command %.60q ended with code %d: %s", command, exit.Code, strings.TrimSpace(said.b.String()))
	}
	return nil
}

// head keeps the first bytes of an output. What a sandbox prints has no end.
type head struct{ b bytes.Buffer }

func (t *head) Write(p []byte) (int, error) {
	if room := maxSaid - t.b.Len(); room > 0 {
		t.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
