package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

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
	out := newLiveWriter(w)
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
