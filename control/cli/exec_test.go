package cli

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

func regexpOf(s string) *regexp.Regexp { return regexp.MustCompile(s) }

// programEnv makes the test's binary be the program, for what only a process of its own can show.
const programEnv = "SOULBOX_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		env, err := System()
		if err != nil {
			panic(err)
		}
		env.DevFile = ""
		os.Exit(Run(env, os.Args[1:]))
	}
	sandboxtest.Main(m)
}

func (f *fake) program(t *testing.T, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), programEnv+"=1", "SOULBOX_ADDR="+f.URL, "SOULBOX_API_KEY="+testKey, "HOME="+t.TempDir(), "TERM=vt100")
	return cmd
}

func TestExec_exitCodesAndOutput(t *testing.T) {
	f := newFake(t)
	c := f.call(t)
	id := string(boxOne)
	for _, tc := range []struct {
		name   string
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{"output", []string{id, "--", "echo", "-h", "--", "x"}, 0, "-h -- x\n", "warned\n"},
		{"without dashes", []string{id, "echo", "-help", "-it"}, 0, "-help -it\n", "warned\n"},
		{"dashes first", []string{"--", id, "echo", "a"}, 0, "a\n", "warned\n"},
		{"flags", []string{"-user=root", "-cwd=/tmp", "-env=A=1", id, "echo"}, 0, "\n", "warned\n"},
		{"its exit code", []string{id, "exit", "42"}, 42, "", ""},
		{"signal", []string{id, "die"}, 137, "", "out of memory"},
		{"no such command", []string{id, "nosuch"}, 127, "", "command 'nosuch' not found"},
		{"no such cwd", []string{"-cwd=/nosuch", id, "echo"}, 125, "", "cwd '/nosuch' does not exist"},
		{"lost", []string{id, "vanish"}, 125, "", "connection to sandbox lost"},
		{"no command", []string{id}, 125, "", "which command"},
		{"no sandbox", []string{}, 125, "", "which sandbox"},
		{"bad id", []string{"x", "ls"}, 125, "", "is not"},
		{"terminal without one", []string{"-it", id, "shell"}, 125, "", "needs a terminal"},
		{"ended sandbox", []string{string(boxOld), "ls"}, 125, "", "is stopped"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			must.Eq(t, tc.code, c.run(t, append([]string{"exec"}, tc.args...)...), must.Sprint(c.stderr))
			must.Eq(t, tc.stdout, c.stdout)
			must.StrContains(t, c.stderr, tc.stderr)
		})
	}
	must.Eq(t, started{Argv: []string{"echo"}, User: "root", Cwd: "/tmp", Env: map[string]string{"A": "1"}, Kill: "true"}, f.execs[3])
}

func TestExec_stdinIsBinarySafe(t *testing.T) {
	c := newFake(t).call(t)
	data := make([]byte, 300_000)
	for i := range data {
		data[i] = byte(i ^ i>>8)
	}
	c.stdin = "~.\r\x03\x04" + string(data)
	must.Eq(t, 0, c.run(t, "exec", "-i", string(boxOne), "cat"))
	must.True(t, c.stdin == c.stdout)
}

func TestExec_onARealTerminal(t *testing.T) {
	f := newFake(t)
	cmd := f.program(t, "exec", "-it", string(boxOne), "shell")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 30, Cols: 90})
	must.NoError(t, err)
	defer tty.Close()
	out := collectOutput(tty)
	out.wait(t, "$ ")
	_, err = tty.WriteString("hi\x03")
	must.NoError(t, err)
	out.wait(t, "hi\x03")
	must.NoError(t, pty.Setsize(tty, &pty.Winsize{Rows: 40, Cols: 120}))
	eventually(t, "the new size", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.sizes) > 0 && f.sizes[len(f.sizes)-1] == frame.Size{Cols: 120, Rows: 40}
	})
	_, err = tty.WriteString("\x04")
	must.NoError(t, err)
	err = cmd.Wait()
	var exit *exec.ExitError
	must.True(t, errors.As(err, &exit))
	must.Eq(t, 9, exit.ExitCode())
	must.Eq(t, []api.TerminalRequest{{
		SandboxID: boxOne, Command: []string{"shell"}, Env: map[string]string{"TERM": "vt100"}, Size: frame.Size{Cols: 90, Rows: 30},
	}}, f.started)
	must.SliceEmpty(t, f.signalled())
}

