package state

import (
	"fmt"
	"slices"
)

func (c *RolePut) apply(tx *writeTx) (Result, error) {
	r := c.Role
	if r.Tenant != Everywhere {
		if err := tx.tenant(r.Tenant); err != nil {
			return Result{}, err
		}
	}
	old, err := first[Role](tx.txn, tableRole, r.Tenant, r.Name)
	if err != nil {
		return Result{}, err
	}
	r.CreateIndex, r.ModifyIndex = tx.index, tx.index
	if old != nil {
		r.CreateIndex, r.CreatedAt, r.CreatedBy = old.CreateIndex, old.CreatedAt, old.CreatedBy
	}
	if err := tx.txn.Insert(tableRole, &r); err != nil {
		return Result{}, fmt.Errorf("write role %s: %w", r.Name, err)
	}
	if err := tx.inherits(r.Tenant, r.Name, nil); err != nil { // the transaction of a refusal is dropped
		return Result{}, err
	}
	// A role Everywhere may be a parent of tenants' roles, which cannot be its parents: only its own scope can hold a cycle.
	tx.policy = true
	return Result{Role: r, Changed: 1}, nil
}

// inherits follows the parents of a role down to the last. path is the way to it.
func (t *writeTx) inherits(tenant, name string, path []string) error {
	if BuiltinRoles[name] {
		return nil
	}
	if slices.Contains(path, name) {
		return fmt.Errorf("role %s inherits from itself, by way of %v: %w", name, path, ErrConflict)
	}
	if len(path) >= maxDepth {
		return fmt.Errorf("role %s: roles inherit over more than %d steps: %w", path[0], maxDepth, ErrConflict)
	}
	r, err := t.role(tenant, name)
	if err != nil {
		return err
	}
	if r == nil {
		return fmt.Errorf("role %.80q: %w", name, ErrNotFound)
	}
	for _, parent := range r.Parents {
		if err := t.inherits(r.Tenant, parent, append(slices.Clip(path), name)); err != nil {
			return err
		}
	}
	return nil
}

// role finds the role that a name means in a scope: the tenant's own, else the one Everywhere.
func (t *writeTx) role(tenant, name string) (*Role, error) {
	r, err := first[Role](t.txn, tableRole, tenant, name)
	if r == nil && err == nil && tenant != Everywhere {
		return first[Role](t.txn, tableRole, Everywhere, name)
	}
	return r, err
}

func (c *RoleDelete) apply(tx *writeTx) (Result, error) {
	r, err := first[Role](tx.txn, tableRole, c.Tenant, c.Name)
	if err != nil {
		return Result{}, err
	}
	if r == nil {
		return Result{}, fmt.Errorf("role %.80q: %w", c.Name, ErrNotFound)
	}
	// A role of the same name Everywhere would take its place for whoever refers to it: that would change rights silently.
	concerns := func(tenant string) bool { return tenant == c.Tenant || c.Tenant == Everywhere }
	for _, o := range rows[Role](tx, tableRole) {
		if concerns(o.Tenant) && slices.Contains(o.Parents, c.Name) {
			return Result{}, fmt.Errorf("role %s is a parent of role %s: %w", c.Name, o.Name, ErrConflict)
		}
	}
	for _, b := range rows[Binding](tx, tableBinding) {
		if concerns(b.Tenant) && b.Role == c.Name {
			return Result{}, fmt.Errorf("role %s is bound by binding %s: %w", c.Name, b.ID, ErrConflict)
		}
	}
	for _, k := range rows[Key](tx, tableKey) {
		if concerns(k.Scope()) && slices.Contains(k.Roles, c.Name) {
			return Result{}, fmt.Errorf("role %s is API key %s's: %w", c.Name, k.ID, ErrConflict)
		}
	}
	if err := tx.txn.Delete(tableRole, r); err != nil {
		return Result{}, fmt.Errorf("delete role %s: %w", c.Name, err)
	}
	tx.policy = true
	return Result{Role: *r, Changed: 1}, nil
}

func (c *BindingPut) apply(tx *writeTx) (Result, error) {
	b := c.Binding
	if b.Tenant != Everywhere {
		if err := tx.tenant(b.Tenant); err != nil {
			return Result{}, err
		}
	}
	old, err := first[Binding](tx.txn, tableBinding, b.ID)
	if err != nil {
		return Result{}, err
	}
	b.CreateIndex, b.ModifyIndex = tx.index, tx.index
	if old != nil {
		if old.Tenant != b.Tenant {
			return Result{}, fmt.Errorf("binding %s is of another tenant: %w", b.ID, ErrConflict)
		}
		b.CreateIndex, b.CreatedAt, b.CreatedBy = old.CreateIndex, old.CreatedAt, old.CreatedBy
	}
	if err := tx.knownRoles(b.Tenant, []string{b.Role}); err != nil {
		return Result{}, err
	}
	for _, s := range b.Subjects {
		if s.Kind != SubjectKey {
			continue // users, groups and services are the issuers' to know
		}
		k, err := first[Key](tx.txn, tableKey, s.ID)
		if err != nil {
			return Result{}, err
		}
		if k == nil || b.Tenant != Everywhere && k.Tenant != b.Tenant {
			return Result{}, fmt.Errorf("API key %.80q: %w", s.ID, ErrNotFound)
		}
	}
	if err := tx.txn.Insert(tableBinding, &b); err != nil {
		return Result{}, fmt.Errorf("write binding %s: %w", b.ID, err)
	}
	tx.policy = true
	return Result{Binding: b, Changed: 1}, nil
}

