package nodeapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

// EventStream is a node's events in order.
type EventStream struct {
	c    *Client
	ctx  context.Context
	body io.ReadCloser
	dec  *json.Decoder
}

// Events opens the node's events after number since of epoch. Where the node cannot continue there (another epoch, or too
// long ago, or epoch is empty) the first event is an EventSync. The stream ends with ctx; the caller closes it.
func (c *Client) Events(ctx context.Context, epoch string, since uint64) (*EventStream, error) {
	q := url.Values{}
	if epoch != "" {
		q.Set("epoch", epoch)
		q.Set("since", strconv.FormatUint(since, 10))
	}
	resp, err := c.do(ctx, http.MethodGet, "/v1/events", q, nil, "")
	if err != nil {
		return nil, err
	}
	return &EventStream{c: c, ctx: ctx, body: resp.Body, dec: json.NewDecoder(resp.Body)}, nil
}

// Next returns the next event. It waits for one; at least an EventBeat comes every five seconds, so a caller may take
// three times that without one for a dead node. Errors are final.
func (s *EventStream) Next() (Event, error) {
	var e Event
	if err := s.dec.Decode(&e); err != nil {
		return Event{}, s.c.unreachable(s.ctx, fmt.Errorf("events: %w", err))
	}
	return e, nil
}

// Close ends the stream.
func (s *EventStream) Close() error { return s.body.Close() }
