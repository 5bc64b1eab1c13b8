package state

import (
	"fmt"
	"testing"

	"github.com/shoenig/test/must"
)

// tenants returns a server with the tenants acme and other.
func tenants(t testing.TB) *Server {
	t.Helper()
	s := open(t, Config{})
	t.Cleanup(func() { must.NoError(t, s.Close()) })
	mustApply(t, s, &TenantPut{Tenant: Tenant{ID: "acme"}})
	mustApply(t, s, &TenantPut{Tenant: Tenant{ID: "other"}})
	return s
}

func key(id, tenant string, roles ...string) *KeyPut {
	return &KeyPut{Key: Key{ID: id, Tenant: tenant, Hash: make([]byte, 32), Roles: roles}}
}

func refused(t *testing.T, s *Server, want error, c Command) {
	t.Helper()
	before := s.PolicyVersion()
	_, err := s.Apply(t.Context(), c)
	must.ErrorIs(t, err, want)
	must.Eq(t, before, s.PolicyVersion(), must.Sprint("a refusal changes nothing"))
}

func TestRole_cyclesAndUnknownParentsAreRefused(t *testing.T) {
	s := tenants(t)
	put := func(tenant, name string, parents ...string) *RolePut {
		return &RolePut{Role: Role{Tenant: tenant, Name: name, Parents: parents}}
	}
	refused(t, s, ErrNotFound, put("acme", "a", "b"))
	refused(t, s, ErrConflict, put("acme", "a", "a"))
	mustApply(t, s, put("acme", "a", "viewer"))
	mustApply(t, s, put("acme", "b", "a"))
	mustApply(t, s, put("acme", "c", "b"))
	refused(t, s, ErrConflict, put("acme", "a", "c"))
	refused(t, s, ErrNotFound, put("other", "x", "a"))    // another tenant's
	refused(t, s, ErrNotFound, put(Everywhere, "x", "a")) // a tenant's
	refused(t, s, ErrNotFound, put("nobody", "x"))
	mustApply(t, s, put(Everywhere, "all"))
	mustApply(t, s, put("other", "x", "all"))
	refused(t, s, ErrConflict, &RoleDelete{Tenant: Everywhere, Name: "all"})
	last := "c"
	for i := range maxDepth {
		name := fmt.Sprintf("deep-%d", i)
		_, err := s.Apply(t.Context(), put("acme", name, last))
		last = name
		if i+4 > maxDepth {
			must.ErrorIs(t, err, ErrConflict)
			return
		}
		must.NoError(t, err)
	}
	t.Fatal("inheritance has no end")
}

func TestRole_builtInNamesAreTaken(t *testing.T) {
	for name := range BuiltinRoles {
		must.ErrorContains(t, (&RolePut{Role: Role{Tenant: "acme", Name: name}}).check(), "built in")
	}
}

func TestRole_isNotDeletedWhileReferredTo(t *testing.T) {
	s := tenants(t)
	mustApply(t, s, &RolePut{Role: Role{Tenant: "acme", Name: "ci"}})
	mustApply(t, s, key("k1", "acme", "ci"))
	refused(t, s, ErrConflict, &RoleDelete{Tenant: "acme", Name: "ci"})
	mustApply(t, s, &KeyChange{Tenant: "acme", ID: "k1", Roles: []string{}})
	mustApply(t, s, &BindingPut{Binding: Binding{ID: "b", Tenant: "acme", Role: "ci", Subjects: []Subject{{SubjectKey, "k1"}}}})
	refused(t, s, ErrConflict, &RoleDelete{Tenant: "acme", Name: "ci"})
	refused(t, s, ErrNotFound, &RoleDelete{Tenant: "other", Name: "ci"})
	refused(t, s, ErrNotFound, &BindingDelete{Tenant: "other", ID: "b"})
	mustApply(t, s, &BindingDelete{Tenant: "acme", ID: "b"})
	mustApply(t, s, &RoleDelete{Tenant: "acme", Name: "ci"})
}

