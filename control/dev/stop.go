package dev

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/placement/nomad"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// How long Stop waits.
const (
	drainTimeout   = 15 * time.Second // for Nomad to end the sandboxes that it placed
	sandboxTimeout = 5 * time.Second  // for a sandbox to end at SIGTERM
	stopsAtOnce    = 16
)

// Stop ends the sandboxes, then the processes in the reverse order of their start. It returns when all are gone. Jobs that
// users registered in Nomad themselves stay in Dir and start again with the next cluster of it.
func (c *Cluster) Stop(ctx context.Context) error {
	var errs []error
	c.cancel()
	c.wg.Wait()
	if c.nomad != nil {
		if c.nomad.Client != nil {
			errs = append(errs, c.stopPlacements(ctx))
		}
		errs = append(errs, c.nomad.Stop(ctx))
	}
	if c.node != nil {
		errs = append(errs, c.stopSandboxes(ctx), c.node.Stop(ctx))
	}
	if c.issuer != nil {
		c.issuer.Close()
	}
	if c.vault != nil {
		errs = append(errs, c.vault.Stop(ctx))
	}
	if c.consul != nil {
		errs = append(errs, c.consul.Stop(ctx))
	}
	if c.lock != nil {
		errs = append(errs, unix.Flock(int(c.lock.Fd()), unix.LOCK_UN), c.lock.Close())
	}
	return errors.Join(errs...)
}

// stopPlacements takes the sandboxes out of Nomad, and waits until it has ended them.
func (c *Cluster) stopPlacements(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	placer, err := nomad.New(c.NomadConfig())
	if err != nil {
		return err
	}
	defer placer.Close()
	placed, err := placer.List(ctx)
	if err != nil {
		return err
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(stopsAtOnce)
	ours := map[string]bool{}
	for _, p := range placed {
		ours[string(p.ID)] = true
		group.Go(func() error { return placer.Stop(gctx, p.ID) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	client := nodeapi.NewUnix(c.Socket())
	defer client.Close()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := client.List(ctx)
		if err != nil {
			return fmt.Errorf("sandboxes of nomad: %w", err)
		}
		left := 0
		for _, sb := range list {
			if ours[string(sb.ID)] && sb.State != nodeapi.StateStopped {
				left++
			}
		}
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d sandboxes that nomad has to end still run: %w", left, ctx.Err())
		case <-tick.C:
		}
	}
}

// stopSandboxes ends what is left on the node, whoever asked for it.
func (c *Cluster) stopSandboxes(ctx context.Context) error {
	client := nodeapi.NewUnix(c.Socket())
	defer client.Close()
	list, err := client.List(ctx)
	if err != nil {
		return fmt.Errorf("sandboxes of the node: %w", err)
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(stopsAtOnce)
	for _, sb := range list {
		group.Go(func() error {
			if sb.State != nodeapi.StateStopped {
				if _, err := client.Stop(gctx, sb.ID, nodeapi.StopRequest{Timeout: sandboxTimeout}); err != nil && !api.IsNotFound(err) {
					return fmt.Errorf("stop sandbox %s: %w", sb.ID, err)
				}
			}
			if err := client.Delete(gctx, sb.ID); err != nil && !api.IsNotFound(err) {
				return fmt.Errorf("remove sandbox %s: %w", sb.ID, err)
			}
			return nil
		})
	}
	return group.Wait()
}
