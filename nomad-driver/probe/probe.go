// Package probe asks the kernel of this machine what it can do: one named probe for each feature, with the version that
// brought it and the reason where it is missing.
//
// It owns the list of features that SoulBox knows of. It tries a feature instead of trusting a version, changes nothing on
// the machine that it does not undo, and decides nothing: what is needed is said beside each probe, what follows from that
// is the caller's. It imports nothing of the project.
package probe

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Result is the answer of one probe.
type Result struct {
	Name   string // snake_case
	OK     bool
	Value  string // what was found, where that is more than yes
	Reason string // why not, and the minimum version
	Needed bool   // without it no sandbox can start
}

// Options of a Set. The zero value is good.
type Options struct {
	Dir    string        // a directory on the file system that sandboxes' layers are on; the temporary directory where empty
	CRIU   string        // path of the criu binary; looked for on PATH where empty
	Budget time.Duration // for each probe; 2 s where zero
}

// feature is one probe. check returns what it found, or why the feature is missing.
type feature struct {
	name   string
	since  string // the kernel version, or the program's, that brought it
	needed bool
	check  func(ctx context.Context, o Options) (value string, err error)
}

// Set is all probes, each of which runs once, when it is first asked for. Its methods may be called from any goroutine.
type Set struct {
	o     Options
	names []string
	once  map[string]func() Result
}

// New returns a Set that has asked nothing yet.
func New(o Options) *Set {
	if o.Budget == 0 {
		o.Budget = 2 * time.Second
	}
	s := &Set{o: o, once: make(map[string]func() Result, len(features))}
	for _, f := range features {
		s.names = append(s.names, f.name)
		s.once[f.name] = sync.OnceValue(func() Result { return run(f, o) })
	}
	return s
}

// Get returns the answer of one probe. A name that nobody knows is an answer too: no.
func (s *Set) Get(name string) Result {
	if ask, ok := s.once[name]; ok {
		return ask()
	}
	return Result{Name: name, Reason: "no such probe"}
}

// All returns the answers of all probes, in a fixed order.
func (s *Set) All() []Result {
	out := make([]Result, len(s.names))
	for i, name := range s.names {
		out[i] = s.Get(name)
	}
	return out
}

// Missing returns the first needed feature that is missing, or nil.
func (s *Set) Missing() *Result {
	for _, r := range s.All() {
		if r.Needed && !r.OK {
			return &r
		}
	}
	return nil
}

func run(f feature, o Options) (r Result) {
	r = Result{Name: f.name, Needed: f.needed}
	ctx, cancel := context.WithTimeout(context.Background(), o.Budget)
	defer cancel()
	value, err := f.check(ctx, o)
	r.Value = value
	if err != nil {
		r.Reason = fmt.Sprintf("%v (needs %s)", err, f.since)
		return r
	}
	r.OK = true
	return r
}
