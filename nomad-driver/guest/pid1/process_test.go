package pid1

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

func asUser(s *guest.Start)    { s.User = "user" }
func withStdin(s *guest.Start) { s.Stdin = true }
func withTTY(s *guest.Start)   { s.TTY = true }

// all reads a stream to its end.
func all(t *testing.T, s *guest.Stream) (stdout, stderr string, exit frame.ExitBody) {
	t.Helper()
	var out, err bytes.Buffer
	exit, dropped, e := s.Output(&out, &err)
	must.NoError(t, e)
	must.Zero(t, dropped)
	return out.String(), err.String(), exit
}

// Whoever starts a node may ignore signals: nohup does, and C libraries do with numbers of their own.
func TestStart_ignoresNothingThatTheNodeIgnores(t *testing.T) {
	handled := []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.Signal(40)}
	signal.Ignore(handled...)
	defer signal.Reset(handled...)
	for _, n := range []int{32, 34} { // the runtime knows nothing of these
		before := disposition(n)
		setDisposition(n, sigIgnored)
		defer setDisposition(n, before)
	}
	g := startGuest(t, guest.Boot{})
	stdout, _, _ := all(t, g.sh("grep SigIgn /proc/self/status"))
	must.Eq(t, "SigIgn:\t0000000000000000\n", stdout)
}

func TestStart_outputAndExit(t *testing.T) {
	g := startGuest(t, guest.Boot{Env: []string{"FROM=boot", "BOTH=boot"}})
	for _, c := range []struct {
		name, script   string
		set            []func(*guest.Start)
		stdout, stderr string
		exit           frame.ExitBody
	}{
		{name: "both streams", script: "echo out; echo err >&2", stdout: "out\n", stderr: "err\n"},
		{name: "exit code", script: "exit 7", exit: frame.ExitBody{Code: 7}},
		{name: "signal", script: "kill -9 $$", exit: frame.ExitBody{Code: 137, Signal: 9}},
		{name: "environment", script: "echo $FROM $BOTH $HOME $USER $LOGNAME $PATH",
			set:    []func(*guest.Start){func(s *guest.Start) { s.Env = []string{"BOTH=own"} }},
			stdout: "boot own /root root root " + defaultPath + "\n"},
		{name: "user by name", script: "id -u; id -g; id -G; pwd; echo $HOME $USER $SHELL", set: []func(*guest.Start){asUser},
			stdout: "4321\n4321\n4321 777\n" + g.home + "\n" + g.home + " user /bin/bash\n"},
		{name: "user by number and group by name", script: "id -u; id -g",
			set: []func(*guest.Start){func(s *guest.Start) { s.User = "4321:extra" }}, stdout: "4321\n777\n"},
		{name: "user without an entry", script: "id -u; id -g; pwd",
			set: []func(*guest.Start){func(s *guest.Start) { s.User = "9000" }}, stdout: "9000\n9000\n/\n"},
		{name: "user without a home", script: "pwd",
			set: []func(*guest.Start){func(s *guest.Start) { s.User = "homeless" }}, stdout: "/\n"},
		{name: "stdin is empty", script: "cat; echo done", stdout: "done\n"},
		{name: "stdout can be opened again", script: "echo again >/dev/stdout", set: []func(*guest.Start){asUser}, stdout: "again\n"},
		{name: "no descriptor is inherited", script: "ls /proc/self/fd", stdout: "0\n1\n2\n3\n"},
		{name: "no signal is ignored", script: "grep -E 'Sig(Ign|Blk)' /proc/self/status",
			stdout: "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"},
		{name: "cwd relative to the home", script: "pwd",
			set:    []func(*guest.Start){asUser, func(s *guest.Start) { s.Cwd = "../user" }},
			stdout: g.home + "\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, stderr, exit := all(t, g.sh(c.script, c.set...))
			must.Eq(t, c.stdout, stdout)
			must.Eq(t, c.stderr, stderr)
			must.Eq(t, c.exit, exit)
		})
	}
}

