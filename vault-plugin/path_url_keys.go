package soulboxsecrets

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	urlKeyPrefix = "url-key/"

	minAutoRotate = time.Hour
	// keepURLKey is how long a version that was rotated by time stays: longer than any link lives.
	keepURLKey = 8 * 24 * time.Hour
)

// urlKey is a key that signs links.
type urlKey struct {
	Ring       *ring         `json:"ring"`
	AutoRotate time.Duration `json:"auto_rotate_period,omitempty"`
}

func readURLKey(ctx context.Context, s logical.Storage, name string) (*urlKey, error) {
	var k urlKey
	found, err := readEntry(ctx, s, urlKeyPrefix+name, &k)
	if err != nil || !found {
		return nil, err
	}
	if k.Ring == nil || len(k.Ring.Versions) == 0 {
		return nil, fmt.Errorf("key %q is damaged: it has no versions", name)
	}
	return &k, nil
}

func nameField() *framework.FieldSchema {
	return &framework.FieldSchema{Type: framework.TypeLowerCaseString, Required: true, Description: "Name of the key, such as links."}
}

func (b *backend) urlKeyPaths() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      "url-keys/?$",
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ListOperation: operation(b.listURLKeys, "List the keys for links.", "list", "url-keys"),
			},
			HelpSynopsis:    "List the keys for links.",
			HelpDescription: "The names of the keys, in the order of the alphabet.",
		},
		{
			Pattern:      "url-keys/" + framework.GenericNameRegex("name") + "/rotate",
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Fields:       map[string]*framework.FieldSchema{"name": nameField()},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: forwarded(b.rotateURLKey, "Make a new version of a key for links.", "rotate", "url-key"),
			},
			HelpSynopsis:    "Make a new version of a key for links.",
			HelpDescription: "It signs from now on. Links of older versions stay good until they expire or minimum_version is raised.",
		},
		{
			Pattern:      "url-keys/" + framework.GenericNameRegex("name"),
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Fields: map[string]*framework.FieldSchema{
				"name":               nameField(),
				"minimum_version":    {Type: framework.TypeInt, Description: "The oldest version whose links are good. It can only be raised."},
				"auto_rotate_period": {Type: framework.TypeDurationSecond, Description: "After what time a new version is made, 1h or more; 0: never."},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation:   operation(b.showURLKey, "Show the versions of a key for links.", "read", "url-key"),
				logical.CreateOperation: forwarded(b.writeURLKey, "Make a key for links.", "write", "url-key"),
				logical.UpdateOperation: forwarded(b.writeURLKey, "Revoke versions, or change the period.", "write", "url-key"),
				logical.DeleteOperation: forwarded(b.deleteURLKey, "Delete a key, and with it every link that it has signed.", "delete", "url-key"),
			},
			ExistenceCheck: b.urlKeyExists,
			HelpSynopsis:   "The versions of a key that signs links to files.",
			HelpDescription: "Raising minimum_version revokes the versions below it for good. Of keys that rotate by themselves, versions that no link can be of " +
				"any more are revoked by themselves too.",
		},
	}
}

func (b *backend) urlKeyExists(ctx context.Context, req *logical.Request, d *framework.FieldData) (bool, error) {
	k, err := readURLKey(ctx, req.Storage, text(d, "name"))
	return k != nil, err
}

func (b *backend) listURLKeys(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	names, err := req.Storage.List(ctx, urlKeyPrefix)
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	return logical.ListResponse(names), nil
}

func (k *urlKey) response() *logical.Response {
	data := k.Ring.view()
	data["auto_rotate_period"] = seconds(k.AutoRotate)
	return &logical.Response{Data: data}
}

func (b *backend) showURLKey(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	k, err := readURLKey(ctx, req.Storage, text(d, "name"))
	if err != nil || k == nil {
		return nil, err
	}
	return k.response(), nil
}

func (b *backend) writeURLKey(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	name := text(d, "name")
	b.write.Lock()
	defer b.write.Unlock()
	k, err := readURLKey(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	if k == nil {
		k = &urlKey{Ring: newRing(b.now())}
	}
	if v, ok := d.GetOk("auto_rotate_period"); ok {
		n, _ := v.(int)
		k.AutoRotate = time.Duration(n) * time.Second
		if k.AutoRotate != 0 && k.AutoRotate < minAutoRotate {
			return logical.ErrorResponse("auto_rotate_period is %s, 0 or at least %s are allowed", k.AutoRotate, minAutoRotate), nil
		}
	}
	if _, ok := d.GetOk("minimum_version"); ok {
		v, refusal := minimum(d)
		if refusal != nil {
			return refusal, nil
		}
		if err := k.Ring.raise(v); err != nil {
			return logical.ErrorResponse(err.Error()), nil
		}
	}
	return k.response(), writeEntry(ctx, req.Storage, urlKeyPrefix+name, k)
}

func (b *backend) rotateURLKey(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	name := text(d, "name")
	b.write.Lock()
	defer b.write.Unlock()
	k, err := readURLKey(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return unknownKey(name), nil
	}
	if err := k.Ring.rotate(b.now()); err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	return k.response(), writeEntry(ctx, req.Storage, urlKeyPrefix+name, k)
}

func (b *backend) deleteURLKey(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	b.write.Lock()
	defer b.write.Unlock()
	if err := req.Storage.Delete(ctx, urlKeyPrefix+text(d, "name")); err != nil {
		return nil, fmt.Errorf("delete key: %w", err)
	}
	return nil, nil
}

func unknownKey(name string) *logical.Response {
	return logical.ErrorResponse("key %q does not exist: write to url-keys/%s first", name, name)
}

// rotateURLKeys rotates the keys whose time has come.
func (b *backend) rotateURLKeys(ctx context.Context, s logical.Storage) error {
	names, err := s.List(ctx, urlKeyPrefix)
	if err != nil {
		return fmt.Errorf("list keys: %w", err)
	}
	var errs []error
	for _, name := range names {
		if err := b.rotateURLKeyByTime(ctx, s, name); err != nil {
			errs = append(errs, fmt.Errorf("key %q: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func (b *backend) rotateURLKeyByTime(ctx context.Context, s logical.Storage, name string) error {
	b.write.Lock()
	defer b.write.Unlock()
	k, err := readURLKey(ctx, s, name)
	if err != nil || k == nil || k.AutoRotate == 0 {
		return err
	}
	now := b.now()
	changed := k.Ring.dropSuperseded(now, keepURLKey)
	if now.Sub(k.Ring.newest().Created) >= k.AutoRotate {
		if err := k.Ring.rotate(now); err != nil {
			return err
		}
		changed = true
	}
	if !changed {
		return nil
	}
	return writeEntry(ctx, s, urlKeyPrefix+name, k)
}
