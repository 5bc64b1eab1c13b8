package state

import (
	"fmt"
	"regexp"
	"time"
)

// Role is a named list of rules, in a tenant or Everywhere. What the rules mean is package rbac's.
type Role struct {
	Tenant      string    `codec:"tenant"` // or Everywhere
	Name        string    `codec:"name"`
	Description string    `codec:"description"`
	Parents     []string  `codec:"parents"` // roles whose rules hold too: built in, Everywhere, or of the same tenant
	Rules       []Rule    `codec:"rules"`
	CreatedAt   time.Time `codec:"created_at"`
	CreatedBy   string    `codec:"created_by"`
	UpdatedAt   time.Time `codec:"updated_at"`
	CreateIndex uint64    `codec:"create_index"`
	ModifyIndex uint64    `codec:"modify_index"`
}

// Rule allows, or denies, actions on resources that match all of its patterns, under all of its conditions. What is empty
// restricts nothing.
type Rule struct {
	Deny      bool              `codec:"deny"`
	Resources []string          `codec:"resources"` // "*": all
	Actions   []string          `codec:"actions"`   // "*": all
	IDs       []string          `codec:"ids"`       // patterns, of which one must match; so below
	Names     []string          `codec:"names"`
	Labels    map[string]string `codec:"labels"` // all must match
	Paths     []string          `codec:"paths"`

	NotBefore time.Time `codec:"not_before"`
	NotAfter  time.Time `codec:"not_after"`
	Hours     string    `codec:"hours"` // "08:00-18:00", in UTC
	Days      []string  `codec:"days"`  // "mon" to "sun", in UTC
	Sources   []string  `codec:"sources"`
	Owner     bool      `codec:"owner"` // only what the caller has made
}

// Binding gives a role to subjects, in a tenant or Everywhere.
type Binding struct {
	ID          string    `codec:"id"`
	Tenant      string    `codec:"tenant"` // or Everywhere
	Role        string    `codec:"role"`
	Subjects    []Subject `codec:"subjects"`
	CreatedAt   time.Time `codec:"created_at"`
	CreatedBy   string    `codec:"created_by"`
	CreateIndex uint64    `codec:"create_index"`
	ModifyIndex uint64    `codec:"modify_index"`
}

// SubjectKind is a kind of somebody that a role can be bound to.
type SubjectKind string

// The kinds.
const (
	SubjectUser    SubjectKind = "user"
	SubjectKey     SubjectKind = "key"
	SubjectGroup   SubjectKind = "group"
	SubjectService SubjectKind = "service"
)

// Valid reports whether k is one of the kinds.
func (k SubjectKind) Valid() bool {
	return k == SubjectUser || k == SubjectKey || k == SubjectGroup || k == SubjectService
}

// Subject is whom a binding gives a role to.
type Subject struct {
	Kind SubjectKind `codec:"kind"`
	ID   string      `codec:"id"` // of a key its id, else <link>/<name>, as the link of that name says it
}

// Limits of roles and bindings.
const (
	MaxRoleName    = 64  // bytes
	MaxParents     = 16  // of a role
	MaxRules       = 128 // of a role
	MaxPatterns    = 64  // of one kind in a rule
	MaxPattern     = 512 // bytes
	MaxSubjects    = 256 // of a binding
	MaxSubject     = 256 // bytes
	MaxDescription = 1024
	maxDepth       = 16 // of inheritance
)

var roleName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// CheckRoleName checks the name of a role.
func CheckRoleName(name string) error {
	if !roleName.MatchString(name) {
		return limitErrorf("role", "%.80q is not 1 to %d of a-z, 0-9, \".\", \"_\" and \"-\"", name, MaxRoleName)
	}
	return nil
}

// BuiltinRoles are the names that every scope knows; package rbac says what they allow. No record may have one.
var BuiltinRoles = map[string]bool{"viewer": true, "developer": true, "operator": true, "tenant-admin": true, "admin": true}

// RolePut records a role, new or changed. Its parents must exist, and none of them may inherit from it.
type RolePut struct {
	Role Role `codec:"role"`
}

