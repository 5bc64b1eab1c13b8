package lifecycle

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
)

// MaxForks is how many copies one call makes.
const MaxForks = 100

// parallelForks is how many copies are started at a time.
const parallelForks = 16

// Forked is one copy of a fork, or why there is none.
type Forked struct {
	Sandbox state.Sandbox
	Err     error
}

// Fork implements API: a snapshot, and copies made from it. The parent stands still while its memory is copied, once, however
// many copies there are.
func (s *Service) Fork(ctx context.Context, caller auth.Identity, id api.SandboxID, count int, d time.Duration) ([]Forked, error) {
	if count < 1 || count > MaxForks {
		return nil, invalid("count is %d, 1 to %d are allowed", count, MaxForks)
	}
	if err := s.boundTimeout(caller.Tenant, d); err != nil {
		return nil, err
	}
	parent, err := s.live(caller.Tenant, id)
	if err != nil {
		return nil, err
	}
	sn, err := s.TakeSnapshot(ctx, SnapshotParams{Caller: caller, Sandbox: id, Description: "fork of " + string(id), passing: true})
	if err != nil {
		return nil, err
	}
	out := make([]Forked, count)
	var g errgroup.Group
	g.SetLimit(parallelForks)
	for i := range out {
		g.Go(func() error {
			out[i].Sandbox, _, out[i].Err = s.Create(ctx, CreateParams{
				Caller: caller, Template: string(sn.ID), Timeout: d, Metadata: parent.Metadata, Lifecycle: parent.Lifecycle,
				Open: parent.EnvdToken == "", PrivateTraffic: parent.TrafficToken != "",
				AllowInternetAccess: parent.AllowInternetAccess, Network: parent.Network, copyOf: &parent,
			})
			return nil
		})
	}
	_ = g.Wait() // each copy has its own error
	failpoint.At("fork.copied")
	// Copies hold all that they need: nothing but them was made from this snapshot.
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.CleanTimeout)
	defer cancel()
	if err := s.DeleteSnapshot(clean, caller.Tenant, string(sn.ID), true); err != nil {
		s.cfg.Logger.Warn("snapshot of a fork is not removed yet", "snapshot", sn.ID, "error", err)
	}
	return out, nil
}
