package state

import (
	"fmt"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Published is a port of a sandbox that its node listens for, wherever the sandbox is.
type Published struct {
	Proto    string `codec:"proto"`
	Port     int    `codec:"port"`      // inside
	NodePort int    `codec:"node_port"` // of the node
	Any      bool   `codec:"any"`       // another NodePort would do
	Error    string `codec:"error"`     // why the node that the sandbox came to last does not listen for it
}

// MaxPublished is the most ports of one sandbox that are published.
const MaxPublished = 32

// SandboxPublish replaces the published ports of a sandbox that has not ended.
type SandboxPublish struct {
	ID    api.SandboxID `codec:"id"`
	Ports []Published   `codec:"ports"`
}

func (*SandboxPublish) kind() commandType { return typeSandboxPublish }

func (c *SandboxPublish) check() error {
	if len(c.Ports) > MaxPublished {
		return limitErrorf("ports", "has %d entries, at most %d are published", len(c.Ports), MaxPublished)
	}
	for i := range c.Ports {
		c.Ports[i].Error = cut(c.Ports[i].Error)
	}
	return checkID(c.ID)
}

func (c *SandboxPublish) apply(tx *writeTx) (Result, error) {
	s, err := tx.sandbox(c.ID)
	if err != nil {
		return Result{}, err
	}
	if s.State.Ended() || s.State == Stopping {
		return Result{Sandbox: s}, fmt.Errorf("sandbox %s is %s: %w", s.ID, s.State, ErrState)
	}
	s.Published = c.Ports
	return changed(s, tx.putSandbox(&s))
}
