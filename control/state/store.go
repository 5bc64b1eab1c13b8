package state

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Store is the read side of the tables. Reads never block and see one moment each.
type Store struct {
	counter Counter // nil: nobody asks
	db      atomic.Pointer[memdb.MemDB]
	policy  atomic.Uint64
}

func newStore() (*Store, error) {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		return nil, fmt.Errorf("make tables: %w", err)
	}
	s := &Store{}
	s.db.Store(db)
	return s, nil
}

func (s *Store) replace(db *memdb.MemDB) {
	s.db.Store(db)
	s.policy.Add(1)
	s.tellAll(db.Txn(false))
}

// apply runs one command; an error leaves the tables as they were.
func (s *Store) apply(index uint64, c Command) (Result, error) {
	txn := s.db.Load().Txn(true)
	defer txn.Abort()
	txn.TrackChanges()
	tx := &writeTx{txn: txn, index: index}
	r, err := c.apply(tx)
	if err != nil {
		return r, err
	}
	admitted, err := tx.count()
	if err != nil {
		return Result{}, err
	}
	if err := txn.Insert(tableMeta, &metaRow{Name: metaIndex, Index: index}); err != nil {
		return Result{}, fmt.Errorf("write index: %w", err)
	}
	txn.Commit()
	if s.counter != nil {
		for _, q := range tx.quotas {
			s.counter.SetQuota(q.Tenant, q.Limits)
		}
		for _, u := range tx.uses {
			s.counter.SetUse(u.Tenant, u.Use, admitted)
		}
	}
	if tx.policy {
		s.policy.Add(1)
	}
	return r, nil
}

func (s *Store) read() *memdb.Txn { return s.db.Load().Txn(false) }

// Index returns the Raft index of the last command that changed the tables.
func (s *Store) Index() uint64 { return readIndex(s.read()) }

func readIndex(txn *memdb.Txn) uint64 {
	row, err := first[metaRow](txn, tableMeta, metaIndex)
	if err != nil || row == nil {
		return 0
	}
	return row.Index
}

// Sandbox returns a sandbox by its id.
func (s *Store) Sandbox(id api.SandboxID) (Sandbox, error) {
	row, err := first[Sandbox](s.read(), tableSandbox, string(id))
	if err != nil {
		return Sandbox{}, err
	}
	if row == nil {
		return Sandbox{}, fmt.Errorf("sandbox %s: %w", id, ErrNotFound)
	}
	return *row, nil
}

// Live returns all sandboxes of all tenants that have not ended.
func (s *Store) Live() ([]Sandbox, error) {
	it, err := s.read().Get(tableSandbox, indexLive+"_prefix", []byte{})
	if err != nil {
		return nil, fmt.Errorf("list live sandboxes: %w", err)
	}
	return collect[Sandbox](it, nil), nil
}

// Purgeable returns the ids of at most limit sandboxes that ended before t, or are beyond the newest keep that ended.
// The oldest come first.
func (s *Store) Purgeable(t time.Time, keep, limit int) ([]api.SandboxID, error) {
	txn := s.read()
	it, err := txn.Get(tableSandbox, indexEnded+"_prefix", []byte{})
	if err != nil {
		return nil, fmt.Errorf("list ended sandboxes: %w", err)
	}
	total := 0
	for row := it.Next(); row != nil; row = it.Next() {
		total++
	}
	if it, err = txn.Get(tableSandbox, indexEnded+"_prefix", []byte{}); err != nil {
		return nil, fmt.Errorf("list ended sandboxes: %w", err)
	}
	var ids []api.SandboxID
	for i := 0; len(ids) < limit; i++ {
		row, ok := it.Next().(*Sandbox)
		if !ok || (i >= total-keep && !row.EndedAt.Before(t)) {
			break
		}
		ids = append(ids, row.ID)
	}
	return ids, nil
}

// Key returns an API key by its id.
func (s *Store) Key(id string) (Key, error) {
	row, err := first[Key](s.read(), tableKey, id)
	if err != nil {
		return Key{}, err
	}
	if row == nil {
		return Key{}, fmt.Errorf("API key %s: %w", id, ErrNotFound)
	}
	return *row, nil
}

// Keys returns the API keys of a tenant, by id.
func (s *Store) Keys(tenant string) ([]Key, error) {
	it, err := s.read().Get(tableKey, indexID)
	if err != nil {
		return nil, fmt.Errorf("list API keys: %w", err)
	}
	return collect(it, func(k *Key) bool { return k.Tenant == tenant }), nil
}

// KeysEnded reports whether there are keys that have ended before a time.
func (s *Store) KeysEnded(before time.Time) (bool, error) {
	it, err := s.read().Get(tableKey, indexID)
	if err != nil {
		return false, fmt.Errorf("list API keys: %w", err)
	}
	for row := it.Next(); row != nil; row = it.Next() {
		if k, ok := row.(*Key); ok && k.Expired(before) {
			return true, nil
		}
	}
	return false, nil
}

// Bootstrapped reports whether the bootstrap key was ever made.
func (s *Store) Bootstrapped() (bool, error) {
	row, err := first[metaRow](s.read(), tableMeta, metaBootstrap)
	return row != nil, err
}

// Template returns a tenant's template by its name.
func (s *Store) Template(tenant, name string) (Template, error) {
	row, err := first[Template](s.read(), tableTemplate, tenant, name)
	if err != nil {
		return Template{}, err
	}
	if row == nil {
		return Template{}, fmt.Errorf("template %.80q: %w", name, ErrNotFound)
	}
	return *row, nil
}

// Templates returns the templates of a tenant, by name; of all tenants where tenant is empty.
func (s *Store) Templates(tenant string) ([]Template, error) {
	it, err := s.read().Get(tableTemplate, indexID)
	if err != nil {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	return collect(it, func(t *Template) bool { return tenant == "" || t.Tenant == tenant }), nil
}

// collect copies the rows that match (all, where match is nil).
func collect[T any](it memdb.ResultIterator, match func(*T) bool) []T {
	var out []T
	for row := it.Next(); row != nil; row = it.Next() {
		if v, ok := row.(*T); ok && (match == nil || match(v)) {
			out = append(out, *v)
		}
	}
	return out
}
