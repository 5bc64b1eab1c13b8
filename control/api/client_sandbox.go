package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// CreateSandbox makes a sandbox and returns when it runs.
func (c *Client) CreateSandbox(ctx context.Context, req CreateRequest) (Created, error) {
	var out SandboxAccess
	err := c.call(ctx, http.MethodPost, "/v2/sandboxes", nil, NewSandbox{
		TemplateID: req.Template, Timeout: req.Timeout, EnvVars: req.Env, Metadata: req.Metadata, AllowInternetAccess: req.AllowInternetAccess,
		SoulBox: &req.CreateOptions,
	}, &out)
	if err == nil && out.SoulBox == nil {
		err = c.foreign()
	}
	if err != nil {
		return Created{}, err
	}
	return *out.SoulBox, nil
}

// GetSandbox returns a sandbox, ended ones too while the service keeps them.
func (c *Client) GetSandbox(ctx context.Context, id SandboxID) (Sandbox, error) {
	var out SandboxDetail
	err := c.call(ctx, http.MethodGet, boxPath(id, ""), url.Values{"soulbox": {"true"}}, nil, &out)
	if err == nil && out.SoulBox == nil {
		err = c.foreign()
	}
	if err != nil {
		return Sandbox{}, err
	}
	return *out.SoulBox, nil
}

// ListSandboxes returns one page.
func (c *Client) ListSandboxes(ctx context.Context, o ListOptions) (SandboxList, error) {
	resp, err := c.do(ctx, http.MethodGet, "/v2/sandboxes", o.query(), nil, "")
	if err != nil {
		return SandboxList{}, err
	}
	defer resp.Body.Close()
	var list []ListedSandbox
	if err := c.decode(ctx, resp, &list); err != nil {
		return SandboxList{}, err
	}
	out := SandboxList{NextToken: resp.Header.Get("X-Next-Token")}
	if out.TotalRunning, err = strconv.Atoi(resp.Header.Get("X-Total-Running")); err != nil {
		return SandboxList{}, c.foreign()
	}
	for _, s := range list {
		if s.SoulBox == nil {
			return SandboxList{}, c.foreign()
		}
		out.Sandboxes = append(out.Sandboxes, *s.SoulBox)
	}
	return out, nil
}

// foreign is the error for an answer of the contract without what SoulBox adds to it.
func (c *Client) foreign() error {
	return Errorf(http.StatusBadGateway, CodeInternal, "%s speaks E2B's contract, but is no SoulBox service", c.addr)
}

// boxPath returns the path of a sandbox in the contract.
func boxPath(id SandboxID, rest string) string {
	return "/sandboxes/" + url.PathEscape(string(id)) + rest
}

// AllSandboxes walks over every page. After an error it ends.
func (c *Client) AllSandboxes(ctx context.Context, o ListOptions) iter.Seq2[Sandbox, error] {
	return func(yield func(Sandbox, error) bool) {
		for {
			page, err := c.ListSandboxes(ctx, o)
			if err != nil {
				yield(Sandbox{}, err)
				return
			}
			for _, s := range page.Sandboxes {
				if !yield(s, nil) {
					return
				}
			}
			if page.NextToken == "" {
				return
			}
			o.NextToken = page.NextToken
		}
	}
}

// DeleteSandbox ends a sandbox and returns once it has ended.
func (c *Client) DeleteSandbox(ctx context.Context, id SandboxID) error {
	return c.call(ctx, http.MethodDelete, boxPath(id, ""), nil, nil, nil)
}

// SetTimeout moves a sandbox's deadline to now plus d (whole seconds, rounded up), earlier or later.
func (c *Client) SetTimeout(ctx context.Context, id SandboxID, d time.Duration) error {
	secs := seconds(d)
	return c.call(ctx, http.MethodPost, boxPath(id, "/timeout"), nil, TimeoutRequest{Timeout: &secs}, nil)
}

// Refresh moves a sandbox's deadline to now plus d, never to an earlier time.
func (c *Client) Refresh(ctx context.Context, id SandboxID, d time.Duration) error {
	secs := seconds(d)
	return c.call(ctx, http.MethodPost, boxPath(id, "/refreshes"), nil, RefreshRequest{Duration: &secs}, nil)
}

// SetLimits changes limits of a running sandbox, and returns it once they hold.
func (c *Client) SetLimits(ctx context.Context, id SandboxID, req LimitsRequest) (Sandbox, error) {
	var out Sandbox
	return out, c.call(ctx, http.MethodPut, sandboxPath(id, "/limits"), nil, req, &out)
}

// Connect is Refresh for a client that comes back to a sandbox; a paused one is resumed.
func (c *Client) Connect(ctx context.Context, id SandboxID, d time.Duration) (SandboxAccess, error) {
	secs := seconds(d)
	var out SandboxAccess
	return out, c.call(ctx, http.MethodPost, "/v2"+boxPath(id, "/connect"), nil, ConnectRequest{Timeout: &secs}, &out)
}

