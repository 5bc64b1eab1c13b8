package posture

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestLandlock_saysWhatTheVersionHas(t *testing.T) {
	for _, c := range []struct {
		abi   int
		items string
		state State
	}{
		{0, "nothing", Mitigated},
		{1, "nothing", Mitigated},
		{2, "mounts, device nodes", Mitigated},
		{4, "mounts, device nodes", Mitigated},
		{5, "mounts, device nodes, ioctls", Mitigated},
		{6, "mounts, device nodes, ioctls, signals", Closed},
		{7, "mounts, device nodes, ioctls, signals", Closed},
	} {
		var names []string
		for _, i := range landlock(c.abi) {
			names = append(names, i.Name)
		}
		must.Eq(t, c.items, strings.Join(names, ", "), must.Sprint("version ", c.abi))
		f := landlockFinding(c.abi)
		must.Eq(t, c.state, f.State)
		must.Eq(t, c.abi < 2, f.Advice != "")
	}
	r, err := Look(Options{})
	must.NoError(t, err)
	for _, p := range r.Profiles {
		must.Positive(t, len(p.Landlock))
	}
	var text strings.Builder
	must.NoError(t, r.WriteText(&text))
	must.StrContains(t, text.String(), "Landlock, behind the other walls")
}
