package rbac

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/state"
)

// table is a Source that tests write to.
type table struct {
	version  uint64
	roles    []state.Role
	bindings []state.Binding
}

func (t *table) PolicyVersion() uint64 { return t.version }

func (t *table) Policy() ([]state.Role, []state.Binding, error) { return t.roles, t.bindings, nil }

// monday is within office hours.
var monday = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

func perm(s string) Permission {
	r, a, _ := strings.Cut(s, ":")
	return Permission{Resource(r), Action(a)}
}

func ask(t testing.TB, e *Evaluator, w Who, p, tenant string, o *Object) Decision {
	t.Helper()
	q := Request{Who: w, Permission: perm(p), Tenant: tenant, Now: monday, Source: netip.MustParseAddr("10.1.2.3")}
	if o != nil {
		q.Object = func() (Object, error) { return *o, nil }
	}
	d, err := e.Decide(q)
	must.NoError(t, err)
	return d
}

func TestBuiltin_whatEachMay(t *testing.T) {
	e := New(&table{})
	for _, tc := range []struct {
		role string
		yes  string
		no   string
	}{
		{RoleViewer, "sandbox:read template:read node:read tenant:read", "sandbox:create sandbox:execute sandbox:connect file:read key:read system:read audit:read"},
		{RoleDeveloper, "sandbox:create sandbox:execute sandbox:connect file:update template:create snapshot:delete", "key:create key:read tenant:update sandbox:admin audit:read node:update"},
		{RoleOperator, "node:read sandbox:delete sandbox:read audit:read system:read", "sandbox:create sandbox:execute file:read key:create"},
		{RoleTenantAdmin, "key:create key:admin sandbox:admin audit:read system:read", "node:update tenant:update tenant:admin quota:update system:admin pool:create audit:admin"},
		{RoleAdmin, "key:admin sandbox:create audit:admin", "x:read"},
	} {
		w := Who{Roles: []string{tc.role}, Scope: "acme"}
		for _, p := range strings.Fields(tc.yes) {
			tenant := "acme"
			if strings.HasPrefix(p, "node") || strings.HasPrefix(p, "system") {
				tenant = ""
			}
			d := ask(t, e, w, p, tenant, nil)
			must.True(t, d.Allowed, must.Sprintf("%s %s", tc.role, p))
			must.StrContains(t, d.Reason(), "tenant acme")
			must.Eq(t, p == "node:read" || strings.HasPrefix(p, "system"), ask(t, e, w, p, "", nil).Allowed && tenant == "" || ask(t, e, w, p, "other", nil).Allowed,
				must.Sprintf("%s %s elsewhere", tc.role, p))
		}
		for _, p := range strings.Fields(tc.no) {
			must.False(t, ask(t, e, w, p, "acme", nil).Allowed, must.Sprintf("%s %s", tc.role, p))
		}
	}
	for _, r := range Builtin() {
		must.True(t, state.BuiltinRoles[r.Name])
		for _, rule := range r.Rules {
			must.NoError(t, Check(rule))
		}
	}
	must.Eq(t, len(state.BuiltinRoles), len(Builtin()))
}

// A tenant's administrator must not become the system's, whatever roles he makes.
func TestScope_aTenantsRoleChangesNothingOfTheSystem(t *testing.T) {
	all := state.Role{Tenant: "acme", Name: "all", Rules: []state.Rule{{Resources: []string{"*"}, Actions: []string{"*"}}}}
	e := New(&table{roles: []state.Role{all}})
	w := Who{Roles: []string{"all"}, Scope: "acme"}
	must.True(t, ask(t, e, w, "sandbox:admin", "acme", nil).Allowed)
	for _, p := range []string{"node:update", "pool:create", "system:admin", "tenant:create"} {
		must.False(t, ask(t, e, w, p, "", nil).Allowed, must.Sprint(p))
	}
	must.False(t, ask(t, e, w, "sandbox:read", "other", nil).Allowed)
	w.Scope = "other"
	must.False(t, ask(t, e, w, "sandbox:read", "other", nil).Allowed, must.Sprint("the role is acme's"))
}

