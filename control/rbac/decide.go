package rbac

import (
	"fmt"
	"net/netip"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/soulbox-dev/soulbox/control/state"
)

// Source is the part of the state that decisions need; state.Server is one.
type Source interface {
	// PolicyVersion changes with every change of what Policy returns. It is asked for every decision.
	PolicyVersion() uint64
	Policy() ([]state.Role, []state.Binding, error)
}

// Who is somebody as far as decisions go. It is made once, when he is authenticated.
type Who struct {
	// ID is one word for this somebody with these rights: what has the same ID has the same fields.
	ID       string
	Subjects []state.Subject // what bindings may name him by
	Roles    []string        // that he has by himself, such as a key's
	Scope    string          // where Roles hold: a tenant, or state.Everywhere
	Owner    string          // what he makes carries this word
}

// Object is what is asked about. Fields that are empty are as if not known.
type Object struct {
	Tenant string // empty: it is the system's
	ID     string
	Name   string
	Labels map[string]string
	Owner  string
	Paths  []string // inside; a rule allows only where it allows all of them
	Below  bool     // what lies below Paths is meant as well
}

// Request is one question.
type Request struct {
	Who        Who
	Permission Permission
	Tenant     string // of the object
	// Object is asked for where a rule looks at the object: nil means any of the tenant's. Then a rule that might allow one
	// allows, and only a rule that denies all denies: whoever lists asks again for each.
	Object func() (Object, error)
	Source netip.Addr
	Now    time.Time
}

// Decision is the answer, and why.
type Decision struct {
	Allowed bool
	Role    string // whose rule decided; empty: no rule allows it
	Rule    int    // its place in the role, from 0
	By      string // through what he has the role: his credential, or a binding
	Scope   string // where he has it
	Filter  bool   // allowed, but not for every object: ask for each
}

// Reason says a decision in words.
func (d Decision) Reason() string {
	switch {
	case d.Role == "":
		return "no rule allows it"
	case d.Allowed:
		return fmt.Sprintf("rule %d of role %s allows it (by %s, in %s)", d.Rule, d.Role, d.By, scopeName(d.Scope))
	}
	return fmt.Sprintf("rule %d of role %s denies it (by %s, in %s)", d.Rule, d.Role, d.By, scopeName(d.Scope))
}

func scopeName(s string) string {
	if s == state.Everywhere {
		return "all tenants"
	}
	return "tenant " + s
}

// Evaluator decides. It is safe for concurrent use.
type Evaluator struct {
	source  Source
	mu      sync.Mutex // of compiling
	current atomic.Pointer[policy]
	known   atomic.Pointer[known]
}

// known caches the grants of those who have asked under one policy.
type known struct {
	version uint64
	grants  sync.Map // Who.ID → []grant
	n       atomic.Int64
}

// maxKnown bounds the cache. Beyond it everything is forgotten at once, which costs a microsecond each.
const maxKnown = 20_000

// New returns an evaluator of what source holds.
func New(source Source) *Evaluator { return &Evaluator{source: source} }

