package lifecycle

import (
	"context"
	"fmt"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Get implements API.
func (s *Service) Get(_ context.Context, tenant string, id api.SandboxID) (state.Sandbox, error) {
	return s.sandbox(tenant, id)
}

// List implements API.
func (s *Service) List(_ context.Context, f state.Filter, o state.Order, p state.Page) (state.List, error) {
	l, err := s.cfg.State.List(f, o, p)
	return l, stateError("", err)
}

// Health implements API. Only an unknown sandbox is an error.
func (s *Service) Health(ctx context.Context, tenant string, id api.SandboxID) (Health, error) {
	sb, err := s.sandbox(tenant, id)
	if err != nil {
		return Health{}, err
	}
	h := Health{Status: HealthFailed, SandboxID: id, Node: sb.Node, State: sb.State}
	if sb.State != state.Running {
		h.Reason = fmt.Sprintf("the sandbox is %s", sb.State)
		if sb.Reason != "" {
			h.Reason += ": " + sb.Reason
		}
		return h, nil
	}
	node, err := s.cfg.Fleet.Client(sb.Node)
	if err != nil {
		h.Reason = err.Error()
		return h, nil
	}
	reply, err := node.Health(ctx, id)
	if err != nil {
		h.Reason = err.Error()
		return h, nil
	}
	h.Uptime, h.Version, h.Reason = reply.Uptime, reply.InitVersion, reply.Reason
	if reply.Healthy {
		h.Status = HealthOK
	}
	return h, nil
}

// NodeFor implements API.
func (s *Service) NodeFor(ctx context.Context, tenant string, id api.SandboxID) (*nodeapi.Client, error) {
	sb, err := s.live(tenant, id)
	if err != nil {
		return nil, err
	}
	if sb.Wakes() || sb.Leaving() {
		if sb, err = s.Wake(ctx, id); err != nil {
			return nil, err
		}
	}
	if sb.State != state.Running {
		return nil, notRunning(sb)
	}
	return s.cfg.Fleet.Client(sb.Node)
}

// NodeOf implements API.
func (s *Service) NodeOf(_ context.Context, tenant string, id api.SandboxID) (*nodeapi.Client, error) {
	sb, err := s.sandbox(tenant, id)
	if err != nil {
		return nil, err
	}
	if sb.Node == "" {
		return nil, notRunning(sb)
	}
	return s.cfg.Fleet.Client(sb.Node)
}