func TestDecide_patternsAndConditions(t *testing.T) {
	box := Object{Tenant: "acme", ID: "i1", Name: "base", Labels: map[string]string{"env": "dev", "team": "ml-1"}, Owner: "key:k"}
	file := Object{Tenant: "acme", ID: "i1", Paths: []string{"/home/user/a/b.txt"}}
	two := Object{Tenant: "acme", ID: "i1", Paths: []string{"/home/user/a", "/etc/passwd"}}
	rule := func(change func(*state.Rule)) state.Rule {
		r := state.Rule{Resources: []string{"sandbox", "file"}, Actions: []string{"read"}}
		change(&r)
		return r
	}
	for name, tc := range map[string]struct {
		rule   state.Rule
		object Object
		want   bool
	}{
		"no pattern":            {rule(func(*state.Rule) {}), box, true},
		"id":                    {rule(func(r *state.Rule) { r.IDs = []string{"i2", "i1"} }), box, true},
		"other id":              {rule(func(r *state.Rule) { r.IDs = []string{"i2"} }), box, false},
		"id by pattern":         {rule(func(r *state.Rule) { r.IDs = []string{"i*"} }), box, true},
		"name":                  {rule(func(r *state.Rule) { r.Names = []string{"b*e"} }), box, true},
		"other name":            {rule(func(r *state.Rule) { r.Names = []string{"b*x"} }), box, false},
		"labels":                {rule(func(r *state.Rule) { r.Labels = map[string]string{"env": "dev", "team": "ml-*"} }), box, true},
		"one label of two":      {rule(func(r *state.Rule) { r.Labels = map[string]string{"env": "dev", "team": "x"} }), box, false},
		"label that is missing": {rule(func(r *state.Rule) { r.Labels = map[string]string{"x": "*"} }), box, false},
		"owner":                 {rule(func(r *state.Rule) { r.Owner = true }), box, true},
		"other owner":           {rule(func(r *state.Rule) { r.Owner = true }), Object{Owner: "key:x"}, false},
		"nobody's":              {rule(func(r *state.Rule) { r.Owner = true }), Object{}, false},
		"path below":            {rule(func(r *state.Rule) { r.Paths = []string{"/home/user/**"} }), file, true},
		"path, one element":     {rule(func(r *state.Rule) { r.Paths = []string{"/home/user/*"} }), file, false},
		"path, suffix":          {rule(func(r *state.Rule) { r.Paths = []string{"/home/**/*.txt"} }), file, true},
		"path elsewhere":        {rule(func(r *state.Rule) { r.Paths = []string{"/tmp/**"} }), file, false},
		"path out by dots":      {rule(func(r *state.Rule) { r.Paths = []string{"/home/**"} }), Object{Paths: []string{"/home/../etc/passwd"}}, false},
		"one path of two":       {rule(func(r *state.Rule) { r.Paths = []string{"/home/**"} }), two, false},
		"both paths":            {rule(func(r *state.Rule) { r.Paths = []string{"/home/**", "/etc/*"} }), two, true},
		"archive of all":        {rule(func(r *state.Rule) { r.Paths = []string{"/home/**"} }), Object{Paths: []string{"/home"}, Below: true}, true},
		"archive of more":       {rule(func(r *state.Rule) { r.Paths = []string{"/home/**"} }), Object{Paths: []string{"/"}, Below: true}, false},
		"archive of one":        {rule(func(r *state.Rule) { r.Paths = []string{"/home"} }), Object{Paths: []string{"/home"}, Below: true}, false},
		"no path known":         {rule(func(r *state.Rule) { r.Paths = []string{"/**"} }), box, false},
		"source":                {rule(func(r *state.Rule) { r.Sources = []string{"192.168.0.0/16", "10.0.0.0/8"} }), box, true},
		"other source":          {rule(func(r *state.Rule) { r.Sources = []string{"10.0.0.1"} }), box, false},
		"mapped source":         {rule(func(r *state.Rule) { r.Sources = []string{"10.1.2.3"} }), box, true},
		"hours":                 {rule(func(r *state.Rule) { r.Hours = "09:00-18:00" }), box, true},
		"after hours":           {rule(func(r *state.Rule) { r.Hours = "18:00-24:00" }), box, false},
		"hours over midnight":   {rule(func(r *state.Rule) { r.Hours = "22:00-10:01" }), box, true},
		"days":                  {rule(func(r *state.Rule) { r.Days = []string{"mon", "tue"} }), box, true},
		"other days":            {rule(func(r *state.Rule) { r.Days = []string{"sun"} }), box, false},
		"not yet":               {rule(func(r *state.Rule) { r.NotBefore = monday.Add(time.Second) }), box, false},
		"since now":             {rule(func(r *state.Rule) { r.NotBefore = monday }), box, true},
		"no more":               {rule(func(r *state.Rule) { r.NotAfter = monday }), box, false},
	} {
		t.Run(name, func(t *testing.T) {
			must.NoError(t, Check(tc.rule))
			tc.object.Tenant = "acme"
			w := Who{Roles: []string{"r"}, Scope: "acme", Owner: "key:k"}
			e := New(&table{roles: []state.Role{{Tenant: "acme", Name: "r", Rules: []state.Rule{tc.rule}}}})
			p := "sandbox:read"
			if tc.object.Paths != nil {
				p = "file:read"
			}
			must.Eq(t, tc.want, ask(t, e, w, p, "acme", &tc.object).Allowed)
			// The same as a denial beside a permission for everything.
			no := tc.rule
			no.Deny = true
			e = New(&table{roles: []state.Role{{Tenant: "acme", Name: "r", Parents: []string{RoleAdmin}, Rules: []state.Rule{no}}}})
			want := !tc.want
			if name == "one path of two" || name == "archive of more" || name == "archive of one" {
				want = false // what is denied of a part is denied of all
			}
			must.Eq(t, want, ask(t, e, w, p, "acme", &tc.object).Allowed)
		})
	}
}

