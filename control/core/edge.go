package core

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/edge"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Reach is what the edge sees of the sandboxes.
func (c *Core) Reach() edge.Sandboxes { return reach{c.State, c.Fleet, c.Sandboxes} }

type reach struct {
	state     *state.Server
	fleet     *fleet.Fleet
	sandboxes *lifecycle.Service
}

// Find implements edge.Sandboxes.
func (r reach) Find(id api.SandboxID) (edge.Sandbox, error) {
	sb, err := r.state.Sandbox(id)
	if err != nil {
		return edge.Sandbox{}, fmt.Errorf("%w: %w", edge.ErrNotFound, err)
	}
	if sb.Wakes() || sb.Leaving() {
		return reached(sb), fmt.Errorf("%w: %s", edge.ErrPaused, id)
	}
	if sb.State != state.Running {
		return edge.Sandbox{}, fmt.Errorf("%w: sandbox %s is %s", edge.ErrNotFound, id, sb.State)
	}
	client, err := r.fleet.Client(sb.Node)
	if err != nil {
		return edge.Sandbox{}, err
	}
	owner, err := r.state.Tenant(sb.Tenant)
	if err != nil && !errors.Is(err, state.ErrNotFound) {
		return edge.Sandbox{}, err
	}
	box := reached(sb)
	box.Node, box.Suspended = way{client}, owner.Suspended
	return box, nil
}

// Wake implements edge.Sandboxes.
func (r reach) Wake(ctx context.Context, id api.SandboxID) (edge.Sandbox, error) {
	if _, err := r.sandboxes.Wake(ctx, id); err != nil {
		if api.StatusOf(err) == http.StatusConflict || api.IsNotFound(err) {
			err = fmt.Errorf("%w: %w", edge.ErrNotFound, err)
		}
		return edge.Sandbox{}, err
	}
	return r.Find(id)
}

// Each implements edge.Sandboxes.
func (r reach) Each(f func(edge.Sandbox) bool) {
	live, err := r.state.Live()
	if err != nil {
		return // no table, no sandboxes
	}
	for _, sb := range live {
		if sb.State == state.Running && sb.EnvdToken != "" && !f(reached(sb)) {
			return
		}
	}
}

func reached(sb state.Sandbox) edge.Sandbox {
	box := edge.Sandbox{ID: sb.ID, Tenant: sb.Tenant, EnvdToken: sb.EnvdToken, TrafficToken: sb.TrafficToken}
	if len(sb.Network) > 0 {
		var n api.NetworkConfig
		if json.Unmarshal(sb.Network, &n) == nil { // it was checked before it was stored
			box.MaskHost, box.HTTPSPorts = n.MaskRequestHost, n.HTTPSPorts
		}
	}
	return box
}

// way is edge.Node on the node's client.
type way struct{ client *nodeapi.Client }

// DialPort implements edge.Node.
func (w way) DialPort(ctx context.Context, id api.SandboxID, port int) (net.Conn, error) {
	conn, err := w.client.DialPort(ctx, id, port)
	var e *api.Error
	if errors.As(err, &e) {
		switch {
		case e.ErrorCode == nodeapi.CodePortClosed:
			err = fmt.Errorf("%w: %w", edge.ErrPortClosed, err)
		case e.Code == http.StatusNotFound || e.ErrorCode == api.CodeNotRunning:
			err = fmt.Errorf("%w: %w", edge.ErrNotFound, err)
		}
	}
	return conn, err
}

// Envd implements edge.Node.
func (w way) Envd(id api.SandboxID) (http.RoundTripper, string) {
	return w.client.Transport(), nodeapi.EnvdPath(id)
}

// URL implements edge.Node.
func (w way) URL() string {
	if addr := w.client.Address(); strings.HasPrefix(addr, "https://") {
		return addr
	}
	return "" // a socket of this machine
}