func TestBinding_toWhatDoesNotExistIsRefused(t *testing.T) {
	s := tenants(t)
	mustApply(t, s, key("k1", "acme"))
	put := func(tenant, role string, sub ...Subject) *BindingPut {
		return &BindingPut{Binding: Binding{ID: "b", Tenant: tenant, Role: role, Subjects: sub}}
	}
	mine, group := Subject{SubjectKey, "k1"}, Subject{SubjectGroup, "corp/dev"}
	refused(t, s, ErrNotFound, put("acme", "none", mine))
	refused(t, s, ErrNotFound, put("acme", "viewer", Subject{SubjectKey, "k2"}))
	refused(t, s, ErrNotFound, put("other", "viewer", mine))
	refused(t, s, ErrNotFound, put("nobody", "viewer", group))
	mustApply(t, s, put("acme", "viewer", mine, group))
	refused(t, s, ErrConflict, put("other", "viewer", group))
	mustApply(t, s, &KeyDelete{Tenant: "acme", ID: "k1"})
	left, err := s.Bindings("acme")
	must.NoError(t, err)
	must.Eq(t, []Subject{group}, left[0].Subjects, must.Sprint("a key that comes back with the id must not find its rights again"))
}

func TestBinding_ofNobodyGoesWithItsKey(t *testing.T) {
	s := tenants(t)
	mustApply(t, s, key("k1", "acme"))
	mustApply(t, s, &BindingPut{Binding: Binding{ID: "b", Tenant: "acme", Role: "viewer", Subjects: []Subject{{SubjectKey, "k1"}}}})
	mustApply(t, s, &KeyDelete{Tenant: "acme", ID: "k1"})
	left, err := s.Bindings("")
	must.NoError(t, err)
	must.SliceEmpty(t, left)
}

func TestTenant_suspendedTakesNoNewWork(t *testing.T) {
	s := tenants(t)
	acme, err := s.Tenant("acme")
	must.NoError(t, err)
	box := starting(1)
	box.Tenant = "acme"
	mustApply(t, s, &SandboxCreate{Sandbox: box})
	acme.Suspended = true
	refused(t, s, ErrConflict, &TenantPut{Tenant: acme, Index: acme.ModifyIndex + 1})
	mustApply(t, s, &TenantPut{Tenant: acme, Index: acme.ModifyIndex})
	next := starting(2)
	next.Tenant = "acme"
	refused(t, s, ErrSuspended, &SandboxCreate{Sandbox: next})
	refused(t, s, ErrSuspended, key("k", "acme"))
	mustApply(t, s, &SandboxStopping{ID: box.ID}) // what runs may end
	next.Tenant = "nobody"
	refused(t, s, ErrNotFound, &SandboxCreate{Sandbox: next})
}

func TestTenant_deleteIsRefusedOrCascades(t *testing.T) {
	s := tenants(t)
	box := starting(1)
	box.Tenant = "acme"
	mustApply(t, s, &SandboxCreate{Sandbox: box})
	refused(t, s, ErrConflict, &TenantDelete{ID: "acme", Cascade: true})
	mustApply(t, s, &SandboxEnd{Ends: []End{{ID: box.ID, State: Stopped, At: at(2)}}})
	mustApply(t, s, &RolePut{Role: Role{Tenant: "acme", Name: "ci"}})
	mustApply(t, s, key("k1", "acme", "ci"))
	mustApply(t, s, key("k2", "other"))
	mustApply(t, s, &BindingPut{Binding: Binding{ID: "b", Tenant: "acme", Role: "ci", Subjects: []Subject{{SubjectKey, "k1"}}}})
	refused(t, s, ErrConflict, &TenantDelete{ID: "acme"})
	must.Eq(t, 5, mustApply(t, s, &TenantDelete{ID: "acme", Cascade: true}).Changed)
	_, err := s.Key("k1")
	must.ErrorIs(t, err, ErrNotFound)
	_, err = s.Key("k2")
	must.NoError(t, err)
	_, err = s.Sandbox(box.ID)
	must.ErrorIs(t, err, ErrNotFound)
	roles, bindings, err := s.Policy()
	must.NoError(t, err)
	must.SliceEmpty(t, roles)
	must.SliceEmpty(t, bindings)
	refused(t, s, ErrNotFound, &TenantDelete{ID: "acme"})
}

