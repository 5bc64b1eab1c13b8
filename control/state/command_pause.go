package state

import (
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// SandboxPaused records a node's report that a running sandbox is paused, or how a paused one is. Repeating it changes nothing.
type SandboxPaused struct {
	ID   api.SandboxID `codec:"id"`
	Node api.NodeID    `codec:"node"` // that has it
	At   time.Time     `codec:"at"`
	// Files tells that its files alone are kept.
	Files bool `codec:"files"`
	// Stored is its copy in the snapshot store StoredIn, where there is one.
	Stored   api.SnapshotID `codec:"stored"`
	StoredIn string         `codec:"stored_in"`
	// Moving tells that it is paused only to go on on another node.
	Moving bool `codec:"moving"`
}

// SandboxResumed records a node's report that a paused sandbox runs again, with a new deadline.
type SandboxResumed struct {
	ID      api.SandboxID `codec:"id"`
	Node    api.NodeID    `codec:"node"` // that has it now: it may be another one than before
	At      time.Time     `codec:"at"`
	EndAt   time.Time     `codec:"end_at"`
	MaxEnd  time.Time     `codec:"max_end_at"`
	Timeout time.Duration `codec:"timeout"` // that EndAt came from
}

// SandboxMove records that a running sandbox is about to be paused to go on on another node, so that requests wait from then on; or
// that it is not, after all. Repeating it changes nothing.
type SandboxMove struct {
	ID     api.SandboxID `codec:"id"`
	Moving bool          `codec:"moving"`
}

func (*SandboxMove) kind() commandType    { return typeSandboxMove }
func (*SandboxPaused) kind() commandType  { return typeSandboxPaused }
func (*SandboxResumed) kind() commandType { return typeSandboxResumed }

func (c *SandboxMove) check() error { return checkID(c.ID) }

func (c *SandboxPaused) check() error {
	if c.At.IsZero() {
		return limitErrorf("at", "is missing")
	}
	if c.Node == "" {
		return limitErrorf("node", "is missing")
	}
	return checkID(c.ID)
}

func (c *SandboxResumed) check() error {
	switch {
	case c.Node == "":
		return limitErrorf("node", "is missing")
	case c.At.IsZero() || c.EndAt.IsZero() || c.MaxEnd.IsZero():
		return limitErrorf("resume", "lacks one of its times")
	case c.EndAt.After(c.MaxEnd):
		return limitErrorf("timeout", "lies beyond the maximum lifetime")
	}
	return checkID(c.ID)
}
