package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
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

// lingerTime is how long a side may go on after the other one ended.
const lingerTime = 5 * time.Second

// splice copies both ways between two connections until both directions have ended, and closes them. What the near side
// sent already is in early. When one side ends, the other one is told by half a close and has lingerTime to end as well:
// closing at once could destroy what is still on its way to it. It returns the bytes that went to near.
func splice(near, far net.Conn, early io.Reader) int64 {
	var wg sync.WaitGroup
	wg.Go(func() {
		if early != nil {
			if _, err := io.Copy(far, early); err != nil {
				discard(near)
			}
		}
		_, _ = pump(far, near)
	})
	n, _ := pump(near, far)
	wg.Wait()
	_ = near.Close()
	_ = far.Close()
	return n
}

// pump copies src to dst until src ends, or for a while into nothing where dst does not take it any more.
func pump(dst, src net.Conn) (int64, error) {
	n, err := io.Copy(dst, src) // splice(2) where both are sockets of the kernel
	if err != nil {
		discard(src)
	}
	if half, ok := dst.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	_ = dst.SetReadDeadline(time.Now().Add(lingerTime))
	return n, err
}

func discard(src net.Conn) {
	_ = src.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.Copy(io.Discard, src)
}

// plainExec answers an exec without an upgrade: newline-delimited JSON of api.ExecEvent.
func (s *Server) plainExec(w http.ResponseWriter, r *http.Request) error {
	var req api.PlainExecRequest
	if err := s.decodeBody(w, r, maxExecBytes, false, &req); err != nil {
		return err
	}
	start, err := guestStart(req.ExecRequest)
	if err != nil {
		return err
	}
	if req.Input == nil && start.Stdin {
		return invalid("stdin is true, but the plain form takes it from the field input")
	}
	start.Attach, start.Stdin = true, req.Input != nil
	id, node, err := s.node(r)
	if err != nil {
		return err
	}
	stream, err := node.Exec(r.Context(), id, nodeapi.ExecRequest{Start: start})
	if err != nil {
		return err
	}
	defer stream.Close()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	stopClosing := context.AfterFunc(s.closing, cancel)
	defer stopClosing()
	stop := context.AfterFunc(ctx, func() { _ = stream.Close() })
	defer stop()

	var input sync.WaitGroup
	defer input.Wait()
	defer stream.Close() // before Wait: it ends a Write that nobody takes
	if req.Input != nil {
		input.Go(func() {
			if _, err := stream.Write(req.Input); err == nil {
				_ = stream.CloseStdin()
			}
		})
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	out := s.liveWriter(w)
	enc := json.NewEncoder(out)
	if err := enc.Encode(api.ExecEvent{Process: processView(&stream.Process)}); err != nil {
		return nil
	}
	for {
		ev, err := execEvent(stream)
		if err != nil {
			if ctx.Err() == nil {
				e, _ := mapError(streamFault(err))
				_ = enc.Encode(api.ExecEvent{Error: e})
			}
			return nil
		}
		if err := enc.Encode(ev); err != nil || ev.Exit != nil {
			return nil
		}
	}
}

// streamFault says that the connection to a process broke, where the error is not the node's own.
func streamFault(err error) error {
	var known *api.Error
	if errors.As(err, &known) {
		return err
	}
	return api.Errorf(http.StatusBadGateway, api.CodeUnavailable, "the connection to the process broke before it ended")
}

// execEvent turns the next frame into a line.
func execEvent(stream *nodeapi.Stream) (api.ExecEvent, error) {
	for {
		f, err := stream.Recv()
		if err != nil {
			return api.ExecEvent{}, err
		}
		var ev api.ExecEvent
		switch f.Type {
		case frame.Exit:
			ev.Exit = &frame.ExitBody{}
			err = json.Unmarshal(f.Payload, ev.Exit)
		case frame.Dropped:
			ev.Dropped = &frame.DroppedBody{}
			err = json.Unmarshal(f.Payload, ev.Dropped)
		case frame.Stdout:
			_, ev.Stdout, err = frame.Output(f.Payload)
		case frame.Stderr:
			_, ev.Stderr, err = frame.Output(f.Payload)
		case frame.PTY:
			_, ev.PTY, err = frame.Output(f.Payload)
		default:
			continue
		}
		return ev, err
	}
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
