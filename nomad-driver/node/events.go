package node

import (
	"encoding/json"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// historyLen is how many events a node keeps for subscribers that come back or fall behind.
const historyLen = 4096

// hub is the node's events: one sequence per epoch (start of the daemon), the newest historyLen of them kept. A
// subscriber is nothing but a number in the sequence, so that any number of them cost nothing and a slow one holds up
// nobody: when what it wants is gone it gets a sync.
type hub struct {
	epoch string

	mu   sync.Mutex
	seq  uint64                   // number of the newest event; the first is 1
	ring [historyLen][]byte       // encoded events; event n is at n % historyLen
	news chan struct{}            // closed and replaced with every event
	now  func() time.Time         // time.Now, except in tests
	snap func() []nodeapi.Sandbox // all that exist; must not call the hub
}

func newHub(epoch string, snapshot func() []nodeapi.Sandbox) *hub {
	return &hub{epoch: epoch, news: make(chan struct{}), now: time.Now, snap: snapshot}
}

// publish appends an event. Callers hold the lock of the sandbox that it is about, so that events of one sandbox are in
// the order of its changes.
func (h *hub) publish(t nodeapi.EventType, id api.SandboxID, sb *nodeapi.Sandbox) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	h.ring[h.seq%historyLen] = h.encode(nodeapi.Event{Seq: h.seq, Type: t, ID: id, Sandbox: sb})
	close(h.news)
	h.news = make(chan struct{})
}

func (h *hub) encode(e nodeapi.Event) []byte {
	e.Epoch, e.Time = h.epoch, h.now().UTC()
	b, err := json.Marshal(e)
	if err != nil {
		panic(err) // an Event holds nothing that JSON cannot say: times come from the clock and from checked requests
	}
	return append(b, '\n')
}

// position says where a subscriber starts that has seen event since of epoch: after it, or nowhere (sync needed).
func (h *hub) position(epoch string, since uint64) (next uint64, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if epoch != h.epoch || since > h.seq || h.seq-since > historyLen {
		return 0, false
	}
	return since + 1, true
}

// read returns the encoded events from number next on (at most 256), and the channel that is closed when there are more.
// ok is false where next has left the history.
func (h *hub) read(next uint64) (lines [][]byte, news <-chan struct{}, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.seq >= historyLen && next <= h.seq-historyLen {
		return nil, nil, false
	}
	for n := next; n <= h.seq && len(lines) < 256; n++ {
		lines = append(lines, h.ring[n%historyLen])
	}
	return lines, h.news, true
}

// sync returns an encoded EventSync and the number of the next event after it. The number is read before the sandboxes
// are, so an event may come that the sandboxes show already, but none is missed.
func (h *hub) sync() (line []byte, next uint64) {
	h.mu.Lock()
	seq := h.seq
	h.mu.Unlock()
	all := h.snap()
	return h.encode(nodeapi.Event{Seq: seq, Type: nodeapi.EventSync, Sandboxes: all}), seq + 1
}

// beat returns an encoded EventBeat that tells how the node is.
func (h *hub) beat(health nodeapi.Health) []byte {
	h.mu.Lock()
	seq := h.seq
	h.mu.Unlock()
	return h.encode(nodeapi.Event{Seq: seq, Type: nodeapi.EventBeat, Health: &health})
}
