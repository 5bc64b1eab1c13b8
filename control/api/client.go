package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api/version"
)

// Environment variables that New reads, and what holds where nothing is said.
const (
	EnvAddress          = "SOULBOX_ADDR"
	EnvAPIKey           = "SOULBOX_API_KEY"
	EnvMaxRedirects     = "SOULBOX_MAX_REDIRECTS"
	DefaultAddress      = "http://127.0.0.1:7300"
	DefaultMaxRedirects = 10
)

// ErrUnreachable is in the chain of every error that comes from not reaching the service, as opposed to its answer. It is
// an *Error with status 503.
var ErrUnreachable error = Errorf(http.StatusServiceUnavailable, CodeUnavailable, "the service does not answer")

const (
	maxErrorBytes = 64 << 10 // of an error answer that is read
	maxJSONBytes  = 64 << 20 // of any JSON answer that is read
	dialTimeout   = 5 * time.Second
)

// Config of a Client.
type Config struct {
	// Address is "http://host:port", "https://host:port", each with a path prefix if need be, or "unix:///path/of/socket".
	// Empty: the environment variable SOULBOX_ADDR, else DefaultAddress.
	Address string
	// APIKey is the secret. Empty: the environment variable SOULBOX_API_KEY.
	APIKey string
	// HTTPClient makes the requests. nil: one of the Client's own, without a timeout. One with a Timeout breaks long
	// streams. Not with a unix address.
	HTTPClient *http.Client
	// UserAgent is sent in front of the client's own.
	UserAgent string
	// MaxRedirects is how many redirects a request follows; -1: none. 0: the environment variable SOULBOX_MAX_REDIRECTS, else
	// DefaultMaxRedirects. The API key goes to no other host than Address.
	MaxRedirects int
}

// Client speaks to a control service. It is safe for concurrent use. Every method returns the service's own errors as
// *Error, and others with ErrUnreachable or the context's error in the chain.
type Client struct {
	addr  string   // for messages
	base  *url.URL // without a trailing slash
	key   string
	agent string
	http  *http.Client
}

// New returns a client. It does not connect.
func New(cfg Config) (*Client, error) {
	if cfg.Address == "" {
		cfg.Address = os.Getenv(EnvAddress)
	}
	if cfg.Address == "" {
		cfg.Address = DefaultAddress
	}
	if cfg.APIKey == "" {
		cfg.APIKey = os.Getenv(EnvAPIKey)
	}
	if strings.ContainsFunc(cfg.APIKey, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("API key: contains a space or a character that no key has")
	}
	redirects, err := maxRedirects(cfg.MaxRedirects)
	if err != nil {
		return nil, err
	}
	c := &Client{addr: cfg.Address, key: cfg.APIKey, http: cfg.HTTPClient}
	c.agent = strings.TrimSpace(cfg.UserAgent + " soulbox-go/" + version.Version)
	if path, ok := strings.CutPrefix(cfg.Address, "unix://"); ok {
		if path == "" || path[0] != '/' {
			return nil, fmt.Errorf("address %q: want unix:///path/of/socket", cfg.Address)
		}
		if cfg.HTTPClient != nil {
			return nil, fmt.Errorf("address %q: an HTTP client of its own cannot be used with a unix socket", cfg.Address)
		}
		c.base = &url.URL{Scheme: "http", Host: "soulbox"}
		c.http = ownHTTPClient(redirects, nil, func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: dialTimeout}
			return d.DialContext(ctx, "unix", path)
		})
		return c, nil
	}
	u, err := url.Parse(cfg.Address)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("address %q: want http://host:port, https://host:port or unix:///path/of/socket", redactUserinfo(cfg.Address))
	}
	c.base = &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimRight(u.Path, "/")}
	if c.http == nil {
		d := &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
		c.http = ownHTTPClient(redirects, http.ProxyFromEnvironment, d.DialContext)
	} else if c.http.CheckRedirect == nil {
		given := *c.http
		given.CheckRedirect = redirects.check
		c.http = &given
	}
	return c, nil
}

// Address returns what the client speaks to, for messages.
func (c *Client) Address() string { return c.addr }

// Close ends idle connections. Streams that are open go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func ownHTTPClient(redirects redirects, proxy func(*http.Request) (*url.URL, error), dial func(ctx context.Context, network, addr string) (net.Conn, error)) *http.Client {
	return &http.Client{CheckRedirect: redirects.check, Transport: &http.Transport{
		Proxy:                 proxy,
		DialContext:           dial,
		DisableCompression:    true,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   dialTimeout,
		ExpectContinueTimeout: time.Second,
		ReadBufferSize:        64 << 10,
		WriteBufferSize:       64 << 10,
	}}
}

// redactUserinfo removes what may be a password from an address that does not parse.
func redactUserinfo(addr string) string {
	scheme, rest, ok := strings.Cut(addr, "://")
	if !ok {
		scheme, rest = "", addr
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = "…" + rest[i:]
	}
	if !ok {
		return rest
	}
	return scheme + "://" + rest
}

// sandboxPath returns the path of a sandbox's resource below /v1.
func sandboxPath(id SandboxID, rest string) string {
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
	return c.decode(ctx, resp, out)
}

func (c *Client) decode(ctx context.Context, resp *http.Response, out any) error {
	if out == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxErrorBytes)) // so that the connection is kept
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxJSONBytes)).Decode(out); err != nil {
		return c.unreachable(ctx, fmt.Errorf("decode the answer: %w", err))
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
	return c.send(ctx, req)
}

func (c *Client) send(ctx context.Context, req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, c.answerError(resp)
	}
	noteAge(ctx, resp)
	return resp, nil
}

func (c *Client) request(ctx context.Context, method, path string, q url.Values, body io.Reader) (*http.Request, error) {
	u := c.base.String() + path // path is escaped
	q = allowStale(ctx, method, q)
	if len(q) > 0 {
		u += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.addr, err)
	}
	req.Header.Set("User-Agent", c.agent)
	req.Header.Set(ClientVersionHeader, version.Version)
	req.Header.Set(APIVersionHeader, strconv.Itoa(version.API))
	if c.key != "" {
		req.Header.Set("X-API-Key", c.key)
	}
	return req, nil
}

// answerError turns an error answer into an *Error.
func (c *Client) answerError(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
	var e Error
	if json.Unmarshal(b, &e) == nil && e.Message != "" {
		e.Code = resp.StatusCode
		if word := resp.Header.Get(wordHeader); word != "" {
			e.ErrorCode = word
		}
		return &e
	}
	return Errorf(resp.StatusCode, CodeInternal, "%s answered %s; is it a SoulBox service?", c.addr, resp.Status)
}

func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctxErr := ctx.Err(); ctxErr != nil {
		return fmt.Errorf("%s: %w", c.addr, ctxErr)
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // its URL says nothing that addr does not
	}
	return fmt.Errorf("%s: %w: %w", c.addr, ErrUnreachable, err)
}
