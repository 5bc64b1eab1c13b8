package driver

import (
	"context"
	"sync"

	"github.com/hashicorp/nomad/plugins/drivers"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// entry is what the plugin remembers of a task.
type entry struct {
	sandbox api.SandboxID
	name    string
	alloc   string
	ports   bool      // some lead into its sandbox
	logs    *heldLogs // nil where it has none, or has ended
}

// taskStore remembers which sandbox belongs to a task. It is a cache: the node's records say it too.
type taskStore struct {
	mu   sync.Mutex
	byID map[string]*entry
}

func newTaskStore() *taskStore { return &taskStore{byID: map[string]*entry{}} }

// put enters a task and takes its logs over. Where a call for the same task was faster, that one's entry stays.
func (s *taskStore) put(cfg *drivers.TaskConfig, e entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID[cfg.ID] != nil {
		e.logs.close()
		return
	}
	e.name, e.alloc = cfg.Name, cfg.AllocID
	s.byID[cfg.ID] = &e
}

// withPorts returns a task into whose sandbox ports lead, as far as its events name it; nil where none do.
func (s *taskStore) withPorts(taskID string) *drivers.TaskConfig {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.byID[taskID]
	if t == nil || !t.ports {
		return nil
	}
	return &drivers.TaskConfig{ID: taskID, Name: t.name, AllocID: t.alloc}
}

func (s *taskStore) get(taskID string) (id api.SandboxID, name string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.byID[taskID]
	if t == nil {
		return "", "", false
	}
	return t.sandbox, t.name, true
}

// letGoLogs closes the log pipes of a task that has ended, so that their reader sees the end.
func (s *taskStore) letGoLogs(taskID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.byID[taskID]; t != nil {
		t.logs.close()
		t.logs = nil
	}
}

func (s *taskStore) remove(taskID string) {
	s.letGoLogs(taskID)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, taskID)
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
		if ofTask(sb, taskID) {
			id, found = sb.ID, true
		}
	}
	return id, found, nil
}
