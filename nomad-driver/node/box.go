package node

import (
	"context"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/network"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/proxy"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/resolver"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// guestClient is the node's way to a sandbox's PID 1, as *guest.Client is.
type guestClient interface {
	Info(ctx context.Context) (guest.Info, error)
	Start(ctx context.Context, s guest.Start) (guest.ProcessInfo, error)
	Signal(ctx context.Context, r guest.SignalRequest) error
	Stdin(ctx context.Context, r guest.StdinRequest) error
	StartAttached(ctx context.Context, s guest.Start) (*guest.Stream, error)
	Attach(ctx context.Context, a guest.Attach) (*guest.Stream, error)
	Resize(ctx context.Context, pid guest.ProcessID, size frame.Size) error
	List(ctx context.Context) ([]guest.ProcessInfo, error)
	LookupUser(ctx context.Context, user string) (guest.UserInfo, error)
	Open(ctx context.Context, r guest.FileRequest) (*os.File, guest.FileInfo, error)
	Stat(ctx context.Context, r guest.FileRequest) (guest.FileInfo, error)
	ReadDir(ctx context.Context, r guest.FileRequest) ([]guest.FileInfo, error)
	Mkdir(ctx context.Context, r guest.FileRequest) (guest.FileInfo, error)
	Remove(ctx context.Context, r guest.FileRequest) error
	Rename(ctx context.Context, r guest.FileRequest) error
	Symlink(ctx context.Context, r guest.FileRequest) error
	Entry(ctx context.Context, r guest.FileRequest) (guest.Entry, error)
	Walk(ctx context.Context, r guest.FileRequest) ([]guest.Entry, error)
	ReadSmall(ctx context.Context, r guest.FileRequest) ([]byte, error)
	Watch(ctx context.Context, r guest.WatchRequest) (*guest.Watch, error)
	SetEnv(ctx context.Context, env []string) error
	Shutdown(ctx context.Context, p guest.ShutdownParams) error
}

// box is one sandbox as the node knows it, from the create request to the removal of its record. Its channels close in
// the order created, stopped, released; those that a failed creation does not reach close with created.
type box struct {
	id       api.SandboxID
	created  chan struct{} // creation has ended, one way or the other; err says which
	stopped  chan struct{} // it has ended; rec.Sandbox.Exit says how
	released chan struct{} // nothing of it is left on the machine
	removed  chan struct{} // the record is gone
	lease    *lease        // on its template, until released; nil where the template is gone or not needed any more
	logged   *budget       // of its logbook

	networking sync.Mutex // held while its network changes
	published  published
	turn       sync.Mutex // held over a pause, a resume, a checkpoint; before mu

	fetched []guest.Step // of a creation from a snapshot, before the sandbox's own steps

	activation sync.Mutex // held while a server of the template's is looked for and started

	mu       sync.Mutex
	abort    context.CancelFunc // ends a creation that is under way
	rec      record
	err      error              // of the creation
	giveUp   context.CancelFunc // ends a checkpoint in the background; nil where there is none
	paging   *paging            // nil: it has all of its memory
	snapshot *chunk.Manifest    // that it was made from, if that may be restored again; set before the instance
	inst     instance
	slot     *network.Slot    // nil where it has its loopback only
	asker    *resolver.Client // with slot, as carrier
	carrier  *proxy.Client
	deleting bool          // the record goes with the sandbox: writing it once more is not worth it
	pumped   chan struct{} // closed when the log pump has ended; nil where there is none
}

func newBox(rec record) *box {
	return &box{
		id: rec.Sandbox.ID, rec: rec, abort: func() {}, logged: newBudget(logRate, logBurst),
		created: make(chan struct{}), stopped: make(chan struct{}), released: make(chan struct{}), removed: make(chan struct{}),
	}
}

// view returns the sandbox as of now. What it points to is never changed, only replaced.
func (b *box) view() nodeapi.Sandbox {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rec.Sandbox
}

// running returns the instance where the sandbox can be spoken to.
func (b *box) running() (instance, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.rec.Sandbox.State; s != nodeapi.StateRunning && s != nodeapi.StateStopping {
		return nil, notRunning(b.rec.Sandbox)
	}
	return b.inst, nil
}

// box returns the sandbox with this id.
func (n *Node) box(id api.SandboxID) (*box, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	b, ok := n.boxes[id]
	if !ok {
		return nil, notFound(id)
	}
	return b, nil
}

// guest returns the way to the PID 1 of a running sandbox.
func (n *Node) guest(id api.SandboxID) (guestClient, *box, error) {
	b, err := n.box(id)
	if err != nil {
		return nil, nil, err
	}
	inst, err := b.running()
	if err != nil {
		return nil, nil, err
	}
	return inst.Guest(), b, nil
}

// Get returns one sandbox.
func (n *Node) Get(id api.SandboxID) (nodeapi.Sandbox, error) {
	b, err := n.box(id)
	if err != nil {
		return nodeapi.Sandbox{}, err
	}
	return b.view(), nil
}

// List returns all sandboxes that the node has records of, oldest first.
func (n *Node) List() []nodeapi.Sandbox {
	n.mu.RLock()
	boxes := make([]*box, 0, len(n.boxes))
	for _, b := range n.boxes {
		boxes = append(boxes, b)
	}
	n.mu.RUnlock()
	all := make([]nodeapi.Sandbox, 0, len(boxes))
	for _, b := range boxes {
		all = append(all, b.view())
	}
	slices.SortFunc(all, func(a, b nodeapi.Sandbox) int {
		if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
			return c
		}
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return all
}

// Wait returns the sandbox when it has stopped or ctx ends, whichever is first; the state tells.
func (n *Node) Wait(ctx context.Context, id api.SandboxID) (nodeapi.Sandbox, error) {
	b, err := n.box(id)
	if err != nil {
		return nodeapi.Sandbox{}, err
	}
	select {
	case <-b.stopped:
	case <-ctx.Done():
	}
	sb := b.view()
	if sb.State == nodeapi.StateStarting {
		select {
		case <-b.created: // it has failed: there is no record any more
			return nodeapi.Sandbox{}, notFound(id)
		default:
		}
	}
	return sb, nil
}

// SetDeadline changes when the node ends a sandbox by itself. A time that has passed, as a timeout of 0 and the way to
// this node make one, means now.
func (n *Node) SetDeadline(id api.SandboxID, at time.Time) (nodeapi.Sandbox, error) {
	b, err := n.box(id)
	if err != nil {
		return nodeapi.Sandbox{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rec.Sandbox.State != nodeapi.StateRunning {
		return nodeapi.Sandbox{}, notRunning(b.rec.Sandbox)
	}
	old := b.rec.Sandbox.Deadline
	if !at.IsZero() {
		at = at.UTC().Round(0)
	}
	b.rec.Sandbox.Deadline = at
	if err := n.records.put(&b.rec); err != nil {
		b.rec.Sandbox.Deadline = old
		return nodeapi.Sandbox{}, err
	}
	n.deadlines.set(id, at)
	sb := b.rec.Sandbox
	n.hub.publish(nodeapi.EventUpdated, id, &sb)
	return sb, nil
}

// Signal signals a process of a sandbox, or where r.PID is 0 its main process or else every process that PID 1 started.
func (n *Node) Signal(ctx context.Context, id api.SandboxID, r nodeapi.SignalRequest) error {
	if err := checkSignal("signal", r.Signal); err != nil {
		return err
	}
	if r.PID < 0 {
		return invalid("pid: %d is negative", r.PID)
	}
	g, b, err := n.guest(id)
	if err != nil {
		return err
	}
	if main := b.view().Main; r.PID == 0 && main != 0 {
		r.PID = main
	}
	if r.PID != 0 {
		return guestGone(b, g.Signal(ctx, guest.SignalRequest{PID: r.PID, Signal: r.Signal, Group: r.Group}))
	}
	processes, err := g.List(ctx)
	if err != nil {
		return guestGone(b, err)
	}
	for _, p := range processes {
		if p.Exit != nil {
			continue
		}
		err := g.Signal(ctx, guest.SignalRequest{PID: p.PID, Signal: r.Signal, Group: r.Group})
		if err != nil && apiError(err).Code != http.StatusNotFound { // one that has just ended is as good as signalled
			return guestGone(b, err)
		}
	}
	return nil
}
