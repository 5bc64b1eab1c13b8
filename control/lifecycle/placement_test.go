package lifecycle_test

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
)

// What a template says of where its sandboxes may run holds beside what a create asks for, and only for those that are made from then on.
func TestCreate_whereItsTemplateMayRun(t *testing.T) {
	s := coretest.New(t, nil)
	ownTemplate(t, s, "mine", state.NetworkPolicy{})
	rules := func(name string) placement.Rules {
		r, err := placement.ParseRules(&api.Placement{Constraints: []api.PlacementRule{{Attribute: "node.name", Value: name}}})
		must.NoError(t, err)
		return r
	}
	here := ""
	for _, n := range s.Fleet.Nodes() {
		here = n.Self.Name
	}
	p := coretest.Params()
	p.Template = "mine"
	before, _, err := s.Sandboxes.Create(t.Context(), p)
	must.NoError(t, err)
	_, err = s.Templates.SetPlacement(t.Context(), state.DefaultTenant, "mine", rules("elsewhere"))
	must.NoError(t, err)
	_, _, err = s.Sandboxes.Create(t.Context(), p)
	must.ErrorContains(t, err, "elsewhere")
	_, err = s.Templates.SetPlacement(t.Context(), state.DefaultTenant, "mine", rules(here))
	must.NoError(t, err)
	after, _, err := s.Sandboxes.Create(t.Context(), p)
	must.NoError(t, err)
	must.Eq(t, string(rules(here)), after.Where)
	must.Eq(t, "", before.Where)
	p.Where = rules("elsewhere")
	_, _, err = s.Sandboxes.Create(t.Context(), p)
	must.ErrorContains(t, err, "elsewhere", must.Sprint("both must hold"))
}