// knownRoles returns ErrNotFound for the first role that a scope does not know.
func (t *writeTx) knownRoles(scope string, names []string) error {
	for _, name := range names {
		if BuiltinRoles[name] {
			continue
		}
		r, err := t.role(scope, name)
		if err != nil {
			return err
		}
		if r == nil {
			return fmt.Errorf("role %.80q: %w", name, ErrNotFound)
		}
	}
	return nil
}

func (c *BindingDelete) apply(tx *writeTx) (Result, error) {
	b, err := first[Binding](tx.txn, tableBinding, c.ID)
	if err != nil {
		return Result{}, err
	}
	if b == nil || b.Tenant != c.Tenant {
		return Result{}, fmt.Errorf("binding %.80q: %w", c.ID, ErrNotFound)
	}
	if err := tx.txn.Delete(tableBinding, b); err != nil {
		return Result{}, fmt.Errorf("delete binding %s: %w", c.ID, err)
	}
	tx.policy = true
	return Result{Binding: *b, Changed: 1}, nil
}

// unbind takes a key that is no more out of all bindings. A binding of nobody goes too.
func (t *writeTx) unbind(keyID string) error {
	gone := Subject{Kind: SubjectKey, ID: keyID}
	for _, b := range rows[Binding](t, tableBinding) {
		if !slices.Contains(b.Subjects, gone) {
			continue
		}
		next := *b
		next.Subjects = slices.DeleteFunc(slices.Clone(b.Subjects), func(s Subject) bool { return s == gone })
		next.ModifyIndex = t.index
		var err error
		if len(next.Subjects) == 0 {
			err = t.txn.Delete(tableBinding, b)
		} else {
			err = t.txn.Insert(tableBinding, &next)
		}
		if err != nil {
			return fmt.Errorf("unbind API key %s from %s: %w", keyID, b.ID, err)
		}
		t.policy = true
	}
	return nil
}

// rows returns all rows of a table, by id. They are the store's own.
func rows[T any](t *writeTx, table string) []*T {
	var out []*T
	it, err := t.txn.Get(table, indexID)
	if err != nil {
		return nil // a broken schema, which no test would pass
	}
	for row := it.Next(); row != nil; row = it.Next() {
		if v, ok := row.(*T); ok {
			out = append(out, v)
		}
	}
	return out
}

// Roles returns the roles of a scope, by name; of all scopes where it is empty.
func (s *Store) Roles(tenant string) ([]Role, error) {
	it, err := s.read().Get(tableRole, indexID)
	if err != nil {
		return nil, fmt.Errorf("list roles: %w", err)
	}
	return collect(it, func(r *Role) bool { return tenant == "" || r.Tenant == tenant }), nil
}

// Role returns the role that exactly this scope has under a name.
func (s *Store) Role(tenant, name string) (Role, error) {
	row, err := first[Role](s.read(), tableRole, tenant, name)
	if err != nil {
		return Role{}, err
	}
	if row == nil {
		return Role{}, fmt.Errorf("role %.80q: %w", name, ErrNotFound)
	}
	return *row, nil
}

// Bindings returns the bindings of a scope, by id; of all scopes where it is empty.
func (s *Store) Bindings(tenant string) ([]Binding, error) {
	it, err := s.read().Get(tableBinding, indexID)
	if err != nil {
		return nil, fmt.Errorf("list bindings: %w", err)
	}
	return collect(it, func(b *Binding) bool { return tenant == "" || b.Tenant == tenant }), nil
}

// Policy returns the roles and bindings of all scopes as they are at one moment.
func (s *Store) Policy() ([]Role, []Binding, error) {
	txn := s.read()
	ri, err := txn.Get(tableRole, indexID)
	if err != nil {
		return nil, nil, fmt.Errorf("list roles: %w", err)
	}
	bi, err := txn.Get(tableBinding, indexID)
	if err != nil {
		return nil, nil, fmt.Errorf("list bindings: %w", err)
	}
	return collect[Role](ri, nil), collect[Binding](bi, nil), nil
}

// PolicyVersion changes with every change of roles, bindings and tenants, and whenever the tables were replaced. Read it
// before what it versions.
func (s *Store) PolicyVersion() uint64 { return s.policy.Load() }