// RoleDelete forgets a role that nothing refers to any more.
type RoleDelete struct {
	Tenant string `codec:"tenant"`
	Name   string `codec:"name"`
}

// BindingPut records a binding, new or changed. Its role and the keys among its subjects must exist.
type BindingPut struct {
	Binding Binding `codec:"binding"`
}

// BindingDelete forgets a binding.
type BindingDelete struct {
	Tenant string `codec:"tenant"`
	ID     string `codec:"id"`
}

func (*RolePut) kind() commandType       { return typeRolePut }
func (*RoleDelete) kind() commandType    { return typeRoleDelete }
func (*BindingPut) kind() commandType    { return typeBindingPut }
func (*BindingDelete) kind() commandType { return typeBindingDelete }

func (c *RolePut) check() error {
	r := &c.Role
	if r.Tenant == "" {
		return limitErrorf("tenant", "is missing")
	}
	if err := CheckRoleName(r.Name); err != nil {
		return err
	}
	if BuiltinRoles[r.Name] {
		return limitErrorf("role", "%q is built in", r.Name)
	}
	if len(r.Description) > MaxDescription || !clean(r.Description) {
		return limitErrorf("description", "is longer than %d bytes, or not UTF-8", MaxDescription)
	}
	if len(r.Parents) > MaxParents {
		return limitErrorf("parents", "has %d entries, at most %d are allowed", len(r.Parents), MaxParents)
	}
	if len(r.Rules) > MaxRules {
		return limitErrorf("rules", "has %d entries, at most %d are allowed", len(r.Rules), MaxRules)
	}
	for i := range r.Rules {
		if err := checkRule(fmt.Sprintf("rules[%d]", i), &r.Rules[i]); err != nil {
			return err
		}
	}
	return nil
}

func checkRule(field string, r *Rule) error {
	for _, l := range []struct {
		name string
		list []string
	}{
		{"resources", r.Resources}, {"actions", r.Actions}, {"ids", r.IDs}, {"names", r.Names}, {"paths", r.Paths},
		{"sources", r.Sources}, {"days", r.Days},
	} {
		if len(l.list) > MaxPatterns {
			return limitErrorf(field+"."+l.name, "has %d entries, at most %d are allowed", len(l.list), MaxPatterns)
		}
		for _, p := range l.list {
			if p == "" || len(p) > MaxPattern || !clean(p) {
				return limitErrorf(field+"."+l.name, "entry %.40q is not 1 to %d bytes of UTF-8", p, MaxPattern)
			}
		}
	}
	return checkPairs(field+".labels", r.Labels, MaxPatterns, MaxLabelsBytes, func(k string) string {
		if k == "" {
			return "has an empty key"
		}
		return ""
	})
}

func (c *RoleDelete) check() error {
	if c.Tenant == "" || c.Name == "" {
		return limitErrorf("role", "lacks its tenant or name")
	}
	return nil
}

func (c *BindingPut) check() error {
	b := &c.Binding
	if b.Tenant == "" || b.ID == "" || len(b.ID) > MaxRoleName {
		return limitErrorf("binding", "lacks its tenant or id")
	}
	if err := CheckRoleName(b.Role); err != nil {
		return err
	}
	if len(b.Subjects) == 0 || len(b.Subjects) > MaxSubjects {
		return limitErrorf("subjects", "has %d entries, 1 to %d are allowed", len(b.Subjects), MaxSubjects)
	}
	for i, s := range b.Subjects {
		if !s.Kind.Valid() {
			return limitErrorf(fmt.Sprintf("subjects[%d].kind", i), "is %.20q, none of user, key, group, service", s.Kind)
		}
		if s.ID == "" || len(s.ID) > MaxSubject || !clean(s.ID) {
			return limitErrorf(fmt.Sprintf("subjects[%d].id", i), "is not 1 to %d bytes of UTF-8", MaxSubject)
		}
	}
	return nil
}

func (c *BindingDelete) check() error {
	if c.Tenant == "" || c.ID == "" {
		return limitErrorf("binding", "lacks its tenant or id")
	}
	return nil
}
