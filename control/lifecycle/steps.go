package lifecycle

import (
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// The steps of a create, in order. The node's own steps follow with the prefix "node.": they lie within place and report.
const (
	StepValidate = "validate"
	StepTemplate = "template"
	StepIntent   = "commit_intent" // Raft entry: starting
	StepClaim    = "claim"         // the node has given it a slot of a pool: no other step follows
	StepPlace    = "place"         // the placer accepted it
	StepReport   = "node_report"   // the node said that it runs
	StepFact     = "commit_fact"   // Raft entry: running
	stepNode     = "node."
)

// steps measures the way of one call, on the monotonic clock.
type steps struct {
	last time.Time
	list []guest.Step
}

func newSteps() *steps { return &steps{last: time.Now()} }

// done ends the current step.
func (s *steps) done(name string) {
	now := time.Now()
	s.list = append(s.list, guest.Step{Name: name, Nanos: now.Sub(s.last).Nanoseconds()})
	s.last = now
}

func (s *steps) node(of []guest.Step) {
	for _, st := range of {
		s.list = append(s.list, guest.Step{Name: stepNode + st.Name, Nanos: st.Nanos})
	}
}
