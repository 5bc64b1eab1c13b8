// Package fleettest is a node without sandboxes: a server that speaks the API of a node over a unix socket and keeps
// records only, for tests of the control service. It can be killed, restarted, slowed down and made to fail.
package fleettest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Version is the version that a Node says it has, unless Self is changed.
const Version = "0.1.0"

// Hooks change what a Node does. A nil hook changes nothing. They are called without the node's lock.
type Hooks struct {
	// BeforeCreate is called before a sandbox is made; an error is the answer.
	BeforeCreate func(ctx context.Context, req nodeapi.CreateRequest) error
	// AfterCreate is called when it runs, before the call is answered.
	AfterCreate func(req nodeapi.CreateRequest) error
	// Call is called before every request; an error is the answer.
	Call func(method, path string) error
	// BeforeClaim is called before a claim is looked at; its error is the answer.
	BeforeClaim func(id api.SandboxID) error
}

// Node is the fake. Its records survive Kill and Start, as a node's do.
type Node struct {
	Socket string
	Beat   time.Duration // between beats; 5 s as a real node's by default

	mu        sync.Mutex
	self      nodeapi.Node
	hooks     Hooks
	sandboxes map[api.SandboxID]*record
	created   map[api.SandboxID]int // how often a sandbox of that id was made
	resumed   map[api.SandboxID]int // how often one was resumed
	templates map[string]nodeapi.Template
	snapshots *store
	archives  map[string][]byte // by digest
	ports     map[int]bool      // that are somebody else's

	checkpoints bool // pauses go to disk
	collects    int  // how often it was asked to
	key         nodeapi.SnapshotKey
	keys        int    // how often it was given one
	unfit       string // why it can restore no snapshot
	events      []nodeapi.Event
	seq         uint64
	epoch       int
	disowns     bool // it makes no copies of templates for tenants
	changed     chan struct{}

	server *http.Server
	wg     sync.WaitGroup
}

type record struct {
	nodeapi.Sandbox
	timer  *time.Timer // of its deadline
	claims int
	token  string

	network *nodeapi.Network

	published []nodeapi.PublishedPort
}

// New returns a node that runs, with the template base, until the test ends.
func New(t testing.TB) *Node {
	t.Helper()
	dir, err := os.MkdirTemp("", "fleettest")
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{
		Socket:    filepath.Join(dir, "node.sock"),
		Beat:      5 * time.Second,
		sandboxes: map[api.SandboxID]*record{},
		created:   map[api.SandboxID]int{},
		resumed:   map[api.SandboxID]int{},
		templates: map[string]nodeapi.Template{},
		snapshots: &store{m: map[api.SnapshotID]nodeapi.Snapshot{}},
		archives:  map[string][]byte{},
		changed:   make(chan struct{}),
		self: nodeapi.Node{
			ID: api.NodeID("node-" + filepath.Base(dir)), Name: filepath.Base(dir), Version: Version,
			APIVersion: nodeapi.Version, BootID: "boot-1", Healthy: true, CPUs: 2, MemoryBytes: 8 << 30, MaxSandbox: 1000,
		},
	}
	n.PutTemplate("base", []byte("base"))
	t.Cleanup(func() {
		n.Kill()
		n.mu.Lock()
		for _, r := range n.sandboxes {
			r.stopTimer()
		}
		n.mu.Unlock()
		_ = os.RemoveAll(dir)
	})
	n.Start(t)
	return n
}

// Start starts the daemon again after Kill: with its records, and a new epoch.
func (n *Node) Start(t testing.TB) {
	t.Helper()
	_ = os.Remove(n.Socket)
	l, err := net.Listen("unix", n.Socket)
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.epoch++
	n.self.Epoch = strconv.Itoa(n.epoch)
	n.self.StartedAt = time.Now()
	n.events, n.seq = nil, 0
	ctx, cancel := context.WithCancel(context.Background())
	n.server = &http.Server{Handler: n.handler(), BaseContext: func(net.Listener) context.Context { return ctx }}
	n.server.RegisterOnShutdown(cancel)
	server := n.server
	n.mu.Unlock()
	n.wg.Go(func() {
		defer cancel()
		_ = server.Serve(l)
	})
}

// Kill ends the daemon at once, connections and all. Sandboxes go on.
func (n *Node) Kill() {
	n.mu.Lock()
	server := n.server
	n.server = nil
	n.mu.Unlock()
	if server != nil {
		_ = server.Close()
	}
	n.wg.Wait()
}

// Reboot is a restart of the machine while the daemon is down: every sandbox is gone.
func (n *Node) Reboot() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, r := range n.sandboxes {
		r.stopTimer()
		delete(n.sandboxes, id)
	}
	n.self.BootID += "+"
}

