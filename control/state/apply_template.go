package state

import "fmt"

func (c *TemplatePut) apply(tx *writeTx) (Result, error) {
	t := c.Template
	old, err := first[Template](tx.txn, tableTemplate, t.Tenant, t.Name)
	if err != nil {
		return Result{}, err
	}
	if old == nil {
		if err := tx.admit(t.Tenant, Use{LimitTemplates: 1}); err != nil {
			return Result{}, err
		}
	}
	t.CreateIndex, t.ModifyIndex = tx.index, tx.index
	if old != nil {
		t.CreateIndex, t.CreatedAt, t.Public, t.Network, t.Where = old.CreateIndex, old.CreatedAt, old.Public, old.Network, old.Where
		t.SpawnCount, t.SpawnedAt = old.SpawnCount, old.SpawnedAt
		if old.TemplateID != "" {
			t.TemplateID = old.TemplateID
		}
	}
	if err := tx.txn.Insert(tableTemplate, &t); err != nil {
		return Result{}, fmt.Errorf("write template %s: %w", t.Name, err)
	}
	return Result{Template: t, Changed: 1}, nil
}

// spawned counts a sandbox for the template that it was made of, by the name that it was asked for where several have its content.
func (tx *writeTx) spawned(s *Sandbox) error {
	it, err := tx.txn.Get(tableTemplate, indexDigest, s.Digest)
	if err != nil {
		return fmt.Errorf("read table %s: %w", tableTemplate, err)
	}
	var of *Template
	for row, ok := it.Next().(*Template); ok; row, ok = it.Next().(*Template) {
		if row.Tenant == s.Tenant && (of == nil || row.Name == s.Template) {
			of = row
		}
	}
	if of == nil {
		return nil
	}
	t := *of
	t.SpawnCount, t.SpawnedAt, t.ModifyIndex = t.SpawnCount+1, s.StartedAt, tx.index
	if err := tx.txn.Insert(tableTemplate, &t); err != nil {
		return fmt.Errorf("write template %s: %w", t.Name, err)
	}
	return nil
}

func (c *TemplatePublish) apply(tx *writeTx) (Result, error) {
	old, err := first[Template](tx.txn, tableTemplate, c.Tenant, c.Name)
	if err != nil {
		return Result{}, err
	}
	if old == nil {
		return Result{}, fmt.Errorf("template %.80q: %w", c.Name, ErrNotFound)
	}
	t := *old
	t.Public, t.ModifyIndex = c.Public, tx.index
	if err := tx.txn.Insert(tableTemplate, &t); err != nil {
		return Result{}, fmt.Errorf("write template %s: %w", t.Name, err)
	}
	return Result{Template: t, Changed: 1}, nil
}

func (c *TemplateDelete) apply(tx *writeTx) (Result, error) {
	t, err := first[Template](tx.txn, tableTemplate, c.Tenant, c.Name)
	if err != nil {
		return Result{}, err
	}
	if t == nil {
		return Result{}, fmt.Errorf("template %.80q: %w", c.Name, ErrNotFound)
	}
	if err := tx.txn.Delete(tableTemplate, t); err != nil {
		return Result{}, fmt.Errorf("delete template %s: %w", c.Name, err)
	}
	return Result{Template: *t, Changed: 1}, nil
}
