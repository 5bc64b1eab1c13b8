package pid1

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// privateKiB returns the anonymous memory of a process: what one more idle sandbox costs, its text being shared.
func privateKiB(t *testing.T, pid int) (kib int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	must.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if _, err := fmt.Sscanf(line, "Anonymous: %d kB", &kib); err == nil {
			return kib
		}
	}
	t.Fatal("smaps_rollup has no line Anonymous")
	return 0
}

// raceDetector is set in a build with the race detector.
var raceDetector bool

// Memory that work took is given back. The bound is far above what soulbox-init needs, because the test binary brings the
// test's packages with it.
func TestMemory_idle(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector keeps memory of its own")
	}
	g := startGuest(t, guest.Boot{})
	begin := privateKiB(t, g.cmd.Process.Pid)
	for range 50 {
		all(t, g.sh("head -c 300000 /dev/zero"))
	}
	busy := privateKiB(t, g.cmd.Process.Pid)
	until(t, "memory is given back", func() bool {
		return privateKiB(t, g.cmd.Process.Pid) < begin+(keptOutput+8*guest.RingBytes+(2<<20))/1024
	})
	t.Logf("at first %d KiB, after 50 processes %d KiB, idle %d KiB", begin, busy, privateKiB(t, g.cmd.Process.Pid))
}
