package sandbox_test

import (
	"os"
	"os/exec"
	"testing"

	"github.com/shoenig/test/must"
)

// Most machines share their mounts (systemd makes it so), others do not: what a restore mounts for itself shows on none of them. The tests are those that look at what is left.
func TestRestore_whereTheMachineSharesItsMounts(t *testing.T) {
	engine(t) // which skips where there is none
	self, err := os.Executable()
	must.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "shared", self,
		"-test.timeout", "5m", "-test.run", "^TestRestore_(memoryComesLater|byTheOneThatStandsReady)$").CombinedOutput()
	must.NoError(t, err, must.Sprintf("%s", out))
}
