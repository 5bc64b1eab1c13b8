package node

import (
	"context"
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

const (
	maxWait       = 60 * time.Second
	beatInterval  = 5 * time.Second
	eventTimeout  = 30 * time.Second // to write a line to a subscriber
	healthTimeout = 3 * time.Second
)

func (n *Node) getNode(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, n.Info())
	return nil
}

func (n *Node) postSandbox(w http.ResponseWriter, r *http.Request) error {
	var req nodeapi.CreateRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	if req.Logs != nil && !local(r) {
		// They name files of the host, which root here may choose and a client elsewhere may not.
		return api.Errorf(http.StatusForbidden, api.CodeUnauthorized, "logs: only clients of the unix socket may name log targets")
	}
	if req.Owner.Folder != "" && !local(r) {
		return api.Errorf(http.StatusForbidden, api.CodeUnauthorized, "owner.folder: only clients of the unix socket may name a folder of the host")
	}
	if (req.Publish != nil || req.PublishIn != "") && !local(r) {
		return api.Errorf(http.StatusForbidden, api.CodeUnauthorized, "publish: only clients of the unix socket may name ports of the machine")
	}
	if given(req.Devices, req.Mounts).Any() && !local(r) {
		return api.Errorf(http.StatusForbidden, api.CodeUnauthorized, "devices: only clients of the unix socket may name devices and files of the host")
	}
	sb, fresh, err := n.Create(r.Context(), req)
	if err != nil {
		return err
	}
	status := http.StatusOK
	if fresh {
		status = http.StatusCreated
	}
	writeJSON(w, status, sb)
	return nil
}

func (n *Node) getSandboxes(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, n.List())
	return nil
}

func (n *Node) getSandbox(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	sb, err := n.Get(id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, sb)
	return nil
}

func (n *Node) deleteSandbox(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	if err := n.Delete(r.Context(), id); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (n *Node) postStop(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	var req nodeapi.StopRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	sb, err := n.Stop(r.Context(), id, req)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, sb)
	return nil
}

func (n *Node) getWait(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	timeout := maxWait
	if s := r.URL.Query().Get("timeout"); s != "" {
		if timeout, err = time.ParseDuration(s); err != nil || timeout < 0 || timeout > maxWait {
			return invalid("timeout: %.30q is not a duration between 0 and %s", s, maxWait)
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	sb, err := n.Wait(ctx, id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, sb)
	return nil
}

func (n *Node) putDeadline(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	var req nodeapi.DeadlineRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	sb, err := n.SetDeadline(id, req.Deadline)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, sb)
	return nil
}

func (n *Node) putLimits(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	var req nodeapi.LimitsRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	sb, err := n.SetLimits(id, req.Limits)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, sb)
	return nil
}

func (n *Node) postSignal(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	var req nodeapi.SignalRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	if err := n.Signal(r.Context(), id, req); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// getHealth asks PID 1 for a sign of life. The status is 200 also where there is none: the answer says so.
func (n *Node) getHealth(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	b, err := n.box(id)
	if err != nil {
		return err
	}
	sb := b.view()
	h := nodeapi.HealthReply{ID: id, State: sb.State}
	inst, err := b.running()
	if err == nil {
		h.Uptime = time.Since(sb.StartedAt)
		ctx, cancel := context.WithTimeout(r.Context(), healthTimeout)
		defer cancel()
		start := time.Now()
		var info guest.Info
		if info, err = inst.Guest().Info(ctx); err == nil {
			h.RoundTrip, h.InitVersion, h.Processes = time.Since(start), info.Version, info.Processes
		}
	}
	h.Healthy = err == nil
	if err != nil {
		h.Reason = guestGone(b, err).Error()
	}
	writeJSON(w, http.StatusOK, h)
	return nil
}

func (n *Node) getStats(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	b, err := n.box(id)
	if err != nil {
		return err
	}
	inst, err := b.running()
	if err != nil {
		return err
	}
	stats, err := inst.Stats()
	if err != nil {
		return guestGone(b, err)
	}
	writeJSON(w, http.StatusOK, nodeapi.Stats(stats))
	return nil
}

// getEvents streams events until the client or the node goes.
func (n *Node) getEvents(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	epoch := q.Get("epoch")
	since, err := intParam(r, "since")
	if err != nil {
		return err
	}
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	send := func(lines ...[]byte) error {
		if err := rc.SetWriteDeadline(time.Now().Add(eventTimeout)); err != nil {
			return err
		}
		for _, l := range lines {
			if _, err := w.Write(l); err != nil {
				return err
			}
		}
		return rc.Flush()
	}
	next, ok := n.hub.position(epoch, uint64(since))
	beat := time.NewTimer(beatInterval)
	defer beat.Stop()
	for {
		var news <-chan struct{}
		var lines [][]byte
		if ok {
			lines, news, ok = n.hub.read(next)
		}
		if !ok {
			var line []byte
			line, next = n.hub.sync()
			lines, ok = [][]byte{line}, true
		} else {
			next += uint64(len(lines))
		}
		if len(lines) > 0 {
			if send(lines...) != nil {
				return nil // the client is gone
			}
			beat.Reset(beatInterval)
			continue
		}
		select {
		case <-news:
		case <-beat.C:
			if send(n.hub.beat(n.health())) != nil {
				return nil
			}
			beat.Reset(beatInterval)
		case <-r.Context().Done():
			return nil
		case <-n.ctx.Done():
			return nil
		}
	}
}
