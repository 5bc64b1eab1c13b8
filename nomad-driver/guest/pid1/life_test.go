package pid1

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

func mainOf(script string) *guest.Start {
	return &guest.Start{Argv: []string{"/bin/sh", "-c", script}}
}

func TestMain_endsTheSandbox(t *testing.T) {
	for _, c := range []struct {
		name, script string
		want         guest.ExitRecord
	}{
		{"with its code", "exit 42", guest.ExitRecord{Code: 42}},
		{"with its signal", "kill -TERM $$", guest.ExitRecord{Code: 143, Signal: 15}},
		{"and what it left behind", "setsid sleep 1000 & sleep 1000 & exit 3", guest.ExitRecord{Code: 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			begin := time.Now()
			g := startGuest(t, guest.Boot{Main: mainOf(c.script)})
			must.Positive(t, int(g.main))
			must.Eq(t, c.want.Code, g.code())
			r := g.record()
			ended, err := time.Parse(time.RFC3339Nano, r.EndedAt)
			must.NoError(t, err)
			must.True(t, ended.After(begin))
			c.want.Version, c.want.SandboxID, c.want.Reason, c.want.EndedAt = guest.ExitRecordVersion, "test", guest.ReasonMainExited, r.EndedAt
			must.Eq(t, c.want, r)
		})
	}
}

func TestMain_refused(t *testing.T) {
	_, err := tryGuest(t, guest.Boot{Main: &guest.Start{Argv: []string{"no-such"}}})
	must.ErrorContains(t, err, "command 'no-such' not found")
	_, err = tryGuest(t, guest.Boot{Main: &guest.Start{Argv: []string{"true"}, Cwd: "/no/such"}})
	must.ErrorContains(t, err, "cwd '/no/such' does not exist")
}

// A command that has ended before anybody could attach loses none of its output where somebody is expected.
func TestMain_waitsForItsLogReader(t *testing.T) {
	main := mainOf("head -c 1000000 /dev/zero | tr '\\0' x; exit 6")
	main.Attach = true
	g := startGuest(t, guest.Boot{Main: main})
	st, err := g.Attach(g.ctx(), guest.Attach{PID: g.main})
	must.NoError(t, err)
	defer st.Close()
	var out bytes.Buffer
	exit, dropped, err := st.Output(&out, nil)
	must.NoError(t, err)
	must.Zero(t, dropped)
	must.Eq(t, 1000000, out.Len())
	must.Eq(t, 6, exit.Code)
	must.NoError(t, st.Close())
	begin := time.Now()
	must.Eq(t, 6, g.code())
	must.Less(t, LogWait, time.Since(begin))
}

func TestMain_endTellsEveryAttachment(t *testing.T) {
	g := startGuest(t, guest.Boot{Main: &guest.Start{Argv: []string{"cat"}, Stdin: true}})
	other := g.sh("echo other; exec sleep 1000")
	_, err := other.Recv()
	must.NoError(t, err)
	must.NoError(t, g.Stdin(g.ctx(), guest.StdinRequest{PID: g.main, Close: true}))
	_, _, exit := all(t, other)
	must.Eq(t, 9, exit.Signal)
	must.NoError(t, other.Close())
	must.Zero(t, g.code())
}

