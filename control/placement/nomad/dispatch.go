package nomad

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/soulbox-dev/soulbox/control/api"
)

// dispatchMark stands between the name of a parent job and the rest of a dispatched job's name, which starts with the id
// of the sandbox.
const dispatchMark = "/dispatch-"

// dispatch is the one dispatch of a sandbox by this process. Its fields but done are set before done is closed.
type dispatch struct {
	class  class
	done   chan struct{}
	jobID  string
	evalID string // empty where Nomad had the job already
	err    error
}

// begin returns the dispatch of id, which it starts where none runs or has succeeded yet.
func (p *Placer) begin(ctx context.Context, id api.SandboxID, c class, payload []byte) *dispatch {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := p.known[id]; d != nil && !d.failed() {
		return d
	}
	d := &dispatch{class: c, done: make(chan struct{})}
	p.known[id] = d
	// The caller's end must not leave a dispatch behind of which nobody knows whether Nomad has it: this goroutine ends
	// by its own timeout, and Stop waits for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	go func() {
		defer close(d.done)
		defer cancel()
		if err := p.dispatch(ctx, id, d, payload); err != nil {
			d.err = fmt.Errorf("place sandbox %s: %w", id, err)
		}
	}()
	return d
}

func (d *dispatch) failed() bool {
	select {
	case <-d.done:
		return d.err != nil
	default:
		return false
	}
}

func (p *Placer) dispatch(ctx context.Context, id api.SandboxID, d *dispatch, payload []byte) error {
	opts := &nomadapi.DispatchOptions{
		JobID:            d.class.jobID(p.cfg.Prefix),
		Meta:             map[string]string{MetaSandboxID: string(id)},
		Payload:          payload,
		IdPrefixTemplate: string(id),
	}
	write := p.write(ctx)
	// Nomad looks for a job with this token again when it applies the dispatch: of two, the second changes nothing.
	write.IdempotencyToken = string(id)
	for attempt := 0; ; attempt++ {
		reg, err := p.register(ctx, d.class)
		if err != nil {
			return err
		}
		resp, _, err := p.client.Jobs().DispatchOpts(opts, write)
		if err == nil {
			d.jobID, d.evalID = resp.DispatchedJobID, resp.EvalID
			return nil
		}
		if attempt > 0 || !isParentGone(err) {
			return mapError(err)
		}
		p.forget(d.class, reg)
	}
}

// registration of a class's parent job. err is set before done is closed.
type registration struct {
	done chan struct{}
	err  error
}

// maxParents bounds how many parent jobs clients can bring about by rules of their own.
const maxParents = 2000

// register makes sure that Nomad has the parent job of c as this process wants it. It asks Nomad once a process, and again
// after forget.
func (p *Placer) register(ctx context.Context, c class) (*registration, error) {
	p.mu.Lock()
	reg := p.parents[c]
	if reg == nil && c.rules != "" && len(p.parents) >= maxParents {
		p.mu.Unlock()
		return nil, api.Errorf(http.StatusServiceUnavailable, api.CodeCapacity,
			"placement: %d different kinds of rules, sizes and nodes are in use, and each is a job of Nomad's: use rules that others have", len(p.parents))
	}
	if reg == nil {
		reg = &registration{done: make(chan struct{})}
		p.parents[c] = reg
		p.mu.Unlock()
		_, _, err := p.client.Jobs().Register(p.parent(c), p.write(ctx))
		reg.err = registerError(c, err)
		close(reg.done)
		if err != nil {
			p.forget(c, reg)
		}
	} else {
		p.mu.Unlock()
	}
	select {
	case <-reg.done:
		if reg.err != nil {
			return nil, fmt.Errorf("register job %s: %w", c.jobID(p.cfg.Prefix), reg.err)
		}
		return reg, nil
	case <-ctx.Done():
		return nil, unavailable(ctx.Err())
	}
}

// forget makes the next register of c ask Nomad again, if reg is what is known of it.
func (p *Placer) forget(c class, reg *registration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.parents[c] == reg {
		delete(p.parents, c)
	}
}

// jobsOf returns the names of the jobs that were dispatched for id: none or one, as long as Nomad keeps its word. d is
// what this process knows of its dispatch, or nil.
func (p *Placer) jobsOf(ctx context.Context, id api.SandboxID, d *dispatch) ([]string, error) {
	q := p.query(ctx)
	mark := dispatchMark + string(id) + "-"
	if d != nil {
		q.Prefix = d.class.jobID(p.cfg.Prefix) + mark
	} else {
		q.Prefix = p.cfg.Prefix + "-"
		q.Filter = fmt.Sprintf("ID contains %q", mark)
	}
	stubs, _, err := p.client.Jobs().List(q)
	if err != nil {
		return nil, mapError(err)
	}
	var out []string
	for _, s := range stubs {
		if strings.Contains(s.ID, mark) {
			out = append(out, s.ID)
		}
	}
	return out, nil
}
