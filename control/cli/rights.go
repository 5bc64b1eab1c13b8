package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
)

var (
	keyCommand     = group("API keys", "    $ soulbox key create -role developer ci\n    $ soulbox key list")
	roleCommand    = group("roles", "    $ soulbox role list\n    $ soulbox role put ci ./ci.json")
	bindingCommand = group("bindings of roles", "    $ soulbox binding create -role developer group:corp/dev\n    $ soulbox binding list")
	tenantCommand  = group("tenants", "    $ soulbox tenant create acme\n    $ soulbox tenant suspend -reason unpaid acme")
)

func words(p *[]string) func(string) error {
	return func(s string) error {
		*p = append(*p, s)
		return nil
	}
}

func keyRows(list ...api.Key) [][]string {
	rows := [][]string{{"ID", "Name", "Owner", "Roles", "Scope", "Created", "Expires", "Last used"}}
	now := time.Now()
	for _, k := range list {
		rows = append(rows, []string{k.ID, k.Name, k.Owner, strings.Join(k.Roles, ", "), scopeText(k.Scope), ago(k.CreatedAt, now), momentOf(k.ExpiresAt), momentOf(k.LastUsed)})
	}
	return rows
}

func momentOf(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime)
}

func keyListCommand(env *Env) *command {
	return apiCommand(env, "List API keys", "[options]", "Lists the API keys of the tenant. Secrets are not kept.", 0, 0, nil,
		func(ctx context.Context, c *api.Client, _ []string) (any, [][]string, error) {
			list, err := c.Keys(ctx)
			return list, keyRows(list...), err
		})
}

func keyCreateCommand(env *Env) *command {
	var k api.NewKey
	var ttl time.Duration
	return apiCommand(env, "Create an API key", "[options] <name>",
		"Creates an API key and prints its secret, which is shown this once. Without -role\nit is a developer's. Nobody gives rights that he does not have.", 1, 1,
		func(o *options) {
			o.Func("role", "<role>", "Role that the key has. Can be given more than once.", complete.PredictAnything, words(&k.Roles))
			o.String(&k.Owner, "owner", "<text>", "Who the key is for.", complete.PredictAnything)
			o.Duration(&ttl, "ttl", "<duration>", "How long the key is good, such as 24h. Default = for ever.")
			o.Switch(&k.Everywhere, "everywhere", "The roles hold in all tenants and for the system.")
		},
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			k.Name = args[0]
			if ttl > 0 {
				k.ExpiresAt = time.Now().Add(ttl)
			}
			made, err := c.CreateKey(ctx, k)
			return made, [][]string{{"ID", made.ID}, {"Secret", made.Secret}, {"For E2B's clients", made.SecretE2B}}, err
		})
}

func keyRevokeCommand(env *Env) *command {
	return apiCommand(env, "Revoke an API key", "<id>", "Revokes an API key. It is refused from then on.", 1, 1, nil,
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			return nil, [][]string{{"Revoked API key " + args[0]}}, c.DeleteKey(ctx, args[0])
		})
}

func roleListCommand(env *Env) *command {
	return apiCommand(env, "List roles", "[options]", "Lists the roles that bindings and keys of the tenant may name.", 0, 0, nil,
		func(ctx context.Context, c *api.Client, _ []string) (any, [][]string, error) {
			list, err := c.Roles(ctx)
			rows := [][]string{{"Name", "Scope", "Parents", "Rules", "Description"}}
			for _, r := range list {
				rows = append(rows, []string{r.Name, scopeText(r.Scope), strings.Join(r.Parents, ", "), fmt.Sprint(len(r.Rules)), r.Description})
			}
			return list, rows, err
		})
}

func roleShowCommand(env *Env) *command {
	return apiCommand(env, "Show a role", "<name>", "Shows the rules of a role, as \"role put\" takes them.", 1, 1, nil,
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			r, err := c.Role(ctx, args[0])
			if err != nil {
				return nil, nil, err
			}
			return nil, nil, printJSON(env.Stdout, api.RolePut{Description: r.Description, Parents: r.Parents, Rules: r.Rules, Everywhere: r.Scope == api.Everywhere && !r.BuiltIn})
		})
}

func rolePutCommand(env *Env) *command {
	return apiCommand(env, "Make or replace a role", "<name> <file>", "Makes a role, or replaces it, with what a JSON file says; \"-\" is standard input.\n\n"+
		"    {\"parents\": [\"viewer\"], \"rules\": [\n      {\"resources\": [\"sandbox\"], \"actions\": [\"*\"], \"labels\": {\"env\": \"dev\"}},\n"+
		"      {\"effect\": \"deny\", \"resources\": [\"file\"], \"actions\": [\"*\"], \"paths\": [\"/etc/**\"]}]}", 2, 2, nil,
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			in, err := env.open(args[1])
			if err != nil {
				return nil, nil, err
			}
			defer in.Close()
			var role api.RolePut
			dec := json.NewDecoder(io.LimitReader(in, 1<<20))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&role); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", args[1], err)
			}
			r, err := c.PutRole(ctx, args[0], role)
			return r, [][]string{{"Made role " + r.Name + " in " + scopeText(r.Scope)}}, err
		})
}

func roleDeleteCommand(env *Env) *command {
	var all bool
	return apiCommand(env, "Delete a role", "[options] <name>", "Deletes a role that nothing refers to any more.", 1, 1,
		func(o *options) { o.Switch(&all, "everywhere", "The role is one of all tenants.") },
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			return nil, [][]string{{"Deleted role " + args[0]}}, c.DeleteRole(ctx, args[0], all)
		})
}

