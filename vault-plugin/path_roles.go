package soulboxsecrets

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	rolePrefix = "role/"
	maxRoles   = 64 // of SoulBox, in one role of the engine
)

// Kinds of credentials that a role allows.
const (
	kindAny    = "any"
	kindAPIKey = "api_key"
	kindToken  = "token"
)

// role says what the credentials of a name may do.
type role struct {
	Tenant string        `json:"tenant"`
	Roles  []string      `json:"roles"`
	Kind   string        `json:"kind"`
	TTL    time.Duration `json:"ttl"`
	MaxTTL time.Duration `json:"max_ttl"`
}

// word is what tenants and roles of SoulBox are called.
var word = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$`)

func readRole(ctx context.Context, s logical.Storage, name string) (*role, error) {
	var r role
	found, err := readEntry(ctx, s, rolePrefix+name, &r)
	if err != nil || !found {
		return nil, err
	}
	return &r, nil
}

func (b *backend) rolePaths() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      "roles/?$",
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ListOperation: operation(b.listRoles, "List the roles.", "list", "roles"),
			},
			HelpSynopsis:    "List the roles.",
			HelpDescription: "The names of the roles, in the order of the alphabet.",
		},
		{
			Pattern:      "roles/" + framework.GenericNameRegex("name"),
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Fields: map[string]*framework.FieldSchema{
				"name":    {Type: framework.TypeLowerCaseString, Required: true, Description: "Name of the role."},
				"tenant":  {Type: framework.TypeString, Required: true, Description: "Tenant of SoulBox that the credentials act in."},
				"roles":   {Type: framework.TypeCommaStringSlice, Description: "Roles of SoulBox that the credentials have, such as developer."},
				"kind":    {Type: framework.TypeString, Default: kindAny, AllowedValues: []any{kindAny, kindAPIKey, kindToken}, Description: "What the role makes: api_key (creds/), token (token/), or any."},
				"ttl":     {Type: framework.TypeDurationSecond, Description: "Life of a credential where a request names none. Default: the mount's for leases, 15m for tokens."},
				"max_ttl": {Type: framework.TypeDurationSecond, Description: "Longest life of a credential, renewals included. Default: the mount's for leases, 1h for tokens, which never live longer."},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation:   operation(b.readRole, "Show a role.", "read", "role"),
				logical.CreateOperation: forwarded(b.writeRole, "Make a role.", "write", "role"),
				logical.UpdateOperation: forwarded(b.writeRole, "Change a role.", "write", "role"),
				logical.DeleteOperation: forwarded(b.deleteRole, "Delete a role.", "delete", "role"),
			},
			ExistenceCheck: b.roleExists,
			HelpSynopsis:   "What the credentials of a name may do, and how long.",
			HelpDescription: "A role names a tenant and roles of SoulBox. A change counts for credentials that are made after it; a key that is " +
				"deleted with the role's name in its lease stays until its lease ends. What is not given stays as it is.",
		},
	}
}

func (b *backend) roleExists(ctx context.Context, req *logical.Request, d *framework.FieldData) (bool, error) {
	r, err := readRole(ctx, req.Storage, text(d, "name"))
	return r != nil, err
}

func (b *backend) listRoles(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	names, err := req.Storage.List(ctx, rolePrefix)
	if err != nil {
		return nil, fmt.Errorf("list roles: %w", err)
	}
	return logical.ListResponse(names), nil
}

func (b *backend) readRole(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	r, err := readRole(ctx, req.Storage, text(d, "name"))
	if err != nil || r == nil {
		return nil, err
	}
	return &logical.Response{Data: map[string]any{
		"tenant": r.Tenant, "roles": r.Roles, "kind": r.Kind, "ttl": seconds(r.TTL), "max_ttl": seconds(r.MaxTTL),
	}}, nil
}

func (b *backend) writeRole(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	name := text(d, "name")
	b.write.Lock()
	defer b.write.Unlock()
	r, err := readRole(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	if r == nil {
		r = &role{Kind: kindAny}
	}
	for field, to := range map[string]*string{"tenant": &r.Tenant, "kind": &r.Kind} {
		if v, ok := d.GetOk(field); ok {
			*to, _ = v.(string)
		}
	}
	for field, to := range map[string]*time.Duration{"ttl": &r.TTL, "max_ttl": &r.MaxTTL} {
		if v, ok := d.GetOk(field); ok {
			n, _ := v.(int)
			*to = time.Duration(n) * time.Second
		}
	}
	if v, ok := d.GetOk("roles"); ok {
		list, _ := v.([]string)
		slices.Sort(list)
		r.Roles = slices.Compact(list)
	}
	if err := r.check(); err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	if err := writeEntry(ctx, req.Storage, rolePrefix+name, r); err != nil {
		return nil, err
	}
	resp := &logical.Response{}
	if limit := b.System().MaxLeaseTTL(); r.MaxTTL > limit || r.TTL > limit {
		resp.AddWarning(fmt.Sprintf("the mount's leases live %s at most, which counts where it is less than ttl or max_ttl", limit))
	}
	return resp, nil
}

func (r *role) check() error {
	switch {
	case r.Tenant == "":
		return fmt.Errorf("tenant is missing")
	case !word.MatchString(r.Tenant):
		return fmt.Errorf("tenant %.80q: want 1 to 63 of a-z, A-Z, 0-9, \".\", \"_\" and \"-\"", r.Tenant)
	case r.Kind != kindAny && r.Kind != kindAPIKey && r.Kind != kindToken:
		return fmt.Errorf("kind %.40q is none of %s, %s, %s", r.Kind, kindAny, kindAPIKey, kindToken)
	case r.MaxTTL > 0 && r.TTL > r.MaxTTL:
		return fmt.Errorf("ttl %s is longer than max_ttl %s", r.TTL, r.MaxTTL)
	case len(r.Roles) > maxRoles:
		return fmt.Errorf("roles has %d names, %d are allowed", len(r.Roles), maxRoles)
	}
	for _, name := range r.Roles {
		if !word.MatchString(name) {
			return fmt.Errorf("roles: %.80q: want 1 to 63 of a-z, A-Z, 0-9, \".\", \"_\" and \"-\"", name)
		}
	}
	return nil
}

func (b *backend) deleteRole(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	b.write.Lock()
	defer b.write.Unlock()
	if err := req.Storage.Delete(ctx, rolePrefix+text(d, "name")); err != nil {
		return nil, fmt.Errorf("delete role: %w", err)
	}
	return nil, nil
}

// allowed returns the role for credentials of a kind, or what to tell the user.
func (b *backend) allowed(ctx context.Context, s logical.Storage, name, kind string) (*role, *logical.Response, error) {
	r, err := readRole(ctx, s, name)
	if err != nil {
		return nil, nil, err
	}
	if r == nil {
		return nil, logical.ErrorResponse("role %q does not exist", name), nil
	}
	if r.Kind != kindAny && r.Kind != kind {
		return nil, logical.ErrorResponse("role %q makes credentials of kind %s only", name, r.Kind), nil
	}
	return r, nil, nil
}

// text returns a field that is a string.
func text(d *framework.FieldData, field string) string {
	s, _ := d.Get(field).(string)
	return s
}

// requested returns the life that a request asks for; 0: none. The framework has refused a negative one.
func requested(d *framework.FieldData) time.Duration {
	n, _ := d.Get("ttl").(int)
	return time.Duration(n) * time.Second
}
