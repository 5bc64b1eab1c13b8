package state

// NetworkPolicy is a layer of what sandboxes may reach. The zero NetworkPolicy narrows nothing.
type NetworkPolicy struct {
	Internet *bool    `codec:"internet"` // false: nothing but Allow; nil: true
	Allow    []string `codec:"allow"`    // entries as package policy reads them
	Deny     []string `codec:"deny"`
}

// MaxNetworkPolicy bounds a layer that is kept for a tenant or a template: bytes of all its entries together.
const MaxNetworkPolicy = 64 << 10

// IsZero reports whether the layer narrows nothing.
func (p NetworkPolicy) IsZero() bool {
	return (p.Internet == nil || *p.Internet) && len(p.Allow) == 0 && len(p.Deny) == 0
}

func (p NetworkPolicy) check(field string) error {
	size := 0
	for _, list := range [][]string{p.Allow, p.Deny} {
		for _, e := range list {
			size += len(e)
		}
	}
	if size > MaxNetworkPolicy {
		return limitErrorf(field, "has entries of %d bytes, at most %d are kept", size, MaxNetworkPolicy)
	}
	return nil
}

// TemplateNetwork sets what the sandboxes of a template may reach that are made from then on. Its tags have the same.
type TemplateNetwork struct {
	Tenant  string        `codec:"tenant"`
	Name    string        `codec:"name"` // without a tag
	Network NetworkPolicy `codec:"network"`
}

func (*TemplateNetwork) kind() commandType { return typeTemplateNetwork }

func (c *TemplateNetwork) check() error { return c.Network.check("network") }

func (c *TemplateNetwork) apply(tx *writeTx) (Result, error) {
	return tx.changeTemplates(c.Tenant, c.Name, func(t *Template) { t.Network = c.Network })
}
