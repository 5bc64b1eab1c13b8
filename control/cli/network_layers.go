package cli

import (
	"context"
	"slices"

	"github.com/soulbox-dev/soulbox/control/api"
)

// policyFlags are the flags for a network policy.
type policyFlags struct {
	allow, deny []string
	closed      bool
}

func (p *policyFlags) flags(o *options) {
	o.Func("allow", "<entry>", "A destination to allow. May be repeated.", nil, appendTo(&p.allow))
	o.Func("deny", "<entry>", "A destination to deny. May be repeated.", nil, appendTo(&p.deny))
	o.Switch(&p.closed, "closed", "Deny what is not allowed.")
}

func (p *policyFlags) policy() api.NetworkPolicy {
	out := api.NetworkPolicy{Allow: p.allow, Deny: p.deny}
	if p.closed {
		out.Internet = new(bool)
	}
	return out
}

// policyRows shows a layer of a network policy, a rule a row; none where it narrows nothing.
func policyRows(layer string, p api.NetworkPolicy) (rows [][]string) {
	if p.Internet != nil && !*p.Internet {
		rows = append(rows, []string{"Policy", layer + ": no internet access"})
	}
	for _, e := range p.Allow {
		rows = append(rows, []string{"Policy", layer + ": allow " + e})
	}
	for _, e := range p.Deny {
		rows = append(rows, []string{"Policy", layer + ": deny " + e})
	}
	return rows
}

// layerTable shows layers of a network policy.
func layerTable(rows ...[]string) [][]string {
	if len(rows) == 0 {
		rows = [][]string{{"Policy", "all is allowed that the platform allows"}}
	}
	return append([][]string{{"What", "Rule"}}, rows...)
}

const layersHelp = ` A layer can only narrow: a destination is reached where every layer lets it be. Entries are those of "soulbox network set"; without options ` +
	`nothing is denied.`

func tenantNetworkCommand(env *Env) *command {
	var p policyFlags
	var bound bool
	return apiCommand(env, "Change what a tenant's sandboxes may reach at most", "[options] <tenant>",
		"Replaces the network policy of a tenant, at once for all of its sandboxes: connections that it forbids end within a second. There are two: the "+
			"tenant's own, which its administrators set, and with -bound the operator's, which they cannot lift."+layersHelp, 1, 1,
		func(o *options) {
			p.flags(o)
			o.Switch(&bound, "bound", "The operator's policy for the tenant.")
		},
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			want := p.policy()
			set := func() (api.Tenant, error) { return c.SetTenantNetwork(ctx, args[0], want) }
			if bound {
				set = func() (api.Tenant, error) { return c.UpdateTenant(ctx, args[0], api.TenantChange{NetworkBound: &want}) }
			}
			t, err := set()
			return t, layerTable(slices.Concat(policyRows("operator", t.NetworkBound), policyRows("tenant", t.Network))...), err
		})
}

func templateNetworkCommand(env *Env) *command {
	var p policyFlags
	return apiCommand(env, "Change what sandboxes of a template may reach at most", "[options] <template>",
		"Replaces the network policy of a template and its tags. Sandboxes that are made from then on have it, with their snapshots and copies; those that "+
			"run keep what they were made with, also where the template is deleted."+layersHelp, 1, 1,
		p.flags,
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			t, err := c.SetTemplateNetwork(ctx, args[0], p.policy())
			return t, layerTable(policyRows("template", t.Network)...), err
		})
}
