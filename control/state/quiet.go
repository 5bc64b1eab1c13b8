package state

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/soulbox-dev/soulbox/control/api"
)

// maxQuiet bounds how long another server may have this one wait.
const maxQuiet = 10 * time.Second

type quietRequest struct {
	Sandbox api.SandboxID `json:"sandbox"`
	Within  time.Duration `json:"within"` // nanoseconds
}

// Quiet returns when no server has a request to a sandbox under way that it let through before it heard that the sandbox leaves its node, as is recorded, or ctx
// ends. This server must lead. Of one that does not answer nothing is known, and it is not waited for: who is cut off from the one that leads is not
// whom clients can rely on.
func (s *Server) Quiet(ctx context.Context, id api.SandboxID) {
	var wg sync.WaitGroup
	defer wg.Wait()
	if list, err := s.configuration(); err == nil {
		for _, p := range list {
			if string(p.ID) != s.cfg.ServerID && s.silent.since(p.ID) == 0 {
				wg.Go(func() { s.askQuiet(ctx, p, id) })
			}
		}
	}
	s.ownQuiet(ctx, id)
}

func (s *Server) ownQuiet(ctx context.Context, id api.SandboxID) {
	if s.cfg.Quiet != nil {
		s.cfg.Quiet(ctx, id)
	}
}

func (s *Server) askQuiet(ctx context.Context, p raft.Server, id api.SandboxID) {
	within := maxQuiet
	if end, ok := ctx.Deadline(); ok {
		within = time.Until(end)
	}
	var out struct{}
	if _, err := s.call(ctx, http.MethodPost, string(p.Address), quietPath, quietRequest{Sandbox: id, Within: within}, &out); err != nil && ctx.Err() == nil {
		s.log.Warn("requests to a sandbox that leaves its node may be cut off", "sandbox", id, "server", p.ID, "error", err)
	}
}

func (s *Server) answerQuiet(w http.ResponseWriter, r *http.Request) {
	var req quietRequest
	err := json.NewDecoder(io.LimitReader(r.Body, maxCallBody)).Decode(&req)
	if err == nil {
		req.Sandbox, err = api.ParseSandboxID(string(req.Sandbox))
	}
	if err != nil {
		answer(w, http.StatusBadRequest, callFailed{Message: "the request to wait for quiet: " + err.Error()})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), min(req.Within, maxQuiet))
	defer cancel()
	s.awaitNotRunning(ctx, req.Sandbox) // else a request could be let through yet
	s.ownQuiet(ctx, req.Sandbox)
	answer(w, http.StatusOK, struct{}{})
}

// awaitNotRunning returns when a sandbox does not run here as far as these tables tell, or is to leave its node, or ctx ends.
func (s *Store) awaitNotRunning(ctx context.Context, id api.SandboxID) {
	for {
		changed, row, err := s.read().FirstWatch(tableSandbox, indexID, string(id))
		if sb, ok := row.(*Sandbox); err != nil || !ok || sb.State != Running || sb.Moving {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
