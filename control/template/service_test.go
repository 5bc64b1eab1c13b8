package template_test

import (
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/control/template"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestImport_isRecordedAndUsable(t *testing.T) {
	s := coretest.New(t, nil)
	made, err := s.Templates.Import(t.Context(), state.DefaultTenant, "mine", "mine.tar", strings.NewReader("tar"))
	must.NoError(t, err)
	must.Eq(t, "mine.tar", made.Source)
	must.True(t, s.Node.HasTemplate(made.Digest))
	coretest.Until(t, "it resolves", func() bool {
		got, err := s.Templates.Resolve(t.Context(), state.DefaultTenant, "mine")
		return err == nil && got.Digest == made.Digest
	})
	for _, name := range []string{"mine:default", state.DefaultTenant + "/mine", template.ID(made), made.Digest} {
		got, err := s.Templates.Resolve(t.Context(), state.DefaultTenant, name)
		must.NoError(t, err)
		must.Eq(t, "mine", got.Name)
	}
	old := s.Node.PutTemplate("", []byte("what mine was before")) // kept for its sandboxes, and nobody's name any more
	coretest.Until(t, "its node reports it", func() bool {
		_, err := s.Templates.Resolve(t.Context(), state.DefaultTenant, old.Digest)
		return err == nil
	})
	list, err := s.Templates.List(state.DefaultTenant)
	must.NoError(t, err)
	must.Len(t, 2, list)
	must.Eq(t, []string{"base", "mine"}, []string{list[0].Name, list[1].Name})

	p := coretest.Params()
	p.Template = "mine"
	sb, _, err := s.Sandboxes.Create(t.Context(), p)
	must.NoError(t, err)
	must.Eq(t, made.Digest, sb.Digest)

	must.NoError(t, s.Templates.Delete(t.Context(), state.DefaultTenant, "mine"))
	coretest.Until(t, "it is gone", func() bool {
		_, err := s.Templates.Resolve(t.Context(), state.DefaultTenant, "mine")
		return api.StatusOf(err) == 404
	})
	must.Eq(t, 404, api.StatusOf(s.Templates.Delete(t.Context(), state.DefaultTenant, "mine")))
}

func TestImport_refusesOddNames(t *testing.T) {
	s := coretest.New(t, nil)
	for _, name := range []string{"", "Upper", "a/b", "../x", "a b", "-a", strings.Repeat("a", 129), "a\x00", "sha256:abc"} {
		_, err := s.Templates.Import(t.Context(), state.DefaultTenant, name, "", strings.NewReader("tar"))
		must.Eq(t, 400, api.StatusOf(err), must.Sprint(name))
	}
}

func TestResolve_withoutTheNodeThatHasIt(t *testing.T) {
	s := coretest.New(t, nil)
	_, err := s.Templates.Import(t.Context(), state.DefaultTenant, "mine", "", strings.NewReader("tar"))
	must.NoError(t, err)
	s.Node.Kill()
	coretest.Until(t, "it is unavailable, not unknown", func() bool {
		_, err := s.Templates.Resolve(t.Context(), state.DefaultTenant, "mine")
		return api.StatusOf(err) == 503
	})
}

func TestSpread_copiesToNodesThatLackIt(t *testing.T) {
	s := coretest.New(t, nil)
	made, err := s.Templates.Import(t.Context(), state.DefaultTenant, "mine", "", strings.NewReader("tar"))
	must.NoError(t, err)
	second := fleettest.New(t)
	must.NoError(t, s.Directory.Set(
		health.Node{Address: "unix://" + s.Node.Socket}, health.Node{Address: "unix://" + second.Socket}))
	coretest.Until(t, "both are connected and the copy is there", func() bool {
		s.Templates.Spread(t.Context())
		time.Sleep(10 * time.Millisecond)
		return second.HasTemplate(made.Digest)
	})
}

func TestResolve_anotherTenantsTemplateIsNotThere(t *testing.T) {
	s := coretest.New(t, nil)
	made, err := s.Templates.Import(t.Context(), state.DefaultTenant, "mine", "", strings.NewReader("tar"))
	must.NoError(t, err)
	coretest.Until(t, "the owner's resolves", func() bool {
		_, err := s.Templates.Resolve(t.Context(), state.DefaultTenant, "mine")
		return err == nil
	})
	for _, name := range []string{"mine", "mine:default", made.Digest} {
		_, err := s.Templates.Resolve(t.Context(), "mallory", name)
		must.Eq(t, 404, api.StatusOf(err), must.Sprint(name))
	}
	must.Eq(t, 404, api.StatusOf(s.Templates.Delete(t.Context(), "mallory", "mine")))
	must.True(t, s.Node.HasTemplate(made.Digest))
	list, err := s.Templates.List("mallory")
	must.NoError(t, err)
	must.Len(t, 1, list) // what the operator imported on the node is everybody's
	must.Eq(t, "base", list[0].Name)
}