func TestExec_aTerminalIsLeftAndComeBackTo(t *testing.T) {
	f := newFake(t)
	cmd := f.program(t, "exec", "-it", string(boxOne), "shell")
	tty, err := pty.Start(cmd)
	must.NoError(t, err)
	defer tty.Close()
	out := collectOutput(tty)
	out.wait(t, "$ ")
	_, err = tty.WriteString("~.")
	must.NoError(t, err)
	out.wait(t, "soulbox terminal attach "+string(termOne))
	must.NoError(t, cmd.Wait())

	cmd = f.program(t, "terminal", "attach", "-offset=7", "-exclusive", string(termOne))
	tty, err = pty.Start(cmd)
	must.NoError(t, err)
	defer tty.Close()
	collectOutput(tty).wait(t, "$ ")
	_, err = tty.WriteString("\x04")
	must.NoError(t, err)
	err = cmd.Wait()
	var exit *exec.ExitError
	must.True(t, errors.As(err, &exit))
	must.Eq(t, 9, exit.ExitCode())
	must.Eq(t, []string{"mode=write&offset=0", "mode=exclusive&offset=7"}, f.attached)
}

func TestExec_stoppedAndContinuedFromOutside(t *testing.T) {
	f := newFake(t)
	cmd := f.program(t, "exec", "-it", string(boxOne), "shell")
	tty, err := pty.Start(cmd)
	must.NoError(t, err)
	defer tty.Close()
	out := collectOutput(tty)
	out.wait(t, "$ ")
	raw := func() bool {
		m, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		must.NoError(t, err)
		return m.Lflag&unix.ICANON == 0
	}
	must.True(t, raw())
	must.NoError(t, cmd.Process.Signal(syscall.SIGTSTP))
	var ws unix.WaitStatus
	_, err = unix.Wait4(cmd.Process.Pid, &ws, unix.WUNTRACED, nil)
	must.NoError(t, err)
	must.True(t, ws.Stopped())
	must.False(t, raw())
	must.NoError(t, cmd.Process.Signal(syscall.SIGCONT))
	eventually(t, "raw mode again", raw)
	_, err = tty.WriteString("\x04")
	must.NoError(t, err)
	err = cmd.Wait()
	var exit *exec.ExitError
	must.True(t, errors.As(err, &exit))
	must.Eq(t, 9, exit.ExitCode())
}

func TestExec_signalsReachTheCommand(t *testing.T) {
	f := newFake(t)
	cmd := f.program(t, "exec", string(boxOne), "wait")
	stdout, err := cmd.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, cmd.Start())
	// Its output is shown by the session, which has the signals by then.
	collectOutput(stdout).wait(t, "ready")
	must.NoError(t, cmd.Process.Signal(syscall.SIGQUIT))
	err = cmd.Wait()
	var exit *exec.ExitError
	must.True(t, errors.As(err, &exit))
	must.Eq(t, 128+int(syscall.SIGQUIT), exit.ExitCode())
	must.Eq(t, []int{int(syscall.SIGQUIT)}, f.signalled())
}

func TestCompletion(t *testing.T) {
	f := newFake(t)
	for _, tc := range []struct {
		line string
		want []string
	}{
		{"soulbox sand", []string{"sandbox"}},
		{"soulbox sandbox ", []string{"create", "destroy", "info", "list"}},
		{"soulbox sandbox destroy i", []string{string(boxOne), string(boxTwo)}},
		{"soulbox sandbox info ic", []string{string(boxOld)}},
		{"soulbox exec ib", []string{string(boxTwo)}},
		{"soulbox cp ia", []string{string(boxOne) + ":"}},
		{"soulbox sandbox create -template ", []string{"base"}},
		{"soulbox sandbox list -state pa", []string{"paused"}},
		{"soulbox config get ad", []string{"address"}},
		{"soulbox sandbox create -temp", []string{"-template"}},
	} {
		t.Run(tc.line, func(t *testing.T) {
			cmd := f.program(t)
			cmd.Env = append(cmd.Env, "COMP_LINE="+tc.line)
			out, err := cmd.Output()
			must.NoError(t, err)
			got := strings.Fields(string(out))
			for _, w := range tc.want {
				must.SliceContains(t, got, w)
			}
			if strings.Contains(tc.line, "destroy") {
				must.SliceNotContains(t, got, string(boxOld))
			}
		})
	}
	f.Close()
	cmd := f.program(t)
	cmd.Env = append(cmd.Env, "COMP_LINE=soulbox sandbox destroy i")
	out, err := cmd.CombinedOutput()
	must.NoError(t, err)
	must.Eq(t, "", string(out))
}

// output is what a terminal shows, as it comes.
type output struct {
	b    chan []byte
	seen bytes.Buffer
}

func collectOutput(r io.Reader) *output {
	o := &output{b: make(chan []byte, 64)}
	go func() { // ends with the terminal
		defer close(o.b)
		for {
			buf := make([]byte, 4096)
			n, err := r.Read(buf)
			if n > 0 {
				o.b <- buf[:n]
			}
			if err != nil {
				return
			}
		}
	}()
	return o
}

func (o *output) wait(t *testing.T, want string) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for !strings.Contains(o.seen.String(), want) {
		select {
		case b, ok := <-o.b:
			if !ok {
				t.Fatalf("the terminal ended with %q, without %q", o.seen.String(), want)
			}
			o.seen.Write(b)
		case <-timeout:
			t.Fatalf("the terminal shows %q, without %q", o.seen.String(), want)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never saw %s", what)
}
