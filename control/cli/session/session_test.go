package session

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/shoenig/test/must"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// process is a Stream whose other side the test plays.
type process struct {
	frames chan frame.Frame
	closed chan struct{}
	once   sync.Once

	mu      sync.Mutex
	stdin   bytes.Buffer
	eof     bool
	sizes   []frame.Size
	signals []int
}

func newProcess() *process {
	return &process{frames: make(chan frame.Frame, 64), closed: make(chan struct{})}
}

func (p *process) Recv() (frame.Frame, error) {
	select {
	case f := <-p.frames:
		return f, nil
	case <-p.closed:
		return frame.Frame{}, io.ErrUnexpectedEOF
	}
}

func (p *process) Write(b []byte) (int, error) {
	select {
	case <-p.closed:
		return 0, io.ErrClosedPipe
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stdin.Write(b)
}

func (p *process) CloseStdin() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.eof = true
	return nil
}

func (p *process) Resize(s frame.Size) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sizes = append(p.sizes, s)
	return nil
}

func (p *process) Signal(n int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.signals = append(p.signals, n)
	return nil
}

func (p *process) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *process) output(t frame.Type, data string) {
	var off [8]byte
	binary.BigEndian.PutUint64(off[:], 0)
	p.frames <- frame.Frame{Type: t, Payload: append(off[:], data...)}
}

func (p *process) exit(e frame.ExitBody) {
	b, _ := json.Marshal(e)
	p.frames <- frame.Frame{Type: frame.Exit, Payload: b}
}

// see waits until ok holds of p.
func (p *process) see(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		p.mu.Lock()
		done := ok()
		p.mu.Unlock()
		if done {
			return
		}
	}
	t.Fatalf("never saw %s", what)
}

type result struct {
	exit frame.ExitBody
	err  error
}

// start runs s until the process ends.
func start(t *testing.T, s *Session) <-chan result {
	t.Helper()
	done, ready := make(chan result, 1), make(chan struct{})
	go func() {
		exit, err := s.RunThen(t.Context(), func() { close(ready) })
		done <- result{exit, err}
	}()
	select {
	case <-ready:
	case <-time.After(10 * time.Second):
		t.Fatal("the session did not start")
	}
	return done
}

func modes(t *testing.T, f *os.File) unix.Termios {
	t.Helper()
	m, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	must.NoError(t, err)
	return *m
}

func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, slave, err := pty.Open()
	must.NoError(t, err)
	t.Cleanup(func() { master.Close(); slave.Close() })
	return master, slave
}

func TestSession_rawModeIsSetAndRestored(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(t *testing.T, p *process, master *os.File)
	}{
		{"at exit", func(_ *testing.T, p *process, _ *os.File) { p.exit(frame.ExitBody{Code: 3}) }},
		{"when the connection is lost", func(_ *testing.T, p *process, _ *os.File) { _ = p.Close() }},
		{"when detached", func(t *testing.T, _ *process, master *os.File) {
			_, err := master.WriteString("~.")
			must.NoError(t, err)
		}},
		{"at SIGTERM", func(t *testing.T, _ *process, _ *os.File) {
			must.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGTERM))
		}},
		{"at SIGHUP", func(t *testing.T, _ *process, _ *os.File) { must.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGHUP)) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			master, slave := openPTY(t)
			before := modes(t, slave)
			p := newProcess()
			done := start(t, &Session{Stream: p, Stdin: slave, Stdout: io.Discard, Stderr: io.Discard, TTY: true, Screen: slave, Escape: '~'})
			during := modes(t, slave)
			must.Zero(t, during.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG))
			tc.end(t, p, master)
			<-done
			must.Eq(t, before, modes(t, slave))
		})
	}
}

func TestSession_keysGoToTheProcess(t *testing.T) {
	master, slave := openPTY(t)
	p := newProcess()
	done := start(t, &Session{Stream: p, Stdin: slave, Stdout: io.Discard, Stderr: io.Discard, TTY: true, Screen: slave, Escape: '~'})
	keys := "ls\r\x03\x1a\x1c\x04~~x"
	_, err := master.WriteString(keys)
	must.NoError(t, err)
	p.see(t, "the keys", func() bool { return p.stdin.String() == keys })
	p.exit(frame.ExitBody{Signal: 2, Code: 130})
	r := <-done
	must.NoError(t, r.err)
	must.Eq(t, 130, ExitCode(r.exit))
	must.SliceEmpty(t, p.signals)
}

func TestSession_sizeIsPassedOn(t *testing.T) {
	master, slave := openPTY(t)
	must.NoError(t, pty.Setsize(master, &pty.Winsize{Rows: 24, Cols: 80}))
	p := newProcess()
	done := start(t, &Session{Stream: p, Stdin: slave, Stdout: io.Discard, Stderr: io.Discard, TTY: true, Screen: slave})
	p.see(t, "the first size", func() bool { return len(p.sizes) > 0 && p.sizes[len(p.sizes)-1] == frame.Size{Cols: 80, Rows: 24} })
	must.NoError(t, pty.Setsize(master, &pty.Winsize{Rows: 50, Cols: 132}))
	// The kernel sends it to the terminal's own processes, of which this one is none.
	must.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGWINCH))
	p.see(t, "the new size", func() bool { return p.sizes[len(p.sizes)-1] == frame.Size{Cols: 132, Rows: 50} })
	p.exit(frame.ExitBody{})
	<-done
}

