package api

import "time"

// Everywhere is the scope of what holds in all tenants and for the system.
const Everywhere = "*"

// Whoami is the answer of GET /v1/auth/whoami.
type Whoami struct {
	Tenant  string   `json:"tenant"` // that the request acts in
	Kind    string   `json:"kind"`   // key, jwt, oidc, vault, workload, cert
	Subject string   `json:"subject"`
	User    string   `json:"user"` // what is written down of who did something
	KeyID   string   `json:"key_id,omitempty"`
	Name    string   `json:"name,omitempty"`
	Groups  []string `json:"groups,omitempty"`
	Link    string   `json:"link"` // of the chain, that has authenticated the request
	Roles   []string `json:"roles"`
	Scope   string   `json:"scope"`   // where Roles hold: a tenant, or Everywhere
	Tenants []string `json:"tenants"` // that there is a role in; Everywhere: all
}

// ExplainRequest asks what the caller may do. Fields that are empty are as if not known.
type ExplainRequest struct {
	Resource string            `json:"resource"`
	Action   string            `json:"action"`
	ID       string            `json:"id,omitempty"` // of a sandbox, template, …; labels and owner are looked up
	Name     string            `json:"name,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Path     string            `json:"path,omitempty"`
}

// Explanation is the answer of POST /v1/auth/explain.
type Explanation struct {
	Allowed bool   `json:"allowed"`
	Reason  string `json:"reason"`
	Role    string `json:"role,omitempty"` // whose rule decided
	Rule    int    `json:"rule"`           // its place in the role
	By      string `json:"by,omitempty"`   // through what the caller has the role
	Scope   string `json:"scope,omitempty"`
	Depends bool   `json:"depends"` // on the object, which the question does not name
}

// AuthLink is an element of GET /v1/auth/links: a way to authenticate that people need to know of.
type AuthLink struct {
	Name     string   `json:"name"`
	Kind     string   `json:"kind"`
	Issuer   string   `json:"issuer,omitempty"`
	ClientID string   `json:"client_id,omitempty"`
	Scopes   []string `json:"scopes,omitempty"`
	// CallbackPort is the port of 127.0.0.1 that the issuer knows; 0: any.
	CallbackPort int `json:"callback_port,omitempty"`
}

// Tenant owns sandboxes, templates, keys and all else.
type Tenant struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Labels      map[string]string `json:"labels"`
	Suspended   bool              `json:"suspended"`
	SuspendedAt time.Time         `json:"suspended_at,omitzero"`
	Reason      string            `json:"reason,omitempty"` // of the suspension
	Defaults    TenantDefaults    `json:"defaults"`
	Maximums    TenantDefaults    `json:"maximums"` // of any one sandbox
	Isolation   TenantIsolation   `json:"isolation"`
	// What its sandboxes reach at most, whatever they ask for themselves: NetworkBound is the operator's word, Network the tenant's own.
	NetworkBound NetworkPolicy `json:"network_bound"`
	Network      NetworkPolicy `json:"network"`
	CreatedAt    time.Time     `json:"created_at,omitzero"`
	CreatedBy    string        `json:"created_by,omitempty"`
	UpdatedAt    time.Time     `json:"updated_at,omitzero"`
}

// TenantDefaults are what a sandbox gets whose create does not say, or what it may have at most. 0: the service's own.
type TenantDefaults struct {
	CPUMillis      int64 `json:"cpu_millis"`
	MemoryMB       int64 `json:"memory_mb"`
	DiskMB         int64 `json:"disk_mb"`
	TimeoutSeconds int64 `json:"timeout_seconds"`
	// Of the link, in Mbit/s. A sandbox that does not say gets the default, or where there is none what is the most; 0: as much as there is.
	BandwidthIn  int64 `json:"bandwidth_in_mbit"`
	BandwidthOut int64 `json:"bandwidth_out_mbit"`
}

// TenantIsolation says how far a tenant shares with others: "shared" or "dedicated" each.
type TenantIsolation struct {
	Network string `json:"network"`
	Storage string `json:"storage"`
	Compute string `json:"compute"`
}

// NewTenant is the body of POST /v1/tenants.
type NewTenant struct {
	ID        string            `json:"id"`
	Name      string            `json:"name,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Defaults  TenantDefaults    `json:"defaults,omitzero"`
	Maximums  TenantDefaults    `json:"maximums,omitzero"`
	Isolation TenantIsolation   `json:"isolation,omitzero"`

	NetworkBound NetworkPolicy `json:"network_bound,omitzero"`
	Network      NetworkPolicy `json:"network,omitzero"`
}

