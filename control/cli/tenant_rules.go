package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// tenantRules are the flags for what a tenant's record says of its sandboxes.
type tenantRules struct {
	defaults, maximums, isolation map[string]string
}

func (t *tenantRules) flags(o *options) {
	const sizes = "cpu (cores), memory, disk, timeout, in and out (Mbit/s of the link); \"none\" is the service's own. Can be given more than once."
	o.Pairs(&t.defaults, "default", "What a sandbox gets whose create does not say: "+sizes, nil)
	o.Pairs(&t.maximums, "maximum", "What any sandbox may have at most: "+sizes, nil)
	o.Pairs(&t.isolation, "isolation", "network, storage or compute, as shared or dedicated. Can be given more than once.", nil)
}

// changeSizes puts the flags of one kind over what holds.
func changeSizes(flag string, given map[string]string, d *api.TenantDefaults) error {
	for name, text := range given {
		var err error
		none := text == "none"
		switch name {
		case "cpu":
			d.CPUMillis = 0
			if !none {
				var cores float64
				cores, err = strconv.ParseFloat(text, 64)
				if d.CPUMillis = int64(cores * 1000); err != nil || !(cores > 0 && cores <= 4096) {
					err = fmt.Errorf("%.40q is no number of cores", text)
				}
			}
		case "memory", "disk":
			to := &d.MemoryMB
			if name == "disk" {
				to = &d.DiskMB
			}
			*to = 0
			if !none {
				*to, err = parseMebibytes(text)
			}
		case "timeout":
			d.TimeoutSeconds = 0
			if !none {
				var t time.Duration
				t, err = time.ParseDuration(text)
				if d.TimeoutSeconds = int64(t / time.Second); err != nil || d.TimeoutSeconds <= 0 {
					err = fmt.Errorf("%.40q is not a duration of at least a second", text)
				}
			}
		case "in", "out":
			to := &d.BandwidthIn
			if name == "out" {
				to = &d.BandwidthOut
			}
			*to = 0
			if !none {
				if *to, err = strconv.ParseInt(text, 10, 64); err != nil || *to <= 0 {
					err = fmt.Errorf("%.40q is no number of Mbit/s", text)
				}
			}
		default:
			err = fmt.Errorf("%.40q is none of cpu, memory, disk, timeout, in, out", name)
		}
		if err != nil {
			return usagef("-%s %s: %w", flag, name, err)
		}
	}
	return nil
}

func changeIsolation(given map[string]string, i *api.TenantIsolation) error {
	for name, level := range given {
		to := map[string]*string{"network": &i.Network, "storage": &i.Storage, "compute": &i.Compute}[name]
		if to == nil {
			return usagef("-isolation: %.40q is none of network, storage, compute", name)
		}
		*to = level
	}
	return nil
}

// over puts the flags over what holds.
func (t *tenantRules) over(defaults, maximums *api.TenantDefaults, isolation *api.TenantIsolation) error {
	if err := changeSizes("default", t.defaults, defaults); err != nil {
		return err
	}
	if err := changeSizes("maximum", t.maximums, maximums); err != nil {
		return err
	}
	return changeIsolation(t.isolation, isolation)
}

func tenantUpdateCommand(env *Env) *command {
	var (
		rules  tenantRules
		name   string
		labels map[string]string
	)
	return apiCommand(env, "Change a tenant", "[options] <id>", "Changes a tenant. What is not named stays; labels are replaced as a whole.", 1, 1,
		func(o *options) {
			o.String(&name, "name", "<text>", "Name for people.", nil)
			o.Pairs(&labels, "label", "Label, as name=value. Can be given more than once.", nil)
			rules.flags(o)
		},
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			var change api.TenantChange
			if name != "" {
				change.Name = &name
			}
			if labels != nil {
				change.Labels = &labels
			}
			if rules.defaults != nil || rules.maximums != nil || rules.isolation != nil {
				now, err := c.GetTenant(ctx, args[0])
				if err != nil {
					return nil, nil, err
				}
				if err := rules.over(&now.Defaults, &now.Maximums, &now.Isolation); err != nil {
					return nil, nil, err
				}
				change.Defaults, change.Maximums, change.Isolation = &now.Defaults, &now.Maximums, &now.Isolation
			}
			if change == (api.TenantChange{}) {
				return nil, nil, usagef("nothing is to be changed: see %s tenant update -help", Name)
			}
			t, err := c.UpdateTenant(ctx, args[0], change)
			return t, tenantRows(t), err
		})
}

// sizesText shows sizes in a table.
func sizesText(d api.TenantDefaults) string {
	var out []string
	for _, v := range []struct {
		name string
		n    int64
		unit string
	}{
		{"cpu", d.CPUMillis, "m"}, {"memory", d.MemoryMB, " MiB"}, {"disk", d.DiskMB, " MiB"}, {"timeout", d.TimeoutSeconds, " s"},
		{"in", d.BandwidthIn, " Mbit/s"}, {"out", d.BandwidthOut, " Mbit/s"},
	} {
		if v.n > 0 {
			out = append(out, fmt.Sprintf("%s %d%s", v.name, v.n, v.unit))
		}
	}
	return strings.Join(out, ", ")
}
