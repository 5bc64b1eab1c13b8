package nodeapi

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/handover"
)

// UpgradeTCP is the protocol of GET /v1/sandboxes/{id}/ports/{port}: the bytes of a TCP connection.
const UpgradeTCP = "tcp"

// CodePortClosed is the error word, with status 502, where nobody listens on a port.
const CodePortClosed = "port_closed"

// DialPort connects to a TCP port on the loopback of a sandbox. ctx counts until DialPort returns. Errors are *api.Error with
// status 404 or 409 where there is no such sandbox or it does not run, and 502 with CodePortClosed where nobody listens.
func (c *Client) DialPort(ctx context.Context, id api.SandboxID, port int) (net.Conn, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	br, err := c.switchTo(ctx, conn, http.MethodGet, sandboxPath(id, "/ports/"+strconv.Itoa(port)), UpgradeTCP)
	if !stop() && err == nil {
		err = c.unreachable(ctx, ctx.Err())
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	if br.Buffered() == 0 {
		return conn, nil
	}
	return &begun{Conn: conn, r: br}, nil
}

// begun is a connection whose first bytes came together with the answer.
type begun struct {
	net.Conn
	r *bufio.Reader
}

func (b *begun) Read(p []byte) (int, error) { return b.r.Read(p) }

// CloseWrite ends what the other side reads.
func (b *begun) CloseWrite() error {
	if h, ok := b.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// switchTo sends a request with an upgrade and reads the answer to it, not more.
func (c *Client) switchTo(ctx context.Context, conn net.Conn, method, path, protocol string) (*bufio.Reader, error) {
	req, err := c.request(ctx, method, path, nil, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	if err := req.Write(conn); err != nil {
		return nil, c.unreachable(ctx, err)
	}
	br := bufio.NewReaderSize(conn, 4096)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		return nil, c.answerError(resp)
	}
	if got := resp.Header.Get("Upgrade"); !strings.EqualFold(got, protocol) {
		return nil, c.unreachable(ctx, fmt.Errorf("upgraded to %.40q, want %s", got, protocol))
	}
	return br, nil
}

// Transport carries plain HTTP requests to the node, for whoever passes a client's request on. What a request's URL has as its
// host does not matter. Bodies of files may come and go as descriptors where the node is on this machine: see package handover.
func (c *Client) Transport() http.RoundTripper {
	if t, ok := c.http.Transport.(*http.Transport); ok && strings.HasPrefix(c.addr, "unix://") {
		return handover.Transport{Base: t}
	}
	return c.http.Transport
}

// EnvdPath returns the path below which a sandbox's envd is served.
func EnvdPath(id api.SandboxID) string { return sandboxPath(id, "/envd") }
