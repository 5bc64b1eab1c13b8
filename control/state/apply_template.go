package state

import "fmt"

func (c *TemplatePut) apply(tx *writeTx) (Result, error) {
	t := c.Template
	old, err := first[Template](tx.txn, tableTemplate, t.Tenant, t.Name)
	if err != nil {
		return Result{}, err
	}
	t.CreateIndex, t.ModifyIndex = tx.index, tx.index
	if old != nil {
		t.CreateIndex, t.CreatedAt = old.CreateIndex, old.CreatedAt
	}
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
