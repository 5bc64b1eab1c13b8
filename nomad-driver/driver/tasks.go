package driver

import (
	"context"
	"sync"

	"github.com/hashicorp/nomad/plugins/drivers"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// taskStore remembers which sandbox belongs to a task. It is a cache: the node's records say it too.
type taskStore struct {
	mu    sync.Mutex
	byID  map[string]api.SandboxID
	names map[string]string // task id → task name, for Inspect
}

func newTaskStore() *taskStore {
	return &taskStore{byID: map[string]api.SandboxID{}, names: map[string]string{}}
}

func (s *taskStore) put(taskID, name string, id api.SandboxID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byID[taskID], s.names[taskID] = id, name
}

func (s *taskStore) get(taskID string) (id api.SandboxID, name string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, ok = s.byID[taskID]
	return id, s.names[taskID], ok
}

func (s *taskStore) remove(taskID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, taskID)
	delete(s.names, taskID)
}

// known returns the sandbox of a task that this plugin started or recovered, or drivers.ErrTaskNotFound.
func (d *Driver) known(taskID string) (api.SandboxID, error) {
	id, _, ok := d.tasks.get(taskID)
	if !ok {
		return "", drivers.ErrTaskNotFound
	}
	return id, nil
}

// find looks a task up in the node's records where this plugin does not know it: Nomad destroys tasks that it could not
// recover. found is false where there is nothing to end.
func (d *Driver) find(ctx context.Context, node *nodeapi.Client, taskID string) (id api.SandboxID, found bool, err error) {
	if id, _, ok := d.tasks.get(taskID); ok {
		return id, true, nil
	}
	list, err := node.List(ctx)
	if err != nil {
		return "", false, err
	}
	for _, sb := range list {
		if sb.Owner.TaskID == taskID {
			return sb.ID, true, nil
		}
	}
	return "", false, nil
}
