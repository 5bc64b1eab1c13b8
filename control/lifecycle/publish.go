package lifecycle

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// publishTime bounds how long a sandbox that came to another node waits for its ports there.
const publishTime = 5 * time.Second

// Published implements API.
func (s *Service) Published(ctx context.Context, tenant string, id api.SandboxID) ([]api.PublishedPort, error) {
	sb, err := s.live(tenant, id)
	if err != nil {
		return nil, err
	}
	node, err := s.NodeOf(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	list, err := node.Published(ctx, id)
	if err != nil {
		return nil, err
	}
	return publishedView(sb, list), nil
}

// SetPublished implements API. The node before the record: it says what is taken.
func (s *Service) SetPublished(ctx context.Context, tenant string, id api.SandboxID, want []api.PublishedPort) ([]api.PublishedPort, error) {
	node, err := s.NodeFor(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	defer s.locks.lock(id)()
	if _, err := s.live(tenant, id); err != nil {
		return nil, err
	}
	ask := make([]api.PublishedPort, len(want))
	for i, p := range want {
		ask[i] = api.PublishedPort{Proto: p.Proto, Port: p.Port, Address: p.Address, NodePort: p.NodePort}
	}
	list, err := node.SetPublished(ctx, id, ask)
	if err != nil {
		return nil, err
	}
	kept := make([]state.Published, 0, len(list))
	for _, p := range list {
		i := slices.IndexFunc(want, func(w api.PublishedPort) bool { return w.Proto == p.Proto && w.Port == p.Port })
		kept = append(kept, state.Published{Proto: p.Proto, Port: p.Port, NodePort: p.NodePort, Any: i >= 0 && (want[i].Any || want[i].NodePort == 0)})
	}
	r, err := s.cfg.State.Apply(context.WithoutCancel(ctx), &state.SandboxPublish{ID: id, Ports: kept})
	if err != nil {
		return nil, stateError(id, err)
	}
	return publishedView(r.Sandbox, list), nil
}

// publishAgain has the node that a sandbox has come to listen for its ports. One that it cannot have is recorded with the reason: the sandbox
// goes on all the same.
func (s *Service) publishAgain(ctx context.Context, sb state.Sandbox, node *nodeapi.Client) {
	if len(sb.Published) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishTime)
	defer cancel()
	var have []api.PublishedPort
	kept := slices.Clone(sb.Published)
	for i := range kept {
		p := &kept[i]
		ask := api.PublishedPort{Proto: p.Proto, Port: p.Port, NodePort: p.NodePort}
		list, err := node.SetPublished(ctx, sb.ID, append(slices.Clone(have), ask))
		if err != nil && p.Any {
			ask.NodePort = 0
			list, err = node.SetPublished(ctx, sb.ID, append(slices.Clone(have), ask))
		}
		if p.Error = ""; err != nil {
			p.Error = err.Error()
			s.cfg.Logger.Warn("port of a sandbox that moved is not published any more", "sandbox", sb.ID, "proto", p.Proto, "port", p.Port, "error", err)
			continue
		}
		have = list
		p.NodePort = list[len(list)-1].NodePort
	}
	if _, err := s.cfg.State.Apply(ctx, &state.SandboxPublish{ID: sb.ID, Ports: kept}); err != nil {
		s.cfg.Logger.Warn("published ports of a sandbox that moved are not recorded", "sandbox", sb.ID, "error", err)
	}
}

// publishedView puts what a node listens for and what is recorded together.
func publishedView(sb state.Sandbox, list []api.PublishedPort) []api.PublishedPort {
	out := make([]api.PublishedPort, 0, len(list))
	for _, p := range list {
		p.Node = sb.Node
		i := slices.IndexFunc(sb.Published, func(k state.Published) bool { return k.Proto == p.Proto && k.Port == p.Port })
		p.Any = i >= 0 && sb.Published[i].Any
		out = append(out, p)
	}
	for _, k := range sb.Published {
		if slices.ContainsFunc(list, func(p api.PublishedPort) bool { return k.Proto == p.Proto && k.Port == p.Port }) {
			continue
		}
		if k.Error == "" {
			k.Error = fmt.Sprintf("node %s does not listen for it", sb.Node)
		}
		out = append(out, api.PublishedPort{Proto: k.Proto, Port: k.Port, NodePort: k.NodePort, Any: k.Any, Node: sb.Node, Error: k.Error})
	}
	return out
}
