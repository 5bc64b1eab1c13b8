package state

import (
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
)

// fsm applies the log to the tables. Raft calls it from one goroutine at a time.
type fsm struct {
	store *Store
	known *knownCluster
}

var _ raft.FSM = (*fsm)(nil)

// outcome is what Apply hands to the caller of raft.Apply on the leader.
type outcome struct {
	result Result
	err    error
}

// Apply implements raft.FSM. A command that the tables refuse is an outcome and changes nothing. A command that this
// version cannot read ends the process: going on without it would let the servers' tables drift apart.
func (f *fsm) Apply(entry *raft.Log) any {
	c, err := decodeCommand(entry.Data)
	if err != nil {
		panic(fmt.Sprintf("state: entry %d of the log: %v; a newer version of SoulBox wrote it: start that version", entry.Index, err))
	}
	r, err := f.store.apply(entry.Index, c)
	switch commandType(entry.Data[0]) {
	case typeSlotClaim:
		failpoint.At("claim.applied")
	case typeClusterPut:
		if kerr := f.learnCluster(); err == nil {
			err = kerr
		}
	}
	return outcome{result: r, err: err}
}

// Snapshot implements raft.FSM. It is a pointer to an immutable view.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	return &fsmSnapshot{txn: f.store.db.Load().Txn(false)}, nil
}

// Restore implements raft.FSM: the snapshot takes the place of everything.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	db, err := readSnapshot(r)
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	f.store.replace(db)
	return f.learnCluster()
}

// learnCluster keeps whose state this is beside it.
func (f *fsm) learnCluster() error {
	id, err := f.store.clusterID()
	if err == nil && f.known != nil {
		err = f.known.learn(id)
	}
	return err
}

// skipFSM has no tables: raft wants an FSM to look up the servers of a stored configuration.
type skipFSM struct{}

func (skipFSM) Apply(*raft.Log) any                 { return nil }
func (skipFSM) Snapshot() (raft.FSMSnapshot, error) { return nil, raft.ErrNothingNewToSnapshot }
func (skipFSM) Restore(r io.ReadCloser) error       { return r.Close() }
