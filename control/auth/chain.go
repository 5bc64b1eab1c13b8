package auth

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"net/netip"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Credentials are what a request shows. Each field may be empty.
type Credentials struct {
	Key         string              // of the header X-API-Key
	Bearer      string              // of the header Authorization
	Certificate []*x509.Certificate // the client's, leaf first, not verified but for the possession of its key
	Source      netip.Addr          // where the request comes from; the zero one: not by network
}

// secret returns the key or token that is shown: SDKs put either into either header.
func (c *Credentials) secret() string {
	if c.Key != "" {
		return c.Key
	}
	return c.Bearer
}

// Link knows one way to show who one is. It is called from many goroutines, for every request that no earlier link knew.
type Link interface {
	// Name is what the configuration calls the link, and what failures name.
	Name() string
	// Authenticate returns who shows the credentials. ErrNotMine: they are none that this link knows the form of, and the next
	// one is asked. Any other error ends the chain; one that is not an *api.Error is never shown.
	Authenticate(ctx context.Context, c *Credentials) (Identity, error)
}

// ErrNotMine is what a link answers to credentials of another form.
var ErrNotMine = errors.New("not a credential of this link")

// errRefused is what a link answers to a credential that is its own and not good.
var errRefused = errors.New("refused")

// Chain asks its links in order.
type Chain struct {
	links    []Link
	throttle *throttle
}

// NewChain returns a chain of links. Sources that fail too often are told to wait.
func NewChain(links ...Link) *Chain { return &Chain{links: links, throttle: newThrottle(nil)} }

// Names returns the links' names, in order.
func (c *Chain) Names() []string {
	var out []string
	for _, l := range c.links {
		out = append(out, l.Name())
	}
	return out
}

// Authenticate returns whose credentials they are, or an *api.Error: 401, 429 where their source has failed too often, 503
// where a link cannot tell at the moment. It never says what is wrong with a secret.
func (c *Chain) Authenticate(ctx context.Context, shown Credentials) (Identity, error) {
	if shown.secret() == "" && len(shown.Certificate) == 0 {
		return Identity{}, errMissing
	}
	if wait := c.throttle.wait(shown.Source); wait > 0 {
		return Identity{}, throttled(wait)
	}
	var known *api.Error
	for _, l := range c.links {
		id, err := l.Authenticate(ctx, &shown)
		switch {
		case err == nil:
			return id, nil
		case errors.Is(err, ErrNotMine):
			continue
		case errors.As(err, &known) && known.Code != http.StatusUnauthorized:
			return Identity{}, err
		case ctx.Err() != nil:
			return Identity{}, ctx.Err()
		}
		return Identity{}, c.refuse(shown.Source, l.Name())
	}
	if shown.secret() == "" {
		return Identity{}, errMissing // a certificate that no link wants is as good as none
	}
	return Identity{}, c.refuse(shown.Source, c.Names()...)
}

// refuse counts a failure. tried are the links that the credential could have been of.
func (c *Chain) refuse(from netip.Addr, tried ...string) error {
	if wait := c.throttle.failed(from); wait > 0 {
		return throttled(wait)
	}
	return api.Errorf(http.StatusUnauthorized, api.CodeUnauthorized,
		"what this request shows is not valid: it is unknown, has ended, was revoked, or is misspelt (tried: %s)", strings.Join(tried, ", "))
}
