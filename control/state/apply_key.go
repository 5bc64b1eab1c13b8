package state

import (
	"fmt"
	"time"
)

func (c *KeyPut) apply(tx *writeTx) (Result, error) { return tx.putKey(c.Key) }

func (c *KeyDelete) apply(tx *writeTx) (Result, error) {
	k, err := first[Key](tx.txn, tableKey, c.ID)
	if err != nil {
		return Result{}, err
	}
	if k == nil || k.Tenant != c.Tenant {
		return Result{}, fmt.Errorf("API key %s: %w", c.ID, ErrNotFound)
	}
	if err := tx.txn.Delete(tableKey, k); err != nil {
		return Result{}, fmt.Errorf("delete API key %s: %w", c.ID, err)
	}
	if err := tx.unbind(c.ID); err != nil {
		return Result{}, err
	}
	return Result{Key: *k, Changed: 1}, nil
}

func (c *KeyBootstrap) apply(tx *writeTx) (Result, error) {
	done, err := first[metaRow](tx.txn, tableMeta, metaBootstrap)
	if err != nil {
		return Result{}, err
	}
	if done != nil {
		return Result{}, fmt.Errorf("bootstrap key %s: %w", done.Value, ErrExists)
	}
	row := &metaRow{Name: metaBootstrap, Index: tx.index, Value: c.Key.ID}
	if err := tx.txn.Insert(tableMeta, row); err != nil {
		return Result{}, fmt.Errorf("write bootstrap mark: %w", err)
	}
	return tx.putKey(c.Key)
}

func (t *writeTx) putKey(k Key) (Result, error) {
	if err := t.tenant(k.Tenant); err != nil {
		return Result{}, err
	}
	if err := t.knownRoles(k.Scope(), k.Roles); err != nil {
		return Result{}, err
	}
	old, err := first[Key](t.txn, tableKey, k.ID)
	if err != nil {
		return Result{}, err
	}
	k.CreateIndex, k.ModifyIndex = t.index, t.index
	if old != nil {
		if old.Tenant != k.Tenant {
			return Result{}, fmt.Errorf("API key %s is of another tenant: %w", k.ID, ErrConflict)
		}
		k.CreateIndex = old.CreateIndex
	}
	if err := t.txn.Insert(tableKey, &k); err != nil {
		return Result{}, fmt.Errorf("write API key %s: %w", k.ID, err)
	}
	return Result{Key: k, Changed: 1}, nil
}

// KeyChange changes what a key may do and for how long. What is nil stays.
type KeyChange struct {
	Tenant    string     `codec:"tenant"`
	ID        string     `codec:"id"`
	Name      *string    `codec:"name"`
	Owner     *string    `codec:"owner"`
	Roles     []string   `codec:"roles"`
	ExpiresAt *time.Time `codec:"expires_at"` // zero: never
}

// KeysUsed records when keys were last used. Keys that are no more are left out, and a time never goes back.
type KeysUsed struct {
	Uses []KeyUse `codec:"uses"` // 1 to MaxBatch
}

// KeyUse is the last use of a key.
type KeyUse struct {
	ID string    `codec:"id"`
	At time.Time `codec:"at"`
}

// KeysPurge forgets keys that have ended before a time, at most MaxBatch of them, with the bindings that name them alone.
type KeysPurge struct {
	Before time.Time `codec:"before"`
}

func (*KeysPurge) kind() commandType { return typeKeysPurge }

func (c *KeysPurge) check() error {
	if c.Before.IsZero() {
		return limitErrorf("before", "is missing")
	}
	return nil
}

func (c *KeysPurge) apply(tx *writeTx) (Result, error) {
	it, err := tx.txn.Get(tableKey, indexID)
	if err != nil {
		return Result{}, fmt.Errorf("list API keys: %w", err)
	}
	var ended []*Key // memdb's iterator does not like what it walks over to be changed
	for row := it.Next(); row != nil && len(ended) < MaxBatch; row = it.Next() {
		if k, ok := row.(*Key); ok && k.Expired(c.Before) {
			ended = append(ended, k)
		}
	}
	for _, k := range ended {
		if err := tx.txn.Delete(tableKey, k); err != nil {
			return Result{}, fmt.Errorf("delete API key %s: %w", k.ID, err)
		}
		if err := tx.unbind(k.ID); err != nil {
			return Result{}, err
		}
	}
	return Result{Changed: len(ended)}, nil
}

func (*KeyChange) kind() commandType { return typeKeyChange }
func (*KeysUsed) kind() commandType  { return typeKeysUsed }

func (c *KeyChange) check() error {
	if c.Tenant == "" || c.ID == "" {
		return limitErrorf("key", "lacks its tenant or id")
	}
	if c.Name != nil && (*c.Name == "" || len(*c.Name) > MaxKeyName || !clean(*c.Name)) {
		return limitErrorf("name", "is not 1 to %d bytes of UTF-8", MaxKeyName)
	}
	owner := ""
	if c.Owner != nil {
		owner = *c.Owner
	}
	return checkKeyRights(owner, c.Roles)
}

func (c *KeysUsed) check() error {
	if len(c.Uses) == 0 || len(c.Uses) > MaxBatch {
		return limitErrorf("uses", "has %d entries, 1 to %d are allowed", len(c.Uses), MaxBatch)
	}
	return nil
}

func checkKeyRights(owner string, roles []string) error {
	if len(owner) > MaxSubject || !clean(owner) {
		return limitErrorf("owner", "is longer than %d bytes, or not UTF-8", MaxSubject)
	}
	if len(roles) > MaxParents {
		return limitErrorf("roles", "has %d entries, at most %d are allowed", len(roles), MaxParents)
	}
	for _, r := range roles {
		if err := CheckRoleName(r); err != nil {
			return err
		}
	}
	return nil
}

func (c *KeyChange) apply(tx *writeTx) (Result, error) {
	k, err := first[Key](tx.txn, tableKey, c.ID)
	if err != nil {
		return Result{}, err
	}
	if k == nil || k.Tenant != c.Tenant {
		return Result{}, fmt.Errorf("API key %s: %w", c.ID, ErrNotFound)
	}
	next := *k
	if c.Name != nil {
		next.Name = *c.Name
	}
	if c.Owner != nil {
		next.Owner = *c.Owner
	}
	if c.Roles != nil {
		if err := tx.knownRoles(k.Scope(), c.Roles); err != nil {
			return Result{}, err
		}
		next.Roles = c.Roles
	}
	if c.ExpiresAt != nil {
		next.ExpiresAt = *c.ExpiresAt
	}
	next.ModifyIndex = tx.index
	if err := tx.txn.Insert(tableKey, &next); err != nil {
		return Result{}, fmt.Errorf("write API key %s: %w", k.ID, err)
	}
	return Result{Key: next, Changed: 1}, nil
}

func (c *KeysUsed) apply(tx *writeTx) (Result, error) {
	var r Result
	for _, u := range c.Uses {
		k, err := first[Key](tx.txn, tableKey, u.ID)
		if err != nil {
			return Result{}, err
		}
		if k == nil || !u.At.After(k.LastUsedAt) {
			continue
		}
		next := *k
		next.LastUsedAt = u.At // its ModifyIndex stays: nothing that anybody decides on has changed
		if err := tx.txn.Insert(tableKey, &next); err != nil {
			return Result{}, fmt.Errorf("write API key %s: %w", k.ID, err)
		}
		r.Changed++
	}
	return r, nil
}
