package api

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
)

// Secrets lists the secrets of the tenant, the newest first: all pages of them.
func (c *Client) Secrets(ctx context.Context) ([]Secret, error) {
	out := []Secret{}
	for token := ""; ; {
		q := url.Values{}
		if token != "" {
			q.Set("nextToken", token)
		}
		page, next, err := c.secretPage(ctx, q)
		if err != nil {
			return nil, err
		}
		if out = append(out, page...); next == "" {
			return out, nil
		}
		if len(page) == 0 || next == token {
			return nil, fmt.Errorf("list of secrets: the page at %.60q leads nowhere", next)
		}
		token = next
	}
}

func (c *Client) secretPage(ctx context.Context, q url.Values) ([]Secret, string, error) {
	resp, err := c.do(ctx, http.MethodGet, "/secrets", q, nil, "")
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	var page []Secret
	return page, resp.Header.Get("X-Next-Token"), c.decode(ctx, resp, &page)
}

// Secret returns what is told of a secret, by its id or name.
func (c *Client) Secret(ctx context.Context, ref string) (Secret, error) {
	var out Secret
	return out, c.call(ctx, http.MethodGet, secretPath(ref), nil, nil, &out)
}

// CreateSecret keeps a value under a name that no other secret of the tenant has.
func (c *Client) CreateSecret(ctx context.Context, s NewSecret) (Secret, error) {
	var out Secret
	return out, c.call(ctx, http.MethodPost, "/secrets", nil, s, &out)
}

// UpdateSecret stores the next version of a secret, which replaces the one before, in running sandboxes too.
func (c *Client) UpdateSecret(ctx context.Context, ref string, v SecretValue) (Secret, error) {
	var out Secret
	return out, c.call(ctx, http.MethodPost, secretPath(ref), nil, v, &out)
}

// DeleteSecret forgets a secret. Rules that name it refuse their requests from then on.
func (c *Client) DeleteSecret(ctx context.Context, ref string) error {
	return c.call(ctx, http.MethodDelete, secretPath(ref), nil, nil, nil)
}

func secretPath(ref string) string { return "/secrets/" + url.PathEscape(ref) }
