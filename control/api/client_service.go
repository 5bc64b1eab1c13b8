package api

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// Health asks the service whether it is ready to serve. One that is not is an *Error with status 503.
func (c *Client) Health(ctx context.Context) (ServiceHealth, error) {
	var out ServiceHealth
	return out, c.call(ctx, http.MethodGet, "/v1/health", nil, nil, &out)
}

// Version asks the service for its versions. It answers every client, however old.
func (c *Client) Version(ctx context.Context) (VersionInfo, error) {
	var out VersionInfo
	return out, c.call(ctx, http.MethodGet, "/v1/version", nil, nil, &out)
}

// Nodes lists the nodes with their probes and health.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var out []Node
	return out, c.call(ctx, http.MethodGet, "/v1/nodes", nil, nil, &out)
}

// Templates lists the templates by name.
func (c *Client) Templates(ctx context.Context) ([]Template, error) {
	var out []Template
	return out, c.call(ctx, http.MethodGet, "/v1/templates", nil, nil, &out)
}

// Template returns one template by name or digest.
func (c *Client) Template(ctx context.Context, nameOrDigest string) (Template, error) {
	var out Template
	return out, c.call(ctx, http.MethodGet, "/v1/templates/"+url.PathEscape(nameOrDigest), nil, nil, &out)
}

// ImportTemplate stores the root file system in the tar stream r under name, in place of one that had it. Sandboxes that
// run keep theirs.
func (c *Client) ImportTemplate(ctx context.Context, name string, r io.Reader, o ImportOptions) (Template, error) {
	q := url.Values{}
	if o.Source != "" {
		q.Set("source", o.Source)
	}
	var out Template
	return out, c.upload(ctx, "/v1/templates/"+url.PathEscape(name), q, r, tarred, &out)
}

// SetTemplateNetwork says what sandboxes of a template, with all its tags, may reach at most: those that are made from then on, and what is made of
// them. Those that run keep what they were made with.
func (c *Client) SetTemplateNetwork(ctx context.Context, name string, p NetworkPolicy) (Template, error) {
	var out Template
	return out, c.call(ctx, http.MethodPut, "/v1/templates/"+url.PathEscape(name)+"/network", nil, p, &out)
}

// SetTemplatePlacement says where sandboxes of a template, with all its tags, may run that are made from then on: there, and where their creates want it.
func (c *Client) SetTemplatePlacement(ctx context.Context, name string, p Placement) (Template, error) {
	var out Template
	return out, c.call(ctx, http.MethodPut, "/v1/templates/"+url.PathEscape(name)+"/placement", nil, p, &out)
}

// DeleteTemplate removes a template's name. Sandboxes that run keep it.
func (c *Client) DeleteTemplate(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/v1/templates/"+url.PathEscape(name), nil, nil, nil)
}

// Node returns one node.
func (c *Client) Node(ctx context.Context, id NodeID) (Node, error) {
	var out Node
	return out, c.call(ctx, http.MethodGet, nodePath(id), nil, nil, &out)
}

// DrainNode has what runs on a node move away, and nothing new placed there, until ResumeNode.
func (c *Client) DrainNode(ctx context.Context, id NodeID, reason string) (Node, error) {
	return c.changeNode(ctx, id, "drain", NodeReason{Reason: reason})
}

// MarkNode has nothing new placed on a node, until ResumeNode.
func (c *Client) MarkNode(ctx context.Context, id NodeID, reason string) (Node, error) {
	return c.changeNode(ctx, id, "mark", NodeReason{Reason: reason})
}

// ResumeNode takes back what was said about a node.
func (c *Client) ResumeNode(ctx context.Context, id NodeID) (Node, error) {
	return c.changeNode(ctx, id, "resume", nil)
}

func (c *Client) changeNode(ctx context.Context, id NodeID, verb string, in any) (Node, error) {
	var out Node
	return out, c.call(ctx, http.MethodPost, nodePath(id)+"/"+verb, nil, in, &out)
}

func nodePath(id NodeID) string { return "/v1/nodes/" + url.PathEscape(string(id)) }

// ShowRebalance returns how nodes are loaded and what Rebalance would move. It changes nothing.
func (c *Client) ShowRebalance(ctx context.Context, req RebalanceRequest) (Rebalance, error) {
	q := url.Values{}
	if req.Moves != 0 {
		q.Set("moves", strconv.Itoa(req.Moves))
	}
	if len(req.Classes) > 0 {
		q.Set("classes", strings.Join(req.Classes, ","))
	}
	var out Rebalance
	return out, c.call(ctx, http.MethodGet, "/v1/rebalance", q, nil, &out)
}

// Rebalance moves sandboxes from full nodes to empty ones, and returns when that is done.
func (c *Client) Rebalance(ctx context.Context, req RebalanceRequest) (Rebalance, error) {
	var out Rebalance
	return out, c.call(ctx, http.MethodPost, "/v1/rebalance", nil, req, &out)
}
