// Package placement is the seam between the control service and what decides on which machine a sandbox runs.
//
// It owns the contract. Package local keeps it with one node of this machine; another implementation dispatches through a
// scheduler. It never knows which one is behind it, and nothing here tells that a sandbox runs: its node does.
package placement

import (
	"context"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// OwnerKind is the owner (nodeapi.Owner.Kind) of the sandboxes that the control service makes, whatever places them.
const OwnerKind = nodeapi.OwnerControl

// Request asks for a sandbox somewhere.
type Request struct {
	Tenant string
	// Dedicated asks for a node that runs sandboxes of this tenant alone. Who cannot tell such nodes refuses.
	Dedicated bool
	Node      nodeapi.CreateRequest // what the chosen node is to make; its ID is the idempotency key
	// On is the one node that can make it, because only there is what it is made from. Empty: any.
	On api.NodeID
	// Rules are where it may run, and where it had better. On has to keep them, too.
	Rules Rules
	// Prefer is the node that it had better run on, of those that may. Empty: the placer's choice.
	Prefer api.NodeID
}

// Placer puts sandboxes on nodes. Implementations are safe for concurrent use and keep these rules, which
// placementtest checks:
//
//   - Place returns once the placement is accepted, or fails; it need not wait until the sandbox runs. Placing an id again
//     while it is placed changes nothing and returns nil, even where the first call is still on its way: there is at most
//     one sandbox of an id.
//   - A Place that returns an error may have placed the sandbox all the same (a lost answer, an ended context). The caller
//     calls Stop then. Refusals are *api.Error: template_not_found, command_not_found, sandbox_capacity_unavailable, …
//   - Stop ends a sandbox and forgets its placement. When it returns nil, the sandbox is gone from the node, or goes
//     without further help, and is not started again by a Place that returned before. Stop of an unknown id is nil.
//   - List returns what is placed and not stopped, in any order: also what waits for room, and what ended by itself, until
//     Stop. It holds only what this control service placed.
type Placer interface {
	Place(ctx context.Context, req Request) error
	Stop(ctx context.Context, id api.SandboxID) error
	List(ctx context.Context) ([]Placed, error)
}

// Watcher is what a Placer offers that accepts a sandbox before it is known whether it can be started.
type Watcher interface {
	// Watch returns when the placement of id is known to have failed, with the reason as *api.Error, or ctx's error when
	// ctx ends first. It never returns nil: that a sandbox runs is for its node to say.
	Watch(ctx context.Context, id api.SandboxID) error
}

// Drainer is what a Placer offers whose operators take machines out of use.
type Drainer interface {
	// Draining returns the nodes that are to be left: what runs there is ended before long.
	Draining(ctx context.Context) ([]api.NodeID, error)
}

// Fencer is what a Placer offers that can be told to place nothing on a node. What runs there goes on.
type Fencer interface {
	// Fence keeps new placements from a node, or with on false lets them come again. It may be repeated.
	Fence(ctx context.Context, node api.NodeID, on bool) error
}

// Reserver is what a Placer offers that counts what each sandbox takes of its node.
type Reserver interface {
	// Reserved returns what a sandbox that was asked for with these limits may have of processor and memory at most, at its place.
	Reserved(asked nodeapi.Limits) nodeapi.Limits
}

// State of a placement.
type State string

// The states.
const (
	Pending State = "pending" // waits for room, or is on its way to the node
	Active  State = "active"  // handed to a node
	Ended   State = "ended"   // the node says that it ended, or it failed to start
)

// Placed is one placement.
type Placed struct {
	ID        api.SandboxID
	Node      api.NodeID // empty while pending
	State     State
	Ref       string // the placer's own name for it: a job or an allocation
	Reason    string // why it waits or ended, for people
	CreatedAt time.Time
}
