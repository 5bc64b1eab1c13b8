package cgroup

import (
	"os"
	"testing"

	"github.com/shoenig/test/must"
)

func TestExpectJoin_movesNobody(t *testing.T) {
	m := newKernel(t)
	g := newGroup(t, m, Limits{})
	read := func() string {
		b, err := os.ReadFile("/proc/self/cgroup")
		must.NoError(t, err)
		return string(b)
	}
	before := read()
	m.ExpectJoin()
	must.EqOp(t, before, read())
	cmd := run(t, g, "/bin/sleep", "1000")
	pids, err := g.Processes()
	must.NoError(t, err)
	must.Eq(t, []int{cmd.Process.Pid}, pids)
}
