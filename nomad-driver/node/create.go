package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/hashicorp/go-metrics"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/logbook"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// undoTimeout bounds how long the removal of a sandbox that nobody wants any more is waited for.
const undoTimeout = 30 * time.Second

// Create makes a sandbox and returns when it runs. A request that was served before returns the sandbox that it made, and
// fresh is false. When ctx ends first nothing is left.
func (n *Node) Create(ctx context.Context, req nodeapi.CreateRequest) (sb nodeapi.Sandbox, fresh bool, err error) {
	start := time.Now()
	defer func() {
		if err != nil {
			n.metrics.IncrCounterWithLabels([]string{"create_failures"}, 1, []metrics.Label{{Name: "reason", Value: apiError(err).ErrorCode}})
		} else if fresh {
			n.metrics.IncrCounter([]string{"creates"}, 1)
			n.metrics.AddSample([]string{"create_seconds"}, float32(time.Since(start).Seconds()))
		}
	}()
	hash, err := requestHash(req) // of what was asked: a repeated request finds its sandbox also when the snapshot is gone
	if err != nil {
		return nodeapi.Sandbox{}, false, err
	}
	var from *origin
	if req.Restore != nil {
		if b, err := n.box(req.ID); err == nil {
			sb, err := n.join(ctx, b, hash)
			return sb, false, err
		}
		if from, err = n.fromSnapshot(ctx, &req); err != nil {
			return nodeapi.Sandbox{}, false, err
		}
	}
	if err := n.normalise(&req); err != nil {
		return nodeapi.Sandbox{}, false, err
	}
	if req.Restore == nil {
		if hash, err = requestHash(req); err != nil {
			return nodeapi.Sandbox{}, false, err
		}
	}
	if _, err := n.box(req.ID); err != nil { // it is not there yet
		if err := n.ownTemplate(ctx, req); err != nil {
			return nodeapi.Sandbox{}, false, err
		}
	}
	for {
		b, mine, err := n.claim(req, hash, start)
		if err != nil {
			return nodeapi.Sandbox{}, false, err
		}
		if mine {
			sb, err := n.start(ctx, b, req, from)
			return sb, true, err
		}
		sb, err := n.join(ctx, b, hash)
		if errors.Is(err, errAborted) {
			continue // the other request was given up; this one was not
		}
		return sb, false, err
	}
}

// errAborted is the outcome of a creation whose request was given up.
var errAborted = errors.New("the creation was given up")

