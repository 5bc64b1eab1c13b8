package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
)

// quotaNames are the limits in the order in which they are shown.
var quotaNames = []string{
	api.QuotaSandboxes, api.QuotaConcurrent, api.QuotaCPU, api.QuotaMemory, api.QuotaStorage, api.QuotaTemplates, api.QuotaSnapshots, api.QuotaBandwidthIn, api.QuotaBandwidthOut, api.QuotaSecrets,
	api.QuotaCalls, api.QuotaCreates,
}

func quotaCommands() map[string]func(*Env) *command {
	return map[string]func(*Env) *command{
		"quota": quotaCommand, "quota get": quotaGetCommand, "quota set": quotaSetCommand, "quota usage": quotaUsageCommand,
	}
}

func quotaCommand(*Env) *command {
	return &command{
		synopsis: "Read and change what tenants may use",
		usage:    "<subcommand> [options] [args]",
		about: `
A tenant has limits of its own, and the default's where it has none. The
limits are sandboxes, concurrent_sandboxes, cpu_millis, memory_mb, storage_mb,
templates, snapshots, api_calls_per_second and creates_per_second.

    $ soulbox quota set acme sandboxes=20 cpu_millis=8000
    $ soulbox quota usage acme`,
	}
}

// quotaTenant is the tenant that the arguments name: the default's name where they are "-default".
func quotaTenant(args []string, def bool) (string, []string, error) {
	switch {
	case def:
		return api.DefaultQuota, args, nil
	case len(args) == 0:
		return "", nil, usagef("name a tenant, or -default")
	}
	return args[0], args[1:], nil
}

func quotaGetCommand(env *Env) *command {
	var def, asJSON bool
	return &command{
		synopsis: "Show a tenant's limits",
		usage:    "[options] <tenant>",
		about: `
Shows what a tenant may use, and which of that it has from the default.

    $ soulbox quota get acme`,
		remote: true,
		flags: func(o *options) {
			o.Switch(&def, "default", "The limits of tenants that have none of their own.")
			o.Switch(&asJSON, "json", "Print as JSON.")
		},
		run: func(ctx context.Context, conn *connection, args []string) error {
			tenant, rest, err := quotaTenant(args, def)
			if err != nil {
				return err
			}
			if len(rest) > 0 {
				return usagef("one tenant at a time: %.60q", rest[0])
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			q, err := client.Quota(ctx, tenant)
			if err != nil {
				return fmt.Errorf("quota of tenant %s: %w", tenant, err)
			}
			return printQuota(env, q, asJSON)
		},
	}
}

func printQuota(env *Env, q api.Quota, asJSON bool) error {
	if asJSON {
		return printJSON(env.Stdout, q)
	}
	rows := [][]string{{"Limit", "Value", "From"}}
	for _, name := range quotaNames {
		from := "default"
		if _, own := q.Limits[name]; own && q.Tenant != api.DefaultQuota {
			from = "tenant"
		}
		rows = append(rows, []string{name, limitText(q.Effective[name]), from})
	}
	return printTable(env.Stdout, rows)
}

func limitText(v int64) string {
	if v < 0 {
		return "none"
	}
	return strconv.FormatInt(v, 10)
}

func quotaSetCommand(env *Env) *command {
	var def, asJSON bool
	return &command{
		synopsis: "Change a tenant's limits",
		usage:    "[options] <tenant> <limit=value>...",
		about: `
Changes limits of a tenant; those that are not named stay. The value "none"
takes a limit away, "default" makes the default count again.

    $ soulbox quota set acme sandboxes=20 memory_mb=none storage_mb=default
    $ soulbox quota set -default sandboxes=100`,
		remote: true,
		flags: func(o *options) {
			o.Switch(&def, "default", "The limits of tenants that have none of their own.")
			o.Switch(&asJSON, "json", "Print what counts now as JSON.")
		},
		args: complete.PredictSet(quotaNames...),
		run: func(ctx context.Context, conn *connection, args []string) error {
			tenant, pairs, err := quotaTenant(args, def)
			if err != nil {
				return err
			}
			change, err := limitChanges(pairs)
			if err != nil {
				return err
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			q, err := client.Quota(ctx, tenant)
			if err == nil {
				limits := maps.Clone(q.Limits)
				for name, v := range change {
					if limits[name] = v; v == backToDefault {
						delete(limits, name)
					}
				}
				q, err = client.SetQuota(ctx, tenant, limits)
			}
			if err != nil {
				return fmt.Errorf("quota of tenant %s: %w", tenant, err)
			}
			return printQuota(env, q, asJSON)
		},
	}
}

// backToDefault is no value that the service knows.
const backToDefault = -2

func limitChanges(pairs []string) (map[string]int64, error) {
	if len(pairs) == 0 {
		return nil, usagef("name at least one limit=value")
	}
	out := map[string]int64{}
	for _, p := range pairs {
		name, v, ok := strings.Cut(p, "=")
		if !ok || !slices.Contains(quotaNames, name) {
			return nil, usagef("%.60q is not limit=value; the limits are %s", p, strings.Join(quotaNames, ", "))
		}
		switch v {
		case "none":
			out[name] = api.NoLimit
		case "default":
			out[name] = backToDefault
		default:
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil || n < 0 {
				return nil, usagef("%s is %.40q, a number from 0 on, none or default is wanted", name, v)
			}
			out[name] = n
		}
	}
	return out, nil
}

func quotaUsageCommand(env *Env) *command {
	var asJSON bool
	return &command{
		synopsis: "Show what a tenant uses",
		usage:    "[options] <tenant>",
		about: `
Shows how much of each limit a tenant uses. Rates are not counted up.

    $ soulbox quota usage acme`,
		remote: true,
		flags:  func(o *options) { o.Switch(&asJSON, "json", "Print as JSON.") },
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) != 1 {
				return usagef("name one tenant")
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			u, err := client.QuotaUsage(ctx, args[0])
			if err != nil {
				return fmt.Errorf("usage of tenant %s: %w", args[0], err)
			}
			if asJSON {
				return printJSON(env.Stdout, u)
			}
			rows := [][]string{{"Limit", "Used", "Of"}}
			for _, name := range quotaNames {
				if l, ok := u.Usage[name]; ok {
					rows = append(rows, []string{name, strconv.FormatInt(l.Used, 10), limitText(l.Limit)})
				}
			}
			return printTable(env.Stdout, rows)
		},
	}
}
