package main

import (
	"context"
	"fmt"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/node"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/consul"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// consulBlock makes the daemon register itself with the Consul agent of its machine.
type consulBlock struct {
	Address   string `hcl:"address,optional"`   // of the agent
	Token     string `hcl:"token,optional"`     // with service:write
	Service   string `hcl:"service,optional"`   // name to register under
	Advertise string `hcl:"advertise,optional"` // host:port at which others reach the API; the daemon's own address where empty
	TTL       string `hcl:"ttl,optional"`       // of the health check
}

// announceTimeout bounds how long the daemon's own API may take to answer.
const announceTimeout = 3 * time.Second

// announce registers the node, once its API answers, until ctx ends. What it reports is what the API says: a daemon that
// hangs is not healthy. The function that it returns waits for the end.
func announce(ctx context.Context, block *consulBlock, cfg node.Config, self *node.Node) (wait func(), err error) {
	if block == nil {
		return func() {}, nil
	}
	info := self.Info()
	client := nodeapi.NewUnix(cfg.SocketPath())
	reg := consul.Config{
		Agent: block.Address, Token: block.Token, Service: block.Service, Address: block.Advertise,
		NodeID: info.ID, NodeName: info.Name, Version: info.Version, Meta: map[string]string{"kernel": info.Kernel},
		Concerns: nodeapi.CheckNames(),
		Logger:   cfg.Logger.Named("consul"),
		Status: func() consul.Status {
			ctx, cancel := context.WithTimeout(ctx, announceTimeout)
			defer cancel()
			return consulStatus(client.Node(ctx))
		},
	}
	if reg.Address == "" {
		reg.Address = cfg.Address
	}
	if block.TTL != "" {
		if reg.TTL, err = time.ParseDuration(block.TTL); err != nil {
			return nil, fmt.Errorf("consul ttl %q is no duration", block.TTL)
		}
	}
	r, err := consul.New(reg)
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer client.Close()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for answers := false; !answers; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				_, err := client.Node(ctx)
				answers = err == nil
			}
		}
		if err := r.Run(ctx); err != nil {
			reg.Logger.Warn("the node stays in consul until its check fails", "error", err)
		}
	}()
	return func() { <-done }, nil
}

// consulStatus is the line that people read in Consul's UI.
func consulStatus(n nodeapi.Node, err error) consul.Status {
	if err != nil {
		return consul.Status{Critical: true, Output: "its API does not answer: " + err.Error()}
	}
	out := consul.Status{Output: fmt.Sprintf("%d of at most %d sandboxes run; %.1f GiB of disk are free",
		n.Running, n.MaxSandbox, float64(n.DiskFree)/(1<<30))}
	if !n.Healthy {
		out.Critical, out.Output = true, n.Reason
	}
	for _, c := range n.Checks {
		out.Concerns = append(out.Concerns, consul.Concern{Name: c.Name, Status: string(c.Status), Output: c.Output})
	}
	return out
}
