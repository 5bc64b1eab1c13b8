package soulboxsecrets

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/url"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Lives of links, as the control service has them.
const (
	defaultLinkTTL = 5 * time.Minute
	maxLinkTTL     = 7 * 24 * time.Hour
)

const maxPath = 4096 // bytes

func (b *backend) urlKeyUsePaths() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      "url-keys/" + framework.GenericNameRegex("name") + "/sign",
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Fields: map[string]*framework.FieldSchema{
				"name":      nameField(),
				"sandbox":   {Type: framework.TypeString, Required: true, Description: "Id of the sandbox."},
				"operation": {Type: framework.TypeString, Default: "read", AllowedValues: []any{"read", "write"}, Description: "read or write."},
				"path":      {Type: framework.TypeString, Required: true, Description: "Path of the file in the sandbox."},
				"user":      {Type: framework.TypeString, Description: "User in the sandbox. Default: the sandbox's."},
				"ttl":       {Type: framework.TypeDurationSecond, Default: int(seconds(defaultLinkTTL)), Description: "Life of the link, 168h at most."},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: operation(b.signURL, "Sign a link to a file.", "sign", "url"),
			},
			HelpSynopsis:    "Sign a link to one file of one sandbox.",
			HelpDescription: "The answer's query, behind the control service's /files?, is the link. Nobody is asked whether the sandbox exists.",
		},
		{
			Pattern:      "url-keys/" + framework.GenericNameRegex("name") + "/verify",
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Fields: map[string]*framework.FieldSchema{
				"name":      nameField(),
				"operation": {Type: framework.TypeString, Default: "read", AllowedValues: []any{"read", "write"}, Description: "What the link is to be used for: read or write."},
				"query":     {Type: framework.TypeString, Required: true, Description: "What stands behind the question mark of the link."},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: operation(b.verifyURL, "Check a link.", "verify", "url"),
			},
			HelpSynopsis:    "Check whether a link is good.",
			HelpDescription: "It is good for one operation, until it expires or the version that has signed it is revoked.",
		},
		{
			Pattern:      "url-keys/" + framework.GenericNameRegex("name") + "/export",
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Fields:       map[string]*framework.FieldSchema{"name": nameField()},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: operation(b.exportURLKey, "The secrets of all versions, for the control service.", "export", "url-key"),
			},
			HelpSynopsis:    "The secrets of all versions, for the control service.",
			HelpDescription: "Who can read it can sign every link: give it to the control service's policy alone.",
		},
	}
}

func (b *backend) signURL(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	name := text(d, "name")
	k, err := readURLKey(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return unknownKey(name), nil
	}
	id, err := api.ParseSandboxID(text(d, "sandbox"))
	if err != nil {
		return logical.ErrorResponse("sandbox: %v", err), nil
	}
	link := api.SignedLink{Sandbox: id, Operation: text(d, "operation"), Path: text(d, "path"), User: text(d, "user")}
	ttl := requested(d)
	switch {
	case ttl == 0 || ttl > maxLinkTTL:
		return logical.ErrorResponse("ttl is %s, 1s to %s are allowed", ttl, maxLinkTTL), nil
	case link.Operation != "read" && link.Operation != "write":
		return logical.ErrorResponse("operation is %.20q, neither read nor write", link.Operation), nil
	case link.Path == "" || len(link.Path) > maxPath:
		return logical.ErrorResponse("path has %d bytes, 1 to %d are allowed", len(link.Path), maxPath), nil
	case len(link.User) > maxText:
		return logical.ErrorResponse("user has %d bytes, %d are allowed", len(link.User), maxText), nil
	}
	link.Expires = b.now().Add(ttl).Truncate(time.Second)
	key := k.Ring.newest()
	q := link.Query(key.Version, key.Secret)
	return &logical.Response{Data: map[string]any{
		"query": q.Encode(), "signature": q.Get("signature"), "key_version": key.Version, "expires_at": link.Expires.UTC().Format(time.RFC3339),
	}}, nil
}

func (b *backend) verifyURL(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	name := text(d, "name")
	k, err := readURLKey(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return unknownKey(name), nil
	}
	no := func(reason string) (*logical.Response, error) {
		return &logical.Response{Data: map[string]any{"valid": false, "reason": reason}}, nil
	}
	q, err := url.ParseQuery(text(d, "query"))
	if err != nil {
		return no("the query does not parse")
	}
	link, version, mac, err := api.ParseSignedLink(q, text(d, "operation"))
	if err != nil {
		return no("the link is not of the form that this engine signs")
	}
	key, ok := k.Ring.find(version)
	switch {
	case !ok:
		return no("the version of the key is revoked or unknown")
	case !link.SignedBy(key.Secret, mac):
		return no("the signature does not fit")
	case !b.now().Before(link.Expires):
		return no("the link has expired")
	}
	return &logical.Response{Data: map[string]any{
		"valid": true, "key_version": version, "sandbox": string(link.Sandbox), "path": link.Path, "user": link.User,
		"expires_at": link.Expires.UTC().Format(time.RFC3339),
	}}, nil
}

func (b *backend) exportURLKey(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	name := text(d, "name")
	k, err := readURLKey(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return unknownKey(name), nil
	}
	secrets := make(map[string]any, len(k.Ring.Versions))
	for _, v := range k.Ring.Versions {
		secrets[fmt.Sprint(v.Version)] = base64.StdEncoding.EncodeToString(v.Secret)
	}
	return &logical.Response{Data: map[string]any{
		"keys": secrets, "minimum_version": k.Ring.Minimum, "latest_version": k.Ring.newest().Version,
	}}, nil
}
