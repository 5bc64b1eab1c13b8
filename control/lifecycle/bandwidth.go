package lifecycle

import (
	"encoding/json"
	"fmt"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// Bounds of a link's rate in bytes a second, as every node has them.
const (
	minRate = 8 << 10
	maxRate = 1<<32 - 1
)

// shaped gives a sandbox's link the rates of its tenant where it has none of its own, and refuses what is more than the tenant's may have.
// The shape is that of network settings, which may be nil; it returns the settings to be kept.
func shaped(network json.RawMessage, t state.Tenant) (json.RawMessage, rates, error) {
	var n api.NetworkConfig
	if isGiven(network) {
		if err := json.Unmarshal(network, &n); err != nil {
			return nil, rates{}, invalid("network: %v", err)
		}
	}
	var shape api.NetworkShape
	if n.SoulBox != nil && n.SoulBox.Shape != nil {
		shape = *n.SoulBox.Shape
	}
	asked := shape
	r, err := fillShape(&shape, t)
	if err != nil || shape == asked {
		return network, r, err
	}
	o := optionsOf(n)
	o.Shape, n.SoulBox = &shape, &o
	filled, err := json.Marshal(n)
	return filled, r, err
}

// rates are those of a link in bytes a second; 0: as much as there is.
type rates struct{ in, out int64 }

// fillShape gives a shape the rates of a tenant where it has none, and checks it against the tenant's maximums.
func fillShape(shape *api.NetworkShape, t state.Tenant) (rates, error) {
	for _, v := range []struct {
		name     string
		at       *api.NetworkDirection
		def, max int64
	}{
		{"in", &shape.In, t.Defaults.BandwidthIn, t.Maximums.BandwidthIn},
		{"out", &shape.Out, t.Defaults.BandwidthOut, t.Maximums.BandwidthOut},
	} {
		if v.at.Rate == 0 {
			if v.def == 0 {
				v.def = v.max
			}
			v.at.Rate = uint64(v.def) * state.Mbit //nolint:gosec // checked when it was set
		}
		if r := v.at.Rate; r != 0 && (r < minRate || r > maxRate) {
			return rates{}, invalid("network.shape.%s: rate_bytes is %d, 0 or %d to %d are allowed", v.name, r, minRate, int64(maxRate))
		}
		if v.max > 0 && v.at.Rate > uint64(v.max)*state.Mbit { //nolint:gosec // as above
			return rates{}, invalid("network.shape.%s: rate_bytes is %d, sandboxes of tenant %s may have at most %d (%d Mbit/s)",
				v.name, v.at.Rate, t.ID, v.max*state.Mbit, v.max)
		}
	}
	return rates{int64(shape.In.Rate), int64(shape.Out.Rate)}, nil //nolint:gosec // bounded
}

// orAll makes a rate what is held for it: a link without one takes all.
func orAll(rate int64) int64 {
	if rate == 0 {
		return state.Unlimited
	}
	return rate
}

// reshaped gives a paused sandbox whose link has no rate what its tenant's rules say by now, before it is resumed.
func reshaped(sb state.Sandbox, t state.Tenant) (*state.SandboxNetwork, error) {
	network, r, err := shaped(sb.Network, t)
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", sb.ID, err)
	}
	if r.in == sb.RateIn && r.out == sb.RateOut {
		return nil, nil
	}
	return &state.SandboxNetwork{
		ID: sb.ID, Network: network, AllowInternetAccess: sb.AllowInternetAccess, Shaped: true, RateIn: r.in, RateOut: r.out,
	}, nil
}
