package sandboxtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// Floor measures what the kernel alone takes for a process in new namespaces: clone with user, pid, mount, network, uts, ipc
// and cgroup namespaces, and the exec and end of true(1) in them. Nothing that starts a sandbox can be faster.
func Floor() (time.Duration, error) {
	cmd := namespaced("/bin/true")
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("floor: %w", err)
	}
	return time.Since(start), nil
}

// FloorEnd measures what the kernel alone takes to end a process in new namespaces: from SIGKILL to its wait status.
func FloorEnd() (time.Duration, error) {
	cmd := namespaced("/bin/cat") // which has started when it has echoed a byte
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, fmt.Errorf("floor: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, fmt.Errorf("floor: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("floor: %w", err)
	}
	_, werr := in.Write([]byte{'x'})
	_, rerr := out.Read(make([]byte, 1))
	start := time.Now()
	err = cmd.Process.Kill()
	_ = cmd.Wait() // it says that the process was killed
	d := time.Since(start)
	if err := errors.Join(werr, rerr, err); err != nil {
		return 0, fmt.Errorf("floor: %w", err)
	}
	return d, nil
}

// namespaced is a program in the namespaces that a sandbox has.
func namespaced(path string) *exec.Cmd {
	cmd := exec.Command(path)
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1 << 20, Size: sandbox.IDRange}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET |
			syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWCGROUP,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{},
	}
	return cmd
}

// PrivateKiB returns the memory that a process shares with nobody, in KiB.
func PrivateKiB(pid int) (int, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		return 0, err
	}
	sum, seen := 0, false
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) >= 2 && (f[0] == "Private_Clean:" || f[0] == "Private_Dirty:") {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				return 0, err
			}
			sum, seen = sum+n, true
		}
	}
	if !seen {
		return 0, errors.New("smaps_rollup without private memory")
	}
	return sum, nil
}