// SandboxHealth asks a sandbox for a sign of life. One that is not healthy is an answer, no error.
func (c *Client) SandboxHealth(ctx context.Context, id SandboxID) (SandboxHealth, error) {
	req, err := c.request(ctx, http.MethodGet, sandboxPath(id, "/health"), nil, nil)
	if err != nil {
		return SandboxHealth{}, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return SandboxHealth{}, c.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
	if err != nil {
		return SandboxHealth{}, c.unreachable(ctx, err)
	}
	var out struct {
		SandboxHealth
		Message   string `json:"message"`
		ErrorCode string `json:"error_code"`
	}
	err = json.Unmarshal(b, &out)
	switch {
	case err == nil && out.Status != "":
		return out.SandboxHealth, nil
	case err == nil && out.Message != "":
		return SandboxHealth{}, &Error{Code: resp.StatusCode, ErrorCode: out.ErrorCode, Message: out.Message}
	}
	return SandboxHealth{}, Errorf(http.StatusBadGateway, CodeInternal, "%s answered %s; is it a SoulBox service?", c.addr, resp.Status)
}

// Stats returns the kernel's counters of a sandbox.
func (c *Client) Stats(ctx context.Context, id SandboxID) (Stats, error) {
	var out Stats
	return out, c.call(ctx, http.MethodGet, sandboxPath(id, "/stats"), nil, nil, &out)
}

// Logs opens output of a sandbox's own command. offset is that of the first byte. The caller closes body.
func (c *Client) Logs(ctx context.Context, id SandboxID, o LogOptions) (body io.ReadCloser, offset int64, err error) {
	q := url.Values{}
	if o.Stream != "" {
		q.Set("stream", o.Stream)
	}
	if o.Offset != 0 {
		q.Set("offset", strconv.FormatInt(o.Offset, 10))
	}
	if o.Tail != 0 {
		q.Set("tail", strconv.FormatInt(o.Tail, 10))
	}
	if o.Follow {
		q.Set("follow", "true")
	}
	resp, err := c.do(ctx, http.MethodGet, sandboxPath(id, "/logs"), q, nil, "")
	if err != nil {
		return nil, 0, err
	}
	if offset, err = strconv.ParseInt(resp.Header.Get(OffsetHeader), 10, 64); err != nil {
		_ = resp.Body.Close()
		return nil, 0, c.unreachable(ctx, fmt.Errorf("header %s: %w", OffsetHeader, err))
	}
	return &trailerBody{resp: resp}, offset, nil
}

// EventStream is the events of the caller's sandboxes in order.
type EventStream struct {
	c    *Client
	ctx  context.Context
	body io.ReadCloser
	dec  *json.Decoder
}

// Events opens the events of the caller's sandboxes. The stream ends with ctx; the caller closes it.
func (c *Client) Events(ctx context.Context) (*EventStream, error) {
	resp, err := c.do(ctx, http.MethodGet, "/v1/events", nil, nil, "")
	if err != nil {
		return nil, err
	}
	return &EventStream{c: c, ctx: ctx, body: resp.Body, dec: json.NewDecoder(resp.Body)}, nil
}

// Next returns the next event. Errors are final; io.EOF means that the service ended the stream.
func (s *EventStream) Next() (Event, error) {
	var e Event
	if err := s.dec.Decode(&e); err != nil {
		if errors.Is(err, io.EOF) {
			return Event{}, io.EOF
		}
		return Event{}, s.c.unreachable(s.ctx, err)
	}
	return e, nil
}

// Close ends the stream.
func (s *EventStream) Close() error { return s.body.Close() }

func (o ListOptions) query() url.Values {
	q := url.Values{"soulbox": {"true"}}
	var pairs []string
	for k, v := range o.Metadata {
		pairs = append(pairs, url.QueryEscape(url.PathEscape(k))+"="+url.QueryEscape(url.PathEscape(v))) // decoded twice, as the contract has it
	}
	for name, v := range map[string]string{
		"metadata": strings.Join(pairs, "&"), "state": strings.Join(o.States, ","), "template": o.Template, "nextToken": o.NextToken,
	} {
		if v != "" {
			q.Set(name, v)
		}
	}
	if !o.StartedAfter.IsZero() {
		q.Set("startedAfter", o.StartedAfter.Format(time.RFC3339Nano))
	}
	if o.Ascending {
		q.Set("order", "asc")
	}
	if o.Limit != 0 {
		q.Set("limit", strconv.Itoa(o.Limit))
	}
	return q
}

// seconds rounds up, so that a short time never becomes none.
func seconds(d time.Duration) int64 {
	s := int64(d / time.Second)
	if d > 0 && d%time.Second != 0 {
		s++
	}
	return s
}