// requestHash names a request by its content.
func requestHash(req nodeapi.CreateRequest) (string, error) {
	b, err := json.Marshal(req) // maps in the order of their keys
	if err != nil {
		return "", fmt.Errorf("create request: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// claim enters a sandbox in the table and takes its template and its range of ids, or returns the one that has the id
// already.
func (n *Node) claim(req nodeapi.CreateRequest, hash string, now time.Time) (b *box, mine bool, err error) {
	if b, err := n.box(req.ID); err == nil {
		return b, false, nil
	}
	if err := checkDeadline(req.Deadline, now); err != nil {
		return nil, false, err
	}
	if err := checkLogTargets(req.Logs); err != nil {
		return nil, false, err
	}
	if err := checkEnded(req.Owner, req.ID); err != nil {
		return nil, false, err
	}
	if err := n.admits(); err != nil {
		return nil, false, err
	}
	l, err := n.acquire(req.TemplateOf, req.Template)
	if err != nil {
		return nil, false, err
	}
	defer func() {
		if !mine {
			l.Release()
		}
	}()
	n.mu.Lock()
	defer n.mu.Unlock()
	if b, ok := n.boxes[req.ID]; ok {
		return b, false, nil
	}
	if n.live >= n.cfg.MaxSandboxes {
		return nil, false, api.Errorf(http.StatusServiceUnavailable, api.CodeCapacity, "this node runs %d sandboxes, its limit", n.live)
	}
	base, err := n.ids.take()
	if err != nil {
		return nil, false, err
	}
	user := req.User
	set(&user, l.User)
	b = newBox(record{
		Request: hash, IDBase: base, Logs: req.Logs, Token: req.AccessToken, Env: req.Env, Cwd: req.Cwd,
		Sandbox: nodeapi.Sandbox{
			ID: req.ID, State: nodeapi.StateStarting, Template: req.Template, Digest: l.Digest, TemplateOf: req.TemplateOf, Hostname: req.Hostname,
			Limits: req.Limits, User: user, Profile: req.Profile, QoS: req.QoS, Deadline: req.Deadline, OnDeadline: req.OnDeadline, Owner: req.Owner,
			Metadata: req.Metadata, Warm: req.Warm, Devices: req.Devices, Mounts: req.Mounts, CreatedAt: now.UTC().Round(0),
		},
	})
	b.lease = l
	n.boxes[req.ID] = b
	n.live++
	return b, true, nil
}

// join returns the sandbox that an earlier, equal request makes or has made.
func (n *Node) join(ctx context.Context, b *box, hash string) (nodeapi.Sandbox, error) {
	if b.rec.Request != hash { // never changed
		return nodeapi.Sandbox{}, api.Errorf(http.StatusConflict, api.CodeConflict, "sandbox %s exists and was made by another request", b.id)
	}
	select {
	case <-b.created:
	case <-ctx.Done():
		return nodeapi.Sandbox{}, ctx.Err()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rec.Sandbox, b.err
}

// start makes the sandbox of a claimed box; from is the snapshot that the request names, if it names one.
func (n *Node) start(ctx context.Context, b *box, req nodeapi.CreateRequest, from *origin) (nodeapi.Sandbox, error) {
	caller := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	b.mu.Lock()
	b.abort = cancel
	aborted := b.deleting // a delete that came between claim and here found no abort to call
	sb := b.rec.Sandbox
	n.hub.publish(nodeapi.EventCreated, b.id, &sb)
	b.mu.Unlock()
	if aborted {
		cancel()
	}

	if _, err := n.publish(b, req.Publish, req.PublishIn); err != nil { // before anything is made: a port may be taken
		return nodeapi.Sandbox{}, n.fail(caller, ctx, b, nil, err)
	}
	inst, restored, err := n.instantiate(ctx, b, req, from)
	if err != nil {
		return nodeapi.Sandbox{}, n.fail(caller, ctx, b, nil, err)
	}
	failpoint.At("create.made")
	b.mu.Lock()
	if err := ctx.Err(); err != nil {
		b.mu.Unlock()
		return nodeapi.Sandbox{}, n.fail(caller, ctx, b, inst, err)
	}
	recordStart := time.Now()
	b.inst = inst
	b.rec.Ref = inst.Ref()
	b.rec.Waking = restored
	s := &b.rec.Sandbox
	s.State, s.StartedAt, s.PID, s.Main = nodeapi.StateRunning, time.Now().UTC(), b.rec.Ref.PID, inst.Main()
	if err := n.records.put(&b.rec); err != nil {
		s.State = nodeapi.StateStarting
		b.mu.Unlock()
		return nodeapi.Sandbox{}, n.fail(caller, ctx, b, inst, err)
	}
	failpoint.At("create.recorded")
	s.Steps = append(slices.Concat(b.fetched, inst.Steps()), guest.Step{Name: "record", Nanos: time.Since(recordStart).Nanoseconds()})
	n.adopt(b)
	n.note(b, logbook.Info, "sandbox started", map[string]string{"template": b.rec.Sandbox.Digest})
	if main := b.rec.Sandbox.Main; main != 0 {
		n.processStarted(b, inst.Guest(), guest.ProcessInfo{PID: main, Argv: req.Main.Argv, Tag: req.Main.Tag})
	}
	switch {
	case restored:
		b.mu.Unlock()
		server := pagesOf(inst)
		if server != nil {
			n.page(b, inst, server, b.snapshot)
		}
		n.wakeNew(context.WithoutCancel(ctx), b, inst, req.Env)
		failpoint.At("fork.woken")
		if server == nil {
			n.removeImages(b)
		}
		b.mu.Lock()
	case from == nil: // in a copy of what nothing ran in, nothing runs
		n.prestart(b, inst.Guest(), b.lease.Root)
	}
	sb = b.rec.Sandbox
	n.hub.publish(nodeapi.EventRunning, b.id, &sb)
	close(b.created)
	b.mu.Unlock()
	return sb, nil
}

// adopt starts what a running sandbox needs of the node: its deadline, its log pump, and somebody who waits for its end.
// b.mu is held.
func (n *Node) adopt(b *box) {
	n.deadlines.set(b.id, b.rec.Sandbox.Deadline)
	if b.rec.Logs != nil && b.rec.Sandbox.Main != 0 {
		b.pumped = make(chan struct{})
		inst, pumped, main, targets := b.inst, b.pumped, b.rec.Sandbox.Main, *b.rec.Logs
		n.wg.Go(func() { n.pump(b, inst, pumped, main, targets) })
	}
	inst, pumped := b.inst, b.pumped
	n.wg.Go(func() { n.watch(b, inst, pumped) })
}

// fail undoes a creation and returns its error. inst is what was made already, if anything.
func (n *Node) fail(caller, ctx context.Context, b *box, inst instance, err error) error {
	switch {
	case n.ctx.Err() != nil:
		err = api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "the node is shutting down")
	case caller.Err() == nil && ctx.Err() != nil:
		err = api.Errorf(http.StatusConflict, api.CodeConflict, "sandbox %s was deleted while it started", b.id)
	case caller.Err() != nil:
		err = fmt.Errorf("%w: %w", errAborted, caller.Err())
	default:
		err = fmt.Errorf("sandbox %s: %w", b.id, err)
	}
	var undo error
	if inst != nil {
		undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		undo = inst.Release(undoCtx)
		if p := pagesOf(inst); p != nil {
			undo = errors.Join(undo, p.End())
		}
		n.removeImages(b)
	}
	if rerr := n.records.remove(b.id); rerr != nil {
		n.log.Error("record of a sandbox that did not start stays", "sandbox", b.id, "error", rerr)
	}
	if undo == nil {
		n.ids.free(b.rec.IDBase)
	} else {
		// Its ids stay taken until the sweep that this asks for has removed it.
		n.log.Error("sandbox that did not start cannot be removed yet", "sandbox", b.id, "error", undo)
		n.needSweep(b.rec.IDBase)
	}
	n.giveSlot(b)
	b.unpublish()
	b.lease.Release()
	n.forget(b)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
	n.hub.publish(nodeapi.EventRemoved, b.id, nil)
	close(b.created)
	close(b.stopped)
	close(b.released)
	close(b.removed)
	return err
}

// forget takes a box out of the table.
func (n *Node) forget(b *box) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.boxes[b.id] == b {
		delete(n.boxes, b.id)
		if b.rec.Sandbox.State != nodeapi.StateStopped {
			n.live--
		}
	}
}

func (n *Node) sandboxConfig(b *box, req nodeapi.CreateRequest) sandbox.Config {
	t := b.lease
	env := slices.Clone(t.Env)
	for k, v := range req.Env {
		env = append(env, k+"="+v)
	}
	slices.Sort(env[len(t.Env):]) // later entries win, so the request's stay behind the template's
	cwd := req.Cwd
	set(&cwd, t.Cwd)
	if req.Main != nil && req.Logs != nil {
		main := *req.Main
		main.Attach = true // PID 1 waits with the end until the log pump has everything
		req.Main = &main
	}
	var facts []guest.BootFile
	for _, f := range scope.Facts(b.id, templateID(b.rec.Sandbox)) {
		facts = append(facts, guest.BootFile{Path: scope.FactsDir + "/." + f[0], Content: f[1]})
	}
	return sandbox.Config{
		ID: b.id, Lower: t.Root, IDBase: b.rec.IDBase, Limits: sandbox.Limits(req.Limits), QoS: sandbox.QoS(req.QoS),
		Given: given(req.Devices, req.Mounts),
		Boot: guest.Boot{
			Hostname: req.Hostname, User: b.rec.Sandbox.User, Cwd: cwd, Env: env, Profile: req.Profile, Main: req.Main,
			Files: facts,
		},
	}
}
