package template

import (
	"crypto/sha256"
	"strings"

	"github.com/soulbox-dev/soulbox/control/state"
)

const (
	idAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
	idLen      = 20
)

// ID returns the id of a tenant's template: 20 of [a-z0-9], the same as long as it has its name. Imports under the same name are
// new builds of it.
func ID(tenant, name string) string {
	sum := sha256.Sum256([]byte(tenant + "\x00" + name))
	id := make([]byte, idLen)
	for i := range id {
		id[i] = idAlphabet[int(sum[i])%len(idAlphabet)]
	}
	return string(id)
}

// plain returns a name without what clients of the contract may add to it: the caller's own namespace, and the tag that a name
// without one means.
func plain(tenant, name string) string {
	return strings.TrimPrefix(strings.TrimSuffix(name, defaultTag), tenant+"/")
}

// byID returns the template whose id is name, if name can be one.
func byID(all []state.Template, name string) (state.Template, bool) {
	if len(name) != idLen {
		return state.Template{}, false
	}
	for _, t := range all {
		if ID(t.Tenant, t.Name) == name {
			return t, true
		}
	}
	return state.Template{}, false
}
