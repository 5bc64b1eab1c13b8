package nodeapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/handover"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// ErrUnreachable is in the chain of every error that comes from not reaching the node, as opposed to its answer. It is an
// *api.Error with status 503.
var ErrUnreachable error = api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "the node does not answer")

const (
	dialTimeout   = 5 * time.Second
	maxErrorBytes = 64 << 10 // of an error answer that is read
	maxJSONBytes  = 64 << 20 // of any JSON answer that is read
	waitStep      = 50 * time.Second
)

// Client speaks to one node. It is safe for concurrent use and keeps idle connections; Close ends those. Every method
// returns the node's own errors as *api.Error and others with ErrUnreachable or the context's error in the chain.
type Client struct {
	addr string // for messages
	host string // for the Host header
	http *http.Client
	dial func(ctx context.Context) (net.Conn, error) // a connection ready for HTTP/1.1, TLS included

	claims claims
}

// NewUnix returns a client of the node whose unix socket is at path.
func NewUnix(path string) *Client {
	return newClient("unix://"+path, "node", func(ctx context.Context) (net.Conn, error) {
		d := net.Dialer{Timeout: dialTimeout}
		return d.DialContext(ctx, "unix", path)
	})
}

// NewTLS returns a client of the node at addr ("host:port"). cfg carries the client's certificate and the node's CA; the
// client asks for TLS 1.3 at least. cfg.ServerName is the host of addr where it is empty.
func NewTLS(addr string, cfg *tls.Config) *Client {
	cfg = cfg.Clone()
	cfg.MinVersion = tls.VersionTLS13
	cfg.NextProtos = []string{"http/1.1"}
	if host, _, err := net.SplitHostPort(addr); err == nil && cfg.ServerName == "" {
		cfg.ServerName = host
	}
	return newClient("https://"+addr, addr, func(ctx context.Context) (net.Conn, error) {
		d := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}, Config: cfg}
		return d.DialContext(ctx, "tcp", addr)
	})
}

func newClient(addr, host string, dial func(context.Context) (net.Conn, error)) *Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := dial(ctx)
			if u, ok := c.(*net.UnixConn); ok && err == nil {
				return handover.NewConn(u), nil
			}
			return c, err
		},
		DisableCompression:    true,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       90 * time.Second,
		ExpectContinueTimeout: time.Second,
		WriteBufferSize:       64 << 10,
		ReadBufferSize:        64 << 10,
	}
	c := &Client{addr: addr, host: host, http: &http.Client{Transport: t}, dial: dial}
	c.claims.send = c.sendClaims
	return c
}

// Address returns what the client speaks to, for messages: "unix:///path" or "https://host:port".
func (c *Client) Address() string { return c.addr }

// Close ends idle connections. Streams that are open go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Node returns what the node says of itself.
func (c *Client) Node(ctx context.Context) (Node, error) {
	var n Node
	return n, c.call(ctx, http.MethodGet, "/v1/node", nil, nil, &n)
}

// Create makes a sandbox and returns when it runs. Repeating a request is harmless: it returns the sandbox that exists.
// Cancelling ctx aborts a creation that is under way and leaves nothing behind.
func (c *Client) Create(ctx context.Context, req CreateRequest) (Sandbox, error) {
	var s Sandbox
	return s, c.call(ctx, http.MethodPost, "/v1/sandboxes", nil, req, &s)
}

// List returns all sandboxes that the node has records of, stopped ones included, oldest first.
func (c *Client) List(ctx context.Context) ([]Sandbox, error) {
	var s []Sandbox
	return s, c.call(ctx, http.MethodGet, "/v1/sandboxes", nil, nil, &s)
}

// Get returns one sandbox, or an error with status 404.
func (c *Client) Get(ctx context.Context, id api.SandboxID) (Sandbox, error) {
	var s Sandbox
	return s, c.call(ctx, http.MethodGet, sandboxPath(id, ""), nil, nil, &s)
}

// Delete removes a sandbox and its record; one that runs is killed first. When it returns nothing of it is left on the
// node. A sandbox that does not exist is an error with status 404.
func (c *Client) Delete(ctx context.Context, id api.SandboxID) error {
	return c.call(ctx, http.MethodDelete, sandboxPath(id, ""), nil, nil, nil)
}

// Stop ends a sandbox and returns it once it has stopped. One that has stopped already is returned as it is.
func (c *Client) Stop(ctx context.Context, id api.SandboxID, req StopRequest) (Sandbox, error) {
	var s Sandbox
	return s, c.call(ctx, http.MethodPost, sandboxPath(id, "/stop"), nil, req, &s)
}

// Wait returns the sandbox once it has stopped.
func (c *Client) Wait(ctx context.Context, id api.SandboxID) (Sandbox, error) {
	q := url.Values{"timeout": {waitStep.String()}}
	for {
		var s Sandbox
		if err := c.call(ctx, http.MethodGet, sandboxPath(id, "/wait"), q, nil, &s); err != nil {
			return Sandbox{}, err
		}
		if s.State == StateStopped {
			return s, nil
		}
	}
}

