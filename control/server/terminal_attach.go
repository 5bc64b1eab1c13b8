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
	"unicode/utf8"

	"github.com/coder/websocket"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/rbac"
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
	if err := s.recordStart(r); err != nil {
		return err
	}
	stream, err := node.Attach(ctx, t.SandboxID, nodeapi.AttachRequest{Attach: guest.Attach{
		PID: guest.ProcessID(t.PID), Stdout: offset,
		Lossy: mode == api.TerminalRead, // who only looks on holds up nobody; who types sees what came of it
	}})
	if err != nil {
		return err
	}
	defer stream.Close()
	defer context.AfterFunc(ctx, func() { stream.Close() })()
	s.streams.begin()
	defer s.streams.end()
	c, err := acceptSocket(w, r)
	if err != nil {
		return nil //nolint:nilerr // it has answered
	}
	c.SetReadLimit(maxTerminalMessage)
	v := &viewer{c: c, stream: stream, mode: mode, limit: s.cfg.WriteTimeout}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer cancel() // the client has left, or was sent away
		// Its context does not end: the library would break the connection then, and the client not learn why.
		v.input(context.WithoutCancel(ctx))
	}()
	v.output(ctx)
	if s.closing.Err() != nil {
		c.close(websocket.StatusGoingAway, "the server stops: come back")
	}
	cancel()
	c.end()
	<-read
	return nil
}

// attachRoute is what the route needs, once it is known who asks.
var attachRoute = route{pattern: "GET /v1/terminals/{id}/attach", needs: can(rbac.Sandbox, rbac.Connect)}

// terminalCaller returns whose request it is: by its ticket, or by its key.
func (s *Server) terminalCaller(r *http.Request, word string) (auth.Identity, error) {
	req := requestOf(r)
	if word != "" {
		who, ok := s.tickets.redeem(word, api.TerminalID(r.PathValue("id")), time.Now())
		if !ok {
			return auth.Identity{}, api.Errorf(http.StatusUnauthorized, api.CodeUnauthorized, "the ticket is used, too old, or for another terminal")
		}
		shown, _ := credentials(r) // for its source
		req.is(who, shown.Source)
	} else if err := s.authenticate(r, req); err != nil {
		return auth.Identity{}, err
	}
	return req.caller, s.authorize(r, req, &attachRoute)
}

// viewer is one attachment.
type viewer struct {
	c      *socket
	stream *nodeapi.Stream
	mode   api.TerminalMode
	limit  time.Duration // for one message to the client
}

// input carries what the client sends until it leaves.
func (v *viewer) input(ctx context.Context) {
	for {
		kind, data, err := v.c.receive(ctx)
		if err != nil {
			// What the library has not answered itself: a frame that is no frame. To who is gone it does not matter.
			v.c.close(websocket.StatusProtocolError, "that is no WebSocket")
			return
		}
		if kind == websocket.MessageBinary {
			if v.mode == api.TerminalRead {
				v.c.close(api.TerminalReadOnly, "this attachment may only read")
				return
			}
			if _, err := v.stream.Write(data); err != nil {
				return
			}
			continue
		}
		if !utf8.Valid(data) {
			v.c.close(websocket.StatusInvalidFramePayloadData, "a text message is not UTF-8")
			return
		}
		var m api.TerminalControl
		if json.Unmarshal(data, &m) != nil || m.Type != api.TerminalResize || m.Cols == 0 || m.Rows == 0 {
			v.c.close(api.TerminalBadMessage, `a text message must be {"type":"resize","cols":n,"rows":n}`)
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
				v.c.close(api.TerminalLost, "the sandbox has ended, or its node is away")
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
				v.c.close(websocket.StatusNormalClosure, fmt.Sprintf("the process has ended with code %d", e.Code))
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
