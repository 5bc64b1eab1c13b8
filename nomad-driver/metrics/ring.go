package metrics

import (
	"sort"
	"time"
)

// ring keeps the newest samples of one sandbox, oldest first from head. It grows up to its capacity and never beyond, so
// that a short life costs little.
type ring struct {
	samples []Sample
	head    int
	cap     int
}

func newRing(capacity int) *ring { return &ring{cap: capacity} }

func (r *ring) add(s Sample) {
	if len(r.samples) < r.cap {
		r.samples = append(r.samples, s)
		return
	}
	r.samples[r.head] = s
	r.head = (r.head + 1) % r.cap
}

func (r *ring) at(i int) Sample { return r.samples[(r.head+i)%len(r.samples)] }

func (r *ring) last() (Sample, bool) {
	if len(r.samples) == 0 {
		return Sample{}, false
	}
	return r.at(len(r.samples) - 1), true
}

// between returns the samples with start <= time <= end in order of time. A zero bound is open.
func (r *ring) between(start, end time.Time) []Sample {
	n := len(r.samples)
	from := 0
	if !start.IsZero() {
		from = sort.Search(n, func(i int) bool { return !r.at(i).Time.Before(start) })
	}
	to := n
	if !end.IsZero() {
		to = sort.Search(n, func(i int) bool { return r.at(i).Time.After(end) })
	}
	if from >= to {
		return nil
	}
	out := make([]Sample, 0, to-from)
	for i := from; i < to; i++ {
		out = append(out, r.at(i))
	}
	return out
}
