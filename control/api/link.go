package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// LinkRequest is the body of POST /v1/sandboxes/{id}/links.
type LinkRequest struct {
	Operation string `json:"operation"` // read: GET; write: POST with the content, as application/octet-stream or a form
	Path      string `json:"path"`
	User      string `json:"user,omitempty"`       // empty: the sandbox's default user
	ExpiresIn int64  `json:"expires_in,omitempty"` // seconds; 0: five minutes; at most a week
}

// Link is a way to one file that needs no key.
type Link struct {
	URL        string    `json:"url"`
	ExpiresAt  time.Time `json:"expires_at"`
	KeyVersion uint32    `json:"key_version"` // of the key that signed it
}

// CreateLink makes a link.
func (c *Client) CreateLink(ctx context.Context, id SandboxID, req LinkRequest) (Link, error) {
	var l Link
	return l, c.call(ctx, http.MethodPost, "/v1/sandboxes/"+url.PathEscape(string(id))+"/links", nil, req, &l)
}