// policy returns the compiled policy of now.
func (e *Evaluator) policy() (*policy, error) {
	v := e.source.PolicyVersion()
	if p := e.current.Load(); p != nil && p.version == v {
		return p, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	v = e.source.PolicyVersion() // before the read: what is newer than its number is only compiled once more
	if p := e.current.Load(); p != nil && p.version == v {
		return p, nil
	}
	roles, bindings, err := e.source.Policy()
	if err != nil {
		return nil, fmt.Errorf("read roles: %w", err)
	}
	p := compilePolicy(v, roles, bindings)
	e.current.Store(p)
	return p, nil
}

// grants returns what somebody has.
func (e *Evaluator) grants(p *policy, w *Who) []grant {
	k := e.known.Load()
	if k == nil || k.version != p.version || k.n.Load() > maxKnown {
		k = &known{version: p.version}
		e.known.Store(k)
	}
	if w.ID != "" {
		if g, ok := k.grants.Load(w.ID); ok {
			return g.([]grant) //nolint:forcetypeassert // nothing else is stored
		}
	}
	g := p.grants(w)
	if w.ID != "" {
		if _, there := k.grants.LoadOrStore(w.ID, g); !there {
			k.n.Add(1)
		}
	}
	return g
}

func (p *policy) grants(w *Who) []grant {
	n := len(w.Roles)
	for _, s := range w.Subjects {
		n += len(p.bindings[s])
	}
	out := make([]grant, 0, n)
	for _, name := range w.Roles {
		if r := p.role(w.Scope, name); r != nil {
			out = append(out, grant{r, w.Scope, "credential"})
		}
	}
	for _, s := range w.Subjects {
		out = append(out, p.bindings[s]...)
	}
	return out
}

// Decide answers a request. An error is Object's own, or the state's: nothing is allowed then.
func (e *Evaluator) Decide(q Request) (Decision, error) {
	p, err := e.policy()
	if err != nil {
		return Decision{}, err
	}
	return decide(&q, e.grants(p, &q.Who))
}

func decide(q *Request, grants []grant) (Decision, error) {
	var (
		best   Decision
		object Object
		loaded bool
		filter bool
	)
	for i := range grants {
		g := &grants[i]
		if !g.covers(q) {
			continue
		}
		for _, r := range g.role.of(q.Permission) {
			if best.Allowed && !r.deny && !best.Filter {
				continue // only a denial can still change it
			}
			if !r.plain {
				if !r.holds(q) {
					continue
				}
				if r.ofObject && q.Object == nil && r.deny {
					filter = true
					continue
				}
				if r.ofObject && q.Object != nil {
					if !loaded {
						var err error
						if object, err = q.Object(); err != nil {
							return Decision{}, err
						}
						loaded = true
					}
					if !r.matches(&object, q.Who.Owner) {
						continue
					}
				}
			}
			d := Decision{Allowed: !r.deny, Role: r.role, Rule: r.index, By: g.by, Scope: g.scope}
			if r.deny {
				return d, nil
			}
			d.Filter = r.ofObject && q.Object == nil
			best = d
		}
	}
	if best.Allowed && filter {
		best.Filter = true
	}
	return best, nil
}

// covers tells whether a grant counts for the object asked about. What is the system's belongs to no tenant: a role in a
// tenant lets it be seen, and not more.
func (g *grant) covers(q *Request) bool {
	return g.scope == state.Everywhere || g.scope == q.Tenant || q.Tenant == "" && q.Permission.Action == Read
}

// holds tells whether a rule's conditions on time and place are met.
func (r *rule) holds(q *Request) bool {
	if !r.after.IsZero() && q.Now.Before(r.after) || !r.before.IsZero() && !q.Now.Before(r.before) {
		return false
	}
	if r.hours != nil && !r.hours.holds(q.Now.UTC()) {
		return false
	}
	if r.days != 0 && r.days&(1<<q.Now.UTC().Weekday()) == 0 {
		return false
	}
	if len(r.sources) == 0 {
		return true
	}
	from := q.Source.Unmap().WithZone("")
	for _, p := range r.sources {
		if p.Contains(from) {
			return true
		}
	}
	return r.deny && !from.IsValid() // where somebody comes from is not known: what denies places denies that one
}

// matches tells whether a rule speaks of an object.
func (r *rule) matches(o *Object, owner string) bool {
	if !anyMatch(r.ids, o.ID) || !anyMatch(r.names, o.Name) {
		return false
	}
	for _, l := range r.labels {
		v, ok := o.Labels[l.key]
		if !ok || !l.value.match(v) {
			return false
		}
	}
	if r.owner && (owner == "" || o.Owner != owner) {
		return false
	}
	if len(r.paths) == 0 {
		return true
	}
	// One path that is denied denies all; one that is not allowed is not made up for by another.
	if len(o.Paths) == 0 {
		return r.deny // which file it will be is not known
	}
	for _, p := range o.Paths {
		elements := strings.Split(strings.TrimSuffix(path.Clean("/"+p), "/"), "/")
		if hit := anyPath(r.paths, elements, r.deny, o.Below); hit == r.deny {
			return hit
		}
	}
	return !r.deny
}

// In tells whether somebody has any role in a tenant, or in all.
func (e *Evaluator) In(w Who, tenant string) (bool, error) {
	p, err := e.policy()
	if err != nil {
		return false, err
	}
	for _, g := range e.grants(p, &w) {
		if g.scope == state.Everywhere || g.scope == tenant {
			return true, nil
		}
	}
	return false, nil
}

// Tenants returns the tenants that somebody has a role in by name, and whether he has one in all of them.
func (e *Evaluator) Tenants(w Who) (named []string, all bool, err error) {
	p, err := e.policy()
	if err != nil {
		return nil, false, err
	}
	for _, g := range e.grants(p, &w) {
		if g.scope == state.Everywhere {
			all = true
		} else {
			named = append(named, g.scope)
		}
	}
	return named, all, nil
}

// MayGive returns the first permission that rules allow and somebody does not have himself, without condition, in a scope;
// or the zero one. Whoever hands out rights hands out his own only.
func (e *Evaluator) MayGive(w Who, scope string, rules []state.Rule) (Permission, error) {
	p, err := e.policy()
	if err != nil {
		return Permission{}, err
	}
	have := e.grants(p, &w)
	for i, raw := range rules {
		c, where, err := compile(raw, "", i)
		if err != nil {
			return Permission{}, err
		}
		if c.deny {
			continue
		}
		for _, perm := range where {
			if !plainly(have, scope, perm) {
				return perm, nil
			}
		}
	}
	return Permission{}, nil
}

// MayGiveRole is MayGive for all that a role allows, with what it inherits.
func (e *Evaluator) MayGiveRole(w Who, scope, name string) (Permission, error) {
	p, err := e.policy()
	if err != nil {
		return Permission{}, err
	}
	r := p.role(scope, name)
	if r == nil {
		return Permission{}, fmt.Errorf("role %.80q: %w", name, state.ErrNotFound)
	}
	have := e.grants(p, &w)
	for _, perm := range everything() {
		for _, rule := range r.of(perm) {
			if !rule.deny && !plainly(have, scope, perm) {
				return perm, nil
			}
		}
	}
	return Permission{}, nil
}

// plainly tells whether grants allow a permission on everything in a scope, always.
func plainly(have []grant, scope string, perm Permission) bool {
	allowed := false
	for i := range have {
		g := &have[i]
		if g.scope != state.Everywhere && g.scope != scope {
			continue
		}
		for _, r := range g.role.of(perm) {
			if r.deny {
				return false
			}
			allowed = allowed || r.plain
		}
	}
	return allowed
}
