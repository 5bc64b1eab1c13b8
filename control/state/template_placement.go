package state

import (
	"fmt"
	"strings"
)

// MaxWhere bounds the rules of a template, in bytes.
const MaxWhere = 64 << 10

// TemplatePlacement sets where the sandboxes of a template may run that are made from then on. Its tags have the same.
type TemplatePlacement struct {
	Tenant string `codec:"tenant"`
	Name   string `codec:"name"`  // without a tag
	Where  string `codec:"where"` // placement.Rules
}

func (*TemplatePlacement) kind() commandType { return typeTemplatePlacement }

func (c *TemplatePlacement) check() error {
	if len(c.Where) > MaxWhere {
		return limitErrorf("placement", "has %d bytes, at most %d are kept", len(c.Where), MaxWhere)
	}
	return nil
}

func (c *TemplatePlacement) apply(tx *writeTx) (Result, error) {
	return tx.changeTemplates(c.Tenant, c.Name, func(t *Template) { t.Where = c.Where })
}

// changeTemplates changes a template and its tags.
func (tx *writeTx) changeTemplates(tenant, name string, change func(*Template)) (Result, error) {
	it, err := tx.txn.Get(tableTemplate, indexID)
	if err != nil {
		return Result{}, fmt.Errorf("list templates: %w", err)
	}
	var out Result
	for _, t := range collect(it, func(t *Template) bool {
		return t.Tenant == tenant && (t.Name == name || strings.HasPrefix(t.Name, name+":"))
	}) {
		change(&t)
		t.ModifyIndex = tx.index
		if err := tx.txn.Insert(tableTemplate, &t); err != nil {
			return Result{}, fmt.Errorf("write template %s: %w", t.Name, err)
		}
		out.Changed++
		if t.Name == name {
			out.Template = t
		}
	}
	if out.Changed == 0 {
		return Result{}, fmt.Errorf("template %.80q: %w", name, ErrNotFound)
	}
	return out, nil
}
