package attack

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

var regenerate = flag.Bool("regenerate", false, "write testdata/syscalls.*.golden anew from what this kernel answers")

// sweep compares the answers with the golden ones. A call that the policy allows may be one that this kernel lacks; one
// that is refused in the golden map must be refused everywhere, by the same errno.
func sweep(t *testing.T, j *judgement, profile, out string) {
	t.Helper()
	path := "testdata/syscalls." + profile + ".golden"
	if *regenerate {
		must.NoError(t, os.MkdirAll("testdata", 0o755))
		must.NoError(t, os.WriteFile(path, []byte(out), 0o644))
	}
	golden, err := os.ReadFile(path)
	must.NoError(t, err)
	want := parseSweep(t, string(golden))
	got := parseSweep(t, out)
	must.Eq(t, len(want), len(got))
	count := map[string]int{}
	differ := 0
	for nr, g := range got {
		count[g]++
		w := want[nr]
		lacking := g == "ENOSYS" && w != "EPERM" && !strings.HasPrefix(w, "killed")
		if g != w && !lacking {
			differ++
			t.Errorf("%s: system call %s came to %q, want %q", profile, nr, g, w)
		}
	}
	j.inside(profile, fmt.Sprintf("%d calls", len(got)), fmt.Sprintf("%d differ from the golden map (EPERM %d, ENOSYS %d, ok %d)", differ, count["EPERM"], count["ENOSYS"], count["ok"]))
}

func parseSweep(t *testing.T, s string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(s) {
		nr, got, ok := strings.Cut(strings.TrimSpace(line), "\t")
		must.True(t, ok, must.Sprint(line))
		out[nr] = got
	}
	return out
}
