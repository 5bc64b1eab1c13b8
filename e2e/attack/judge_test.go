package attack

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

var report = flag.Bool("report", false, "print each case, what came of it inside, and what was compared on the host")

var profiles = []string{"default", "strict"}

// judgement is one case under way: what it must not change is compared when it ends.
type judgement struct {
	t      *testing.T
	a      *arena
	id     string // of the list of attacks
	name   string
	before facts
	kernel *kernelLog
	rows   []string
}

// judge begins a case.
func (a *arena) judge(t *testing.T, id, name string) *judgement {
	t.Helper()
	return &judgement{t: t, a: a, id: id, name: name, before: a.look(t), kernel: listen(t)}
}

// inside records what an attempt came to.
func (j *judgement) inside(where, what, got string) {
	j.rows = append(j.rows, fmt.Sprintf("      %-8s %-46s → %s", where, what, oneLine(got)))
}

// host records a comparison on the host that is the case's own, and fails the case where it does not hold.
func (j *judgement) host(holds bool, format string, args ...any) {
	j.t.Helper()
	what := fmt.Sprintf(format, args...)
	if !holds {
		j.t.Errorf("%s: not so on the host: %s", j.id, what)
		what = "NOT SO: " + what
	}
	j.rows = append(j.rows, "      host     "+what)
}

// end compares what every case compares, and prints the case where asked to.
func (j *judgement) end() {
	j.t.Helper()
	now := j.a.look(j.t)
	changed := j.before.changed(now)
	strays := j.a.strays(j.t)
	kernel := j.kernel.bad()
	sums := j.a.neighbourSums(j.t)
	for what, found := range map[string][]string{"changed on the host": changed, "strays": strays, "the kernel says": kernel} {
		if len(found) > 0 {
			j.t.Errorf("%s: %s:\n  %s", j.id, what, strings.Join(found, "\n  "))
		}
	}
	if sums != j.a.sums {
		j.t.Errorf("%s: the neighbour sees other bytes:\n%swant\n%s", j.id, sums, j.a.sums)
	}
	if !*report {
		return
	}
	verdict := "ok"
	if j.t.Failed() {
		verdict = "FAILED"
	}
	log := "its log is clean"
	if j.kernel.fd < 0 {
		log = "its log is not readable"
	}
	fmt.Fprintf(os.Stdout, "%-4s %-74s %s\n%s\n      host     %d facts as before (files, settings, templates, init, mounts, clock), no stray process or group, the neighbour reads its own bytes, the kernel runs and %s\n",
		j.id, j.name, verdict, strings.Join(j.rows, "\n"), len(now), log)
}

// answers of attempts by profile: "" is every profile, "default" and "strict" win over it. Alternatives are separated
// by "|".
type answers map[string]string

// attempts runs a case of the intruder in a new sandbox of each profile, and holds each answer against what is wanted:
// the attempt's own, else the case's, else refused.
func (a *arena) attempts(t *testing.T, id, name, user string, want answers, own map[string]answers) {
	t.Helper()
	t.Run(id, func(t *testing.T) {
		j := a.judge(t, id, name)
		defer j.end()
		for _, p := range profiles {
			sb := a.create(t, profile(p))
			out := a.ok(t, sb.ID, user, "intruder", id)
			lines := strings.Split(strings.TrimSpace(out), "\n")
			must.Positive(t, len(lines))
			for _, line := range lines {
				what, got, ok := strings.Cut(line, "\t")
				must.True(t, ok, must.Sprint(line))
				j.inside(p, what, got)
				w := wanted(p, own[what], want)
				if !slices.Contains(strings.Split(w, "|"), got) {
					t.Errorf("%s in %s: %s came to %q, want %q", id, p, what, got, w)
				}
			}
			h, err := a.node.Health(t.Context(), sb.ID)
			must.NoError(t, err)
			must.True(t, h.Healthy)
			a.destroy(t, sb.ID)
		}
	})
}

func wanted(profile string, levels ...answers) string {
	for _, l := range levels {
		for _, key := range []string{profile, ""} {
			if w, ok := l[key]; ok {
				return w
			}
		}
	}
	return "EPERM"
}

// each runs a case of its own making in both profiles.
func (a *arena) each(t *testing.T, id, name string, f func(t *testing.T, j *judgement, profile string, id api.SandboxID)) {
	t.Helper()
	t.Run(id, func(t *testing.T) {
		j := a.judge(t, id, name)
		defer j.end()
		for _, p := range profiles {
			sb := a.create(t, profile(p))
			f(t, j, p, sb.ID)
			a.destroy(t, sb.ID)
		}
	})
}
