package core_test

import (
	"os"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/core"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCore_restartKeepsKeysAndSandboxes(t *testing.T) {
	s := coretest.New(t, nil)
	must.True(t, s.Bootstrapped)
	file, err := os.ReadFile(s.BootstrapFile)
	must.NoError(t, err)
	key := strings.TrimSpace(string(file))
	must.Eq(t, s.Bootstrap.E2BKey(), key)
	sb, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.NoError(t, err)
	for range 3 {
		s.Stop()
		s.Start(t)
		must.False(t, s.Bootstrapped)
		who, err := s.Auth.Verify(key)
		must.NoError(t, err)
		must.Eq(t, state.DefaultTenant, who.Tenant)
		now, err := s.Sandboxes.Get(t.Context(), sb.Tenant, sb.ID)
		must.NoError(t, err)
		must.Eq(t, sb, now)
		_, err = s.Sandboxes.NodeFor(t.Context(), sb.Tenant, sb.ID)
		must.NoError(t, err)
	}
	must.Eq(t, 1, s.Node.Created(sb.ID))
}

func TestOpen_refusesNonsenseAndLeavesNothingRunning(t *testing.T) {
	_, err := core.Open(t.Context(), core.Config{})
	must.ErrorContains(t, err, "required")
	s := coretest.New(t, nil)
	bad := s.Config
	bad.DataDir, bad.RaftAddr = t.TempDir(), "nonsense"
	_, err = core.Open(t.Context(), bad)
	must.ErrorContains(t, err, "nonsense")
}
