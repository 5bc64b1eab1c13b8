package rbac

import (
	"slices"

	"github.com/soulbox-dev/soulbox/control/state"
)

const (
	nResources = 14
	nActions   = 7
)

// role is a role with all that it inherits, as a table: what it says of a permission is one look away.
type role struct {
	name  string
	rules [nResources * nActions][]*rule
}

func (r *role) of(p Permission) []*rule {
	i := p.index()
	if i < 0 {
		return nil
	}
	return r.rules[i]
}

// index is p's place in a role's table, or -1.
func (p Permission) index() int {
	r, a := -1, -1
	switch p.Resource {
	case Sandbox:
		r = 0
	case Template:
		r = 1
	case Snapshot:
		r = 2
	case Volume:
		r = 3
	case File:
		r = 4
	case Network:
		r = 5
	case Pool:
		r = 6
	case Tenant:
		r = 7
	case Quota:
		r = 8
	case Node:
		r = 9
	case Key:
		r = 10
	case Audit:
		r = 11
	case System:
		r = 12
	case Secret:
		r = 13
	}
	switch p.Action {
	case Create:
		a = 0
	case Read:
		a = 1
	case Update:
		a = 2
	case Delete:
		a = 3
	case Execute:
		a = 4
	case Connect:
		a = 5
	case Admin:
		a = 6
	}
	if r < 0 || a < 0 {
		return -1
	}
	return r*nActions + a
}

// The names of the built-in roles.
const (
	RoleViewer      = "viewer"
	RoleDeveloper   = "developer"
	RoleOperator    = "operator"
	RoleTenantAdmin = "tenant-admin"
	RoleAdmin       = "admin"
)

// Builtin returns the built-in roles, the weakest first.
func Builtin() []state.Role {
	allow := func(resources, actions []string) state.Rule {
		return state.Rule{Resources: resources, Actions: actions}
	}
	work := []string{"sandbox", "template", "snapshot", "volume", "file", "network", "secret"}
	return []state.Role{
		{
			Tenant: state.Everywhere, Name: RoleViewer,
			Description: "Sees what there is. Reads no files, and reaches into no sandbox.",
			Rules:       []state.Rule{allow([]string{"sandbox", "template", "snapshot", "volume", "network", "secret", "pool", "tenant", "quota", "node"}, []string{"read"})},
		},
		{
			Tenant: state.Everywhere, Name: RoleDeveloper, Parents: []string{RoleViewer},
			Description: "Makes, uses and ends sandboxes, templates, snapshots, volumes and secrets.",
			Rules:       []state.Rule{allow(work, []string{"create", "read", "update", "delete", "execute", "connect"})},
		},
		{
			Tenant: state.Everywhere, Name: RoleOperator, Parents: []string{RoleViewer},
			Description: "Runs the machines: nodes, pools and the service. Ends sandboxes, but neither makes nor enters them.",
			Rules: []state.Rule{
				allow([]string{"node", "pool", "system"}, []string{"*"}), allow([]string{"sandbox"}, []string{"delete"}),
				allow([]string{"audit"}, []string{"read"}),
			},
		},
		{
			Tenant: state.Everywhere, Name: RoleTenantAdmin, Parents: []string{RoleDeveloper},
			Description: "Everything that concerns the tenant, its keys, roles and bindings. Not its limits.",
			Rules: []state.Rule{
				allow(append(slices.Clone(work), "key"), []string{"*"}),
				allow([]string{"audit", "system"}, []string{"read"}),
			},
		},
		{
			Tenant: state.Everywhere, Name: RoleAdmin,
			Description: "Everything, where it is bound.",
			Rules:       []state.Rule{allow([]string{"*"}, []string{"*"})},
		},
	}
}

// ref is a role in the scope that may know it.
type ref struct{ scope, name string }

// policy is all roles and bindings of one moment, compiled.
type policy struct {
	version  uint64
	roles    map[ref]*role
	bindings map[state.Subject][]grant
}

// grant is a role that somebody has, in a scope. by says through what.
type grant struct {
	role  *role
	scope string
	by    string
}

// compilePolicy compiles what the state has. Rules that it cannot read, of a newer version or from before a check, allow
// nothing: a role with one is as if it denied what it speaks of.
func compilePolicy(version uint64, roles []state.Role, bindings []state.Binding) *policy {
	p := &policy{version: version, roles: map[ref]*role{}, bindings: map[state.Subject][]grant{}}
	source := map[ref]state.Role{}
	for _, r := range append(Builtin(), roles...) {
		source[ref{r.Tenant, r.Name}] = r
	}
	for at := range source {
		out := &role{name: at.name}
		p.inherit(out, source, at, nil)
		p.roles[at] = out
	}
	for _, b := range bindings {
		r := p.role(b.Tenant, b.Role)
		if r == nil {
			continue
		}
		for _, s := range b.Subjects {
			p.bindings[s] = append(p.bindings[s], grant{r, b.Tenant, "binding " + b.ID})
		}
	}
	return p
}

// inherit adds the rules of a role and its parents to out.
func (p *policy) inherit(out *role, source map[ref]state.Role, at ref, seen []ref) {
	r, ok := source[at]
	if !ok && at.scope != state.Everywhere {
		at.scope = state.Everywhere
		r, ok = source[at]
	}
	if !ok || slices.Contains(seen, at) {
		return
	}
	for i, raw := range r.Rules {
		c, where, err := compile(raw, at.name, i)
		if err != nil {
			c, where = &rule{deny: true, plain: true, role: at.name, index: i}, everything()
		}
		for _, perm := range where {
			n := perm.index()
			out.rules[n] = append(out.rules[n], c)
		}
	}
	for _, parent := range r.Parents {
		p.inherit(out, source, ref{at.scope, parent}, append(slices.Clip(seen), at))
	}
}

func everything() []Permission {
	var out []Permission
	for _, r := range Resources {
		for _, a := range Actions {
			out = append(out, Permission{r, a})
		}
	}
	return out
}

// role finds the role that a name means in a scope, or nil.
func (p *policy) role(scope, name string) *role {
	if r := p.roles[ref{scope, name}]; r != nil {
		return r
	}
	return p.roles[ref{state.Everywhere, name}]
}
