package api

import "time"

// NewSecret is the body of POST /secrets.
type NewSecret struct {
	Name     string            `json:"name"`
	Value    string            `json:"value"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// SecretValue is the body of POST /secrets/{secret}: the next version. Metadata that is there replaces what there was.
type SecretValue struct {
	Value    string            `json:"value"`
	Metadata map[string]string `json:"metadata,omitzero"` // an empty one takes away what there was
}

// Secret is all that is told of a secret: its value is write-only.
type Secret struct {
	SecretID       string            `json:"secretID"`
	Name           string            `json:"name"`
	CurrentVersion int64             `json:"currentVersion"`
	Metadata       map[string]string `json:"metadata"`
	CreatedAt      time.Time         `json:"createdAt"`
	UpdatedAt      time.Time         `json:"updatedAt"`
}
