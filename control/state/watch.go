package state

import "fmt"

// Watch returns all sandboxes of a tenant that are kept, ended ones too, the Raft index that they show, and a channel that
// is closed after the next change of any of them. After a snapshot was restored the channel may never be closed: a watcher
// asks again now and then.
func (s *Store) Watch(tenant string) ([]Sandbox, uint64, <-chan struct{}, error) {
	txn := s.read()
	it, err := txn.Get(tableSandbox, indexCreated+"_prefix", tenantKey(tenant))
	if err != nil {
		return nil, 0, nil, fmt.Errorf("watch sandboxes: %w", err)
	}
	return collect[Sandbox](it, nil), readIndex(txn), it.WatchCh(), nil
}
