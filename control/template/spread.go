package template

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// retryAfter is how long a copy that failed is not tried again.
const retryAfter = 5 * time.Minute

type copyKey struct {
	node   api.NodeID
	name   string
	digest string
}

// Run spreads templates, and forgets copies of tenants that are gone, until ctx ends. It runs on the leader only.
func (s *Service) Run(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		s.Spread(ctx)
		s.ForgetOwn(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Spread copies recorded templates to connected nodes that lack them, one at a time. A copy that fails is logged and tried
// again after a while.
func (s *Service) Spread(ctx context.Context) {
	list, err := s.cfg.State.Templates("")
	if err != nil {
		s.cfg.Logger.Error("templates cannot be read", "error", err)
		return
	}
	nodes := slices.DeleteFunc(s.cfg.Fleet.Nodes(), func(n fleet.Node) bool { return !n.Connected })
	for _, t := range list {
		from := slices.IndexFunc(nodes, func(n fleet.Node) bool { return has(n, t) })
		if from < 0 {
			continue
		}
		for _, to := range nodes {
			key := copyKey{node: to.Self.ID, name: t.Name, digest: t.Digest}
			if ctx.Err() != nil || has(to, t) || !s.due(key) {
				continue
			}
			if err := s.copy(ctx, t, nodes[from], to); err != nil && ctx.Err() == nil {
				s.cfg.Logger.Warn("template not copied", "template", t.Name, "to", to.Self.ID, "error", err)
			}
		}
	}
}

// has reports whether a node has the template: its content counts, whatever its names there.
func has(n fleet.Node, t state.Template) bool {
	return slices.ContainsFunc(n.Self.Templates, func(have nodeapi.Template) bool { return have.Digest == t.Digest })
}

// due reports whether a copy may be tried, and notes that it is.
func (s *Service) due(k copyKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	if last, ok := s.failed[k]; ok && now.Sub(last) < retryAfter {
		return false
	}
	s.failed[k] = now
	return true
}

func (s *Service) copy(ctx context.Context, t state.Template, from, to fleet.Node) error {
	source, err := s.cfg.Fleet.Client(from.Self.ID)
	if err != nil {
		return err
	}
	target, err := s.cfg.Fleet.Client(to.Self.ID)
	if err != nil {
		return err
	}
	archive, err := source.ExportTemplate(ctx, t.Digest)
	if err != nil {
		return fmt.Errorf("export from node %s: %w", from.Self.ID, err)
	}
	defer archive.Close()
	made, err := target.ImportTemplate(ctx, t.Name, archive)
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	if made.Digest != t.Digest {
		_ = target.RemoveTemplate(ctx, t.Name) // it is not what its name says
		return fmt.Errorf("arrived as %s, is %s", made.Digest, t.Digest)
	}
	s.mu.Lock()
	delete(s.failed, copyKey{node: to.Self.ID, name: t.Name, digest: t.Digest})
	s.mu.Unlock()
	s.cfg.Logger.Info("template copied", "template", t.Name, "from", from.Self.ID, "to", to.Self.ID)
	return nil
}