// SetHooks replaces the hooks.
func (n *Node) SetHooks(h Hooks) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hooks = h
}

// Self changes what the node says of itself.
func (n *Node) Self(change func(*nodeapi.Node)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(&n.self)
}

// ID returns the node's id.
func (n *Node) ID() api.NodeID {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.self.ID
}

// Created returns how often a sandbox of that id was made, ended ones included.
func (n *Node) Created(id api.SandboxID) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.created[id]
}

// AllCreated returns how often each sandbox was made.
func (n *Node) AllCreated() map[api.SandboxID]int {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := map[api.SandboxID]int{}
	for id, c := range n.created {
		out[id] = c
	}
	return out
}

// Running returns the sandboxes that run, by id.
func (n *Node) Running() map[api.SandboxID]nodeapi.Sandbox {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := map[api.SandboxID]nodeapi.Sandbox{}
	for id, r := range n.sandboxes {
		if r.State == nodeapi.StateRunning {
			out[id] = r.Sandbox
		}
	}
	return out
}

// Records returns how many sandboxes the node knows of, stopped ones included.
func (n *Node) Records() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.sandboxes)
}

// End makes a sandbox end by itself.
func (n *Node) End(id api.SandboxID, exit nodeapi.Exit) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.end(id, exit)
}

// Run makes a sandbox run as if somebody had created it here, with no call.
func (n *Node) Run(req nodeapi.CreateRequest) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.begin(req)
	n.run(req.ID)
}

func (r *record) stopTimer() {
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
}

// The methods below are called with the lock held.

func (n *Node) emit(e nodeapi.Event) {
	n.seq++
	e.Epoch, e.Seq, e.Time = n.self.Epoch, n.seq, time.Now()
	n.events = append(n.events, e)
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *Node) emitSandbox(t nodeapi.EventType, r *record) {
	s := r.Sandbox
	n.emit(nodeapi.Event{Type: t, ID: s.ID, Sandbox: &s})
}

func (n *Node) begin(req nodeapi.CreateRequest) {
	if n.disowns {
		req.TemplateOf = ""
	}
	n.own(nodeapi.OwnTemplate{Tenant: req.TemplateOf, Digest: n.digest(req.Template)})
	r := &record{Sandbox: nodeapi.Sandbox{
		ID: req.ID, State: nodeapi.StateStarting, Template: req.Template, Digest: n.digest(req.Template), TemplateOf: req.TemplateOf,
		QoS: req.QoS, Limits: req.Limits, Owner: req.Owner, Metadata: req.Metadata, Deadline: req.Deadline, OnDeadline: req.OnDeadline, Warm: req.Warm, CreatedAt: time.Now(),
	}}
	n.setNetwork(r, req.Network)
	n.sandboxes[req.ID] = r
	n.emitSandbox(nodeapi.EventCreated, r)
}

func (n *Node) run(id api.SandboxID) {
	r := n.sandboxes[id]
	r.State, r.StartedAt, r.PID = nodeapi.StateRunning, time.Now(), 4242
	r.Steps = []guest.Step{{Name: "fake", Nanos: 1000}}
	n.created[id]++
	n.arm(r)
	n.emitSandbox(nodeapi.EventRunning, r)
}

// arm sets the timer of a sandbox's deadline.
func (n *Node) arm(r *record) {
	r.stopTimer()
	if r.Deadline.IsZero() {
		return
	}
	id := r.ID
	r.timer = time.AfterFunc(time.Until(r.Deadline), func() {
		if r.OnDeadline == nodeapi.DeadlinePause || r.OnDeadline == nodeapi.DeadlinePauseFiles {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.pause(id, depthOf(r.OnDeadline))
			return
		}
		n.End(id, nodeapi.Exit{Reason: nodeapi.ExitDeadline})
	})
}

func (n *Node) end(id api.SandboxID, exit nodeapi.Exit) {
	r, ok := n.sandboxes[id]
	if !ok || r.State == nodeapi.StateStopped {
		return
	}
	r.stopTimer()
	r.State, r.EndedAt, r.Exit = nodeapi.StateStopped, time.Now(), &exit
	n.emitSandbox(nodeapi.EventStopped, r)
}

func (n *Node) remove(id api.SandboxID) {
	n.end(id, nodeapi.Exit{Reason: nodeapi.ExitStopped})
	if _, ok := n.sandboxes[id]; ok {
		delete(n.sandboxes, id)
		n.emit(nodeapi.Event{Type: nodeapi.EventRemoved, ID: id})
	}
}

func (n *Node) digest(nameOrDigest string) string {
	if t, ok := n.template(nameOrDigest); ok {
		return t.Digest
	}
	return ""
}

func errorf(code int, word, format string, args ...any) error {
	return fmt.Errorf("fake node: %w", api.Errorf(code, word, format, args...))
}
