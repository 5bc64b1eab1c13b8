// Package rbac decides who may do what: permissions, roles, and the rule that decides.
//
// It owns the words (resources and actions), the evaluation of rules, and the built-in roles. It knows no HTTP and never
// finds out who somebody is: that is package auth's. It reads the state, and writes nothing.
package rbac

// Resource is a kind of thing that a permission is about.
type Resource string

// The resources.
const (
	Sandbox  Resource = "sandbox"
	Template Resource = "template"
	Snapshot Resource = "snapshot"
	Volume   Resource = "volume"
	File     Resource = "file" // inside a sandbox; its id is the sandbox's
	Network  Resource = "network"
	Secret   Resource = "secret" // execute: have nodes put it into requests
	Pool     Resource = "pool"
	Tenant   Resource = "tenant"
	Quota    Resource = "quota"
	Node     Resource = "node"
	Key      Resource = "key" // API keys, roles and bindings: who may do what
	Audit    Resource = "audit"
	System   Resource = "system" // the service itself
)

// Resources are all of them, in the order of documents.
var Resources = []Resource{Sandbox, Template, Snapshot, Volume, File, Network, Secret, Pool, Tenant, Quota, Node, Key, Audit, System}

// Action is what is done to a resource.
type Action string

// The actions.
const (
	Create  Action = "create"
	Read    Action = "read"
	Update  Action = "update"
	Delete  Action = "delete"
	Execute Action = "execute" // run processes
	Connect Action = "connect" // reach what listens, attach to what runs
	Admin   Action = "admin"   // what others in the tenant, or on the machine, must not
)

// Actions are all of them, in the order of documents.
var Actions = []Action{Create, Read, Update, Delete, Execute, Connect, Admin}

// Permission is the right to do something to a kind of thing.
type Permission struct {
	Resource Resource
	Action   Action
}

// String returns resource:action.
func (p Permission) String() string { return string(p.Resource) + ":" + string(p.Action) }

// IsZero reports whether p is no permission.
func (p Permission) IsZero() bool { return p == Permission{} }

// Valid reports whether both words are known.
func (p Permission) Valid() bool { return p.Resource.Valid() && p.Action.Valid() }

// Valid reports whether r is one of Resources.
func (r Resource) Valid() bool {
	switch r {
	case Sandbox, Template, Snapshot, Volume, File, Network, Secret, Pool, Tenant, Quota, Node, Key, Audit, System:
		return true
	}
	return false
}

// Valid reports whether a is one of Actions.
func (a Action) Valid() bool {
	switch a {
	case Create, Read, Update, Delete, Execute, Connect, Admin:
		return true
	}
	return false
}