func TestDecide_denyWinsWhereverItStands(t *testing.T) {
	no := state.Role{Tenant: state.Everywhere, Name: "no-exec", Rules: []state.Rule{{Deny: true, Resources: []string{"sandbox"}, Actions: []string{"execute"}}}}
	bound := state.Binding{ID: "b1", Tenant: "acme", Role: "no-exec", Subjects: []state.Subject{{Kind: state.SubjectGroup, ID: "corp/interns"}}}
	e := New(&table{roles: []state.Role{no}, bindings: []state.Binding{bound}})
	for _, roles := range [][]string{{RoleAdmin, "no-exec"}, {"no-exec", RoleAdmin}} {
		d := ask(t, e, Who{Roles: roles, Scope: "acme"}, "sandbox:execute", "acme", nil)
		must.False(t, d.Allowed)
		must.StrContains(t, d.Reason(), "rule 0 of role no-exec denies")
	}
	w := Who{Roles: []string{RoleAdmin}, Scope: state.Everywhere, Subjects: []state.Subject{{Kind: state.SubjectGroup, ID: "corp/interns"}}}
	must.StrContains(t, ask(t, e, w, "sandbox:execute", "acme", nil).Reason(), "binding b1")
	must.True(t, ask(t, e, w, "sandbox:execute", "other", nil).Allowed, must.Sprint("the binding is acme's"))
	must.Eq(t, "no rule allows it", ask(t, e, Who{}, "sandbox:read", "acme", nil).Reason())
}

func TestDecide_inheritsOverManyStepsAndEndsInACycle(t *testing.T) {
	src := &table{roles: []state.Role{
		{Tenant: "acme", Name: "a", Parents: []string{"b"}}, {Tenant: "acme", Name: "b", Parents: []string{"c"}},
		{Tenant: state.Everywhere, Name: "c", Parents: []string{RoleViewer}},
		{Tenant: "acme", Name: "x", Parents: []string{"y", RoleViewer}}, {Tenant: "acme", Name: "y", Parents: []string{"x"}},
	}}
	e := New(src)
	must.True(t, ask(t, e, Who{Roles: []string{"a"}, Scope: "acme"}, "sandbox:read", "acme", nil).Allowed)
	must.True(t, ask(t, e, Who{Roles: []string{"y"}, Scope: "acme"}, "sandbox:read", "acme", nil).Allowed)
}

func TestDecide_listsAllowAndAskAgain(t *testing.T) {
	r := state.Role{Tenant: "acme", Name: "r", Rules: []state.Rule{{Resources: []string{"sandbox"}, Actions: []string{"read"}, Labels: map[string]string{"env": "dev"}}}}
	secret := state.Role{Tenant: "acme", Name: "s", Parents: []string{RoleViewer}, Rules: []state.Rule{{Deny: true, Resources: []string{"sandbox"}, Actions: []string{"read"}, IDs: []string{"i1"}}}}
	e := New(&table{roles: []state.Role{r, secret}})
	d := ask(t, e, Who{Roles: []string{"r"}, Scope: "acme"}, "sandbox:read", "acme", nil)
	must.True(t, d.Allowed && d.Filter)
	d = ask(t, e, Who{Roles: []string{"s"}, Scope: "acme"}, "sandbox:read", "acme", nil)
	must.True(t, d.Allowed && d.Filter)
	must.False(t, ask(t, e, Who{Roles: []string{"s"}, Scope: "acme"}, "sandbox:read", "acme", &Object{ID: "i1"}).Allowed)
	d = ask(t, e, Who{Roles: []string{"r", RoleViewer}, Scope: "acme"}, "sandbox:read", "acme", nil)
	must.True(t, d.Allowed && !d.Filter)
}

