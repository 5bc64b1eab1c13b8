package vault

import (
	"context"
	"encoding/json"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
)

// Pace of renewals of the token.
const (
	tokenRetry   = 5 * time.Second
	tokenUnknown = time.Minute // until a token of unknown life is looked at again
	tokenMinWait = time.Second
)

// Run renews the client's token at two thirds of its life, until ctx ends. A token in a file is its writer's to renew, and one that
// does not end needs it not.
func (c *Client) Run(ctx context.Context) {
	if c.cfg.TokenFile != "" {
		return
	}
	wait := time.Duration(0)
	for {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		ttl, renewable, err := c.lookUp(ctx)
		if err == nil && renewable {
			ttl, err = c.renew(ctx)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			c.log.Warn("vault token was not renewed", "error", err, "retry", tokenRetry)
			wait = tokenRetry
		case ttl == 0:
			return
		case !renewable:
			c.log.Warn("vault token cannot be renewed", "ends_in", ttl)
			return
		default:
			wait = max(tokenMinWait, ttl*2/3)
		}
	}
}

// lookUp returns how long the token lives; 0: for ever.
func (c *Client) lookUp(ctx context.Context) (ttl time.Duration, renewable bool, err error) {
	data, err := c.read(ctx, "auth/token/lookup-self")
	if err != nil {
		return 0, false, err
	}
	n, _ := data["ttl"].(json.Number)
	s, err := n.Int64()
	if err != nil {
		return tokenUnknown, false, nil
	}
	renewable, _ = data["renewable"].(bool)
	return time.Duration(s) * time.Second, renewable, nil
}

func (c *Client) renew(ctx context.Context) (time.Duration, error) {
	var ttl time.Duration
	err := c.call(ctx, callTimeout, func(ctx context.Context, v *vaultapi.Client) error {
		s, err := v.Auth().Token().RenewSelfWithContext(ctx, 0)
		if err == nil && s.Auth != nil {
			ttl = time.Duration(s.Auth.LeaseDuration) * time.Second
		}
		return err
	})
	return ttl, err
}
