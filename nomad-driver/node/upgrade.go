package node

import (
	"bytes"
	"context"
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

const (
	requestTimeout = 10 * time.Second // from the upgrade to the first frame
	lingerTimeout  = 5 * time.Second  // for what is under way when one side of a conversation has ended
)

// opener makes the guest's side of a conversation out of the client's first frame.
type opener func(ctx context.Context, g guestClient, payload []byte) (*guest.Stream, error)

func (n *Node) postExec(w http.ResponseWriter, r *http.Request) error {
	return n.converse(w, r, true, func(ctx context.Context, g guestClient, payload []byte) (*guest.Stream, error) {
		var req nodeapi.ExecRequest
		if err := decodeJSON(bytes.NewReader(payload), &req); err != nil {
			return nil, err
		}
		if err := checkStart("process", req.Start); err != nil {
			return nil, err
		}
		return g.StartAttached(ctx, req.Start)
	})
}

func (n *Node) postAttach(w http.ResponseWriter, r *http.Request) error {
	return n.converse(w, r, false, func(ctx context.Context, g guestClient, payload []byte) (*guest.Stream, error) {
		var req nodeapi.AttachRequest
		if err := decodeJSON(bytes.NewReader(payload), &req); err != nil {
			return nil, err
		}
		if req.PID < 1 {
			return nil, invalid("pid: %d is not positive", req.PID)
		}
		return g.Attach(ctx, req.Attach)
	})
}

// converse upgrades the request's connection, opens the guest's side, and lets the two talk until one is done. starts tells that
// opening starts the process.
func (n *Node) converse(w http.ResponseWriter, r *http.Request, starts bool, open opener) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), nodeapi.UpgradeProtocol) {
		w.Header().Set("Upgrade", nodeapi.UpgradeProtocol)
		return api.Errorf(http.StatusUpgradeRequired, api.CodeInvalid, "this resource needs the header Upgrade: %s", nodeapi.UpgradeProtocol)
	}
	g, b, err := n.requestGuest(r) // an error of the sandbox itself is a plain answer
	if err != nil {
		return err
	}
	n.sessions.Add(1) // while the server still counts the request: no race with Wait
	defer n.sessions.Done()
	conn, early, err := hijack(w)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(n.ctx, func() { _ = conn.Close() })()
	n.metrics.IncrCounter([]string{"exec_sessions"}, 1)
	if err := n.conversation(conn, early, g, b, starts, open); err != nil {
		n.log.Debug("conversation ended", "sandbox", b.id, "error", err)
	}
	return nil
}

// conversation is everything after the upgrade.
func (n *Node) conversation(conn net.Conn, early []byte, g guestClient, b *box, starts bool, open opener) error {
	if err := conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+nodeapi.UpgradeProtocol+"\r\n\r\n"); err != nil {
		return err
	}
	in := &prefixed{Conn: conn, early: early}
	f, err := frame.NewReader(in).Read()
	if err != nil {
		return err
	}
	if f.Type != frame.Request {
		return sendError(conn, invalid("the first frame has type %d, want %d", f.Type, frame.Request))
	}
	ctx, cancel := context.WithTimeout(n.ctx, requestTimeout)
	defer cancel()
	stream, err := open(ctx, g, f.Payload)
	if err != nil {
		return sendError(conn, apiError(guestGone(b, err)))
	}
	defer stream.Close()
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	p := stream.Process()
	if starts {
		n.processStarted(b, g, p)
	}
	if err := frame.WriteJSON(conn, frame.Response, guest.Response{Version: guest.ProtocolVersion, Process: &p}); err != nil {
		return err
	}
	return splice(in, stream.Conn())
}

// hijack takes the connection from the HTTP server, with the bytes that the server has read of it already.
func hijack(w http.ResponseWriter) (net.Conn, []byte, error) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("upgrade: %w", err)
	}
	early, _ := rw.Reader.Peek(rw.Reader.Buffered())
	return conn, bytes.Clone(early), nil
}

// prefixed is a connection with bytes that come before what it will deliver.
type prefixed struct {
	net.Conn
	early []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.early) > 0 {
		n := copy(b, p.early)
		p.early = p.early[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// CloseWrite ends what the other side reads.
func (p *prefixed) CloseWrite() error { return closeWrite(p.Conn) }

func sendError(conn net.Conn, e *api.Error) error {
	if err := frame.WriteJSON(conn, frame.Error, frame.ErrorBody{Code: e.ErrorCode, Message: e.Message}); err != nil {
		return err
	}
	return errors.Join(e, closeWrite(conn))
}

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// splice copies both ways between a client and a guest until the conversation is over, and returns when neither side is
// used any more. The guest ends it (after Exit, or by dying): what it still said reaches the client. The client ends it by
// closing, or half-closing: frames have their own end of stdin, so a client that will not speak again has left, and the
// guest is told by the end of its connection, which is what KillOnDetach goes by.
func splice(client, guestSide net.Conn) error {
	var wg sync.WaitGroup
	var toGuest error
	wg.Go(func() {
		_, toGuest = copyBuffered(guestSide, client)
		_ = closeWrite(guestSide)
		// What the guest says from now on nobody reads, but a client that half-closed may be waiting for the answer to its
		// last frame. The guest ends soon, or it is ended.
		_ = guestSide.SetReadDeadline(time.Now().Add(lingerTimeout))
	})
	_, toClient := copyBuffered(client, guestSide)
	_ = closeWrite(client)
	_ = guestSide.Close()
	_ = client.SetReadDeadline(time.Unix(1, 0)) // ends the other copy
	wg.Wait()
	return errors.Join(toClient, toGuest)
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// copyBuffered copies as io.Copy does. For connections between which the kernel can move bytes itself io.Copy has it do
// so; for others the buffer is one of a pool.
func copyBuffered(dst io.Writer, src io.Reader) (int64, error) {
	buf := buffers.Get().(*[]byte) //nolint:forcetypeassert // the pool's own type
	defer buffers.Put(buf)
	return io.CopyBuffer(dst, src, *buf)
}
