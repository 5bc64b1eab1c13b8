package keys

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Keeper holds a certificate and renews it when two thirds of its life are over, again and again until it succeeds.
type Keeper struct {
	issuer Issuer
	req    Request
	dir    string
	log    hclog.Logger

	mu   sync.Mutex
	cert *Certificate
	err  error // of the last renewal
}

// renewal retries start at a second, or a fiftieth of the certificate's life where that is shorter.
const renewRetry = time.Second

// Keep gets a first certificate and, where dir is not empty, writes it there as WriteFiles does. Run keeps it fresh.
func Keep(ctx context.Context, issuer Issuer, req Request, dir string, log hclog.Logger) (*Keeper, error) {
	if log == nil {
		log = hclog.NewNullLogger()
	}
	k := &Keeper{issuer: issuer, req: req, dir: dir, log: log}
	if err := k.renew(ctx); err != nil {
		return nil, err
	}
	return k, nil
}

// Certificate returns the newest certificate. It may have expired where the issuer could not be reached for long.
func (k *Keeper) Certificate() *Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cert
}

// Err returns why the last renewal failed, or nil.
func (k *Keeper) Err() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}

// Run renews until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	retry := time.Duration(0)
	for {
		cert := k.Certificate()
		life := cert.NotAfter.Sub(cert.NotBefore)
		wait := retry
		if retry == 0 {
			wait = max(0, time.Until(cert.NotBefore.Add(life*2/3)))
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if err := k.renew(ctx); err != nil {
			if ctx.Err() != nil {
				return
			}
			retry = min(max(2*retry, min(renewRetry, life/50)), life/10)
			k.log.Error("certificate was not renewed; the old one stays in use",
				"identity", k.req.Identity, "expires", cert.NotAfter, "retry", retry, "error", err)
			continue
		}
		retry = 0
		k.log.Info("certificate renewed", "identity", k.req.Identity, "expires", k.Certificate().NotAfter)
	}
}

func (k *Keeper) renew(ctx context.Context) error {
	cert, err := k.issuer.Issue(ctx, k.req)
	if err == nil && k.dir != "" {
		err = WriteFiles(k.dir, cert)
	}
	if err != nil {
		err = fmt.Errorf("renew certificate of %s: %w", k.req.Identity, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err = err; err == nil {
		k.cert = cert
	}
	return err
}
