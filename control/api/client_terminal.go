package api

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/coder/websocket"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// CreateTerminal starts a process with a terminal. Nobody is attached to it yet.
func (c *Client) CreateTerminal(ctx context.Context, req TerminalRequest) (Terminal, error) {
	var t Terminal
	return t, c.call(ctx, http.MethodPost, "/v1/terminals", nil, req, &t)
}

// Terminals lists the terminals of a sandbox, those that ended a while ago included.
func (c *Client) Terminals(ctx context.Context, id SandboxID) ([]Terminal, error) {
	var t []Terminal
	return t, c.call(ctx, http.MethodGet, "/v1/terminals", url.Values{"sandbox_id": {string(id)}}, nil, &t)
}

// Terminal returns one terminal.
func (c *Client) Terminal(ctx context.Context, id TerminalID) (Terminal, error) {
	var t Terminal
	return t, c.call(ctx, http.MethodGet, terminalPath(id, ""), nil, nil, &t)
}

// KillTerminal ends a terminal's process and what it started.
func (c *Client) KillTerminal(ctx context.Context, id TerminalID) error {
	return c.call(ctx, http.MethodDelete, terminalPath(id, ""), nil, nil, nil)
}

// TerminalTicket makes a ticket, with which whoever holds it can attach once within half a minute.
func (c *Client) TerminalTicket(ctx context.Context, id TerminalID) (TerminalTicket, error) {
	var t TerminalTicket
	return t, c.call(ctx, http.MethodPost, terminalPath(id, "/ticket"), nil, nil, &t)
}

func terminalPath(id TerminalID, rest string) string {
	return "/v1/terminals/" + url.PathEscape(string(id)) + rest
}

// maxTerminalMessage bounds a message from the service, in bytes.
const maxTerminalMessage = 1 << 20

// TerminalStream is one attachment to a terminal. Recv must be called by one goroutine at a time; the other methods are safe for
// concurrent use.
type TerminalStream struct{ c *websocket.Conn }

// TerminalEvent is what an attachment receives: one of output, a gap, and, last, the end of the process.
type TerminalEvent struct {
	Offset uint64 // of the first byte of Data, or behind the gap
	Data   []byte
	Gap    uint64          // so many bytes before Offset are gone
	Exit   *frame.ExitBody // the process has ended
}

// AttachTerminal joins a terminal, from the byte at offset on as far as it is kept. ctx bounds the joining only.
func (c *Client) AttachTerminal(ctx context.Context, id TerminalID, offset uint64, mode TerminalMode) (*TerminalStream, error) {
	u := c.base.String() + terminalPath(id, "/attach") + "?" + url.Values{
		"offset": {strconv.FormatUint(offset, 10)}, "mode": {string(mode)},
	}.Encode()
	h := http.Header{}
	if c.key != "" {
		h.Set("X-API-Key", c.key)
	}
	conn, resp, err := websocket.Dial(ctx, u, &websocket.DialOptions{HTTPClient: c.http, HTTPHeader: h})
	if err != nil {
		if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
			var e Error
			if json.NewDecoder(resp.Body).Decode(&e) == nil && e.Message != "" {
				e.Code = resp.StatusCode
				return nil, &e
			}
		}
		return nil, fmt.Errorf("attach to terminal %s: %w", id, err)
	}
	conn.SetReadLimit(maxTerminalMessage)
	return &TerminalStream{conn}, nil
}

// Recv returns what comes next. Why the service ended the attachment is in the error: see websocket.CloseStatus.
func (s *TerminalStream) Recv(ctx context.Context) (TerminalEvent, error) {
	kind, b, err := s.c.Read(ctx)
	if err != nil {
		return TerminalEvent{}, err
	}
	if kind == websocket.MessageBinary {
		if len(b) < 8 {
			return TerminalEvent{}, errors.New("terminal: a message without its offset")
		}
		return TerminalEvent{Offset: binary.BigEndian.Uint64(b), Data: b[8:]}, nil
	}
	var m TerminalControl
	if err := json.Unmarshal(b, &m); err != nil {
		return TerminalEvent{}, fmt.Errorf("terminal: %w", err)
	}
	if m.Type == TerminalExit {
		return TerminalEvent{Exit: &frame.ExitBody{Code: m.Code, Signal: m.Signal, OOM: m.OOM}}, nil
	}
	return TerminalEvent{Offset: m.Offset, Gap: m.Bytes}, nil
}

// Write types p.
func (s *TerminalStream) Write(ctx context.Context, p []byte) error {
	return s.c.Write(ctx, websocket.MessageBinary, p)
}

// Resize sets the terminal's size.
func (s *TerminalStream) Resize(ctx context.Context, size frame.Size) error {
	b, err := json.Marshal(TerminalControl{Type: TerminalResize, Cols: size.Cols, Rows: size.Rows})
	if err != nil {
		return err
	}
	return s.c.Write(ctx, websocket.MessageText, b)
}

// Close leaves the terminal, which goes on.
func (s *TerminalStream) Close() error { return s.c.Close(websocket.StatusNormalClosure, "") }
