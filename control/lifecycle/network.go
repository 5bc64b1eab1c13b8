package lifecycle

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// SetNetwork implements API. What the update cannot say stays: who may reach the sandbox's ports, and by which names.
func (s *Service) SetNetwork(ctx context.Context, tenant string, id api.SandboxID, n api.NetworkConfig, internet *bool) (state.Sandbox, error) {
	defer s.locks.lock(id)()
	sb, err := s.live(tenant, id)
	if err != nil {
		return state.Sandbox{}, err
	}
	if sb.State != state.Running && sb.State != state.Paused {
		return state.Sandbox{}, notRunning(sb)
	}
	var had api.NetworkConfig
	if len(sb.Network) > 0 {
		if err := json.Unmarshal(sb.Network, &had); err != nil {
			return state.Sandbox{}, fmt.Errorf("stored network of sandbox %s: %w", id, err)
		}
	}
	n.AllowPublicTraffic, n.MaskRequestHost, n.HTTPSPorts = had.AllowPublicTraffic, had.MaskRequestHost, had.HTTPSPorts
	b, err := json.Marshal(n)
	if err != nil {
		return state.Sandbox{}, fmt.Errorf("network of sandbox %s: %w", id, err)
	}
	r, err := s.cfg.State.Apply(ctx, &state.SandboxNetwork{ID: id, Network: b, AllowInternetAccess: internet})
	return r.Sandbox, stateError(id, err)
}