// TenantChange is the body of PATCH /v1/tenants/{tenant}. What is missing stays. The answer to a change of NetworkBound comes once the
// tenant's running sandboxes have it, but for those on nodes that do not answer, which get it as soon as they do.
type TenantChange struct {
	Name      *string            `json:"name,omitempty"`
	Labels    *map[string]string `json:"labels,omitempty"`
	Defaults  *TenantDefaults    `json:"defaults,omitempty"`
	Maximums  *TenantDefaults    `json:"maximums,omitempty"`
	Isolation *TenantIsolation   `json:"isolation,omitempty"`

	NetworkBound *NetworkPolicy `json:"network_bound,omitempty"`
}

// SuspendRequest is the body of POST /v1/tenants/{tenant}/suspend.
type SuspendRequest struct {
	Reason string `json:"reason,omitempty"`
}

// Role is a named list of rules.
type Role struct {
	Name        string    `json:"name"`
	Scope       string    `json:"scope"` // its tenant, or Everywhere
	BuiltIn     bool      `json:"built_in"`
	Description string    `json:"description,omitempty"`
	Parents     []string  `json:"parents"`
	Rules       []Rule    `json:"rules"`
	CreatedAt   time.Time `json:"created_at,omitzero"`
	CreatedBy   string    `json:"created_by,omitempty"`
	UpdatedAt   time.Time `json:"updated_at,omitzero"`
}

// Rule allows, or denies, actions on resources that match all of its patterns under all of its conditions.
type Rule struct {
	Effect    string            `json:"effect,omitempty"` // "allow", the default, or "deny", which wins
	Resources []string          `json:"resources"`        // "*": all
	Actions   []string          `json:"actions"`          // "*": all
	IDs       []string          `json:"ids,omitempty"`    // patterns with "*", of which one must match; so below
	Names     []string          `json:"names,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"` // all must match
	Paths     []string          `json:"paths,omitempty"`  // of files: "*" within an element, "**" any number of them
	NotBefore time.Time         `json:"not_before,omitzero"`
	NotAfter  time.Time         `json:"not_after,omitzero"`
	Hours     string            `json:"hours,omitempty"` // "08:00-18:00", UTC
	Days      []string          `json:"days,omitempty"`  // "mon" to "sun", UTC
	Sources   []string          `json:"sources,omitempty"`
	Owner     bool              `json:"owner,omitempty"` // only what the caller has made
}

// RolePut is the body of PUT /v1/roles/{role}.
type RolePut struct {
	Everywhere  bool     `json:"everywhere,omitempty"` // not in the tenant, but in all and for the system
	Description string   `json:"description,omitempty"`
	Parents     []string `json:"parents,omitempty"`
	Rules       []Rule   `json:"rules,omitempty"`
}

// Binding gives a role to subjects.
type Binding struct {
	ID        string    `json:"id"`
	Scope     string    `json:"scope"` // its tenant, or Everywhere
	Role      string    `json:"role"`
	Subjects  []Subject `json:"subjects"`
	CreatedAt time.Time `json:"created_at,omitzero"`
	CreatedBy string    `json:"created_by,omitempty"`
}

// Subject is whom a binding gives a role to.
type Subject struct {
	Kind string `json:"kind"` // user, key, group, service
	ID   string `json:"id"`   // of a key its id, else <link>/<name>
}

// NewBinding is the body of POST /v1/bindings.
type NewBinding struct {
	Everywhere bool      `json:"everywhere,omitempty"`
	Role       string    `json:"role"`
	Subjects   []Subject `json:"subjects"`
}

// Key is an API key without its secret, as /v1/keys shows it.
type Key struct {
	ID        string    `json:"id"` // 16 hexadecimal digits
	Tenant    string    `json:"tenant"`
	Name      string    `json:"name"`
	Owner     string    `json:"owner,omitempty"`
	Roles     []string  `json:"roles"`
	Scope     string    `json:"scope"` // where the roles hold
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by,omitempty"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	LastUsed  time.Time `json:"last_used_at,omitzero"` // to a few minutes
}

// NewKey is the body of POST /v1/keys.
type NewKey struct {
	Name       string    `json:"name"`
	Owner      string    `json:"owner,omitempty"`
	Roles      []string  `json:"roles,omitempty"`      // none: developer
	Everywhere bool      `json:"everywhere,omitempty"` // the roles hold in all tenants and for the system
	ExpiresAt  time.Time `json:"expires_at,omitzero"`  // none: never
}

// CreatedKey is the answer of POST /v1/keys: the one place where the secret is.
type CreatedKey struct {
	Key
	Secret    string `json:"secret"`     // sb_…
	SecretE2B string `json:"secret_e2b"` // the same key as E2B's clients want it
}

// KeyChange is the body of PATCH /v1/keys/{key}. What is missing stays.
type KeyChange struct {
	Name      *string    `json:"name,omitempty"`
	Owner     *string    `json:"owner,omitempty"`
	Roles     *[]string  `json:"roles,omitempty"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"` // the zero time: never
}
