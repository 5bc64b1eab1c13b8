package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

func poolCommands() map[string]func(*Env) *command {
	return map[string]func(*Env) *command{
		"pool": poolCommand, "pool list": poolListCommand, "pool info": poolInfoCommand, "pool create": poolCreateCommand,
		"pool update": poolUpdateCommand, "pool delete": poolDeleteCommand,
	}
}

var poolCommand = group("pools of warm sandboxes", "    $ soulbox pool create -template base -min 5 quick\n    $ soulbox pool list")

func poolRows(list ...api.Pool) [][]string {
	rows := [][]string{{"Name", "Tenant", "Template", "Strategy", "Ready", "Making", "Target", "Hits", "Misses", "Problem"}}
	for _, p := range list {
		tenant := p.Tenant
		if p.Shared {
			tenant += " (shared)"
		}
		s := p.Status
		rows = append(rows, []string{
			p.Name, tenant, p.Template, p.Strategy, strconv.Itoa(s.Ready), strconv.Itoa(s.Making), strconv.Itoa(s.Target),
			strconv.FormatUint(s.Hits, 10), strconv.FormatUint(s.Misses, 10), s.Problem,
		})
	}
	return rows
}

func poolListCommand(env *Env) *command {
	return apiCommand(env, "List pools", "[options]", "Lists the pools of the tenant, with how they are at the moment.", 0, 0, nil,
		func(ctx context.Context, c *api.Client, _ []string) (any, [][]string, error) {
			list, err := c.Pools(ctx)
			return list, poolRows(list...), err
		})
}

func poolInfoCommand(env *Env) *command {
	return apiCommand(env, "Show a pool", "[options] <name>", "Shows what a pool is told to be, and how it is at the moment.", 1, 1, nil,
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			p, err := c.Pool(ctx, args[0])
			return p, poolFacts(p), err
		})
}

// poolFacts shows one pool, a fact a line.
func poolFacts(p api.Pool) [][]string {
	s := p.Status
	rows := [][]string{
		{"Name", p.Name}, {"Tenant", p.Tenant}, {"Shared", strconv.FormatBool(p.Shared)}, {"Template", p.Template},
		{"Size", fmt.Sprintf("%d thousandths of a core, %d MiB of memory, %d MiB of disk", p.CPUMillis, p.MemoryMB, p.DiskMB)},
		{"Class", p.QoS}, {"Profile", p.Profile},
		{"Strategy", fmt.Sprintf("%s, %d to %d", p.Strategy, p.Min, p.Max)},
		{"Ready", fmt.Sprintf("%d of %d, %d on the way", s.Ready, s.Target, s.Making)},
		{"Creates", fmt.Sprintf("%d found one, %d did not", s.Hits, s.Misses)},
		{"Demand", fmt.Sprintf("%d in these ten minutes, %.1f by past days", s.Demand, s.Forecast)},
	}
	if s.Refill > 0 {
		rows = append(rows, []string{"Refill", short(time.Duration(s.Refill*float64(time.Second))) + " each"})
	}
	if s.Oldest != nil {
		rows = append(rows, []string{"Oldest", short(time.Since(*s.Oldest))})
	}
	if len(p.WarmUp) > 0 {
		rows = append(rows, []string{"Warm-up", strings.Join(p.WarmUp, "; ")})
	}
	if s.Limited {
		rows = append(rows, []string{"Limited", "the tenant's quota has no room for more"})
	}
	if s.Problem != "" {
		rows = append(rows, []string{"Problem", s.Problem})
	}
	return rows
}

// poolFlags adds the options of a pool's spec. What is not given stays nil.
func poolFlags(o *options, spec *api.PoolSpec) {
	text := func(p **string, name, arg, help string) {
		o.Func(name, arg, help, nil, func(v string) error { *p = &v; return nil })
	}
	count := func(p **int, name, help string) {
		o.Func(name, "<n>", help, nil, func(v string) error {
			n, err := strconv.Atoi(v)
			*p = &n
			return err
		})
	}
	amount := func(p **int64, name, arg, help string) {
		o.Func(name, arg, help, nil, func(v string) error {
			n, err := strconv.ParseInt(v, 10, 64)
			*p = &n
			return err
		})
	}
	seconds := func(p **int64, name, help string) {
		o.Func(name, "<duration>", help, nil, func(v string) error {
			d, err := time.ParseDuration(v)
			n := int64(d / time.Second)
			*p = &n
			return err
		})
	}
	text(&spec.Template, "template", "<name>", "What its sandboxes are made of.")
	text(&spec.Strategy, "strategy", "<name>", "fixed (-min sandboxes), dynamic (more after misses, fewer after idle times), or historical (as past days at this time).")
	count(&spec.Min, "min", "Sandboxes that are kept ready, at least.")
	count(&spec.Max, "max", "Sandboxes that are kept ready, at most.")
	count(&spec.RefillThreshold, "refill-threshold", "Refill begins once fewer are ready. 0: at once.")
	count(&spec.Rate, "rate", "Percent by which a dynamic pool changes at a time.")
	amount(&spec.CPUMillis, "cpu-millis", "<n>", "Thousandths of a core of each sandbox.")
	amount(&spec.MemoryMB, "memory-mb", "<n>", "MiB of memory of each sandbox.")
	amount(&spec.DiskMB, "disk-mb", "<n>", "MiB of disk of each sandbox.")
	text(&spec.QoS, "qos", "<class>", "guaranteed, burstable or best_effort.")
	text(&spec.Profile, "profile", "<name>", "default or strict.")
	placementFlags(o, &spec.Placement)
	seconds(&spec.MaxAge, "max-age", "A sandbox that nobody takes is replaced after that time.")
	seconds(&spec.CleanupInterval, "cleanup-interval", "Between two looks at the size of a dynamic pool.")
	o.Func("warm-up", "<command>", "A shell command that must succeed before a sandbox counts. May be repeated.", nil, func(v string) error {
		if spec.WarmUp == nil {
			spec.WarmUp = &[]string{}
		}
		*spec.WarmUp = append(*spec.WarmUp, v)
		return nil
	})
	o.Func("shared", "<true|false>", "Sandboxes of other tenants may come from it.", nil, func(v string) error {
		b, err := strconv.ParseBool(v)
		spec.Shared = &b
		return err
	})
}

func poolCreateCommand(env *Env) *command {
	var spec api.PoolSpec
	return apiCommand(env, "Make a pool", "[options] <name>",
		"Makes a pool, whose sandboxes start in the background. A create of the same template and size takes one of them, and starts one itself where none is ready.",
		1, 1, func(o *options) { poolFlags(o, &spec) },
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			if spec.Template == nil {
				return nil, nil, usagef("name a template with -template")
			}
			p, err := c.CreatePool(ctx, api.NewPool{Name: args[0], PoolSpec: spec})
			return p, poolFacts(p), err
		})
}

func poolUpdateCommand(env *Env) *command {
	var spec api.PoolSpec
	return apiCommand(env, "Change a pool", "[options] <name>",
		"Changes what the options name of a pool; the rest stays. Sandboxes that do not fit any more are replaced.",
		1, 1, func(o *options) { poolFlags(o, &spec) },
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			p, err := c.ChangePool(ctx, args[0], spec)
			return p, poolFacts(p), err
		})
}

func poolDeleteCommand(env *Env) *command {
	return apiCommand(env, "Delete a pool", "<name>", "Forgets a pool and ends the sandboxes that nobody has taken. Those that came from it go on.", 1, 1, nil,
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			return nil, nil, c.DeletePool(ctx, args[0])
		})
}
