package server

import (
	"context"
	"net/http"
	"strings"
	"sync"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// A terminal is a process of its sandbox with a tag, and nothing else: whoever restarts, it is found again.
const (
	terminalTag  = "terminal:"
	terminalWord = 20 // characters behind the sandbox's id
)

// terminals is what this server knows of terminals beyond what their sandboxes do: who writes.
type terminals struct {
	mu      sync.Mutex
	writers map[api.TerminalID]int // exclusive is -1
}

// enter lets an attachment in, and returns what ends it, or false where the terminal is somebody else's for now.
func (t *terminals) enter(id api.TerminalID, mode api.TerminalMode) (leave func(), ok bool) {
	if mode == api.TerminalRead {
		return func() {}, true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.writers[id]
	if n < 0 || n > 0 && mode == api.TerminalExclusive {
		return nil, false
	}
	if t.writers[id] = n + 1; mode == api.TerminalExclusive {
		t.writers[id] = -1
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.writers[id]--; t.writers[id] <= 0 {
			delete(t.writers, id)
		}
	}, true
}

func parseTerminalID(s string) (id api.TerminalID, box api.SandboxID, word string, err error) {
	head, word, ok := strings.Cut(s, "-")
	box, err = api.ParseSandboxID(head)
	if err != nil || !ok || len(word) != terminalWord || strings.Trim(word, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		return "", "", "", api.Errorf(http.StatusNotFound, api.CodeNotFound, "terminal %.80q does not exist", s)
	}
	return api.TerminalID(s), box, word, nil
}

// createTerminal is POST /v1/terminals.
func (s *Server) createTerminal(w http.ResponseWriter, r *http.Request) error {
	var req api.TerminalRequest
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	box, err := api.ParseSandboxID(string(req.SandboxID))
	if err != nil {
		return invalid("sandbox_id: %s", err)
	}
	if len(req.Command) == 0 {
		req.Command = []string{"/bin/bash", "-l"}
	}
	if req.Size.Cols == 0 && req.Size.Rows == 0 {
		req.Size.Cols, req.Size.Rows = 80, 24
	}
	if req.Size.Cols == 0 || req.Size.Rows == 0 {
		return invalid("size: %dx%d has no cells", req.Size.Cols, req.Size.Rows)
	}
	word := string(api.NewSandboxID())[1:] // 20 random characters of the same alphabet
	st := guest.Start{Argv: req.Command, User: req.User, Cwd: req.Cwd, TTY: true, Size: &req.Size, Stdin: true, Tag: terminalTag + word}
	for k, v := range req.Env {
		st.Env = append(st.Env, k+"="+v)
	}
	if err := s.mustMaySandbox(r, box); err != nil {
		return err
	}
	node, err := s.terminalNode(r.Context(), tenant(r), box)
	if err != nil {
		return err
	}
	p, err := node.Start(r.Context(), box, nodeapi.ExecRequest{Start: st})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, terminalView(box, p))
	return nil
}

func terminalView(box api.SandboxID, p guest.ProcessInfo) api.Terminal {
	return api.Terminal{
		ID: api.TerminalID(string(box) + "-" + strings.TrimPrefix(p.Tag, terminalTag)), SandboxID: box, PID: int(p.PID), Command: p.Argv,
		User: p.User, StartedAt: p.StartedAt.UTC(), Offset: p.Stdout, Exit: p.Exit,
	}
}

// listTerminals is GET /v1/terminals?sandbox_id=…: those that run, and those that ended a while ago.
func (s *Server) listTerminals(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	box, err := api.ParseSandboxID(q.str("sandbox_id", 64))
	if err != nil || q.err != nil {
		return firstOf(q.err, invalid("sandbox_id: %v", err))
	}
	if err := s.mustMaySandbox(r, box); err != nil {
		return err
	}
	node, err := s.terminalNode(r.Context(), tenant(r), box)
	if err != nil {
		return err
	}
	all, err := node.Processes(r.Context(), box)
	if err != nil {
		return err
	}
	out := []api.Terminal{}
	for _, p := range all {
		if strings.HasPrefix(p.Tag, terminalTag) {
			out = append(out, terminalView(box, p))
		}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// terminalNode returns the node that runs a sandbox. Of one that has ended it says what there still is.
func (s *Server) terminalNode(ctx context.Context, tenant string, box api.SandboxID) (*nodeapi.Client, error) {
	node, err := s.cfg.Lifecycle.NodeFor(ctx, tenant, box)
	if api.IsNotFound(err) {
		if _, known := s.cfg.Lifecycle.NodeOf(ctx, tenant, box); known == nil {
			return nil, api.Errorf(http.StatusConflict, api.CodeNotRunning,
				"sandbox %s has ended, and its terminals with it: what they showed is in its log, with source pty", box)
		}
	}
	return node, err
}

// terminal finds the terminal of a path for a caller.
func (s *Server) terminal(ctx context.Context, tenant, path string) (api.Terminal, *nodeapi.Client, error) {
	_, box, word, err := parseTerminalID(path)
	if err != nil {
		return api.Terminal{}, nil, err
	}
	node, err := s.terminalNode(ctx, tenant, box)
	if err != nil {
		return api.Terminal{}, nil, err
	}
	all, err := node.Processes(ctx, box)
	if err != nil {
		return api.Terminal{}, nil, err
	}
	for _, p := range all {
		if p.Tag == terminalTag+word {
			return terminalView(box, p), node, nil
		}
	}
	return api.Terminal{}, nil, api.Errorf(http.StatusNotFound, api.CodeNotFound, "terminal %.80q does not exist", path)
}

// getTerminal is GET /v1/terminals/{id}.
func (s *Server) getTerminal(w http.ResponseWriter, r *http.Request) error {
	t, _, err := s.terminal(r.Context(), tenant(r), r.PathValue("id"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, t)
	return nil
}

// deleteTerminal is DELETE /v1/terminals/{id}: it kills the process and what it started.
func (s *Server) deleteTerminal(w http.ResponseWriter, r *http.Request) error {
	t, node, err := s.terminal(r.Context(), tenant(r), r.PathValue("id"))
	if err != nil {
		return err
	}
	err = node.Signal(r.Context(), t.SandboxID, nodeapi.SignalRequest{PID: guest.ProcessID(t.PID), Signal: 9, Group: true})
	if api.IsNotFound(err) {
		err = nil // it has ended
	}
	return noContent(w, err)
}
