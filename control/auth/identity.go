package auth

import "github.com/soulbox-dev/soulbox/control/state"

// Kind is by what somebody has shown who he is.
type Kind string

// The kinds.
const (
	KindKey      Kind = "key"
	KindJWT      Kind = "jwt"      // of a configured key or issuer
	KindOIDC     Kind = "oidc"     // a person who has logged in
	KindVault    Kind = "vault"    // a token of the Vault plugin
	KindWorkload Kind = "workload" // a job of Nomad
	KindCert     Kind = "cert"
)

// LinkKey is the link of the chain that knows API keys. Other links have the names that the configuration gives them.
const LinkKey = "key"

// Identity is who makes a request, once that is verified. The zero value is nobody.
type Identity struct {
	Tenant  string // that he acts in
	Kind    Kind
	Subject string   // his id within Kind: a key's id, else <link>/<name>
	KeyID   string   // of the API key; empty for other kinds
	Name    string   // for people
	Groups  []string // that his issuer says he is in, as <link>/<group>
	Link    string   // of the chain, that has authenticated him

	Roles    []string        // that he has by what he has shown, beside those that bindings give him
	Scope    string          // where Roles hold: a tenant, or state.Everywhere
	Subjects []state.Subject // what bindings may name him by
	// Version is one word for somebody with these rights: what has the same has the same Roles, Scope, and Subjects.
	Version string
}

// IsZero reports whether id is nobody.
func (id Identity) IsZero() bool { return id.Kind == "" && id.KeyID == "" }

// User is who counts as the owner of what he makes: kind and subject in one word. It is in the audit log and in records.
func (id Identity) User() string {
	if id.Kind == "" {
		return ""
	}
	return string(id.Kind) + ":" + id.Subject
}
