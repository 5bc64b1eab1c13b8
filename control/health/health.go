// Package health is the seam that tells which nodes exist, where their API is, and what their health checks say.
//
// It owns the contract. Package static knows the nodes of a configuration; another implementation watches a service
// catalogue. It never connects to a node itself: that is package fleet.
package health

import (
	"context"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Status is what health checks say of a node.
type Status string

// The statuses. Unknown is not dead: a directory that cannot be reached, or that has no checks, says unknown.
const (
	Passing  Status = "passing"
	Critical Status = "critical" // its checks fail or were not renewed in time
	Unknown  Status = "unknown"
)

// Node is an entry of the directory.
type Node struct {
	ID      api.NodeID // empty where the directory does not know it; the node itself says it then
	Name    string     // for people
	Address string     // "unix:///path/of/socket" or "https://host:port"; names the entry
	Status  Status
	Reason  string // what the failing check says
}

// View is the directory at one moment, ordered by address.
type View struct {
	Index uint64 // grows with every change; never 0
	Nodes []Node
	// StaleSince is when the directory itself was last reached, where it cannot be reached now. Zero: the view is fresh.
	StaleSince time.Time
}

// Directory tells which nodes exist. Implementations are safe for concurrent use and keep these rules, which healthtest
// checks:
//
//   - Nodes returns a view whose Index is greater than after, at once where there is one, else when it changes. It returns
//     ctx's error when ctx ends first. After 0 it always answers at once, or with an error where nothing was ever known.
//   - While the directory cannot be reached, the last view stays, with its nodes' Status unknown and StaleSince set:
//     nobody is declared dead because the directory is.
//   - Two views with the same Index are equal. Addresses are unique in a view.
type Directory interface {
	Nodes(ctx context.Context, after uint64) (View, error)
}
