package state

import (
	"fmt"

	"github.com/hashicorp/go-memdb"

	"github.com/soulbox-dev/soulbox/control/api"
)

// writeTx is the write side of one applied command at one Raft index.
type writeTx struct {
	txn    *memdb.Txn
	index  uint64
	policy bool // roles, bindings or tenants have changed

	// For the counter, once all is applied.
	uses   []usageRow
	quotas []Quota
}

// first returns the row of a table with that id, or nil. The error is a broken schema, never bad data.
func first[T any](txn *memdb.Txn, table string, args ...any) (*T, error) {
	row, err := txn.First(table, indexID, args...)
	if err != nil {
		return nil, fmt.Errorf("read table %s: %w", table, err)
	}
	if row == nil {
		return nil, nil
	}
	v, ok := row.(*T)
	if !ok {
		return nil, fmt.Errorf("table %s holds a %T", table, row)
	}
	return v, nil
}

// sandbox returns a copy that the caller may change and put back.
func (t *writeTx) sandbox(id api.SandboxID) (Sandbox, error) {
	s, err := first[Sandbox](t.txn, tableSandbox, string(id))
	if err != nil {
		return Sandbox{}, err
	}
	if s == nil {
		return Sandbox{}, fmt.Errorf("sandbox %s: %w", id, ErrNotFound)
	}
	return *s, nil
}

// asked returns the sandbox whose create asked for an id and got another one, or nil.
func (t *writeTx) asked(id api.SandboxID) (*Sandbox, error) {
	row, err := t.txn.First(tableSandbox, indexRequest, string(id))
	if err != nil {
		return nil, fmt.Errorf("read table %s: %w", tableSandbox, err)
	}
	s, _ := row.(*Sandbox)
	return s, nil
}

func (t *writeTx) putSandbox(s *Sandbox) error {
	s.ModifyIndex = t.index
	if err := t.txn.Insert(tableSandbox, s); err != nil {
		return fmt.Errorf("write sandbox %s: %w", s.ID, err)
	}
	return nil
}
