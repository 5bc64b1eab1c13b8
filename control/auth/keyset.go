package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// KeySet is the public keys of an issuer.
type KeySet interface {
	// Key returns the keys that a token with that key id may be signed by, and the number of the set that they are of: it changes
	// whenever the set does. An error means that the keys cannot be had at the moment.
	Key(ctx context.Context, kid string) (keys []jose.JSONWebKey, generation uint64, err error)
	// Generation is the number of the set that is known at the moment.
	Generation() uint64
}

// StaticKeys are keys from the configuration.
type StaticKeys struct{ set []jose.JSONWebKey }

// ParseKeys reads a JSON web key set, or public keys in PEM form.
func ParseKeys(data []byte) (*StaticKeys, error) {
	if set, err := parseJWKS(data); err == nil {
		return &StaticKeys{set}, nil
	}
	var out []jose.JSONWebKey
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		pub, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("a %q block is no public key: %w", block.Type, err)
		}
		k := jose.JSONWebKey{Key: pub}
		if !usable(&k) {
			return nil, fmt.Errorf("a key of type %T is none of Ed25519, ECDSA with P-256, and RSA with 2048 bits or more", pub)
		}
		out = append(out, k)
	}
	if len(out) == 0 {
		return nil, errors.New("holds neither a JSON web key set nor a public key in PEM form")
	}
	return &StaticKeys{out}, nil
}

// Key implements KeySet.
func (s *StaticKeys) Key(_ context.Context, kid string) ([]jose.JSONWebKey, uint64, error) {
	return candidates(s.set, kid), 0, nil
}

// Generation implements KeySet.
func (*StaticKeys) Generation() uint64 { return 0 }

// candidates are the keys of a set that a token may mean: the one that it names, or keys without a name.
func candidates(set []jose.JSONWebKey, kid string) []jose.JSONWebKey {
	var out []jose.JSONWebKey
	for _, k := range set {
		if k.KeyID == kid || k.KeyID == "" {
			out = append(out, k)
		}
	}
	if kid == "" && len(out) == 0 && len(set) == 1 {
		return set
	}
	return out
}

func parseJWKS(data []byte) ([]jose.JSONWebKey, error) {
	var raw struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, err
	}
	var out []jose.JSONWebKey
	for _, one := range raw.Keys {
		var k jose.JSONWebKey
		// A key of a kind that this version does not know is somebody else's, not an error of the set.
		if json.Unmarshal(one, &k) == nil && usable(&k) && len(out) < maxKeys {
			out = append(out, k)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the key set holds no key that tokens can be checked with")
	}
	return out, nil
}

// usable reports whether a key is a public one of the kinds that tokens are accepted of, and meant for signatures.
func usable(k *jose.JSONWebKey) bool {
	if k.Use != "" && k.Use != "sig" {
		return false
	}
	switch pub := k.Key.(type) {
	case ed25519.PublicKey:
		return len(pub) == ed25519.PublicKeySize
	case *ecdsa.PublicKey:
		return pub.Curve.Params().BitSize == 256
	case *rsa.PublicKey:
		return pub.N.BitLen() >= 2048
	}
	return false
}

// Times and sizes of remote key sets.
const (
	keysFresh   = time.Minute      // a set that is older is read again
	keysHold    = 10 * time.Minute // and is still used so long where it cannot be read
	keysPause   = 5 * time.Second  // between two reads for keys that are not known
	keysTimeout = 5 * time.Second
	maxKeysBody = 1 << 20
	maxKeys     = 100
)

// RemoteKeys are keys that an issuer publishes. They are read when they are needed and old, by one request at a time.
type RemoteKeys struct {
	url    string
	issuer string // where url is to be found by discovery
	client *http.Client
	now    func() time.Time

	mu         sync.Mutex // of one read at a time, and of what follows
	set        []jose.JSONWebKey
	read       time.Time // when the set was read
	tried      time.Time
	generation uint64
}

// NewRemoteKeys returns the keys at url, or, where url is empty, those that the discovery document of issuer names.
func NewRemoteKeys(url, issuer string, client *http.Client) *RemoteKeys {
	if client == nil {
		client = &http.Client{Timeout: keysTimeout}
	}
	return &RemoteKeys{url: url, issuer: issuer, client: client, now: time.Now}
}

// Generation implements KeySet.
func (k *RemoteKeys) Generation() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.now().Sub(k.read) > keysFresh {
		return k.generation + 1 // what was verified with it is verified again, with the set of then
	}
	return k.generation
}

// Key implements KeySet.
func (k *RemoteKeys) Key(ctx context.Context, kid string) ([]jose.JSONWebKey, uint64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	found := candidates(k.set, kid)
	now := k.now()
	if stale := now.Sub(k.read) > keysFresh; (stale || len(found) == 0) && now.Sub(k.tried) >= keysPause {
		k.tried = now
		if err := k.refresh(ctx, now); err != nil && (len(k.set) == 0 || now.Sub(k.read) > keysHold) {
			return nil, 0, err
		}
		found = candidates(k.set, kid)
	}
	if len(k.set) == 0 || now.Sub(k.read) > keysHold {
		return nil, 0, errors.New("its keys could not be read")
	}
	return found, k.generation, nil
}

func (k *RemoteKeys) refresh(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keysTimeout) // others wait for the answer too
	defer cancel()
	url := k.url
	if url == "" {
		var doc struct {
			Issuer string `json:"issuer"`
			JWKS   string `json:"jwks_uri"`
		}
		body, err := k.get(ctx, k.issuer+"/.well-known/openid-configuration")
		if err != nil {
			return err
		}
		if err := json.Unmarshal(body, &doc); err != nil || doc.JWKS == "" || doc.Issuer != k.issuer {
			return fmt.Errorf("the discovery document of %s is not its own, or names no keys", k.issuer)
		}
		url = doc.JWKS
	}
	body, err := k.get(ctx, url)
	if err != nil {
		return err
	}
	set, err := parseJWKS(body)
	if err != nil {
		return err
	}
	k.set, k.read = set, now
	k.generation++
	return nil
}

func (k *RemoteKeys) get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %d", url, resp.StatusCode)
	}
	return io.ReadAll(io.LimitReader(resp.Body, maxKeysBody))
}
