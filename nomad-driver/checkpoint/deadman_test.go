package checkpoint

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// traceEnv makes this program stop the process of that pid, say so, and hold it for ever.
const traceEnv = "SOULBOX_TEST_TRACE"

func trace() {
	runtime.LockOSThread()
	// The thread that traces is to end as CRIU does, which has only one: the pipe's end is its own alone.
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	closed := make(chan error)
	go func() { closed <- unix.Close(firstFile) }()
	if err := <-closed; err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	pid, err := strconv.Atoi(os.Getenv(traceEnv))
	if err == nil {
		err = unix.PtraceAttach(pid)
	}
	if err == nil {
		_, err = unix.Wait4(pid, nil, 0, nil)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	for {
		_ = unix.Pause()
	}
}

func TestDeadman_endsWhatIsTracedBeforeItRuns(t *testing.T) {
	for name, tc := range map[string]struct {
		disarm bool
		child  bool   // one is just being started, and has every descriptor yet
		want   string // how the traced process ends
		ran    bool
	}{
		"armed":                             {want: "signal: killed"},
		"disarmed":                          {disarm: true, ran: true},
		"disarmed while a child is started": {disarm: true, child: true, ran: true},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := newDeadman()
			must.NoError(t, err)
			defer func() { must.NoError(t, d.Close()) }()
			file := filepath.Join(t.TempDir(), "ran")
			traced := exec.Command("/bin/sh", "-c", `read -r line && echo "$line" > "$0"`, file)
			stdin, err := traced.StdinPipe()
			must.NoError(t, err)
			must.NoError(t, traced.Start())
			tracer := exec.Command("/proc/self/exe")
			tracer.Env = append(os.Environ(), traceEnv+"="+strconv.Itoa(traced.Process.Pid))
			tracer.ExtraFiles = []*os.File{d.write}
			stdout, err := tracer.StdoutPipe()
			must.NoError(t, err)
			must.NoError(t, tracer.Start())
			must.NoError(t, d.handedOver())
			line, err := bufio.NewReader(stdout).ReadString('\n')
			must.NoError(t, err)
			must.EqOp(t, "ready\n", line)

			must.NoError(t, d.arm([]int{traced.Process.Pid}))
			if tc.child {
				for _, f := range d.armed {
					held, err := unix.Dup(int(f.Fd())) // the same open file, as in a child
					must.NoError(t, err)
					defer unix.Close(held)
				}
			}
			if tc.disarm {
				must.NoError(t, d.disarm())
			}
			_, err = stdin.Write([]byte("on\n")) // it has all that it needs to go on
			must.NoError(t, err)
			must.NoError(t, tracer.Process.Kill())
			must.ErrorContains(t, tracer.Wait(), "killed")
			if err := traced.Wait(); tc.want == "" {
				must.NoError(t, err)
			} else {
				must.ErrorContains(t, err, tc.want)
			}
			_, err = os.Stat(file)
			must.EqOp(t, tc.ran, !errors.Is(err, fs.ErrNotExist))
		})
	}
}

func TestDeadman_keepsNoDescriptor(t *testing.T) {
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		must.NoError(t, err)
		return len(entries)
	}
	before := open()
	d, err := newDeadman()
	must.NoError(t, err)
	must.NoError(t, d.arm([]int{os.Getpid(), 1 << 30})) // the second is no process
	must.EqOp(t, before+4, open())
	must.NoError(t, d.disarm())
	must.EqOp(t, before+2, open())
	must.NoError(t, d.Close())
	must.EqOp(t, before, open())
}
