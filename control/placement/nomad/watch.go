package nomad

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// watchWait bounds one long poll.
const watchWait = 30 * time.Second

// Watch follows the sandbox's evaluation, then its allocation, until one of them fails. It returns
// sandbox_capacity_unavailable as soon as the scheduler finds no node, although Nomad would go on to look for one: the
// caller decides whether to wait, and calls Stop where it does not.
func (p *Placer) Watch(ctx context.Context, id api.SandboxID) error {
	p.mu.Lock()
	d := p.known[id]
	p.mu.Unlock()
	var jobID, evalID string
	if d != nil {
		select {
		case <-d.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if d.err != nil {
			return d.err
		}
		jobID, evalID = d.jobID, d.evalID
	}
	if evalID == "" {
		jobs, err := p.jobsOf(ctx, id, d)
		if err != nil {
			return watchError(ctx, id, err)
		}
		if len(jobs) == 0 {
			return gone(id)
		}
		jobID = jobs[0]
		if evalID, err = p.firstEvaluation(ctx, jobID); err != nil {
			return watchError(ctx, id, err)
		}
	}
	if err := p.watchEvaluation(ctx, id, evalID); err != nil {
		return watchError(ctx, id, err)
	}
	return watchError(ctx, id, p.watchAllocation(ctx, id, jobID))
}

func watchError(ctx context.Context, id api.SandboxID, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("watch placement of sandbox %s: %w", id, err)
}

func gone(id api.SandboxID) error {
	return api.Errorf(http.StatusNotFound, api.CodeNotFound, "nomad has no placement of sandbox %s", id)
}

// firstEvaluation returns the evaluation that a dispatch made, or nothing where Nomad has forgotten it.
func (p *Placer) firstEvaluation(ctx context.Context, jobID string) (string, error) {
	evals, _, err := p.client.Jobs().Evaluations(jobID, p.query(ctx))
	if err != nil || len(evals) == 0 {
		return "", mapError(err)
	}
	first := slices.MinFunc(evals, func(a, b *nomadapi.Evaluation) int { return int(a.CreateIndex) - int(b.CreateIndex) })
	return first.ID, nil
}

// watchEvaluation returns nil once the evaluation has placed an allocation, or is forgotten.
func (p *Placer) watchEvaluation(ctx context.Context, id api.SandboxID, evalID string) error {
	if evalID == "" {
		return nil
	}
	q := p.query(ctx)
	q.WaitTime = watchWait
	for {
		eval, meta, err := p.client.Evaluations().Info(evalID, q)
		if isNotFound(err) {
			return nil
		}
		if err != nil {
			return mapError(err)
		}
		if metric := eval.FailedTGAllocs[taskName]; metric != nil {
			return capacityError(id, metric)
		}
		switch eval.Status {
		case nomadapi.EvalStatusComplete:
			return nil
		case nomadapi.EvalStatusFailed, nomadapi.EvalStatusCancelled:
			return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable,
				"nomad: evaluation %s of sandbox %s is %s: %s", evalID, id, eval.Status, eval.StatusDescription)
		}
		q.WaitIndex = meta.LastIndex
	}
}

func (p *Placer) watchAllocation(ctx context.Context, id api.SandboxID, jobID string) error {
	q := p.query(ctx)
	q.WaitTime = watchWait
	seen := false
	for {
		allocs, meta, err := p.client.Jobs().Allocations(jobID, true, q)
		if err != nil {
			return mapError(err)
		}
		if len(allocs) == 0 && seen {
			return gone(id)
		}
		for _, a := range allocs {
			seen = true
			if err := allocationFailure(id, a); err != nil {
				return err
			}
		}
		if meta.LastIndex < q.WaitIndex { // Nomad's servers were restored
			meta.LastIndex = 0
		}
		q.WaitIndex = meta.LastIndex
	}
}

// allocationFailure returns why a does not run any more or never did, or nil.
func allocationFailure(id api.SandboxID, a *nomadapi.AllocationListStub) error {
	switch {
	case a.NextAllocation != "":
		return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "sandbox %s: %s", id, wasReplaced)
	case a.ClientStatus == nomadapi.AllocClientStatusFailed:
		return taskFailure(id, a.TaskStates[taskName], a.ClientDescription)
	case a.ClientStatus == nomadapi.AllocClientStatusLost:
		return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable,
			"nomad lost the node of sandbox %s before it ran", id)
	case a.ClientStatus == nomadapi.AllocClientStatusComplete:
		return api.Errorf(http.StatusConflict, api.CodeNotRunning, "sandbox %s has ended", id)
	case a.DesiredStatus == nomadapi.AllocDesiredStatusStop:
		return api.Errorf(http.StatusConflict, api.CodeNotRunning, "nomad stops sandbox %s: %s", id, a.DesiredDescription)
	}
	return nil
}

// notTaken begins what a Nomad client says of an allocation that it could not even set up, as right after a restart of its own.
const notTaken = "Unable to add allocation"

// taskFailure finds the driver's own words among the events of a failed task.
func taskFailure(id api.SandboxID, state *nomadapi.TaskState, description string) error {
	if strings.HasPrefix(description, notTaken) {
		return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "nomad's client did not take sandbox %s, which never began; try again: %s", id, description)
	}
	if state != nil {
		for _, e := range slices.Backward(state.Events) {
			switch e.Type {
			case nomadapi.TaskDriverFailure, nomadapi.TaskSetupFailure, nomadapi.TaskFailedValidation, nomadapi.TaskTerminated:
				return driverError(id, e.DisplayMessage)
			}
		}
	}
	return driverError(id, description)
}

// errorCode finds the error_code of the API that a driver's message ends with, in parentheses.
var errorCode = regexp.MustCompile(`\(([a-z]+(?:_[a-z]+)*)\)$`)

// codes are the refusals of a node that a client can do something about, with their statuses.
var codes = map[string]int{
	api.CodeInvalid:         http.StatusBadRequest,
	api.CodeUnknownTemplate: http.StatusNotFound,
	api.CodeCommand:         http.StatusBadRequest,
	api.CodeCwd:             http.StatusBadRequest,
	api.CodeUnknownUser:     http.StatusBadRequest,
	api.CodeNoSpace:         http.StatusInsufficientStorage,
	api.CodeCapacity:        http.StatusServiceUnavailable,
	api.CodeUnsupported:     http.StatusNotImplemented,
	api.CodeVersion:         http.StatusBadRequest,
	api.CodeConflict:        http.StatusConflict,
	api.CodeUnavailable:     http.StatusServiceUnavailable,
	api.CodeTooLarge:        http.StatusRequestEntityTooLarge,

	nodeapi.CodeBadSnapshot:  http.StatusUnprocessableEntity,
	nodeapi.CodeIncompatible: http.StatusConflict,
}

// driverError turns the message of a failed start into the *api.Error that the driver wrote it from. Everything that is
// not such a message is an error of the node's.
func driverError(id api.SandboxID, message string) error {
	message = strings.TrimSpace(message)
	if m := errorCode.FindStringSubmatch(message); m != nil {
		if status, ok := codes[m[1]]; ok {
			text := strings.TrimSpace(strings.TrimSuffix(message, m[0]))
			// gRPC and Nomad prepend words of their own that say nothing to a client.
			if _, rest, ok := strings.Cut(text, "desc = "); ok {
				text = rest
			}
			return &api.Error{Code: status, ErrorCode: m[1], Message: text}
		}
	}
	if message == "" {
		message = "nomad gave no reason"
	}
	return api.Errorf(http.StatusInternalServerError, api.CodeInternal, "sandbox %s did not start: %s", id, message)
}
