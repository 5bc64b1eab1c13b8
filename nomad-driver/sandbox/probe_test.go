package sandbox_test

import (
	"testing"

	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

func TestProbes_leaveNothing(t *testing.T) {
	h := sandboxtest.NewHost(t)
	for range 2 {
		for _, p := range sandbox.Probes(t.Context(), h.StateDir, h.Init, h.Cgroups) {
			if p.Err != nil {
				t.Errorf("%s (needs %s): %v", p.Name, p.Needs, p.Err)
			}
		}
	}
}