func TestStart_refuses(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	secret := filepath.Join(g.dir, "secret")
	must.NoError(t, os.Mkdir(secret, 0o700))
	script := filepath.Join(g.dir, "plain")
	must.NoError(t, os.WriteFile(script, []byte("no program"), 0o644))
	badInterp := filepath.Join(g.dir, "interp")
	must.NoError(t, os.WriteFile(badInterp, []byte("#!/no/such/interpreter\n"), 0o755))
	for _, c := range []struct {
		name    string
		s       guest.Start
		code    string
		message string
	}{
		{"no command", guest.Start{}, guest.CodeBadRequest, "start.argv names no command"},
		{"missing command", guest.Start{Argv: []string{"no-such-thing"}}, guest.CodeBadCommand, "command 'no-such-thing' not found"},
		{"missing path", guest.Start{Argv: []string{"/no/such"}}, guest.CodeBadCommand, "command '/no/such' not found"},
		{"not executable", guest.Start{Argv: []string{script}}, guest.CodeBadCommand, "cannot be executed: permission denied"},
		{"bad interpreter", guest.Start{Argv: []string{badInterp}}, guest.CodeBadCommand, "or the interpreter"},
		{"a directory", guest.Start{Argv: []string{"/etc"}}, guest.CodeBadCommand, "cannot be executed"},
		{"missing cwd", guest.Start{Argv: []string{"true"}, Cwd: "/no/such"}, guest.CodeBadCwd, "cwd '/no/such' does not exist"},
		{"cwd is a file", guest.Start{Argv: []string{"true"}, Cwd: "/etc/passwd"}, guest.CodeBadCwd, "cwd '/etc/passwd' cannot be entered"},
		{"cwd of another", guest.Start{Argv: []string{"true"}, Cwd: secret, User: "user"}, guest.CodeBadCwd, "permission denied"},
		{"cwd by descriptor", guest.Start{Argv: []string{"true"}, Cwd: "/proc/self/fd/3"}, guest.CodeBadCwd, "cannot be entered"},
		{"cwd by magic link", guest.Start{Argv: []string{"true"}, Cwd: "/proc/1/root"}, guest.CodeBadCwd, "cannot be entered"},
		{"unknown user", guest.Start{Argv: []string{"true"}, User: "nobody-here"}, guest.CodeUnknownUser, "user \"nobody-here\" does not exist"},
		{"unknown group", guest.Start{Argv: []string{"true"}, User: "user:none"}, guest.CodeUnknownUser, "group \"none\" does not exist"},
		{"uid out of range", guest.Start{Argv: []string{"true"}, User: "70000"}, guest.CodeUnknownUser, "does not exist"},
		{"bad env", guest.Start{Argv: []string{"true"}, Env: []string{"=x"}}, guest.CodeBadRequest, "start.env[0] is not KEY=VALUE"},
		{"NUL", guest.Start{Argv: []string{"true", "a\x00b"}}, guest.CodeBadRequest, "start.argv[1] has a NUL byte"},
		{"long tag", guest.Start{Argv: []string{"true"}, Tag: strings.Repeat("x", 129)}, guest.CodeBadRequest, "start.tag has 129 bytes"},
		{"many arguments", guest.Start{Argv: make([]string, 5000)}, guest.CodeBadRequest, "start.argv"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := g.Start(g.ctx(), c.s)
			body := failure(t, err)
			must.Eq(t, c.code, body.Code)
			must.StrContains(t, body.Message, c.message)
		})
	}
}

