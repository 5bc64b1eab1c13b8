package state

import "time"

// Filter selects sandboxes. Its zero value selects every sandbox of the tenant that has not ended.
type Filter struct {
	Tenant       string            // required
	Metadata     map[string]string // all pairs must be equal
	States       []SandboxState    // empty: every state but the ended ones
	Template     string            // as requested, or its digest
	StartedAfter time.Time
}

// Order is the order of a list, by time of creation.
type Order string

// The orders. The zero value is Descending: newest first.
const (
	Descending Order = "desc"
	Ascending  Order = "asc"
)

// Page asks for a part of a list. Token is the NextToken of the page before, or empty.
type Page struct {
	Limit int // 1 to MaxPage; 0 means DefaultPage
	Token string
}

// Limits of one page.
const (
	DefaultPage = 100
	MaxPage     = 1000
)

// List is a page of sandboxes. Paging is stable: a sandbox that exists during all pages and matches in all of them is
// seen exactly once, whatever comes and goes between.
type List struct {
	Sandboxes    []Sandbox
	NextToken    string // empty on the last page
	TotalRunning int    // all running sandboxes of the tenant that match, on every page
	Index        uint64 // Raft index that the page shows
}
