package vault

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/audit"
	"github.com/soulbox-dev/soulbox/control/keys"
)

// Signer is an audit.Signer whose key is in the transit engine, of type ed25519, and never leaves it.
type Signer struct {
	client      *Client
	mount, name string
}

var _ audit.Signer = (*Signer)(nil)

// Signer returns the signer with a key of transit.
func (c *Client) Signer(p KeyPath) (*Signer, error) {
	if err := p.CheckSigner(); err != nil {
		return nil, err
	}
	mount, _, name, err := p.split()
	return &Signer{client: c, mount: mount, name: name}, err
}

// Sign implements audit.Signer, with one call for all.
func (s *Signer) Sign(ctx context.Context, messages [][]byte) ([]audit.Signature, error) {
	if err := audit.CheckMessages(messages); err != nil {
		return nil, err
	}
	batch := make([]map[string]any, len(messages))
	for i, m := range messages {
		batch[i] = map[string]any{"input": base64.StdEncoding.EncodeToString(m)}
	}
	data, err := s.client.write(ctx, s.mount+"/sign/"+s.name, map[string]any{"batch_input": batch})
	if err != nil {
		return nil, err
	}
	results, _ := data["batch_results"].([]any)
	if len(results) != len(messages) {
		return nil, s.bad("%d signatures for %d messages", len(results), len(messages))
	}
	out := make([]audit.Signature, len(messages))
	for i, r := range results {
		fields, _ := r.(map[string]any)
		text, _ := fields["signature"].(string)
		if out[i], err = parseSignature(text); err != nil {
			return nil, s.bad("signature %d: %v", i, err)
		}
		if out[i].Version != out[0].Version {
			return nil, s.bad("the key was rotated in between")
		}
	}
	return out, nil
}

// parseSignature reads "vault:v<version>:<base64>".
func parseSignature(text string) (audit.Signature, error) {
	rest, ok := strings.CutPrefix(text, "vault:v")
	version, code, found := strings.Cut(rest, ":")
	v, verr := strconv.ParseUint(version, 10, 32)
	value, err := base64.StdEncoding.DecodeString(code)
	if !ok || !found || verr != nil || v == 0 || err != nil {
		return audit.Signature{}, fmt.Errorf("%.60q is none", text)
	}
	return audit.Signature{Version: keys.KeyVersion(v), Algorithm: audit.AlgorithmEd25519, Value: value}, nil
}

// PublicKeys implements audit.Signer.
func (s *Signer) PublicKeys(ctx context.Context) ([]audit.PublicKey, error) {
	data, err := s.client.read(ctx, s.mount+"/keys/"+s.name)
	if err != nil {
		return nil, err
	}
	if kind, _ := data["type"].(string); kind != audit.AlgorithmEd25519 {
		return nil, s.bad("the key is of type %.40q, not %s", kind, audit.AlgorithmEd25519)
	}
	versions, _ := data["keys"].(map[string]any)
	out := make([]audit.PublicKey, 0, len(versions))
	for name, v := range versions {
		fields, _ := v.(map[string]any)
		text, _ := fields["public_key"].(string)
		n, verr := strconv.ParseUint(name, 10, 32)
		public, err := base64.StdEncoding.DecodeString(text)
		k := audit.PublicKey{Version: keys.KeyVersion(n), Algorithm: audit.AlgorithmEd25519, Key: public}
		if verr != nil || err != nil || k.Check() != nil {
			return nil, s.bad("version %.20q has no public key", name)
		}
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b audit.PublicKey) int { return int(int64(a.Version) - int64(b.Version)) })
	return out, nil
}

// Rotate makes a new version, which signs from then on.
func (s *Signer) Rotate(ctx context.Context) error {
	_, err := s.client.write(ctx, s.mount+"/keys/"+s.name+"/rotate", nil)
	return err
}

func (s *Signer) bad(format string, args ...any) error {
	return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "vault: key %s/keys/%s: %s", s.mount, s.name, fmt.Sprintf(format, args...))
}
