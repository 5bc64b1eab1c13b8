package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
)

// placementFlags add the options that say where a sandbox may run. What is not given leaves *to nil.
func placementFlags(o *options, to **api.Placement) {
	p := func() *api.Placement {
		if *to == nil {
			*to = &api.Placement{}
		}
		return *to
	}
	o.Func("constraint", "<rule>", "Condition on its node, as in 'node.datacenter = dc1', 'label.disk = ssd', 'kernel.idmapped_mounts = true' or 'attr.kernel.version semver >= 6.1'. May be repeated.", nil,
		func(v string) error {
			r, err := parseRule(v)
			p().Constraints = append(p().Constraints, r)
			return err
		})
	o.Func("affinity", "<weight> <rule>", "Condition on its node that counts -100 to 100 where it holds, as in '50 label.zone = a'. May be repeated.", nil,
		func(v string) error {
			weight, rule, _ := strings.Cut(strings.TrimSpace(v), " ")
			n, err := strconv.Atoi(weight)
			if err != nil {
				return fmt.Errorf("%.40q does not begin with a weight", v)
			}
			r, err := parseRule(rule)
			p().Affinities = append(p().Affinities, api.PlacementAffinity{PlacementRule: r, Weight: n})
			return err
		})
	o.Func("device", "[count] <name>", "Device that is its own, as in 'nvidia/gpu' or '2 gpu'; conditions follow after commas, as in 'gpu, attr.memory >= 8 GiB'. May be repeated.", nil,
		func(v string) error {
			d, err := parseDevice(v)
			p().Devices = append(p().Devices, d)
			return err
		})
	o.Func("place", "<strategy>", "bin_pack: fill one node after the other; spread: take the emptiest.", complete.PredictSet(api.PlaceBinPack, api.PlaceSpread),
		func(v string) error { p().Strategy = v; return nil })
	o.Func("priority", "<1-100>", "The scheduler's priority, at most what the operator allows.", nil, func(v string) (err error) {
		p().Priority, err = strconv.Atoi(v)
		return err
	})
}

func templatePlacementCommand(env *Env) *command {
	var p *api.Placement
	return apiCommand(env, "Change where sandboxes of a template may run", "[options] <template>",
		"Replaces the placement rules of a template and its tags; without an option there are none any more. They hold for sandboxes that are made from then on, beside what their "+
			"creates ask for. Slots of pools that were placed by other rules are replaced.", 1, 1,
		func(o *options) { placementFlags(o, &p) },
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			if p == nil {
				p = &api.Placement{}
			}
			t, err := c.SetTemplatePlacement(ctx, args[0], *p)
			return t, placementRows(t.Placement), err
		})
}

// placementRows shows rules, one a line.
func placementRows(p api.Placement) [][]string {
	rows := [][]string{{"Kind", "Rule"}}
	for _, c := range p.Constraints {
		rows = append(rows, []string{"constraint", ruleWords(c)})
	}
	for _, a := range p.Affinities {
		rows = append(rows, []string{"affinity", fmt.Sprint(a.Weight, " ", ruleWords(a.PlacementRule))})
	}
	for _, d := range p.Devices {
		words := strconv.Itoa(d.Count) + " " + d.Name
		for _, c := range d.Constraints {
			words += ", " + ruleWords(c)
		}
		rows = append(rows, []string{"device", words})
	}
	if p.Strategy != "" {
		rows = append(rows, []string{"place", p.Strategy})
	}
	if p.Priority != 0 {
		rows = append(rows, []string{"priority", strconv.Itoa(p.Priority)})
	}
	return rows
}

func ruleWords(r api.PlacementRule) string {
	return strings.TrimSpace(r.Attribute + " " + r.Operator + " " + r.Value)
}

// parseDevice reads "[count] name[, rule…]".
func parseDevice(s string) (api.DeviceRequest, error) {
	name, rules, more := strings.Cut(s, ",")
	d := api.DeviceRequest{Name: strings.TrimSpace(name)}
	if count, rest, ok := strings.Cut(d.Name, " "); ok {
		if n, err := strconv.Atoi(count); err == nil {
			d.Count, d.Name = n, strings.TrimSpace(rest)
		}
	}
	if d.Name == "" {
		return d, fmt.Errorf("%.80q names no device", s)
	}
	for more {
		var rule string
		rule, rules, more = strings.Cut(rules, ",")
		r, err := parseRule(rule)
		if err != nil {
			return d, err
		}
		d.Constraints = append(d.Constraints, r)
	}
	return d, nil
}

// parseRule reads "attribute operator value". The value is everything behind the operator.
func parseRule(s string) (api.PlacementRule, error) {
	attribute, rest, _ := strings.Cut(strings.TrimSpace(s), " ")
	operator, value, _ := strings.Cut(strings.TrimSpace(rest), " ")
	if attribute == "" || operator == "" {
		return api.PlacementRule{}, fmt.Errorf("%.80q is not an attribute, an operator and a value with spaces between them", s)
	}
	return api.PlacementRule{Attribute: attribute, Operator: operator, Value: strings.TrimSpace(value)}, nil
}