func bindingRows(list ...api.Binding) [][]string {
	rows := [][]string{{"ID", "Role", "Scope", "Subjects"}}
	for _, b := range list {
		var subjects []string
		for _, s := range b.Subjects {
			subjects = append(subjects, s.Kind+":"+s.ID)
		}
		rows = append(rows, []string{b.ID, b.Role, scopeText(b.Scope), strings.Join(subjects, ", ")})
	}
	return rows
}

func bindingListCommand(env *Env) *command {
	var all bool
	return apiCommand(env, "List bindings", "[options]", "Lists who has which role in the tenant.", 0, 0,
		func(o *options) {
			o.Switch(&all, "everywhere", "List the bindings of all tenants and the system instead.")
		},
		func(ctx context.Context, c *api.Client, _ []string) (any, [][]string, error) {
			list, err := c.Bindings(ctx, all)
			return list, bindingRows(list...), err
		})
}

func bindingCreateCommand(env *Env) *command {
	var b api.NewBinding
	return apiCommand(env, "Give a role to subjects", "-role <role> [options] <kind>:<id>...",
		"Gives a role to users, groups, services and keys. A key is named by its id, all\nothers as <link>/<name>: group:corp/dev, service:nomad/default/build.", 1, 256,
		func(o *options) {
			o.String(&b.Role, "role", "<role>", "The role.", complete.PredictAnything)
			o.Switch(&b.Everywhere, "everywhere", "In all tenants and for the system.")
		},
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			if b.Role == "" {
				return nil, nil, usagef("which role? The command needs -role")
			}
			for _, a := range args {
				kind, id, ok := strings.Cut(a, ":")
				if !ok {
					return nil, nil, usagef("%.80q is not <kind>:<id>", a)
				}
				b.Subjects = append(b.Subjects, api.Subject{Kind: kind, ID: id})
			}
			made, err := c.CreateBinding(ctx, b)
			return made, bindingRows(made), err
		})
}

func bindingDeleteCommand(env *Env) *command {
	var all bool
	return apiCommand(env, "Take a role back", "[options] <id>", "Deletes a binding.", 1, 1,
		func(o *options) { o.Switch(&all, "everywhere", "The binding is one of all tenants.") },
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			return nil, [][]string{{"Deleted binding " + args[0]}}, c.DeleteBinding(ctx, args[0], all)
		})
}

func tenantRows(list ...api.Tenant) [][]string {
	rows := [][]string{{"ID", "Name", "State", "Defaults", "Maximums", "Isolation", "Created"}}
	now := time.Now()
	for _, t := range list {
		state := "active"
		if t.Suspended {
			state = "suspended"
			if t.Reason != "" {
				state += ": " + t.Reason
			}
		}
		created := ""
		if !t.CreatedAt.IsZero() {
			created = ago(t.CreatedAt, now)
		}
		rows = append(rows, []string{t.ID, t.Name, state, sizesText(t.Defaults), sizesText(t.Maximums), fmt.Sprintf("network %s, storage %s, compute %s", t.Isolation.Network, t.Isolation.Storage, t.Isolation.Compute), created})
	}
	return rows
}

func tenantListCommand(env *Env) *command {
	return apiCommand(env, "List tenants", "[options]", "Lists the tenants that you have a role in.", 0, 0, nil,
		func(ctx context.Context, c *api.Client, _ []string) (any, [][]string, error) {
			list, err := c.ListTenants(ctx)
			return list, tenantRows(list...), err
		})
}

func tenantCreateCommand(env *Env) *command {
	var (
		t     api.NewTenant
		rules tenantRules
	)
	return apiCommand(env, "Create a tenant", "[options] <id>", "Creates a tenant. Its id is in host names: a-z, 0-9 and \"-\".", 1, 1,
		func(o *options) {
			o.String(&t.Name, "name", "<text>", "Name for people. Default = the id.", complete.PredictAnything)
			o.Pairs(&t.Labels, "label", "Label, as name=value. Can be given more than once.", nil)
			rules.flags(o)
		},
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			t.ID = args[0]
			if err := rules.over(&t.Defaults, &t.Maximums, &t.Isolation); err != nil {
				return nil, nil, err
			}
			made, err := c.CreateTenant(ctx, t)
			return made, tenantRows(made), err
		})
}

func tenantSuspendCommand(env *Env) *command {
	var reason string
	return apiCommand(env, "Suspend a tenant", "[options] <id>", "Lets a tenant do no new work. What runs goes on, and may be looked at and ended.", 1, 1,
		func(o *options) {
			o.String(&reason, "reason", "<text>", "Why; its users read it.", complete.PredictAnything)
		},
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			t, err := c.SuspendTenant(ctx, args[0], reason)
			return t, tenantRows(t), err
		})
}

func tenantResumeCommand(env *Env) *command {
	return apiCommand(env, "Resume a tenant", "<id>", "Ends the suspension of a tenant.", 1, 1, nil,
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			t, err := c.ResumeTenant(ctx, args[0])
			return t, tenantRows(t), err
		})
}

func tenantDeleteCommand(env *Env) *command {
	var cascade bool
	return apiCommand(env, "Delete a tenant", "[options] <id>", "Deletes a tenant. One with sandboxes that have not ended is refused.", 1, 1,
		func(o *options) {
			o.Switch(&cascade, "cascade", "With its keys, roles, bindings, templates, snapshots and ended sandboxes.")
		},
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			return nil, [][]string{{"Deleted tenant " + args[0]}}, c.DeleteTenant(ctx, args[0], cascade)
		})
}
