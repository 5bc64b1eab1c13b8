package sandbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// swapEnv, where it is set, makes this program the one that creates sandboxes while its /dev/null is exchanged.
const swapEnv = "SANDBOX_TEST_SWAP"

type swapOrder struct {
	creatorOrder
	Creates int
}

type swapResult struct {
	Made, Refused int
	Why           map[string]int // how often creates were refused for which reason
	Wrong         []string       // what a sandbox had in place of the device, and errors that name something else
}

// TestCreate_whileDevNullIsExchanged is the race of CVE-2025-31133 at its worst: who can write the host's /dev exchanges null for a
// link to a setting of the kernel, over and over, while sandboxes are made that use it as stdio, as a device and as a mask. Each create
// ends with the real device or with an error, and the link's target is never written and never shown. It happens in a mount namespace with a /dev
// of its own.
func TestCreate_whileDevNullIsExchanged(t *testing.T) {
	h := sandboxtest.NewHost(t)
	c := h.Config()
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	must.NoError(t, err)
	order, err := json.Marshal(swapOrder{creatorOrder{
		Init: sandboxtest.Init(t), Lower: c.Lower, StateDir: c.StateDir, RunDir: c.RunDir, IDBase: c.IDBase, Group: h.Parent,
	}, 40})
	must.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), swapEnv+"="+string(order))
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("%v: %s", err, exit.Stderr)
	}
	must.NoError(t, err)
	var got swapResult
	must.NoError(t, json.Unmarshal(out, &got))
	t.Logf("%d made, %d refused: %v", got.Made, got.Refused, got.Why)
	must.SliceEmpty(t, got.Wrong)
	must.Eq(t, 40, got.Made+got.Refused)
	must.Positive(t, got.Made, must.Sprint("the race was never won: nothing is shown"))
	must.Positive(t, got.Refused, must.Sprint("the race was never lost: nothing is shown"))
	now, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	must.NoError(t, err)
	must.Eq(t, string(pattern), string(now))
}

// swapAndCreate is the other program's work.
func swapAndCreate() error {
	var o swapOrder
	if err := json.Unmarshal([]byte(os.Getenv(swapEnv)), &o); err != nil {
		return err
	}
	cg, err := cgroup.Detect("/sys/fs/cgroup", o.Group)
	if err != nil {
		return err
	}
	init, err := sandbox.OpenInit(o.Init)
	if err != nil {
		return err
	}
	defer init.Close()
	if err := ownDev(); err != nil {
		return err
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, "/dev/null", unix.AT_FDCWD, "/dev/link", unix.RENAME_EXCHANGE)
			}
		}
	}()
	got := swapResult{Why: map[string]int{}}
	for i := range o.Creates {
		if err := got.create(o, cg, init, i); err != nil {
			return err
		}
	}
	close(stop)
	<-stopped
	return json.NewEncoder(os.Stdout).Encode(got)
}

// ownDev gives this mount namespace a /dev of its own, with a link beside null.
func ownDev() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("none", "/dev", "tmpfs", 0, ""); err != nil {
		return err
	}
	unix.Umask(0)
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		if err := unix.Mknod("/dev/"+name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			return err
		}
	}
	return errors.Join(
		unix.Mknod("/dev/tty", unix.S_IFCHR|0o666, int(unix.Mkdev(5, 0))), os.Symlink("/proc/sys/kernel/core_pattern", "/dev/link"))
}

func (r *swapResult) create(o swapOrder, cg *cgroup.Tree, init *sandbox.InitBinary, n int) error {
	c := sandbox.Config{
		ID: api.NewSandboxID(), Lower: o.Lower, StateDir: o.StateDir, RunDir: o.RunDir, IDBase: o.IDBase + uint32(n+1)*sandbox.IDRange,
		Cgroups: cg, Init: init,
	}
	s, err := sandbox.Create(context.Background(), c)
	if err != nil {
		r.Refused++
		r.Why[err.Error()[strings.LastIndex(err.Error(), ": ")+2:]]++
		if !strings.Contains(err.Error(), "/dev/null") {
			r.Wrong = append(r.Wrong, err.Error())
		}
		return nil
	}
	r.Made++
	root := filepath.Join("/proc", fmt.Sprint(s.Ref().PID), "root")
	for _, path := range []string{"/dev/null", "/proc/kcore", "/proc/keys", "/proc/timer_list"} {
		var st unix.Stat_t
		err := unix.Lstat(root+path, &st)
		if errors.Is(err, unix.ENOENT) && path != "/dev/null" {
			continue // this kernel has no such file
		}
		if err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
			r.Wrong = append(r.Wrong, fmt.Sprintf("%s is of mode %o and device %d: %v", path, st.Mode, st.Rdev, err))
		}
	}
	return errors.Join(s.Kill(context.Background()), s.Release(context.Background()))
}