func TestShutdown(t *testing.T) {
	const polite = "trap 'exit 17' TERM; trap 'exit 18' INT; while :; do sleep 0.02; done"
	for _, c := range []struct {
		name   string
		main   *guest.Start
		params guest.ShutdownParams
		want   guest.ExitRecord
	}{
		{"asks first", mainOf(polite), guest.ShutdownParams{Grace: time.Minute}, guest.ExitRecord{Code: 17}},
		{"with the signal that was named", mainOf(polite), guest.ShutdownParams{Signal: 2, Grace: time.Minute}, guest.ExitRecord{Code: 18}},
		{"kills who does not listen", mainOf("trap '' TERM; while :; do sleep 0.02; done"), guest.ShutdownParams{Grace: 300 * time.Millisecond}, guest.ExitRecord{Code: 137, Signal: 9}},
		{"kills at once", mainOf(polite), guest.ShutdownParams{}, guest.ExitRecord{Code: 137, Signal: 9}},
		{"without a main process", nil, guest.ShutdownParams{Grace: time.Minute}, guest.ExitRecord{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := startGuest(t, guest.Boot{Main: c.main})
			// A shell at a terminal ignores SIGTERM; it must not use the grace up.
			shell, err := g.StartAttached(g.ctx(), guest.Start{Argv: []string{"bash", "--norc"}, TTY: true, Env: []string{"PS1=ready> "}})
			must.NoError(t, err)
			defer shell.Close()
			expect(t, shell, "ready> ")
			if c.main != nil {
				until(t, "main has set its traps", func() bool {
					out, _, _ := all(t, g.sh("pgrep -c sleep"))
					return out != "0\n"
				})
			}
			must.NoError(t, g.Shutdown(g.ctx(), c.params))
			shell.Close()
			must.Eq(t, c.want.Code, g.code())
			r := g.record()
			must.Eq(t, guest.ReasonShutdown, r.Reason)
			must.Eq(t, c.want.Code, r.Code)
			must.Eq(t, c.want.Signal, r.Signal)
		})
	}
}

func TestSIGTERM_shutsDown(t *testing.T) {
	g := startGuest(t, guest.Boot{Main: mainOf("trap 'exit 17' TERM; while :; do sleep 0.02; done")})
	until(t, "main has set its trap", func() bool {
		out, _, _ := all(t, g.sh("pgrep -c sleep"))
		return out != "0\n"
	})
	must.NoError(t, g.cmd.Process.Signal(unix.SIGTERM))
	must.Eq(t, 17, g.code())
	must.Eq(t, guest.ReasonShutdown, g.record().Reason)
}

// What processes of the sandbox may send to PID 1 does not end it.
func TestSignalsFromInside(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	for _, sig := range strings.Fields("HUP INT QUIT TRAP ABRT USR1 USR2 ALRM PIPE XCPU VTALRM PROF IO SYS TSTP TTIN CONT WINCH STOP KILL 40 64") {
		_, _, exit := all(t, g.sh("kill -"+sig+" 1"))
		must.Zero(t, exit.Code)
	}
	_, err := g.Info(g.ctx())
	must.NoError(t, err)
}

// At the limit of processes the guest goes on serving, and says why it cannot start more (attack case R01).
func TestForkBomb_guestSurvives(t *testing.T) {
	group := filepath.Join("/sys/fs/cgroup/pids", "pid1-test-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Skipf("no pids controller of cgroup v1: %v", err)
	}
	g := startGuest(t, guest.Boot{User: "user"})
	t.Cleanup(func() {
		_ = g.cmd.Process.Kill()
		<-g.exited
		until(t, "the group is empty", func() bool { return os.Remove(group) == nil })
	})
	write := func(file, value string) { must.NoError(t, os.WriteFile(group+"/"+file, []byte(value), 0)) }
	write("cgroup.procs", strconv.Itoa(g.cmd.Process.Pid))
	write("pids.max", "64")
	bomb := g.sh(`exec bash -c 'while :; do sleep 1000 & done' 2>/dev/null`)
	defer bomb.Close()
	until(t, "a start is refused", func() bool {
		st, err := g.StartAttached(g.ctx(), guest.Start{Argv: []string{"true"}})
		if err == nil {
			st.Close()
			return false
		}
		return failure(t, err).Code == guest.CodeLimit
	})
	for range 200 {
		_, err := g.Stat(g.ctx(), guest.FileRequest{Path: "~"})
		must.NoError(t, err)
		_, err = g.List(g.ctx())
		must.NoError(t, err)
	}
	must.NoError(t, g.Shutdown(g.ctx(), guest.ShutdownParams{}))
	g.code()
}
