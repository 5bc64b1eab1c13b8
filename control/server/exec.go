package server

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// exec is POST /v1/sandboxes/{id}/exec: upgraded to frames, or plain for clients that cannot upgrade.
func (s *Server) exec(w http.ResponseWriter, r *http.Request) error {
	up, err := wantsUpgrade(r)
	switch {
	case err != nil:
		return err
	case up:
		return s.upgrade(w, r, nodeapi.UpgradeExec)
	}
	return s.plainExec(w, r)
}

// attach is POST /v1/sandboxes/{id}/attach. It has the upgraded form only.
func (s *Server) attach(w http.ResponseWriter, r *http.Request) error {
	up, err := wantsUpgrade(r)
	if err != nil {
		return err
	}
	if !up {
		w.Header().Set("Upgrade", api.UpgradeProtocol)
		w.Header().Set("Connection", "Upgrade")
		return api.Errorf(http.StatusUpgradeRequired, codeUpgrade, "attach needs the header \"Upgrade: %s\"", api.UpgradeProtocol)
	}
	return s.upgrade(w, r, nodeapi.UpgradeAttach)
}

// wantsUpgrade reports whether a request asks for frames. To ask for another protocol is an error.
func wantsUpgrade(r *http.Request) (bool, error) {
	proto := r.Header.Get("Upgrade")
	if proto == "" {
		return false, nil
	}
	connection := false
	for _, v := range r.Header.Values("Connection") {
		for word := range strings.SplitSeq(v, ",") {
			connection = connection || strings.EqualFold(strings.TrimSpace(word), "upgrade")
		}
	}
	if !connection || !strings.EqualFold(proto, api.UpgradeProtocol) {
		return false, invalid("the upgrade to %.40q is not served, only \"Connection: Upgrade\" with \"Upgrade: %s\"", proto, api.UpgradeProtocol)
	}
	return true, nil
}

// upgrade connects the client with the node's own upgrade of the same resource, and returns when both have ended. The
// node is asked first, so that its refusal is an answer with a status.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request, resource string) error {
	if r.ContentLength != 0 {
		return invalid("an upgraded request has no body: the request is the first frame")
	}
	id, node, err := s.node(r)
	if err != nil {
		return err
	}
	far, err := node.Upgrade(r.Context(), id, resource)
	if err != nil {
		return err
	}
	s.streams.Add(1)
	defer s.streams.Done()
	near, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		_ = far.Close()
		return fmt.Errorf("take over the connection: %w", err)
	}
	stop := context.AfterFunc(s.closing, func() {
		_ = near.Close()
		_ = far.Close()
	})
	defer stop()
	_ = near.SetDeadline(time.Now().Add(s.cfg.WriteTimeout))
	_, err = fmt.Fprintf(near, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s: %s\r\n\r\n",
		api.UpgradeProtocol, api.RequestIDHeader, requestID(r))
	if err != nil {
		_ = near.Close()
		_ = far.Close()
		return nil
	}
	_ = near.SetDeadline(time.Time{})
	var early io.Reader
	if n := rw.Reader.Buffered(); n > 0 { // frames that came with the request
		b, _ := rw.Reader.Peek(n)
		early = strings.NewReader(string(b))
	}
	sent := splice(near, far, early)
	recorderOf(w).bytes += sent
	return nil
}

// guestStart checks a process to start and translates it.
func guestStart(req api.ExecRequest) (guest.Start, error) {
	if err := checkArgv("argv", req.Argv); err != nil {
		return guest.Start{}, err
	}
	if len(req.Env) > guest.MaxArgs {
		return guest.Start{}, invalid("env has %d entries, at most %d are allowed", len(req.Env), guest.MaxArgs)
	}
	n := 0
	for i, kv := range req.Env {
		name, _, ok := strings.Cut(kv, "=")
		if !ok || name == "" || strings.ContainsRune(kv, 0) {
			return guest.Start{}, invalid("env: entry %d is not NAME=VALUE without NUL bytes", i)
		}
		n += len(kv) + 1
	}
	if n > guest.MaxArgBytes {
		return guest.Start{}, invalid("env is %d bytes, at most %d are allowed", n, guest.MaxArgBytes)
	}
	for _, t := range []struct {
		field, value string
		limit        int
	}{{"cwd", req.Cwd, maxPathBytes}, {"user", req.User, maxUserBytes}, {"tag", req.Tag, 128}} {
		if err := checkText(t.field, t.value, t.limit); err != nil {
			return guest.Start{}, err
		}
	}
	return guest.Start{
		Argv: req.Argv, Env: req.Env, Cwd: req.Cwd, User: req.User, TTY: req.TTY, Size: req.Size, Stdin: req.Stdin,
		Tag: req.Tag, Attach: req.Attach, KillOnDetach: req.KillOnDetach,
	}, nil
}

// node returns the sandbox of a request and the client of the node that runs it.
func (s *Server) node(r *http.Request) (api.SandboxID, *nodeapi.Client, error) {
	id, err := sandboxID(r)
	if err != nil {
		return "", nil, err
	}
	c, err := s.cfg.Lifecycle.NodeFor(r.Context(), tenant(r), id)
	return id, c, err
}
