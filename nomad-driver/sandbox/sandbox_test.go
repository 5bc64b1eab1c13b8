package sandbox_test

import (
	"testing"

	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { sandboxtest.Main(m) }

func TestCreate_serves(t *testing.T) {
	h := sandboxtest.NewHost(t)
	s := h.Create(t, h.Config())
	for _, st := range s.Steps() {
		t.Logf("%-16s %6d µs", st.Name, st.Nanos/1000)
	}
}
