package auth

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

// Identity is who makes a request, once that is verified. The zero value is nobody.
type Identity struct {
	Tenant  string // that he acts in
	Kind    Kind
	Subject string   // his id within Kind: of the key, the user, the service
	KeyID   string   // of the API key; empty for other kinds
	Name    string   // for people
	Groups  []string // that his issuer says he is in
	Link    string   // of the chain, that has authenticated him
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

// LinkKey is the link of the chain that knows API keys.
const LinkKey = "key"
