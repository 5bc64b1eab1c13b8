package checkpoint

import (
	"os/exec"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// What CRIU leaves is a child of this process in CRIU's session. Children in other sessions, CRIU's own or not, stay.
func TestEndOrphans_endsWhatACRIUHasLeft(t *testing.T) {
	leader := exec.Command("/bin/sleep", "1000")
	leader.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	must.NoError(t, leader.Start())
	sid := leader.Process.Pid
	own := exec.Command("/bin/sleep", "1000")
	must.NoError(t, own.Start())
	defer func() { _ = own.Process.Kill(); _ = own.Wait() }()
	must.True(t, inSession(sid, sid))

	// A child that enters another's session does so by being made there: a shell forks it, and it comes to this process when the shell ends.
	must.NoError(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	defer func() { must.NoError(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)) }()
	shell := exec.Command("/bin/sh", "-c", "sleep 1000 & echo $!")
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := shell.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, shell.Start())
	buf := make([]byte, 16)
	_, err = out.Read(buf)
	must.NoError(t, err)
	must.NoError(t, func() error { _, err := shell.Process.Wait(); return err }())

	must.NoError(t, endOrphans(shell.Process.Pid))
	var ws unix.WaitStatus
	_, err = unix.Wait4(-1, &ws, unix.WNOHANG, nil) // nothing of it is left to wait for, and the others run
	must.NoError(t, err)
	must.True(t, inSession(sid, sid))
	must.NoError(t, own.Process.Signal(syscall.Signal(0)))
	must.NoError(t, endOrphans(sid))
	must.True(t, inSession(sid, sid), must.Sprint("the leader is CRIU itself, whose end is waited for by who has started it"))
	must.NoError(t, leader.Process.Kill())
	must.Error(t, leader.Wait())
	must.False(t, inSession(sid, sid))
}
