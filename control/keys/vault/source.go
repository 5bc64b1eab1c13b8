package vault

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/keys"
)

// source is an engine of Vault that keeps the versions of a key.
type source interface {
	// fetch returns every version that is not revoked, with its secret.
	fetch(ctx context.Context) (map[keys.KeyVersion]keys.MACKey, error)
	rotate(ctx context.Context) error
	// raise revokes every version below minimum.
	raise(ctx context.Context, minimum keys.KeyVersion) error
}

// KeyPath names a key in Vault as its API does: "<mount>/url-keys/<name>" is one of SoulBox's engine, "<mount>/keys/<name>" one of
// transit.
type KeyPath string

// split returns the parts of p.
func (p KeyPath) split() (mount, kind, name string, err error) {
	parts := strings.Split(string(p), "/")
	if n := len(parts); n >= 3 {
		mount, kind, name = strings.Join(parts[:n-2], "/"), parts[n-2], parts[n-1]
	}
	if mount == "" || name == "" || kind != "url-keys" && kind != "keys" {
		return "", "", "", fmt.Errorf("key %.200q: want <mount>/url-keys/<name>, of the engine of SoulBox, or <mount>/keys/<name>, of transit", string(p))
	}
	return mount, kind, name, nil
}

// CheckRing returns what makes p no name of a ring.
func (p KeyPath) CheckRing() error {
	_, _, _, err := p.split()
	return err
}

// CheckSigner returns what makes p no name of a signer.
func (p KeyPath) CheckSigner() error {
	_, kind, _, err := p.split()
	if err == nil && kind != "keys" {
		err = fmt.Errorf("key %.200q: want <mount>/keys/<name>, of transit", string(p))
	}
	return err
}

func (c *Client) source(p KeyPath) (source, error) {
	mount, kind, name, err := p.split()
	if err != nil {
		return nil, err
	}
	if kind == "url-keys" {
		return urlKeys{c, mount + "/url-keys/" + name}, nil
	}
	return transit{c, mount, name}, nil
}

// urlKeys is a key of SoulBox's engine.
type urlKeys struct {
	client *Client
	path   string
}

func (u urlKeys) fetch(ctx context.Context) (map[keys.KeyVersion]keys.MACKey, error) {
	data, err := u.client.read(ctx, u.path+"/export")
	if err != nil {
		return nil, err
	}
	return secretsOf(data)
}

func (u urlKeys) rotate(ctx context.Context) error {
	_, err := u.client.write(ctx, u.path+"/rotate", nil)
	return err
}

func (u urlKeys) raise(ctx context.Context, minimum keys.KeyVersion) error {
	_, err := u.client.write(ctx, u.path, map[string]any{"minimum_version": minimum})
	return err
}

// transit is a key of the transit engine, of type hmac, that may be exported.
type transit struct {
	client      *Client
	mount, name string
}

func (t transit) fetch(ctx context.Context) (map[keys.KeyVersion]keys.MACKey, error) {
	data, err := t.client.read(ctx, t.mount+"/export/hmac-key/"+t.name)
	if err != nil {
		return nil, err
	}
	return secretsOf(data)
}

func (t transit) rotate(ctx context.Context) error {
	_, err := t.client.write(ctx, t.mount+"/keys/"+t.name+"/rotate", nil)
	return err
}

func (t transit) raise(ctx context.Context, minimum keys.KeyVersion) error {
	_, err := t.client.write(ctx, t.mount+"/keys/"+t.name+"/config", map[string]any{"min_decryption_version": minimum})
	return err
}

// secretsOf reads the versions of an export: {"keys": {"1": "<base64>", …}}.
func secretsOf(data map[string]any) (map[keys.KeyVersion]keys.MACKey, error) {
	list, _ := data["keys"].(map[string]any)
	out := make(map[keys.KeyVersion]keys.MACKey, len(list))
	for name, v := range list {
		text, _ := v.(string)
		version, verr := strconv.ParseUint(name, 10, 32)
		secret, serr := base64.StdEncoding.DecodeString(text)
		if verr != nil || version == 0 || serr != nil || len(secret) != secretLen {
			return nil, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "vault: version %.20q of the key is not %d bytes", name, secretLen)
		}
		out[keys.KeyVersion(version)] = keys.MACKey{Version: keys.KeyVersion(version), Secret: secret}
	}
	if len(out) == 0 {
		return nil, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "vault: the key has no versions")
	}
	return out, nil
}

const secretLen = 32