// SetDeadline changes when the node ends the sandbox by itself; the zero time means never.
func (c *Client) SetDeadline(ctx context.Context, id api.SandboxID, deadline time.Time) (Sandbox, error) {
	var s Sandbox
	return s, c.call(ctx, http.MethodPut, sandboxPath(id, "/deadline"), nil, DeadlineRequest{Deadline: deadline}, &s)
}

// SetLimits changes limits of a running sandbox; zero values leave what is set.
func (c *Client) SetLimits(ctx context.Context, id api.SandboxID, l Limits) (Sandbox, error) {
	var s Sandbox
	return s, c.call(ctx, http.MethodPut, sandboxPath(id, "/limits"), nil, LimitsRequest{Limits: l}, &s)
}

// Signal signals a process, or the main process or all where req.PID is 0.
func (c *Client) Signal(ctx context.Context, id api.SandboxID, req SignalRequest) error {
	return c.call(ctx, http.MethodPost, sandboxPath(id, "/signal"), nil, req, nil)
}

// Resize sets the size of a process's terminal.
func (c *Client) Resize(ctx context.Context, id api.SandboxID, req ResizeRequest) error {
	return c.call(ctx, http.MethodPost, sandboxPath(id, "/resize"), nil, req, nil)
}

// Stdin writes to, or closes, the stdin of a process that nobody need be attached to.
func (c *Client) Stdin(ctx context.Context, id api.SandboxID, req guest.StdinRequest) error {
	return c.call(ctx, http.MethodPost, sandboxPath(id, "/stdin"), nil, req, nil)
}

// Start starts a process without attaching to it.
func (c *Client) Start(ctx context.Context, id api.SandboxID, req ExecRequest) (guest.ProcessInfo, error) {
	var p guest.ProcessInfo
	return p, c.call(ctx, http.MethodPost, sandboxPath(id, "/processes"), nil, req, &p)
}

// Processes lists the processes that PID 1 started, ended ones included as long as it remembers them.
func (c *Client) Processes(ctx context.Context, id api.SandboxID) ([]guest.ProcessInfo, error) {
	var p []guest.ProcessInfo
	return p, c.call(ctx, http.MethodGet, sandboxPath(id, "/processes"), nil, nil, &p)
}

// Stats returns the kernel's counters of a sandbox.
func (c *Client) Stats(ctx context.Context, id api.SandboxID) (Stats, error) {
	var s Stats
	return s, c.call(ctx, http.MethodGet, sandboxPath(id, "/stats"), nil, nil, &s)
}

// Health asks the sandbox's PID 1 for a sign of life. A sandbox that is not healthy is an answer, no error.
func (c *Client) Health(ctx context.Context, id api.SandboxID) (HealthReply, error) {
	var h HealthReply
	return h, c.call(ctx, http.MethodGet, sandboxPath(id, "/health"), nil, nil, &h)
}

// sandboxPath returns the URL path of a sandbox's resource.
func sandboxPath(id api.SandboxID, rest string) string {
	return "/v1/sandboxes/" + url.PathEscape(string(id)) + rest
}

// call makes one request with a JSON body (where in is not nil) and decodes the JSON answer into out (where not nil).
func (c *Client) call(ctx context.Context, method, path string, q url.Values, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode %s %s: %w", method, path, err)
		}
		body = bytes.NewReader(b)
	}
	resp, err := c.do(ctx, method, path, q, body, "application/json")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxErrorBytes)) // so that the connection is kept
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxJSONBytes)).Decode(out); err != nil {
		return c.unreachable(ctx, fmt.Errorf("decode answer to %s %s: %w", method, path, err))
	}
	return nil
}

// do makes one request and returns its answer where the status is 2xx. The caller closes the body.
func (c *Client) do(ctx context.Context, method, path string, q url.Values, body io.Reader, contentType string) (*http.Response, error) {
	req, err := c.request(ctx, method, path, q, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // its URL has a made-up host, which would only mislead
		}
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, c.answerError(resp)
	}
	return resp, nil
}

func (c *Client) request(ctx context.Context, method, path string, q url.Values, body io.Reader) (*http.Request, error) {
	u := "http://" + c.host + path
	if len(q) > 0 {
		u += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", c.addr, err)
	}
	req.Header.Set(VersionHeader, strconv.Itoa(Version))
	return req, nil
}

// answerError turns an error answer into an *api.Error.
func (c *Client) answerError(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
	var e api.Error
	if json.Unmarshal(b, &e) == nil && e.Message != "" {
		e.Code = resp.StatusCode
		return &e
	}
	return api.Errorf(resp.StatusCode, api.CodeInternal, "node %s answered %s", c.addr, resp.Status)
}

func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctxErr := ctx.Err(); ctxErr != nil {
		return fmt.Errorf("node %s: %w", c.addr, ctxErr)
	}
	return fmt.Errorf("node %s: %w: %w", c.addr, ErrUnreachable, err)
}