func TestSession_pipesAreBinarySafe(t *testing.T) {
	r, w, err := os.Pipe()
	must.NoError(t, err)
	defer r.Close()
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i * 7)
	}
	copy(data, "\r\n~.\x03")
	var out, errs bytes.Buffer
	p := newProcess()
	done := start(t, &Session{Stream: p, Stdin: r, Stdout: &out, Stderr: &errs, Escape: '~'})
	go func() {
		_, _ = w.Write(data)
		_ = w.Close()
	}()
	p.see(t, "the end of the input", func() bool { return p.eof })
	must.True(t, bytes.Equal(data, p.stdin.Bytes()))
	p.output(frame.Stdout, "out\x00\xff")
	p.output(frame.Stderr, "err")
	p.frames <- frame.Frame{Type: 99, Payload: []byte("of a newer server")}
	p.exit(frame.ExitBody{Code: 7})
	res := <-done
	must.NoError(t, res.err)
	must.Eq(t, 7, ExitCode(res.exit))
	must.Eq(t, "out\x00\xff", out.String())
	must.Eq(t, "err", errs.String())
}

func TestSession_endsWhileNobodyTypes(t *testing.T) {
	r, w, err := os.Pipe()
	must.NoError(t, err)
	defer r.Close()
	defer w.Close()
	p := newProcess()
	done := start(t, &Session{Stream: p, Stdin: r, Stdout: io.Discard, Stderr: io.Discard})
	p.exit(frame.ExitBody{})
	must.NoError(t, (<-done).err)
}

func TestSession_signalsGoToAProcessWithoutTerminal(t *testing.T) {
	p := newProcess()
	done := start(t, &Session{Stream: p, Stdout: io.Discard, Stderr: io.Discard})
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		must.NoError(t, syscall.Kill(os.Getpid(), sig))
		p.see(t, sig.String(), func() bool { return len(p.signals) > 0 && p.signals[len(p.signals)-1] == int(sig) })
	}
	must.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGINT))
	p.see(t, "the second interrupt", func() bool { return len(p.signals) == 3 })
	must.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGINT))
	r := <-done
	var sig *SignalError
	must.True(t, errors.As(r.err, &sig))
	must.Eq(t, syscall.SIGINT, sig.Signal)
}

func TestSession_lostConnectionIsAnError(t *testing.T) {
	p := newProcess()
	done := start(t, &Session{Stream: p, Stdout: io.Discard, Stderr: io.Discard})
	_ = p.Close()
	must.ErrorIs(t, (<-done).err, ErrLost)

	p = newProcess()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := (&Session{Stream: p, Stdout: io.Discard, Stderr: io.Discard}).Run(ctx)
	must.ErrorIs(t, err, context.Canceled)
}

func TestSession_tellsOfLostOutput(t *testing.T) {
	var errs bytes.Buffer
	p := newProcess()
	done := start(t, &Session{Stream: p, Stdout: io.Discard, Stderr: &errs})
	b, err := json.Marshal(frame.DroppedBody{Stream: frame.Stdout, Bytes: 4096, Offset: 9000})
	must.NoError(t, err)
	p.frames <- frame.Frame{Type: frame.Dropped, Payload: b}
	p.exit(frame.ExitBody{})
	must.NoError(t, (<-done).err)
	must.StrContains(t, errs.String(), "4096 bytes of output were lost")
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestSession_outputThatCannotBeWritten(t *testing.T) {
	p := newProcess()
	done := start(t, &Session{Stream: p, Stdout: fullDisk{}, Stderr: io.Discard})
	p.output(frame.Stdout, "x")
	must.ErrorIs(t, (<-done).err, syscall.ENOSPC)
}

func TestEscaper(t *testing.T) {
	for _, tc := range []struct {
		name   string
		chunks []string
		want   string
		detach bool
	}{
		{"at the start", []string{"~."}, "", true},
		{"after a return", []string{"ls\r~."}, "ls\r", true},
		{"in pieces", []string{"ls\r", "~", "."}, "ls\r", true},
		{"in the middle of a line", []string{"a~."}, "a~.", false},
		{"doubled", []string{"~~."}, "~.", false},
		{"before something else", []string{"~x~."}, "~x~.", false},
		{"before a return", []string{"~\r~."}, "~\r", true},
		{"nothing after it is sent", []string{"~.rm -rf /\r"}, "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := escaper{char: '~'}
			var out []byte
			detach := false
			for _, c := range tc.chunks {
				var b []byte
				b, detach = e.filter([]byte(c))
				out = append(out, b...)
			}
			must.Eq(t, tc.want, string(out))
			must.Eq(t, tc.detach, detach)
		})
	}
	e := escaper{}
	out, detach := e.filter([]byte("~."))
	must.Eq(t, "~.", string(out))
	must.False(t, detach)
}

func TestExitCode(t *testing.T) {
	must.Eq(t, 0, ExitCode(frame.ExitBody{}))
	must.Eq(t, 7, ExitCode(frame.ExitBody{Code: 7}))
	must.Eq(t, 137, ExitCode(frame.ExitBody{Code: 137, Signal: 9}))
	must.Eq(t, 255, ExitCode(frame.ExitBody{Code: -1}))
}

func TestInput_regularFileAndClosedPeer(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	must.NoError(t, err)
	defer f.Close()
	_, err = f.WriteString("abc")
	must.NoError(t, err)
	_, err = f.Seek(0, io.SeekStart)
	must.NoError(t, err)
	in, err := newInput(f)
	must.NoError(t, err)
	defer in.close()
	b, err := io.ReadAll(in)
	must.NoError(t, err)
	must.Eq(t, "abc", string(b))
	in.cancel()
	_, err = in.Read(make([]byte, 1))
	must.True(t, errors.Is(err, errCancelled))
}
