package pid1

import (
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// expect reads terminal output until it contains want.
func expect(t *testing.T, st *guest.Stream, want string) {
	t.Helper()
	var got strings.Builder
	end := time.AfterFunc(20*time.Second, func() { st.Close() })
	defer end.Stop()
	for !strings.Contains(got.String(), want) {
		f, err := st.Recv()
		if err != nil {
			t.Fatalf("waiting for %q: %v after %q", want, err, got.String())
		}
		if f.Type != frame.PTY {
			t.Fatalf("waiting for %q: frame %d %s after %q", want, f.Type, f.Payload, got.String())
		}
		got.Write(f.Payload[8:])
	}
}

func TestTerminal(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	st := g.sh(`trap 'echo "now $(stty size)"' WINCH; echo "user $(id -u) tty $(tty) size $(stty size) owner $(stat -c %U:%a $(tty)) term $TERM"
while :; do sleep 0.02; done`, asUser, withTTY)
	expect(t, st, "user 4321 tty /dev/pts/0 size 24 80 owner user:620 term xterm-256color")
	must.NoError(t, st.Resize(frame.Size{Cols: 132, Rows: 50}))
	expect(t, st, "now 50 132")
	must.NoError(t, g.Resize(g.ctx(), st.Process().PID, frame.Size{Cols: 99, Rows: 33}))
	expect(t, st, "now 33 99")
	_, err := st.Write([]byte{3}) // Ctrl-C
	must.NoError(t, err)
	_, _, exit := all(t, st)
	must.Eq(t, frame.ExitBody{Code: 130, Signal: 2}, exit)
}

func TestTerminal_interactiveShell(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	st, err := g.StartAttached(g.ctx(), guest.Start{Argv: []string{"bash", "--norc"}, TTY: true, Env: []string{"PS1=ready> ", "TERM=dumb"},
		Size: &frame.Size{Cols: 100, Rows: 30}})
	must.NoError(t, err)
	defer st.Close()
	expect(t, st, "ready> ")
	_, err = st.Write([]byte("sleep 1000\n"))
	must.NoError(t, err)
	until(t, "sleep runs", func() bool {
		out, _, _ := all(t, g.sh("pgrep -c sleep"))
		return out == "1\n"
	})
	_, err = st.Write([]byte{3})
	must.NoError(t, err)
	expect(t, st, "ready> ")
	_, err = st.Write([]byte("echo $((6*7)) $COLUMNS; tty\n"))
	must.NoError(t, err)
	expect(t, st, "42 100\r\n/dev/pts/0\r\nready> ")
	must.NoError(t, st.CloseStdin())
	out, _, exit := all(t, st)
	must.StrContains(t, out, "exit")
	must.Zero(t, exit.Code)
}

func TestTerminal_losesNothing(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	st := g.sh("stty -opost; head -c 3000000 /dev/zero | tr '\\0' x", withTTY)
	w := &slowWriter{n: 1<<24 - 1<<20} // its pause comes after the first megabyte
	before := w.n
	exit, dropped, err := st.Output(w, nil)
	must.NoError(t, err)
	must.Zero(t, exit.Code)
	must.Zero(t, dropped)
	must.Eq(t, 3000000, w.n-before)
}
