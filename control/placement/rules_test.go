package placement

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

func rule(attribute, operator, value string) api.PlacementRule {
	return api.PlacementRule{Attribute: attribute, Operator: operator, Value: value}
}

func TestParseRules_refusesWhatASchedulerWouldInterpret(t *testing.T) {
	affinity := func(weight int) *api.Placement {
		return &api.Placement{Affinities: []api.PlacementAffinity{{PlacementRule: rule("label.zone", "", "a"), Weight: weight}}}
	}
	device := func(name string, count int, rules ...api.PlacementRule) *api.Placement {
		return &api.Placement{Devices: []api.DeviceRequest{{Name: name, Count: count, Constraints: rules}}}
	}
	of := func(r api.PlacementRule) *api.Placement { return &api.Placement{Constraints: []api.PlacementRule{r}} }
	for name, c := range map[string]struct {
		p    *api.Placement
		want string
	}{
		"interpolated attribute": {of(rule("${node.unique.id}", "=", "x")), "placement.constraints[0].attribute"},
		"another's pool":         {of(rule("node.pool", "=", "soulbox-other")), "attribute"},
		"interpolated value":     {of(rule("node.name", "=", "a${meta.secret}")), "value"},
		"line in a value":        {of(rule("node.name", "=", "a\nb")), "value"},
		"long value":             {of(rule("node.name", "=", strings.Repeat("x", 257))), "value"},
		"no value":               {of(rule("node.name", "=", "")), "value"},
		"value of none":          {of(rule("label.gpu", "is_set", "yes")), "value"},
		"operator":               {of(rule("node.name", "distinct_hosts", "true")), "operator"},
		"expression":             {of(rule("node.name", "regexp", "(")), "regular expression"},
		"version":                {of(rule("attr.kernel.version", "version", "nonsense")), "condition on a version"},
		"no weight":              {affinity(0), "placement.affinities[0].weight"},
		"too much weight":        {affinity(101), "weight"},
		"strategy":               {&api.Placement{Strategy: "random"}, "strategy"},
		"priority":               {&api.Placement{Priority: 101}, "priority"},
		"device of four parts":   {device("a/b/c/d", 1), "placement.devices[0].name"},
		"interpolated device":    {device("${node.id}", 1), "placement.devices[0].name"},
		"fewer than none":        {device("gpu", -1), "placement.devices[0].count"},
		"device's attribute":     {device("gpu", 1, rule("${device.model}", "", "x")), "placement.devices[0].constraints[0].attribute"},
		"device's value":         {device("gpu", 1, rule("model", "", "${x}")), "placement.devices[0].constraints[0].value"},
		"device twice":           {&api.Placement{Devices: []api.DeviceRequest{{Name: "gpu"}, {Name: "gpu"}}}, "placement.devices[1].name"},
		"too many devices":       {&api.Placement{Devices: make([]api.DeviceRequest, 9)}, "at most 8"},
		"too many":               {&api.Placement{Constraints: make([]api.PlacementRule, 17)}, "at most 16"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseRules(c.p)
			must.Eq(t, api.CodeInvalid, api.CodeOf(err))
			must.ErrorContains(t, err, c.want)
		})
	}
}

func TestParseRules_areComparable(t *testing.T) {
	for _, p := range []*api.Placement{nil, {}} {
		r, err := ParseRules(p)
		must.NoError(t, err)
		must.Eq(t, Rules(""), r)
	}
	a, err := ParseRules(&api.Placement{Constraints: []api.PlacementRule{rule("node.datacenter", "", "dc1")}, Strategy: api.PlaceSpread})
	must.NoError(t, err)
	b, err := ParseRules(&api.Placement{Constraints: []api.PlacementRule{rule("node.datacenter", "=", "dc1")}, Strategy: api.PlaceSpread})
	must.NoError(t, err)
	must.Eq(t, a, b)
	must.Eq(t, "dc1", a.Placement().Constraints[0].Value)
}

