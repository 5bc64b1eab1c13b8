package node

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// newEnvd returns what serves the contract's in-sandbox API for all sandboxes of the node.
func (n *Node) newEnvd() http.Handler {
	return envd.New(envd.Config{Context: n.ctx, Watchers: &n.wg, Usage: n.usage, Started: func(s scope.Sandbox, p guest.ProcessInfo) {
		if g, b, err := n.guest(s.ID); err == nil {
			n.processStarted(b, g, p)
		}
	}})
}

// envd is /v1/sandboxes/{id}/envd/…: the rest of the path goes to envd. The answers are envd's own, in the contract's shape: a
// client of a sandbox gets them as they are.
func (n *Node) envd(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := checkPeer(r); err != nil {
			e := apiError(err)
			writeJSON(w, e.Code, e)
			return
		}
		s, ok := n.scope(r.PathValue("id"))
		if !ok {
			writeJSON(w, http.StatusBadGateway, nodeapi.Gone(r.PathValue("id")))
			return
		}
		prefix := "/v1/sandboxes/" + r.PathValue("id") + "/envd"
		inner := r.WithContext(scope.With(r.Context(), s))
		url := *r.URL
		url.Path = strings.TrimPrefix(url.Path, prefix)
		url.RawPath = strings.TrimPrefix(url.RawPath, prefix)
		inner.URL = &url
		h.ServeHTTP(w, inner)
	})
}

// scope describes a running sandbox to envd.
func (n *Node) scope(id string) (scope.Sandbox, bool) {
	sid, err := api.ParseSandboxID(id)
	if err != nil {
		return scope.Sandbox{}, false
	}
	g, b, err := n.guest(sid)
	if err != nil {
		return scope.Sandbox{}, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rec.Sandbox.Warm {
		return scope.Sandbox{}, false // there is no token yet that could be asked for
	}
	return scope.Sandbox{
		ID: b.id, Template: templateID(b.rec.Sandbox), AccessToken: b.rec.Token, Env: b.rec.Env, User: b.rec.Sandbox.User, Cwd: b.rec.Cwd,
		Guest: g, Ended: b.stopped,
	}, true
}

// usage is what a sandbox uses: its last sample, or, before there is one, its counters.
func (n *Node) usage(_ context.Context, s scope.Sandbox) (envd.Usage, error) {
	b, err := n.box(s.ID)
	if err != nil {
		return envd.Usage{}, err
	}
	last, ok := n.sampler.Last(s.ID)
	if !ok {
		inst, err := b.running()
		if err != nil {
			return envd.Usage{}, err
		}
		size, _, err := diskSpace(n.cfg.StateDir)
		if err != nil {
			return envd.Usage{}, err
		}
		if last.Counters, err = n.counters(s.ID, inst, b.view().Limits, uint64(size)); err != nil {
			return envd.Usage{}, err
		}
		last.Time = time.Now()
	}
	return envd.Usage{
		Time: last.Time, CPUCount: max(1, int64(last.CPUMillis+999)/1000), CPUPct: last.CPUPercent,
		MemTotal: int64(last.MemoryTotal), MemUsed: int64(last.MemoryBytes), MemCache: int64(last.MemoryCache),
		DiskTotal: int64(last.DiskTotal), DiskUsed: int64(last.DiskUsed),
	}, nil
}

// templateID is the id of the template, as the client is told it. A control service asks for a digest, and says what id that is.
func templateID(sb nodeapi.Sandbox) string {
	for _, key := range []string{nodeapi.MetaTemplateID, "template"} {
		if id := sb.Metadata[key]; id != "" {
			return id
		}
	}
	return sb.Template
}
