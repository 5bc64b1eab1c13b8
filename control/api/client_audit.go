package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// maxAuditLine bounds one line of a stream of events, in bytes.
const maxAuditLine = 1 << 20

func (o AuditOptions) values() url.Values {
	q := url.Values{}
	for name, v := range map[string]string{
		"tenant": o.Tenant, "user": o.User, "action": o.Action, "resource": o.Resource, "result": o.Result, "request": o.Request,
	} {
		if v != "" {
			q.Set(name, v)
		}
	}
	for name, t := range map[string]time.Time{"after": o.After, "before": o.Before} {
		if !t.IsZero() {
			q.Set(name, t.UTC().Format(time.RFC3339Nano))
		}
	}
	if o.From > 0 {
		q.Set("from", strconv.FormatUint(o.From, 10))
	}
	return q
}

// Audit returns a page of events.
func (c *Client) Audit(ctx context.Context, o AuditOptions) (AuditEvents, error) {
	q := o.values()
	if o.Limit > 0 {
		q.Set("limit", strconv.Itoa(o.Limit))
	}
	if o.Ascending {
		q.Set("order", "asc")
	}
	var out AuditEvents
	return out, c.call(ctx, http.MethodGet, "/v1/audit", q, nil, &out)
}

// AllAudit returns all events that o selects, page by page. An error ends it.
func (c *Client) AllAudit(ctx context.Context, o AuditOptions) iter.Seq2[AuditEvent, error] {
	return func(yield func(AuditEvent, error) bool) {
		for {
			page, err := c.Audit(ctx, o)
			if err != nil {
				yield(AuditEvent{}, err)
				return
			}
			for _, e := range page.Events {
				if !yield(e, nil) {
					return
				}
			}
			if page.Next == 0 {
				return
			}
			o.From = page.Next
		}
	}
}

// FollowAudit calls f with each event from now on (or behind o.From), until f returns an error, which it returns, the stream ends, which is
// ErrUnreachable, or ctx does.
func (c *Client) FollowAudit(ctx context.Context, o AuditOptions, f func(AuditEvent) error) error {
	resp, err := c.do(ctx, http.MethodGet, "/v1/audit/stream", o.values(), nil, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxAuditLine)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue // a sign of life
		}
		var e AuditEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return c.unreachable(ctx, fmt.Errorf("decode an event: %w", err))
		}
		if err := f(e); err != nil {
			return err
		}
	}
	err = lines.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF // it has no end of its own
	}
	return c.unreachable(ctx, fmt.Errorf("the stream of events ended: %w", err))
}

// AuditState returns how far the log of the server goes, and with what it is signed.
func (c *Client) AuditState(ctx context.Context) (AuditState, error) {
	var out AuditState
	return out, c.call(ctx, http.MethodGet, "/v1/audit/head", nil, nil, &out)
}
