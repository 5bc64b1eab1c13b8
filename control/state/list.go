package state

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Filter selects sandboxes. Its zero value selects every sandbox of the tenant that has not ended.
type Filter struct {
	Tenant       string            // required
	Metadata     map[string]string // all pairs must be equal
	States       []SandboxState    // empty: every state but the ended ones
	Template     string            // as requested, or its digest, id or name
	StartedAfter time.Time         // or at it
	Origin       api.SnapshotID    // made from this snapshot
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

// check validates p and fills in its defaults.
func (p *Page) check() error {
	if p.Limit == 0 {
		p.Limit = DefaultPage
	}
	if p.Limit < 1 || p.Limit > MaxPage {
		return limitErrorf("limit", "is %d, 1 to %d are allowed", p.Limit, MaxPage)
	}
	return nil
}

// List returns a page of the sandboxes that match f. A bad token is ErrToken, a bad limit a *LimitError.
func (s *Store) List(f Filter, o Order, p Page) (List, error) {
	if err := p.check(); err != nil {
		return List{}, err
	}
	if o == "" {
		o = Descending
	}
	if o != Ascending && o != Descending {
		return List{}, limitErrorf("order", "is %.20q, %s and %s are allowed", o, Ascending, Descending)
	}
	after, err := parseToken(p.Token, o, f.Tenant)
	if err != nil {
		return List{}, err
	}
	txn := s.read()
	l := List{Index: readIndex(txn)}
	it, err := seek(txn, f, o, after)
	if err != nil {
		return List{}, fmt.Errorf("list sandboxes: %w", err)
	}
	for row, ok := it.Next().(*Sandbox); ok && row.Tenant == f.Tenant; row, ok = it.Next().(*Sandbox) {
		if !f.state(row.State) || !f.match(row) {
			continue
		}
		if len(l.Sandboxes) == p.Limit {
			last := l.Sandboxes[p.Limit-1]
			l.NextToken = makeToken(o, last)
			break
		}
		l.Sandboxes = append(l.Sandboxes, *row)
	}
	live, err := txn.Get(tableSandbox, indexLive+"_prefix", tenantKey(f.Tenant))
	if err != nil {
		return List{}, fmt.Errorf("count running sandboxes: %w", err)
	}
	for row, ok := live.Next().(*Sandbox); ok; row, ok = live.Next().(*Sandbox) {
		if row.State == Running && f.match(row) {
			l.TotalRunning++
		}
	}
	return l, nil
}

// seek starts behind the key after, or at the list's start where it is nil, in the index that holds what f can match.
func seek(txn *memdb.Txn, f Filter, o Order, after []byte) (memdb.ResultIterator, error) {
	index := indexLive
	if slices.ContainsFunc(f.States, SandboxState.Ended) {
		index = indexCreated
	}
	if o == Ascending {
		from := tenantKey(f.Tenant)
		if after != nil {
			from = append(after, 0) // the first key that is greater
		}
		return txn.LowerBound(tableSandbox, index, from)
	}
	if after == nil {
		from := tenantKey(f.Tenant)
		from[len(from)-1] = 1 // behind every key of the tenant
		return txn.ReverseLowerBound(tableSandbox, index, from)
	}
	// The greatest key that is smaller: keys end with a zero byte, so nothing lies between the key without it and the key.
	return txn.ReverseLowerBound(tableSandbox, index, after[:len(after)-1])
}

func (f *Filter) state(s SandboxState) bool {
	if len(f.States) == 0 {
		return !s.Ended()
	}
	return slices.Contains(f.States, s)
}

// match reports whether s matches everything but the states.
func (f *Filter) match(s *Sandbox) bool {
	if f.Template != "" && !f.madeOf(s) {
		return false
	}
	if f.Origin != "" && f.Origin != s.Origin {
		return false
	}
	if !f.StartedAfter.IsZero() && s.began().Before(f.StartedAfter) {
		return false
	}
	for k, v := range f.Metadata {
		if got, ok := s.Metadata[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// madeOf reports whether f.Template means what s was made of, with or without what clients of the contract may add to a name: its tenant
// and the tag that a name without one means.
func (f *Filter) madeOf(s *Sandbox) bool {
	bare := func(name string) string {
		return strings.TrimPrefix(strings.TrimSuffix(name, ":default"), s.Tenant+"/")
	}
	for _, known := range []string{s.Template, s.Digest, s.TemplateID, s.Alias} {
		if known != "" && bare(known) == bare(f.Template) {
			return true
		}
	}
	return false
}

// began is when the sandbox started, or was asked for as long as it has not.
func (s *Sandbox) began() time.Time {
	if s.StartedAt.IsZero() {
		return s.CreatedAt
	}
	return s.StartedAt
}

// A token is its version, the order's first letter, the time and the id of the last sandbox seen.
const (
	tokenVersion = 1
	tokenHead    = 10
)

func makeToken(o Order, last Sandbox) string {
	b := []byte{tokenVersion, o[0]}
	b = binary.BigEndian.AppendUint64(b, sortableNanos(last.CreatedAt))
	return base64.RawURLEncoding.EncodeToString(append(b, last.ID...))
}

// parseToken returns the index key of the last sandbox seen, nil for an empty token.
func parseToken(token string, o Order, tenant string) ([]byte, error) {
	if token == "" {
		return nil, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) < tokenHead || b[0] != tokenVersion || b[1] != o[0] {
		return nil, ErrToken
	}
	id, err := api.ParseSandboxID(string(b[tokenHead:]))
	if err != nil {
		return nil, ErrToken
	}
	key := append(tenantKey(tenant), b[2:tokenHead]...)
	return append(append(key, id...), 0), nil
}
