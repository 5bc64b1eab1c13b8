package node

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// portTimeout bounds how long a server inside may take to accept: one that is full is as good as closed.
const portTimeout = 10 * time.Second

// getPort is GET /v1/sandboxes/{id}/ports/{port}, upgraded to the bytes of a TCP connection to that port inside.
func (n *Node) getPort(w http.ResponseWriter, r *http.Request) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), nodeapi.UpgradeTCP) {
		w.Header().Set("Upgrade", nodeapi.UpgradeTCP)
		return api.Errorf(http.StatusUpgradeRequired, api.CodeInvalid, "this resource needs the header Upgrade: %s", nodeapi.UpgradeTCP)
	}
	port, err := strconv.Atoi(r.PathValue("port"))
	if err != nil || port < 1 || port > 65535 {
		return invalid("port: %.20q is not between 1 and 65535", r.PathValue("port"))
	}
	id, err := pathID(r)
	if err != nil {
		return err
	}
	b, err := n.box(id)
	if err != nil {
		return err
	}
	inst, err := b.running()
	if err != nil {
		return err
	}
	if b.view().Warm {
		return api.Errorf(http.StatusBadGateway, nodeapi.CodePortClosed, "sandbox %s: nobody has it yet", id)
	}
	far, err := n.dialPort(r.Context(), b, inst, port)
	if errors.Is(err, sandbox.ErrPortClosed) || errors.Is(err, context.DeadlineExceeded) {
		return api.Errorf(http.StatusBadGateway, nodeapi.CodePortClosed, "sandbox %s: nobody listens on port %d", id, port)
	}
	if err != nil {
		return guestGone(b, err)
	}
	defer far.Close()
	n.sessions.Add(1) // while the server still counts the request: no race with Wait
	defer n.sessions.Done()
	conn, early, err := hijack(w)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(n.ctx, func() { _ = conn.Close(); _ = far.Close() })()
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil //nolint:nilerr // the connection is gone, and with it whoever would want to know
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+nodeapi.UpgradeTCP+"\r\n\r\n"); err != nil {
		return nil //nolint:nilerr // as above
	}
	n.metrics.IncrCounter([]string{"port_connections"}, 1)
	join(&prefixed{Conn: conn, early: early}, far)
	return nil
}

// join copies both ways until both are done; each direction's end is passed on by itself, as TCP has it.
func join(client *prefixed, far net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Early bytes first; then the connection itself, so that the kernel can move its bytes.
		if _, err := far.Write(client.early); err == nil {
			client.early = nil
			_, _ = copyBuffered(far, client.Conn)
		}
		_ = closeWrite(far)
	}()
	_, err := copyBuffered(client.Conn, far)
	if err != nil || closeWrite(client.Conn) != nil {
		_ = client.Conn.Close()
	}
	<-done
}
