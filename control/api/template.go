package api

import "time"

// Template is a root file system that sandboxes start from.
type Template struct {
	Name      string        `json:"name"`
	Digest    string        `json:"digest"` // sha256:<hex> over its canonical listing
	Bytes     int64         `json:"bytes"`
	Files     int64         `json:"files"`
	Source    string        `json:"source,omitempty"` // what it was imported from, for people
	User      string        `json:"user,omitempty"`   // default user of processes
	Cwd       string        `json:"cwd,omitempty"`
	Env       []string      `json:"env,omitempty"`
	Network   NetworkPolicy `json:"network,omitzero"`   // what its sandboxes reach at most, of those that are made from now on
	Placement Placement     `json:"placement,omitzero"` // where its sandboxes may run, of those that are made from now on
	CreatedAt time.Time     `json:"created_at"`
	UpdatedAt time.Time     `json:"updated_at,omitzero"`
}

// ImportOptions go with Client.ImportTemplate.
type ImportOptions struct {
	Source string // where the tar comes from, for people
}
