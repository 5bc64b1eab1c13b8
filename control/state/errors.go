package state

import (
	"errors"

	"github.com/hashicorp/raft"
)

// Errors of commands and reads. They come wrapped with the object that they are about.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("exists already")
	// ErrState means that the sandbox is in a state from which the change is not possible.
	ErrState = errors.New("state does not allow it")
	// ErrConflict means that the record is another one than the caller thinks.
	ErrConflict = errors.New("conflicts with what is recorded")
	// ErrSuspended means that the tenant takes no new work.
	ErrSuspended = errors.New("is suspended")
	// ErrNoLeader means that this server does not lead: nothing was changed.
	ErrNoLeader = errors.New("this control server is not the leader")
	// ErrUnknownOutcome means that leadership or the server ended while a change was on its way: it may be made yet.
	ErrUnknownOutcome = errors.New("leadership was lost; whether the change was made is not known")
	// ErrToken means that a page token was not made by this list.
	ErrToken = errors.New("the page token is not valid")
)

// raftError maps the errors of raft.Apply.
func raftError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return errors.Join(ErrNoLeader, err)
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown), errors.Is(err, raft.ErrAbortedByRestore):
		return errors.Join(ErrUnknownOutcome, err)
	}
	return err
}