func TestDecide_objectIsLoadedOnlyWhereARuleLooks(t *testing.T) {
	e := New(&table{roles: []state.Role{{Tenant: "acme", Name: "r", Rules: []state.Rule{{Resources: []string{"sandbox"}, Actions: []string{"read"}, IDs: []string{"i1"}}}}}})
	gone := errors.New("gone")
	q := Request{Who: Who{Roles: []string{RoleViewer}, Scope: "acme"}, Permission: perm("sandbox:read"), Tenant: "acme", Object: func() (Object, error) { return Object{}, gone }}
	d, err := e.Decide(q)
	must.NoError(t, err)
	must.True(t, d.Allowed)
	q.Who.Roles = []string{"r"}
	d, err = e.Decide(q)
	must.ErrorIs(t, err, gone)
	must.False(t, d.Allowed)
}

func TestDecide_followsThePolicyAtOnce(t *testing.T) {
	src := &table{}
	e := New(src)
	w := Who{ID: "x", Subjects: []state.Subject{{Kind: state.SubjectUser, ID: "corp/a"}}}
	must.False(t, ask(t, e, w, "sandbox:read", "acme", nil).Allowed)
	src.bindings = []state.Binding{{ID: "b", Tenant: "acme", Role: RoleViewer, Subjects: w.Subjects}}
	src.version++
	must.True(t, ask(t, e, w, "sandbox:read", "acme", nil).Allowed)
	src.bindings = nil
	src.version++
	must.False(t, ask(t, e, w, "sandbox:read", "acme", nil).Allowed)
}

// A rule of a later version, or one that was damaged, must not open anything.
func TestCompile_whatCannotBeReadDenies(t *testing.T) {
	src := &table{roles: []state.Role{{Tenant: "acme", Name: "r", Parents: []string{RoleAdmin}, Rules: []state.Rule{{Deny: true, Resources: []string{"moon"}, Actions: []string{"read"}}}}}}
	must.False(t, ask(t, New(src), Who{Roles: []string{"r"}, Scope: "acme"}, "sandbox:read", "acme", nil).Allowed)
}

func TestMayGive_onlyWhatOneHas(t *testing.T) {
	limited := state.Role{Tenant: "acme", Name: "keys", Rules: []state.Rule{
		{Resources: []string{"key"}, Actions: []string{"*"}}, {Resources: []string{"sandbox"}, Actions: []string{"read"}, IDs: []string{"i1"}},
	}}
	e := New(&table{roles: []state.Role{limited}})
	give := func(w Who, scope, role string) string {
		p, err := e.MayGiveRole(w, scope, role)
		must.NoError(t, err)
		if p.IsZero() {
			return "yes"
		}
		return p.String()
	}
	ta := Who{Roles: []string{RoleTenantAdmin}, Scope: "acme"}
	must.Eq(t, "yes", give(ta, "acme", RoleTenantAdmin))
	must.Eq(t, "yes", give(ta, "acme", "keys"))
	must.NotEq(t, "yes", give(ta, "acme", RoleAdmin))
	must.NotEq(t, "yes", give(ta, "acme", RoleOperator))
	must.NotEq(t, "yes", give(ta, "other", RoleViewer))
	must.NotEq(t, "yes", give(ta, state.Everywhere, RoleViewer))
	must.Eq(t, "sandbox:read", give(Who{Roles: []string{"keys"}, Scope: "acme"}, "acme", RoleViewer), must.Sprint("what one has of some is not of all"))
	must.Eq(t, "yes", give(Who{Roles: []string{RoleAdmin}, Scope: state.Everywhere}, state.Everywhere, RoleAdmin))
	p, err := e.MayGive(ta, "acme", []state.Rule{{Resources: []string{"node"}, Actions: []string{"update"}}})
	must.NoError(t, err)
	must.Eq(t, "node:update", p.String())
	_, err = e.MayGiveRole(ta, "acme", "none")
	must.ErrorIs(t, err, state.ErrNotFound)
}

