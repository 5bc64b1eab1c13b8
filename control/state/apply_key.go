package state

import "fmt"

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
