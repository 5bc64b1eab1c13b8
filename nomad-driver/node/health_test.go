package node

import (
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func checkOf(t *testing.T, list []nodeapi.Check, name string) nodeapi.Check {
	t.Helper()
	for _, c := range list {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("there is no check %q among %+v", name, list)
	return nodeapi.Check{}
}

func TestChecks_oneUsefulLineOfEachConcern(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	list := n.Node.Info().Checks
	var names []string
	for _, c := range list {
		names = append(names, c.Name)
		must.NotEq(t, "", c.Output, must.Sprint(c.Name))
		must.False(t, strings.Contains(c.Output, "\n"), must.Sprint(c.Output))
	}
	must.Eq(t, nodeapi.CheckNames(), names)
	must.Eq(t, nodeapi.CheckPassing, checkOf(t, list, nodeapi.CheckRuntime).Status)
	must.StrContains(t, checkOf(t, list, nodeapi.CheckDisk).Output, "GiB are free")
	names = nil
	for _, c := range n.Node.health().Checks {
		names = append(names, c.Name)
	}
	must.Eq(t, nodeapi.CheckNames(), names, must.Sprint("the stream tells of the same"))
}

func TestChecks_aFullDiskIsCriticalAndKeepsWorkAway(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	n.Node.cfg.DiskReserve = 1 << 60
	info := n.Node.Info()
	disk := checkOf(t, info.Checks, nodeapi.CheckDisk)
	must.Eq(t, nodeapi.CheckCritical, disk.Status)
	must.StrContains(t, disk.Output, "less than its reserve")
	must.False(t, info.Healthy)
	must.Eq(t, disk.Output, info.Reason)
	must.Eq(t, nodeapi.CheckPassing, checkOf(t, info.Checks, nodeapi.CheckRuntime).Status, must.Sprint("one concern is not another"))
}

func TestClock_tellsOfAStepForAWhile(t *testing.T) {
	c := newClock()
	c.synced = func() (bool, time.Duration, error) { return true, 3 * time.Millisecond, nil }
	now := time.Now()
	must.Eq(t, nodeapi.Check{Name: nodeapi.CheckClock, Status: nodeapi.CheckPassing, Output: "synchronized, at most 3ms off"}, c.check(now))

	c.mu.Lock()
	c.note(-3*time.Hour, now) // as when the machine's clock is set back
	c.mu.Unlock()
	got := c.check(now.Add(time.Minute))
	must.Eq(t, nodeapi.CheckWarning, got.Status)
	must.Eq(t, "it was set by -3h0m0s, 1m0s ago", got.Output)
	must.Eq(t, nodeapi.CheckPassing, c.check(now.Add(clockStepTold)).Status)

	c.synced = func() (bool, time.Duration, error) { return false, 0, nil }
	got = c.check(now.Add(clockStepTold))
	must.Eq(t, nodeapi.CheckPassing, got.Status)
	must.StrContains(t, got.Output, "unsynchronized")
}
