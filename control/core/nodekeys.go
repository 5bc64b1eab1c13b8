package core

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// nodeKeys gives nodes the key of their snapshot store: before they are connected, and again where it has changed. What Vault or another server has
// rotated or revoked is so at every node that is connected after keyPeriod and what the ring itself takes; a node that is not connected keeps what it has,
// and nobody asks it for anything.
type nodeKeys struct {
	ring keys.Ring
	log  hclog.Logger

	mu    sync.Mutex
	given map[api.NodeID]givenKeys
}

// givenKeys are the versions that this server gave to a start of a node's daemon.
type givenKeys struct {
	epoch    string
	versions []keys.KeyVersion
	at       time.Time
}

const (
	// keyPeriod is how often a change is looked for.
	keyPeriod = 5 * time.Second
	// keyAgain is how often the key is given also where nothing has changed: another server may have greeted the node with an older copy.
	keyAgain = time.Minute
)

func newNodeKeys(ring keys.Ring, log hclog.Logger) *nodeKeys {
	return &nodeKeys{ring: ring, log: log, given: map[api.NodeID]givenKeys{}}
}

// greet gives a node its key before anything else, whatever it was given before. Where nobody can tell the key (Vault is sealed, no leader yet) the node has to do without: all that needs
// none works, and run goes on trying.
func (k *nodeKeys) greet(ctx context.Context, node *nodeapi.Client, self nodeapi.Node) error {
	k.mu.Lock()
	delete(k.given, self.ID)
	k.mu.Unlock()
	err := k.give(ctx, node, self)
	var e *api.Error
	if errors.As(err, &e) && e.ErrorCode == api.CodeUnavailable {
		k.log.Warn("node has no snapshot key yet", "node", self.ID, "error", err)
		return nil
	}
	return err
}

func (k *nodeKeys) give(ctx context.Context, node *nodeapi.Client, self nodeapi.Node) error {
	if !self.TakesSnapshotKey {
		return nil
	}
	list, err := k.ring.Keys()
	if err != nil {
		return err
	}
	has := givenKeys{epoch: self.Epoch, at: time.Now()}
	var key nodeapi.SnapshotKey
	for _, v := range list {
		has.versions = append(has.versions, v.Version)
		key.Versions = append(key.Versions, nodeapi.SnapshotKeyVersion{Version: int(v.Version), Secret: v.Secret})
	}
	k.mu.Lock()
	had := k.given[self.ID]
	k.mu.Unlock()
	if had.epoch == has.epoch && slices.Equal(had.versions, has.versions) && has.at.Sub(had.at) < keyAgain {
		return nil
	}
	if err := node.PutSnapshotKey(ctx, key); err != nil {
		return err
	}
	k.mu.Lock()
	k.given[self.ID] = has
	k.mu.Unlock()
	return nil
}

// run gives connected nodes what has changed, until ctx ends.
func (k *nodeKeys) run(ctx context.Context, f *fleet.Fleet) {
	tick := time.NewTicker(keyPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, n := range f.Nodes() {
			if !n.Connected || !n.Self.TakesSnapshotKey {
				continue
			}
			node, err := f.Client(n.Self.ID)
			if err != nil {
				continue // it has gone meanwhile
			}
			call, cancel := context.WithTimeout(ctx, keyPeriod)
			if err := k.give(call, node, n.Self); err != nil && ctx.Err() == nil {
				k.log.Warn("node was not given the snapshot key", "node", n.Self.ID, "error", err)
			}
			cancel()
		}
	}
}
