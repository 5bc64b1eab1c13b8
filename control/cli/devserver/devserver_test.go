package devserver

import (
	"fmt"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/node"
)

func TestIdentity_staysWithinWhatANodeTakes(t *testing.T) {
	seen := map[uint32]bool{}
	for i := range 1000 {
		group, first := identity(fmt.Sprintf("/var/lib/soulbox/dev%d", i))
		must.StrHasPrefix(t, "soulbox-dev-", group)
		must.GreaterEq(t, 1<<26, first)
		must.LessEq(t, 1<<31, uint64(first)+node.DefaultMaxSandboxes<<16)
		seen[first] = true
	}
	must.MapLen(t, slots, seen)
}

func TestIdentity_isOfTheFolder(t *testing.T) {
	a, firstA := identity("/x/dev")
	b, firstB := identity("/x/./dev/")
	must.Eq(t, a, b)
	must.Eq(t, firstA, firstB)
	c, _ := identity("/y/dev")
	must.NotEq(t, a, c)
}

func TestStart_badConfiguration(t *testing.T) {
	_, err := Start(t.Context(), Config{StateDir: "relative"})
	must.ErrorContains(t, err, "not an absolute path")
	_, err = StartCluster(t.Context(), Config{StateDir: "relative"})
	must.ErrorContains(t, err, "not an absolute path")
}