func TestStart_200AtOnce(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	var wg sync.WaitGroup
	errs := make(chan error, 200)
	for i := range 200 {
		wg.Go(func() {
			st, err := g.StartAttached(g.ctx(), guest.Start{Argv: []string{"/bin/sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i)}})
			if err != nil {
				errs <- err
				return
			}
			defer st.Close()
			var out bytes.Buffer
			exit, _, err := st.Output(&out, nil)
			if err != nil || exit.Code != i || out.String() != fmt.Sprintln(i) {
				errs <- fmt.Errorf("process %d: exit %+v, output %q: %w", i, exit, out.String(), err)
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	i, err := g.Info(g.ctx())
	must.NoError(t, err)
	must.Zero(t, i.Processes)
}

func TestReap_orphansLeaveNoZombie(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	_, _, exit := all(t, g.sh("for i in 1 2 3 4 5 6 7 8 9 10; do (sleep 0.01 & exit 0); done"))
	must.Zero(t, exit.Code)
	until(t, "only the asking shell's processes are left", func() bool {
		out, _, _ := all(t, g.sh("ps -e -o stat= -o comm= | grep -c -e '^Z' -e sleep"))
		return strings.TrimSpace(out) == "0"
	})
}

func TestWait_exitIsKept(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	p, err := g.Start(g.ctx(), guest.Start{Argv: []string{"sh", "-c", "echo kept; exit 3"}, Tag: "mine"})
	must.NoError(t, err)
	for range 2 {
		w, err := g.Wait(g.ctx(), p.PID)
		must.NoError(t, err)
		must.Eq(t, frame.ExitBody{Code: 3}, *w.Exit)
		must.Eq(t, "mine", w.Tag)
	}
	st, err := g.Attach(g.ctx(), guest.Attach{PID: p.PID})
	must.NoError(t, err)
	defer st.Close()
	out, _, exit := all(t, st)
	must.Eq(t, "kept\n", out)
	must.Eq(t, 3, exit.Code)
	list, err := g.List(g.ctx())
	must.NoError(t, err)
	must.Len(t, 1, list)
	must.False(t, list[0].EndedAt.IsZero())

	_, err = g.Wait(g.ctx(), 99999)
	must.Eq(t, guest.CodeNoProcess, failure(t, err).Code)
}

func TestAttach_continuesWhereItWas(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	fifo := filepath.Join(g.home, "go")
	must.NoError(t, unix.Mkfifo(fifo, 0o666))
	first := g.sh("printf first; cat " + fifo + "; printf second")
	f, err := first.Recv()
	must.NoError(t, err)
	off, data, err := frame.Output(f.Payload)
	must.NoError(t, err)
	must.Zero(t, off)
	must.Eq(t, "first", string(data))
	pid := first.Process().PID
	must.NoError(t, first.Close())
	must.NoError(t, os.WriteFile(fifo, nil, 0))

	again, err := g.Attach(g.ctx(), guest.Attach{PID: pid, Stdout: int64(len(data))})
	must.NoError(t, err)
	defer again.Close()
	f, err = again.Recv()
	must.NoError(t, err)
	off, data, err = frame.Output(f.Payload)
	must.NoError(t, err)
	must.Eq(t, 5, off)
	must.Eq(t, "second", string(data))
	f, err = again.Recv()
	must.NoError(t, err)
	must.Eq(t, frame.Exit, f.Type)
	_, err = again.Recv()
	must.ErrorIs(t, err, io.EOF)
}

func TestAttach_tellsWhatWasDropped(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	const total = 1 << 20
	p, err := g.Start(g.ctx(), guest.Start{Argv: []string{"head", "-c", fmt.Sprint(total), "/dev/zero"}})
	must.NoError(t, err)
	_, err = g.Wait(g.ctx(), p.PID)
	must.NoError(t, err)
	st, err := g.Attach(g.ctx(), guest.Attach{PID: p.PID})
	must.NoError(t, err)
	defer st.Close()
	var got bytes.Buffer
	exit, dropped, err := st.Output(&got, nil)
	must.NoError(t, err)
	must.Zero(t, exit.Code)
	must.Eq(t, total-guest.RingBytes, dropped)
	must.Eq(t, guest.RingBytes, got.Len())
}

// An attachment that does not read must not hold the process up for ever (attack case P04).
func TestAttach_slowReaderDoesNotWedge(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	p, err := g.Start(g.ctx(), guest.Start{Argv: []string{"sh", "-c", "sleep 0.2; head -c 20000000 /dev/zero"}, TTY: false})
	must.NoError(t, err)
	st, err := g.Attach(g.ctx(), guest.Attach{PID: p.PID})
	must.NoError(t, err)
	defer st.Close()
	w, err := g.Wait(g.ctx(), p.PID)
	must.NoError(t, err)
	must.Zero(t, w.Exit.Code)
	var got bytes.Buffer
	_, dropped, err := st.Output(&got, nil)
	must.NoError(t, err)
	must.Positive(t, dropped)
	must.Eq(t, 20000000, got.Len()+int(dropped))
}

// A process whose start is attached waits for its reader: what a pipe would do.
func TestStartAttached_losesNothing(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	const total = 50 << 20
	st := g.sh(fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x", total))
	w := &slowWriter{}
	exit, dropped, err := st.Output(w, nil)
	must.NoError(t, err)
	must.Zero(t, exit.Code)
	must.Zero(t, dropped)
	must.Eq(t, total, w.n)
}

// slowWriter stops for a while now and then, for longer than a ring waits for a reader that may lose bytes.
type slowWriter struct{ n, stops int }

func (w *slowWriter) Write(p []byte) (int, error) {
	if w.n += len(p); w.n>>24 > w.stops {
		w.stops++
		time.Sleep(2 * stallAfter)
	}
	return len(p), nil
}

func TestStartAttached_stdinIsBinarySafe(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	in := make([]byte, 10<<20)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(in)
	st := g.sh("cat", withStdin)
	go func() {
		_, _ = st.Write(in)
		_ = st.CloseStdin()
	}()
	var out bytes.Buffer
	exit, _, err := st.Output(&out, nil)
	must.NoError(t, err)
	must.Zero(t, exit.Code)
	must.True(t, bytes.Equal(in, out.Bytes()))
}

func TestStdin_byItsOwnRequest(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	p, err := g.Start(g.ctx(), guest.Start{Argv: []string{"cat"}, Stdin: true})
	must.NoError(t, err)
	must.NoError(t, g.Stdin(g.ctx(), guest.StdinRequest{PID: p.PID, Data: []byte("one\x00")}))
	must.NoError(t, g.Stdin(g.ctx(), guest.StdinRequest{PID: p.PID, Data: []byte("two"), Close: true}))
	st, err := g.Attach(g.ctx(), guest.Attach{PID: p.PID})
	must.NoError(t, err)
	defer st.Close()
	out, _, exit := all(t, st)
	must.Eq(t, "one\x00two", out)
	must.Zero(t, exit.Code)
	must.Error(t, g.Stdin(g.ctx(), guest.StdinRequest{PID: p.PID, Data: []byte("late")}))
}

// A client that leaves while the process does not read its stdin is seen to have left.
func TestKillOnDetach(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	for _, c := range []struct {
		name  string
		tty   bool
		stdin int
	}{{"pipes", false, 0}, {"terminal", true, 0}, {"blocked stdin", false, 1 << 20}} {
		t.Run(c.name, func(t *testing.T) {
			st := g.sh("sleep 1000 & sleep 1001 & wait", func(s *guest.Start) {
				s.KillOnDetach, s.TTY, s.Stdin = true, c.tty, c.stdin > 0
			})
			if c.stdin > 0 {
				go func() { _, _ = st.Write(make([]byte, c.stdin)) }()
			}
			until(t, "children run", func() bool {
				out, _, _ := all(t, g.sh("pgrep -c sleep"))
				return out == "2\n"
			})
			must.NoError(t, st.Close())
			w, err := g.Wait(g.ctx(), st.Process().PID)
			must.NoError(t, err)
			must.Eq(t, 9, w.Exit.Signal)
			until(t, "the session's processes are gone", func() bool {
				out, _, _ := all(t, g.sh("pgrep -c sleep"))
				return out == "0\n"
			})
		})
	}
}

func TestDetach_leavesTheProcess(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	st := g.sh("head -c 1000000 /dev/zero; exit 5")
	must.NoError(t, st.Close())
	w, err := g.Wait(g.ctx(), st.Process().PID)
	must.NoError(t, err)
	must.Eq(t, 5, w.Exit.Code)
}

// Output that something else may still produce does not hold the end of the process back.
func TestExit_doesNotWaitForBackgroundChildren(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	for _, tty := range []bool{false, true} {
		st := g.sh("echo begun; (trap '' HUP; exec sleep 1000) & exit 4", func(s *guest.Start) { s.TTY = tty })
		begin := time.Now()
		out, _, exit := all(t, st)
		must.StrContains(t, out, "begun")
		must.Eq(t, 4, exit.Code)
		must.Less(t, 5*time.Second, time.Since(begin))
	}
}

func TestSignal(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	st := g.sh("trap 'echo usr1' USR1; trap 'echo term; exit 9' TERM; echo ready; while :; do sleep 0.02; done")
	_, err := st.Recv() // ready
	must.NoError(t, err)
	must.NoError(t, st.Signal(int(unix.SIGUSR1)))
	f, err := st.Recv()
	must.NoError(t, err)
	must.Eq(t, "usr1\n", string(f.Payload[8:]))
	must.NoError(t, g.Signal(g.ctx(), guest.SignalRequest{PID: st.Process().PID, Signal: int(unix.SIGTERM)}))
	out, _, exit := all(t, st)
	must.Eq(t, "term\n", out)
	must.Eq(t, 9, exit.Code)
	must.Error(t, g.Signal(g.ctx(), guest.SignalRequest{PID: st.Process().PID, Signal: 15}))
	must.Error(t, g.Signal(g.ctx(), guest.SignalRequest{PID: st.Process().PID, Signal: 65}))
	must.Error(t, g.Signal(g.ctx(), guest.SignalRequest{PID: 1, Signal: 15}))
}
