package cli

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

func TestParseDevice(t *testing.T) {
	for text, want := range map[string]api.DeviceRequest{
		"gpu":                  {Name: "gpu"},
		"2 nvidia/gpu":         {Name: "nvidia/gpu", Count: 2},
		"nvidia/gpu/Tesla K80": {Name: "nvidia/gpu/Tesla K80"},
		"1 gpu, attr.memory >= 8 GiB, model = x": {Name: "gpu", Count: 1, Constraints: []api.PlacementRule{
			{Attribute: "attr.memory", Operator: ">=", Value: "8 GiB"}, {Attribute: "model", Operator: "=", Value: "x"},
		}},
	} {
		got, err := parseDevice(text)
		must.NoError(t, err, must.Sprint(text))
		must.Eq(t, want, got)
	}
	for _, text := range []string{"", "gpu, model", ","} {
		_, err := parseDevice(text)
		must.Error(t, err, must.Sprint(text))
	}
}

func TestParseRule(t *testing.T) {
	for text, want := range map[string]api.PlacementRule{
		"node.datacenter = dc1":                        {Attribute: "node.datacenter", Operator: "=", Value: "dc1"},
		"  label.disk  set_contains  ssd,nvme ":        {Attribute: "label.disk", Operator: "set_contains", Value: "ssd,nvme"},
		"attr.kernel.version semver >= 6.1, < 7":       {Attribute: "attr.kernel.version", Operator: "semver", Value: ">= 6.1, < 7"},
		"label.gpu is_set":                             {Attribute: "label.gpu", Operator: "is_set"},
		"node.name regexp ^gpu-[0-9]+ of the basement": {Attribute: "node.name", Operator: "regexp", Value: "^gpu-[0-9]+ of the basement"},
	} {
		got, err := parseRule(text)
		must.NoError(t, err, must.Sprint(text))
		must.Eq(t, want, got)
	}
	for _, text := range []string{"", "node.name", "node.name=x"} {
		_, err := parseRule(text)
		must.Error(t, err, must.Sprint(text))
	}
}
