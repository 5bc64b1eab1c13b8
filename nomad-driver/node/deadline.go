package node

import (
	"container/heap"
	"context"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// recheck bounds how long the deadlines sleep, so that a change of the wall clock is noticed.
const recheck = 30 * time.Second

// deadlines calls due for each sandbox whose time has come: one heap, one goroutine (run).
type deadlines struct {
	due func(api.SandboxID) // must not block

	mu   sync.Mutex
	heap deadlineHeap
	byID map[api.SandboxID]*deadline
	wake chan struct{} // capacity 1: the first of the heap has changed
}

type deadline struct {
	id api.SandboxID
	at time.Time
	i  int // index in the heap
}

func newDeadlines(due func(api.SandboxID)) *deadlines {
	return &deadlines{due: due, byID: map[api.SandboxID]*deadline{}, wake: make(chan struct{}, 1)}
}

// set sets, changes or (zero time) removes the deadline of a sandbox.
func (d *deadlines) set(id api.SandboxID, at time.Time) {
	d.mu.Lock()
	e, ok := d.byID[id]
	switch {
	case at.IsZero() && ok:
		heap.Remove(&d.heap, e.i)
		delete(d.byID, id)
	case at.IsZero():
	case ok:
		e.at = at.Round(0) // wall clock only: that is what a deadline is given in
		heap.Fix(&d.heap, e.i)
	default:
		e = &deadline{id: id, at: at.Round(0)}
		d.byID[id] = e
		heap.Push(&d.heap, e)
	}
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// run calls due until ctx ends.
func (d *deadlines) run(ctx context.Context) {
	timer := time.NewTimer(recheck)
	defer timer.Stop()
	for {
		timer.Reset(d.fire(time.Now()))
		select {
		case <-timer.C:
		case <-d.wake:
		case <-ctx.Done():
			return
		}
	}
}

// fire calls due for what is due and returns how long to sleep.
func (d *deadlines) fire(now time.Time) time.Duration {
	now = now.Round(0)
	for {
		d.mu.Lock()
		if len(d.heap) == 0 {
			d.mu.Unlock()
			return recheck
		}
		first := d.heap[0]
		if wait := first.at.Sub(now); wait > 0 {
			d.mu.Unlock()
			return min(wait, recheck)
		}
		heap.Pop(&d.heap)
		delete(d.byID, first.id)
		d.mu.Unlock()
		d.due(first.id)
	}
}

type deadlineHeap []*deadline

func (h deadlineHeap) Len() int           { return len(h) }
func (h deadlineHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h deadlineHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].i, h[j].i = i, j
}

func (h *deadlineHeap) Push(x any) {
	e := x.(*deadline) //nolint:forcetypeassert // the heap's own type
	e.i = len(*h)
	*h = append(*h, e)
}

func (h *deadlineHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return e
}
