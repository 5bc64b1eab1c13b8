package checkpoint

import (
	"os/exec"
	"testing"

	"github.com/shoenig/test/must"
)

func TestOnEnd_tellsOfAnEndAndLeavesTheWait(t *testing.T) {
	cmd := exec.Command("/bin/sleep", "1000")
	must.NoError(t, cmd.Start())
	ended := make(chan struct{})
	stop, err := onEnd(cmd.Process.Pid, func() { close(ended) })
	must.NoError(t, err)
	must.NoError(t, cmd.Process.Kill())
	<-ended
	stop()
	must.ErrorContains(t, cmd.Wait(), "killed") // nobody has waited for it yet
}

func TestOnEnd_stopsBeforeTheEnd(t *testing.T) {
	cmd := exec.Command("/bin/sleep", "1000")
	must.NoError(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	stop, err := onEnd(cmd.Process.Pid, func() { t.Error("it has not ended") })
	must.NoError(t, err)
	stop()
}
