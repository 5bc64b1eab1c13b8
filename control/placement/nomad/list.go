package nomad

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/placement"
)

// pageSize is how many jobs or allocations one answer of Nomad holds.
const pageSize = 500

// List returns the dispatched jobs under the prefix, each with its allocation.
func (p *Placer) List(ctx context.Context) ([]placement.Placed, error) {
	// Allocations first: a job whose allocation appears in between is pending at worst, never wrongly ended.
	allocs, err := p.allocations(ctx)
	if err != nil {
		return nil, fmt.Errorf("list placements: %w", err)
	}
	var jobs []*nomadapi.JobListStub
	q := p.query(ctx)
	q.Prefix, q.PerPage = p.cfg.Prefix+"-", pageSize
	again := false
	for {
		page, meta, err := p.client.Jobs().ListOptions(&nomadapi.JobListOptions{Fields: &nomadapi.JobListFields{Meta: true}}, q)
		if err != nil {
			return nil, fmt.Errorf("list placements: %w", mapError(err))
		}
		for _, s := range page {
			again = again || s.Status == nomadJobRunning && allocs[s.ID].newest == nil
		}
		jobs = append(jobs, page...)
		if meta.NextToken == "" {
			break
		}
		q.NextToken = meta.NextToken
	}
	if again { // a job that runs got its allocation in between, or has lost it
		if allocs, err = p.allocations(ctx); err != nil {
			return nil, fmt.Errorf("list placements: %w", err)
		}
	}
	var out []placement.Placed
	for _, s := range jobs {
		if placed, ok := placedOf(s, allocs[s.ID].newest, allocs[s.ID].replaced); ok {
			out = append(out, placed)
		}
	}
	return out, nil
}

// allocation is what Nomad has for a job.
type allocation struct {
	newest   *nomadapi.AllocationListStub // that it wants to run, or nil
	replaced bool                         // it is not the first one
}

// allocations returns the allocations of the jobs under the prefix.
func (p *Placer) allocations(ctx context.Context) (map[string]allocation, error) {
	out := map[string]allocation{}
	q := p.query(ctx)
	q.PerPage = pageSize
	q.Params = map[string]string{"task_states": "false"}
	q.Filter = fmt.Sprintf("(DesiredStatus == %q or NextAllocation != \"\") and JobID matches %q",
		nomadapi.AllocDesiredStatusRun, "^"+regexp.QuoteMeta(p.cfg.Prefix)+"-")
	for {
		page, meta, err := p.client.Allocations().List(q)
		if err != nil {
			return nil, mapError(err)
		}
		for _, s := range page {
			a := out[s.JobID]
			if s.NextAllocation != "" {
				a.replaced = true
			} else if a.newest == nil || a.newest.CreateIndex < s.CreateIndex {
				a.newest = s
			}
			out[s.JobID] = a
		}
		if meta.NextToken == "" {
			return out, nil
		}
		q.NextToken = meta.NextToken
	}
}

// placedOf joins a job with its allocation, which may be nil. It is false where the job is none of a sandbox's.
func placedOf(job *nomadapi.JobListStub, alloc *nomadapi.AllocationListStub, replaced bool) (placement.Placed, bool) {
	id, err := api.ParseSandboxID(job.Meta[MetaSandboxID])
	if err != nil || !strings.Contains(job.ID, dispatchMark+string(id)+"-") {
		return placement.Placed{}, false
	}
	out := placement.Placed{ID: id, State: placement.Pending, Ref: job.ID, CreatedAt: time.Unix(0, job.SubmitTime).UTC()}
	switch {
	case replaced:
		// `nomad alloc stop` does it, and the loss of a client that has not yet said that the task runs.
		out.State, out.Reason = placement.Ended, wasReplaced
	case alloc == nil && job.Status == nomadJobPending:
		out.Reason = "waits for a node"
	case alloc == nil && job.Stop:
		out.State, out.Reason = placement.Ended, "its job was stopped in nomad"
	case alloc == nil:
		// Nomad has taken back the wish that an allocation runs, as a drain does, and never makes another.
		out.State, out.Reason = placement.Ended, "nomad stopped its allocation"
	default:
		out.Node, out.Ref = api.NodeID(alloc.NodeID), alloc.ID
		switch alloc.ClientStatus {
		case nomadapi.AllocClientStatusPending:
		case nomadapi.AllocClientStatusRunning:
			out.State = placement.Active
		case nomadapi.AllocClientStatusUnknown:
			// Its client does not answer Nomad. What runs there is for the node to say, when it is back.
			out.State, out.Reason = placement.Active, "nomad has lost contact to its node"
		default:
			out.State, out.Reason = placement.Ended, "allocation "+alloc.ClientStatus
			if alloc.ClientDescription != "" {
				out.Reason += ": " + alloc.ClientDescription
			}
		}
	}
	return out, true
}

// Statuses of a job: it waits for its first allocation, or has one.
const (
	nomadJobPending = "pending"
	nomadJobRunning = "running"
)

// wasReplaced says why a job ended for us although Nomad may run it.
const wasReplaced = "nomad replaced its allocation: a second one is not the sandbox that was"
