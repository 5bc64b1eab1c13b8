package server

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// maxTerminalMessage bounds one message from a client, in bytes.
const maxTerminalMessage = 64 << 10

// attachTerminal is GET /v1/terminals/{id}/attach, a WebSocket: see api.TerminalControl. The parameters are offset, the first byte of
// output that is wanted (0: all that is kept), mode (api.TerminalMode), and ticket, in place of a key. A page of another origin than
// this server's is refused.
func (s *Server) attachTerminal(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	offset := q.integer("offset", 0, 0, 1<<62)
	mode := api.TerminalMode(q.str("mode", 16))
	word := q.str("ticket", 64)
	if q.err != nil {
		return q.err
	}
	switch mode {
	case "":
		mode = api.TerminalWrite
	case api.TerminalRead, api.TerminalWrite, api.TerminalExclusive:
	default:
		return invalid("mode: %.20q is none of read, write, exclusive", mode)
	}
	who, err := s.terminalCaller(r, word)
	if err != nil {
		return err
	}
	t, node, err := s.terminal(r.Context(), who.Tenant, r.PathValue("id"))
	if err != nil {
		return err
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		w.Header().Set("Upgrade", "websocket")
		return api.Errorf(http.StatusUpgradeRequired, codeUpgrade, "attach needs a WebSocket")
	}
	leave, ok := s.terminals.enter(t.ID, mode)
	if !ok {
		return api.Errorf(http.StatusConflict, api.CodeConflict, "terminal %s has a writer that shares it with none, or others that write", t.ID)
	}
	defer leave()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()
	stream, err := node.Attach(ctx, t.SandboxID, nodeapi.AttachRequest{Attach: guest.Attach{PID: guest.ProcessID(t.PID), Stdout: offset}})
	if err != nil {
		return err
	}
	defer stream.Close()
	defer context.AfterFunc(ctx, func() { stream.Close() })()
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return nil //nolint:nilerr // it has answered
	}
	defer c.CloseNow()
	c.SetReadLimit(maxTerminalMessage)
	v := &viewer{c: c, stream: stream, mode: mode, limit: s.cfg.WriteTimeout}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer cancel() // the client has left, or was sent away
		v.input(ctx)
	}()
	v.output(ctx)
	if s.closing.Err() != nil {
		_ = c.Close(websocket.StatusGoingAway, "the server stops: come back")
	}
	cancel()
	_ = c.CloseNow()
	<-read
	return nil
}

// terminalCaller returns whose request it is: by its ticket, or by its key.
func (s *Server) terminalCaller(r *http.Request, word string) (auth.Identity, error) {
	if word != "" {
		who, ok := s.terminals.redeem(word, api.TerminalID(r.PathValue("id")), time.Now())
		if !ok {
			return auth.Identity{}, api.Errorf(http.StatusUnauthorized, api.CodeUnauthorized, "the ticket is used, too old, or for another terminal")
		}
		requestOf(r).caller = who
		return who, nil
	}
	key, err := keyOf(r)
	if err != nil {
		return auth.Identity{}, err
	}
	who, err := s.cfg.Auth.Verify(key)
	requestOf(r).caller = who
	return who, err
}

// viewer is one attachment.
type viewer struct {
	c      *websocket.Conn
	stream *nodeapi.Stream
	mode   api.TerminalMode
	limit  time.Duration // for one message to the client
}

// input carries what the client sends until it leaves.
func (v *viewer) input(ctx context.Context) {
	for {
		kind, data, err := v.c.Read(ctx)
		if err != nil {
			return
		}
		if kind == websocket.MessageBinary {
			if v.mode == api.TerminalRead {
				_ = v.c.Close(api.TerminalReadOnly, "this attachment may only read")
				return
			}
			if _, err := v.stream.Write(data); err != nil {
				return
			}
			continue
		}
		var m api.TerminalControl
		if json.Unmarshal(data, &m) != nil || m.Type != api.TerminalResize || m.Cols == 0 || m.Rows == 0 {
			_ = v.c.Close(api.TerminalBadMessage, `a text message must be {"type":"resize","cols":n,"rows":n}`)
			return
		}
		if v.mode != api.TerminalRead && v.stream.Resize(frame.Size{Cols: m.Cols, Rows: m.Rows}) != nil {
			return
		}
	}
}

// output carries what the process prints until it ends, and says why it stops.
func (v *viewer) output(ctx context.Context) {
	for {
		f, err := v.stream.Recv()
		if err != nil {
			if ctx.Err() == nil {
				_ = v.c.Close(api.TerminalLost, "the sandbox has ended, or its node is away")
			}
			return
		}
		switch f.Type {
		case frame.PTY, frame.Stdout:
			// The payload has the wire's form already: the offset, then the bytes.
			err = v.send(ctx, websocket.MessageBinary, f.Payload)
			if len(f.Payload) < binary.Size(uint64(0)) {
				err = errors.New("a frame without its offset")
			}
		case frame.Dropped:
			var d frame.DroppedBody
			if err = json.Unmarshal(f.Payload, &d); err == nil {
				err = v.sendJSON(ctx, api.TerminalControl{Type: api.TerminalGap, Bytes: d.Bytes, Offset: d.Offset})
			}
		case frame.Exit:
			var e frame.ExitBody
			if err = json.Unmarshal(f.Payload, &e); err == nil {
				_ = v.sendJSON(ctx, api.TerminalControl{Type: api.TerminalExit, Code: e.Code, Signal: e.Signal, OOM: e.OOM})
				_ = v.c.Close(websocket.StatusNormalClosure, fmt.Sprintf("the process has ended with code %d", e.Code))
				return
			}
		}
		if err != nil {
			return // the client does not take it, or has left
		}
	}
}

func (v *viewer) sendJSON(ctx context.Context, m api.TerminalControl) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return v.send(ctx, websocket.MessageText, b)
}

func (v *viewer) send(ctx context.Context, kind websocket.MessageType, p []byte) error {
	ctx, cancel := context.WithTimeout(ctx, v.limit)
	defer cancel()
	return v.c.Write(ctx, kind, p)
}
