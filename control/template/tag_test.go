package template_test

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/control/template"
)

func TestTags_keepTheirContentWhenTheNameGetsAnother(t *testing.T) {
	s := coretest.New(t, nil)
	const tenant = state.DefaultTenant
	first, err := s.Templates.Import(t.Context(), tenant, "mine", "", strings.NewReader("one"))
	must.NoError(t, err)
	_, err = s.Templates.Tag(t.Context(), tenant, "mine", []string{"v1", "stable"})
	must.NoError(t, err)
	second, err := s.Templates.Import(t.Context(), tenant, "mine", "", strings.NewReader("two"))
	must.NoError(t, err)
	must.NotEq(t, first.Digest, second.Digest)
	must.Eq(t, template.ID(first), template.ID(second), must.Sprint("the id is the name's"))
	for name, want := range map[string]string{
		"mine": second.Digest, "mine:default": second.Digest, "mine:v1": first.Digest, tenant + "/mine:stable": first.Digest, template.ID(first) + ":v1": first.Digest,
	} {
		got, err := s.Templates.Resolve(t.Context(), tenant, name)
		must.NoError(t, err, must.Sprint(name))
		must.Eq(t, want, got.Digest, must.Sprint(name))
	}
	must.True(t, s.Node.HasTemplate("mine:v1"), must.Sprint("its node keeps it by this name"))

	_, err = s.Templates.Tag(t.Context(), tenant, "mine:v1", []string{"default"}) // back to what it was
	must.NoError(t, err)
	got, err := s.Templates.Resolve(t.Context(), tenant, "mine")
	must.NoError(t, err)
	must.Eq(t, first.Digest, got.Digest)

	must.NoError(t, s.Templates.Untag(t.Context(), tenant, "mine", []string{"stable"}))
	_, err = s.Templates.Find(tenant, "mine:stable")
	must.True(t, api.IsNotFound(err))
	must.Eq(t, 404, api.StatusOf(s.Templates.Untag(t.Context(), tenant, "mine", []string{"stable"})))
	must.Eq(t, 400, api.StatusOf(s.Templates.Untag(t.Context(), tenant, "mine", []string{"default"})))
	_, err = s.Templates.Tag(t.Context(), tenant, "nosuch", []string{"v1"})
	must.Eq(t, 404, api.StatusOf(err))
	_, err = s.Templates.Tag(t.Context(), "mallory", "mine", []string{"v1"})
	must.Eq(t, 404, api.StatusOf(err))

	must.NoError(t, s.Templates.Delete(t.Context(), tenant, "mine"))
	for _, name := range []string{"mine", "mine:v1"} {
		_, err = s.Templates.Find(tenant, name)
		must.True(t, api.IsNotFound(err), must.Sprint(name))
	}
}

func TestPublish_letsOthersUseIt(t *testing.T) {
	s := coretest.New(t, nil)
	made, err := s.Templates.Import(t.Context(), state.DefaultTenant, "mine", "", strings.NewReader("one"))
	must.NoError(t, err)
	_, err = s.Templates.Tag(t.Context(), state.DefaultTenant, "mine", []string{"v1"})
	must.NoError(t, err)
	names := []string{state.DefaultTenant + "/mine", state.DefaultTenant + "/mine:v1"}
	for _, public := range []bool{false, true, false} {
		_, err = s.Templates.Publish(t.Context(), state.DefaultTenant, template.ID(made), public)
		must.NoError(t, err)
		for _, name := range names {
			got, err := s.Templates.Resolve(t.Context(), "other", name)
			if !public {
				must.Eq(t, 404, api.StatusOf(err))
				continue
			}
			must.NoError(t, err)
			must.Eq(t, made.Digest, got.Digest)
		}
	}
	_, err = s.Templates.Resolve(t.Context(), "other", "mine")
	must.Eq(t, 404, api.StatusOf(err), must.Sprint("never by its bare name"))
	_, err = s.Templates.Publish(t.Context(), "other", "mine", true)
	must.Eq(t, 404, api.StatusOf(err))
}

func TestSpawns_areCounted(t *testing.T) {
	s := coretest.New(t, nil)
	_, err := s.Templates.Import(t.Context(), state.DefaultTenant, "mine", "", strings.NewReader("one"))
	must.NoError(t, err)
	p := coretest.Params()
	p.Template = "mine"
	for range 3 {
		sb, _, err := s.Sandboxes.Create(t.Context(), p)
		must.NoError(t, err)
		must.NoError(t, s.Sandboxes.Delete(t.Context(), state.DefaultTenant, sb.ID))
	}
	got, err := s.Templates.Find(state.DefaultTenant, "mine")
	must.NoError(t, err)
	must.Eq(t, 3, got.SpawnCount)
	must.False(t, got.SpawnedAt.IsZero())
}
