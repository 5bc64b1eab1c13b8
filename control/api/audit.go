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