func TestTenant_defaultIsThereWithoutARecord(t *testing.T) {
	s := tenants(t)
	d, err := s.Tenant(DefaultTenant)
	must.NoError(t, err)
	refused(t, s, ErrExists, &TenantPut{Tenant: d})
	d.Name = "ours"
	mustApply(t, s, &TenantPut{Tenant: d, Index: d.ModifyIndex})
	all, err := s.Tenants()
	must.NoError(t, err)
	must.Len(t, 3, all)
	must.Eq(t, "ours", all[1].Name)
	must.Error(t, (&TenantDelete{ID: DefaultTenant}).check())
}

func TestKey_rightsOfOlderKeys(t *testing.T) {
	roles, scope := Key{Tenant: "acme", CreatedBy: "bootstrap"}.Rights()
	must.Eq(t, "admin"+Everywhere, roles[0]+scope)
	roles, scope = Key{Tenant: "acme", CreatedBy: "0123"}.Rights()
	must.Eq(t, "tenant-admin"+"acme", roles[0]+scope)
	roles, _ = Key{Tenant: "acme", CreatedBy: "bootstrap", Roles: []string{}}.Rights()
	must.SliceEmpty(t, roles, must.Sprint("a key without roles has none"))
}

func TestKeysUsed_timeNeverGoesBack(t *testing.T) {
	s := tenants(t)
	mustApply(t, s, key("k1", "acme"))
	mustApply(t, s, &KeysUsed{Uses: []KeyUse{{"k1", at(10)}, {"gone", at(10)}}})
	mustApply(t, s, &KeysUsed{Uses: []KeyUse{{"k1", at(5)}}})
	k, err := s.Key("k1")
	must.NoError(t, err)
	must.True(t, k.LastUsedAt.Equal(at(10)))
}

func TestTenantID(t *testing.T) {
	for id, good := range map[string]bool{
		"a": true, "acme-2": true, "": false, "-a": false, "a-": false, "A": false, "a_b": false, "a.b": false, Everywhere: false,
		"a/b": false, "ü": false, string(make([]byte, 64)): false,
	} {
		must.Eq(t, good, CheckTenantID(id) == nil, must.Sprint(id))
	}
}

func TestKeysPurge_takesWhatNamedTheKeyAlone(t *testing.T) {
	s := tenants(t)
	old, young := key("k1", "acme"), key("k2", "acme")
	old.Key.ExpiresAt, young.Key.ExpiresAt = at(10), at(30)
	mustApply(t, s, old)
	mustApply(t, s, young)
	mustApply(t, s, &BindingPut{Binding: Binding{ID: "b1", Tenant: "acme", Role: "viewer", Subjects: []Subject{{SubjectKey, "k1"}}}})
	mustApply(t, s, &BindingPut{Binding: Binding{ID: "b2", Tenant: "acme", Role: "viewer", Subjects: []Subject{{SubjectKey, "k1"}, {SubjectKey, "k2"}}}})
	mustApply(t, s, &KeysPurge{Before: at(20)})
	_, err := s.Key("k1")
	must.ErrorIs(t, err, ErrNotFound)
	_, err = s.Key("k2")
	must.NoError(t, err)
	list, err := s.Bindings("acme")
	must.NoError(t, err)
	must.Len(t, 1, list)
	must.Eq(t, []Subject{{SubjectKey, "k2"}}, list[0].Subjects)
	must.Error(t, (&KeysPurge{}).check())
}
