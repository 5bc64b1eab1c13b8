package login

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/cap/oidc"
	"golang.org/x/oauth2"
)

// renewBefore is how long before its end a token is not used any more: a request must still find it good.
const renewBefore = 30 * time.Second

// Login is what somebody has after a login at one service.
type Login struct {
	Link     string   `json:"link"` // of the service's chain
	Issuer   string   `json:"issuer"`
	ClientID string   `json:"client_id"`
	Scopes   []string `json:"scopes,omitempty"`
	Subject  string   `json:"subject"`

	IDToken      string    `json:"id_token"` // what the service gets
	ExpiresAt    time.Time `json:"expires_at"`
	RefreshToken string    `json:"refresh_token,omitempty"` // where the issuer gives one
}

// String hides the tokens.
func (l Login) String() string { return l.Link + "/" + l.Subject }

// GoString is String.
func (l Login) GoString() string { return l.String() }

// Due reports whether the token has ended, or does so at once.
func (l Login) Due(now time.Time) bool { return !now.Add(renewBefore).Before(l.ExpiresAt) }

// claims are what is read of an ID token.
type claims struct {
	Issuer   string   `json:"iss"`
	Subject  string   `json:"sub"`
	Audience audience `json:"aud"`
	Expiry   int64    `json:"exp"`
}

// audience is one word or a list of them.
type audience []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audience) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

func newLogin(cfg Config, t oidc.Token) (Login, error) {
	l := Login{
		Issuer: cfg.Issuer, ClientID: cfg.ClientID, Scopes: cfg.Scopes, IDToken: string(t.IDToken()), RefreshToken: string(t.RefreshToken()),
	}
	var c claims
	if err := t.IDToken().Claims(&c); err != nil {
		return Login{}, fmt.Errorf("issuer %s: its ID token: %w", cfg.Issuer, err)
	}
	l.Subject, l.ExpiresAt = c.Subject, time.Unix(c.Expiry, 0).UTC()
	return l, nil
}

// ErrEnded is in the chain of the error where a login is over and only a new one helps.
var ErrEnded = errors.New("the login has ended")

// Renew asks the issuer for a new ID token.
func (l Login) Renew(ctx context.Context) (Login, error) {
	if l.RefreshToken == "" {
		return l, fmt.Errorf("%w: at %s, and its issuer renews none", ErrEnded, l.ExpiresAt.Format(time.RFC3339))
	}
	cfg := Config{Issuer: l.Issuer, ClientID: l.ClientID, Scopes: l.Scopes}
	provider, err := cfg.provider("http://127.0.0.1" + CallbackPath)
	if err != nil {
		return l, err
	}
	defer provider.Done()
	info, err := provider.DiscoveryInfo(ctx)
	if err != nil {
		return l, fmt.Errorf("issuer %s: %w", l.Issuer, err)
	}
	ctx, err = provider.HTTPClientContext(ctx)
	if err != nil {
		return l, fmt.Errorf("issuer %s: %w", l.Issuer, err)
	}
	conf := oauth2.Config{ClientID: l.ClientID, Endpoint: oauth2.Endpoint{TokenURL: info.TokenURL, AuthStyle: oauth2.AuthStyleInParams}}
	got, err := conf.TokenSource(ctx, &oauth2.Token{RefreshToken: l.RefreshToken}).Token()
	var refused *oauth2.RetrieveError
	if errors.As(err, &refused) && refused.ErrorCode == "invalid_grant" {
		return l, fmt.Errorf("%w: issuer %s does not renew it", ErrEnded, l.Issuer)
	}
	if err != nil {
		return l, fmt.Errorf("issuer %s: %w", l.Issuer, err)
	}
	return l.renewed(got)
}

// renewed is the login with what the issuer's token endpoint gave. That it is the issuer's TLS says, and the service checks the signature;
// that it is the same person's is checked here, by OpenID Connect 12.2.
func (l Login) renewed(got *oauth2.Token) (Login, error) {
	raw, _ := got.Extra("id_token").(string)
	var c claims
	if raw == "" || oidc.IDToken(raw).Claims(&c) != nil {
		return l, fmt.Errorf("%w: issuer %s renews it without a new ID token", ErrEnded, l.Issuer)
	}
	if c.Issuer != l.Issuer || c.Subject != l.Subject || len(c.Audience) != 1 || c.Audience[0] != l.ClientID {
		return l, fmt.Errorf("issuer %s: the new ID token is somebody else's", l.Issuer)
	}
	l.IDToken, l.ExpiresAt = raw, time.Unix(c.Expiry, 0).UTC()
	if got.RefreshToken != "" {
		l.RefreshToken = got.RefreshToken
	}
	return l, nil
}