func TestRules_devicesOfBoth(t *testing.T) {
	parse := func(d ...api.DeviceRequest) Rules {
		r, err := ParseRules(&api.Placement{Devices: d})
		must.NoError(t, err)
		return r
	}
	both, err := parse(api.DeviceRequest{Name: "gpu"}, api.DeviceRequest{Name: "nic"}).And(parse(api.DeviceRequest{Name: "gpu", Count: 2}))
	must.NoError(t, err)
	must.Eq(t, parse(api.DeviceRequest{Name: "gpu", Count: 2}, api.DeviceRequest{Name: "nic", Count: 1}), both)
}

func TestRules_allowAsTheSchedulerDoes(t *testing.T) {
	node := map[string]string{"node.name": "a1", "attr.kernel.version": "6.18.5", "attr.cpu.numcores": "16", "label.disks": "ssd,nvme", "kernel.idmapped_mounts": "true", "label.kernel": "6.18.5-cloud"}
	for _, c := range []struct {
		r    api.PlacementRule
		want bool
	}{
		{rule("node.name", "=", "a1"), true},
		{rule("node.name", "!=", "a1"), false},
		{rule("label.gpu", "!=", "none"), true},
		{rule("node.name", "regexp", "^a[0-9]$"), true},
		{rule("attr.kernel.version", "version", ">= 6.1, < 7"), true},
		{rule("attr.kernel.version", "version", ">= 7"), false},
		{rule("label.kernel", "version", ">= 6.1"), false},
		{rule("label.kernel", "semver", ">= 6.1"), true},
		{rule("attr.cpu.numcores", ">=", "8"), true},
		{rule("attr.cpu.numcores", "<", "9"), false},
		{rule("label.disks", "set_contains", "nvme,ssd"), true},
		{rule("label.disks", "set_contains", "nvme,tape"), false},
		{rule("label.disks", "set_contains_any", "tape,nvme"), true},
		{rule("label.disks", "set_contains_any", "tape"), false},
		{rule("label.gpu", "is_set", ""), false},
		{rule("label.gpu", "is_not_set", ""), true},
		{rule("label.gpu", "=", "a100"), false},
		{rule("kernel.idmapped_mounts", "=", "true"), true},
	} {
		r, err := ParseRules(&api.Placement{Constraints: []api.PlacementRule{c.r}})
		must.NoError(t, err)
		must.Eq(t, c.want, r.Allows(node) == "", must.Sprintf("%+v: %s", c.r, r.Allows(node)))
	}
	r, err := ParseRules(&api.Placement{Constraints: []api.PlacementRule{rule("node.name", "=", "b")}})
	must.NoError(t, err)
	must.Eq(t, `node.name is "a1", which is not = b`, r.Allows(node))
}

func TestAnd_bothHold(t *testing.T) {
	rule := func(attribute, value string) api.PlacementRule {
		return api.PlacementRule{Attribute: attribute, Operator: "=", Value: value}
	}
	parse := func(p api.Placement) Rules {
		r, err := ParseRules(&p)
		must.NoError(t, err)
		return r
	}
	ssd, zone := rule("label.disk", "ssd"), rule("label.zone", "a")
	template := parse(api.Placement{Constraints: []api.PlacementRule{ssd}, Strategy: api.PlaceSpread, Priority: 60})
	asked := parse(api.Placement{Constraints: []api.PlacementRule{ssd, zone}, Strategy: api.PlaceBinPack})
	for _, tc := range []struct {
		name    string
		a, b    Rules
		want    api.Placement
		refused string
	}{
		{"nothing and nothing", "", "", api.Placement{}, ""},
		{"a template's alone", template, "", template.Placement(), "label.disk"},
		{"a create's alone", "", asked, asked.Placement(), "label.disk"},
		{"both, each once", template, asked, api.Placement{Constraints: []api.PlacementRule{ssd, zone}, Strategy: api.PlaceBinPack, Priority: 60}, "label.disk"},
		{"the same twice", asked, asked, asked.Placement(), "label.disk"},
	} {
		got, err := tc.a.And(tc.b)
		must.NoError(t, err)
		must.Eq(t, tc.want, got.Placement(), must.Sprint(tc.name))
		must.StrContains(t, got.Allows(map[string]string{"label.zone": "a"}), tc.refused)
	}
}
