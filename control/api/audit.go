package api

import "time"

// CodeAudit is the Error.ErrorCode of a change that was refused, or not acknowledged, because it could not be recorded.
const CodeAudit = "audit_unavailable"

// AuditEvent is one thing that happened: a change, or a refusal.
type AuditEvent struct {
	Index      uint64            `json:"index"` // in the log of its server, from 1 on
	ID         string            `json:"id"`
	Time       time.Time         `json:"time"` // when it was recorded; never earlier than that of the event before
	Tenant     string            `json:"tenant,omitempty"`
	User       string            `json:"user,omitempty"` // "key:<id>", or another kind; "system:soulbox" for what nobody asked for
	Action     string            `json:"action"`         // "sandbox.create"
	Resource   string            `json:"resource"`       // "sandbox"
	ResourceID string            `json:"resource_id,omitempty"`
	Result     string            `json:"result"`           // ok, started, denied or failed
	Source     string            `json:"source,omitempty"` // address of the client
	Agent      string            `json:"agent,omitempty"`  // what it calls itself
	Request    string            `json:"request,omitempty"`
	Details    map[string]string `json:"details,omitempty"`
}

// AuditHead says how far the log of one server goes.
type AuditHead struct {
	Format    int             `json:"format"`
	Kind      string          `json:"kind"` // "head", or "checkpoint": what is before it was removed on purpose
	Log       string          `json:"log"`  // of the chain
	Index     uint64          `json:"index"`
	Hash      string          `json:"hash"` // of that event, and by it of all before
	Time      time.Time       `json:"time"`
	Signature *AuditSignature `json:"signature,omitempty"`
}

// AuditSignature is the signature of a head.
type AuditSignature struct {
	Version   uint32 `json:"version"` // of the key
	Algorithm string `json:"algorithm"`
	Key       string `json:"key"` // fingerprint of the public key
	Value     []byte `json:"value"`
}

// AuditEvents is a page of events of one server's log. Each server of a cluster keeps a log of what was changed through it.
type AuditEvents struct {
	Server string       `json:"server"` // whose log it is
	Log    string       `json:"log"`    // of the chain
	Events []AuditEvent `json:"events"`
	Next   uint64       `json:"next,omitempty"` // From of the next page; a page may have fewer events than its limit, or none, and go on
}

// AuditState is how far a server's log goes, and with what its heads are signed. Keep it elsewhere.
type AuditState struct {
	Server   string     `json:"server"`
	Log      string     `json:"log"`
	Last     uint64     `json:"last"` // index of the last event
	LastHash string     `json:"last_hash"`
	Head     *AuditHead `json:"head,omitempty"` // the newest one that is signed
	Waiting  int        `json:"waiting"`        // heads that are not signed yet
	Keys     []AuditKey `json:"keys"`
}

// AuditKey is a public key that heads are signed with.
type AuditKey struct {
	Version     uint32 `json:"version"`
	Algorithm   string `json:"algorithm"`
	Key         []byte `json:"key"`
	Fingerprint string `json:"fingerprint"`
}

// AuditOptions select events. Zero values select all.
type AuditOptions struct {
	After, Before time.Time
	Tenant        string
	User          string
	Action        string // "sandbox.create", or "sandbox.*"
	Resource      string // "sandbox", or "sandbox/<id>"
	Result        string
	Request       string

	Ascending bool   // oldest first; else newest first
	Limit     int    // of a page, 1 to 1000; 0: 100
	From      uint64 // index to begin with: Next of the page before. Of a stream: the last index that is known
}
