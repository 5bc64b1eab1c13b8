package state

import "time"

// identityScript is the part of script about tenants, roles, bindings and what keys may. It has start commands before it.
func identityScript(start int) []Command {
	name, expires := "renamed", at(5000)
	acme := Tenant{ID: "acme", Name: "Acme", Labels: map[string]string{"tier": "1"}, CreatedAt: at(0), CreatedBy: "key:0123456789abcdef",
		Defaults: TenantDefaults{CPUMillis: 500, Timeout: time.Minute}, Isolation: TenantIsolation{Compute: Dedicated}}
	paused := acme
	paused.Suspended, paused.SuspendedAt, paused.Reason = true, at(9), "unpaid"
	acmes := Key{ID: "00000000000000ac", Tenant: "acme", Name: "ci", Hash: make([]byte, 32), CreatedAt: at(1), Roles: []string{"ci"}, Owner: "build", ExpiresAt: at(4000)}
	reader := Role{Tenant: Everywhere, Name: "reader", Rules: []Rule{{Resources: []string{"*"}, Actions: []string{"read"}, NotAfter: at(9000)}}, CreatedAt: at(1)}
	ci := Role{Tenant: "acme", Name: "ci", Parents: []string{"reader", "developer"}, Rules: []Rule{{
		Deny: true, Resources: []string{"file"}, Actions: []string{"*"}, IDs: []string{"i*"}, Names: []string{"n"}, Labels: map[string]string{"a": "b"},
		Paths: []string{"/etc/**"}, Hours: "08:00-18:00", Days: []string{"mon"}, Sources: []string{"10.0.0.0/8"}, Owner: true, NotBefore: at(3),
	}}, CreatedAt: at(1)}
	loop := reader
	loop.Parents = []string{"reader"}
	bound := Binding{ID: "b1", Tenant: "acme", Role: "ci", Subjects: []Subject{{SubjectKey, "00000000000000ac"}, {SubjectGroup, "corp/dev"}}, CreatedAt: at(2)}
	empty := Tenant{ID: "empty", CreatedAt: at(0)}
	return []Command{
		&TenantPut{Tenant: acme},
		&TenantPut{Tenant: acme}, // refused
		&RolePut{Role: reader},
		&RolePut{Role: loop}, // refused
		&RolePut{Role: ci},
		&KeyPut{Key: acmes},
		&BindingPut{Binding: bound},
		&BindingPut{Binding: Binding{ID: "b2", Tenant: "acme", Role: "none", Subjects: []Subject{{SubjectUser, "corp/a"}}}},           // refused
		&BindingPut{Binding: Binding{ID: "b3", Tenant: Everywhere, Role: "viewer", Subjects: []Subject{{SubjectService, "nomad/a"}}}}, //
		&BindingDelete{Tenant: Everywhere, ID: "b3"},
		&RoleDelete{Tenant: "acme", Name: "ci"}, // refused
		&RolePut{Role: Role{Tenant: "acme", Name: "gone", Parents: []string{"ci"}}},
		&RoleDelete{Tenant: "acme", Name: "gone"},
		&KeyChange{Tenant: "acme", ID: acmes.ID, Name: &name, ExpiresAt: &expires},
		&KeysUsed{Uses: []KeyUse{{ID: acmes.ID, At: at(20)}, {ID: "gone", At: at(20)}}},
		&TenantPut{Tenant: paused, Index: uint64(10 + start)},
		&TenantPut{Tenant: empty},
		&TenantDelete{ID: "acme"}, // refused
		&TenantDelete{ID: "empty"},
	}
}