func TestCheck_namesTheField(t *testing.T) {
	good := func(change func(*state.Rule)) state.Rule {
		r := state.Rule{Resources: []string{"file"}, Actions: []string{"read"}}
		change(&r)
		return r
	}
	for want, r := range map[string]state.Rule{
		"resources: is missing": {Actions: []string{"read"}},
		"actions: is missing":   {Resources: []string{"file"}},
		`resources: "moon"`:     {Resources: []string{"moon"}, Actions: []string{"read"}},
		`actions: "fly"`:        {Resources: []string{"file"}, Actions: []string{"fly"}},
		`paths: "home"`:         good(func(r *state.Rule) { r.Paths = []string{"home"} }),
		`paths: "/a/../b"`:      good(func(r *state.Rule) { r.Paths = []string{"/a/../b"} }),
		`sources: "10.0.0"`:     good(func(r *state.Rule) { r.Sources = []string{"10.0.0"} }),
		`hours: "8-9"`:          good(func(r *state.Rule) { r.Hours = "8-9" }),
		`hours: "09:00-09:00"`:  good(func(r *state.Rule) { r.Hours = "09:00-09:00" }),
		`hours: "09:00-25:00"`:  good(func(r *state.Rule) { r.Hours = "09:00-25:00" }),
		`days: "Monday"`:        good(func(r *state.Rule) { r.Days = []string{"Monday"} }),
		"paths: go with":        {Resources: []string{"sandbox"}, Actions: []string{"read"}, Paths: []string{"/a"}},
		"not_after:":            good(func(r *state.Rule) { r.NotBefore, r.NotAfter = monday, monday }),
	} {
		must.ErrorContains(t, Check(r), want)
	}
}

func FuzzPattern(f *testing.F) {
	f.Add("a*b", "axxb")
	f.Add("/home/**/*.txt", "/home/a/b.txt")
	f.Fuzz(func(t *testing.T, p, s string) {
		if pattern := (pattern{p}); !strings.Contains(p, "*") {
			must.Eq(t, p == s, pattern.match(s))
		}
		must.True(t, pattern{"*"}.match(s))
		must.True(t, pattern{s}.match(s))
		must.True(t, pathPattern(patterns([]string{"**"})).match(strings.Split(s, "/")))
		_ = pathPattern(patterns(strings.Split(p, "/"))).match(strings.Split(s, "/"))
	})
}

// processorTime reports what the thread has used, which other programs of the machine do not add to.
func processorTime(b *testing.B) func() {
	runtime.LockOSThread()
	used := func() int64 {
		var u unix.Rusage
		must.NoError(b, unix.Getrusage(unix.RUSAGE_THREAD, &u))
		return u.Utime.Nano() + u.Stime.Nano()
	}
	start := used()
	return func() {
		b.ReportMetric(float64(used()-start)/float64(b.N), "cpu-ns/op")
		runtime.UnlockOSThread()
	}
}

func benchPolicy(n int) *table {
	src := &table{}
	for i := range n {
		tenant := fmt.Sprintf("t%d", i%100)
		src.roles = append(src.roles, state.Role{Tenant: tenant, Name: fmt.Sprintf("r%d", i), Parents: []string{RoleViewer}, Rules: []state.Rule{
			{Resources: []string{"sandbox"}, Actions: []string{"*"}, Labels: map[string]string{"env": "dev-*"}}, {Deny: true, Resources: []string{"sandbox"}, Actions: []string{"delete"}, IDs: []string{"iprod*"}},
		}})
		src.bindings = append(src.bindings, state.Binding{ID: fmt.Sprint("b", i), Tenant: tenant, Role: fmt.Sprintf("r%d", i), Subjects: []state.Subject{{Kind: state.SubjectUser, ID: fmt.Sprintf("corp/u%d", i%50)}}})
	}
	return src
}

// BenchmarkDecide_cached is the common case: a key with a role asks again.
func BenchmarkDecide_cached(b *testing.B) {
	e := New(benchPolicy(1000))
	q := Request{Who: Who{ID: "k@1", Roles: []string{RoleDeveloper}, Scope: "t1"}, Permission: Permission{Sandbox, Execute}, Tenant: "t1", Now: monday}
	b.ReportAllocs()
	defer processorTime(b)()
	for b.Loop() {
		if d, err := e.Decide(q); err != nil || !d.Allowed {
			b.Fatal(d, err)
		}
	}
}

// BenchmarkDecide_uncached finds the roles anew each time, and looks at labels and ids.
func BenchmarkDecide_uncached(b *testing.B) {
	e := New(benchPolicy(1000))
	object := Object{ID: "idev1", Labels: map[string]string{"env": "dev-7"}}
	q := Request{
		Who:        Who{Subjects: []state.Subject{{Kind: state.SubjectUser, ID: "corp/u1"}, {Kind: state.SubjectGroup, ID: "corp/dev"}}},
		Permission: Permission{Sandbox, Delete}, Tenant: "t1", Object: func() (Object, error) { return object, nil }, Now: monday,
	}
	b.ReportAllocs()
	defer processorTime(b)()
	for b.Loop() {
		if d, err := e.Decide(q); err != nil || !d.Allowed {
			b.Fatal(d, err)
		}
	}
}
