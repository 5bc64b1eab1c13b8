// Package session is the local side of a process that runs elsewhere: it joins this process's terminal, standard input and
// output and its signals to the frames of an attachment.
//
// It owns the terminal's mode while it runs: whatever happens, the mode is as before when Run returns. It never starts or
// finds a process.
package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// Stream is an attachment to a process. Recv is called by one goroutine, all else by several.
type Stream interface {
	// Recv returns the next frame; its payload is valid until the next call. Exit is the last.
	Recv() (frame.Frame, error)
	Write(p []byte) (int, error) // to the process's stdin or terminal
	CloseStdin() error
	Resize(frame.Size) error
	Signal(number int) error
	Close() error // unblocks all other calls
}

// Session is one attachment.
type Session struct {
	Stream Stream
	Stdin  *os.File // what the process reads; nil: nothing is sent
	Stdout io.Writer
	Stderr io.Writer
	// TTY says that the process has a terminal: a local one at Stdin is set to raw mode, its size and its changes of size
	// are passed on.
	TTY bool
	// Screen is where the terminal's size is read; nil: it is not passed on.
	Screen *os.File
	// Escape, typed at the start of a line and followed by a dot, ends the session. 0: nothing does. Terminals only.
	Escape byte
}

// Errors of Run.
var (
	ErrDetached = errors.New("detached")                   // by the escape character
	ErrLost     = errors.New("connection to sandbox lost") // before the process ended
)

// SignalError is returned by Run when a signal to this program ended the session.
type SignalError struct{ Signal syscall.Signal }

func (e *SignalError) Error() string { return "ended by " + unix.SignalName(e.Signal) }

// interrupts is how many SIGINT a process without a terminal gets before the session ends without it.
const interrupts = 3

// Run passes input, output, signals and sizes on until the process ends, and returns how. It closes the stream.
func (s *Session) Run(ctx context.Context) (frame.ExitBody, error) { return s.RunThen(ctx, nil) }

// RunThen is Run with a function that is called once the session has the signals and the terminal, to let go of them.
func (s *Session) RunThen(ctx context.Context, release func()) (frame.ExitBody, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &runner{Session: s, cancel: cancel}
	if err := r.openTerminal(); err != nil {
		return frame.ExitBody{}, errors.Join(err, s.Stream.Close())
	}
	defer r.term.restore()

	signals := make(chan os.Signal, 16)
	signal.Notify(signals, r.signals()...)
	defer signal.Stop(signals)
	if release != nil {
		release()
	}
	if r.term != nil && s.Screen != nil {
		r.resize() // it may have changed since the process was asked for
	}

	input, err := newInput(s.Stdin)
	if err != nil {
		return frame.ExitBody{}, errors.Join(err, s.Stream.Close())
	}
	var wg sync.WaitGroup
	wg.Go(func() { r.handle(ctx, signals) })
	wg.Go(func() { r.send(input) })
	stop := context.AfterFunc(ctx, func() { _ = s.Stream.Close() })

	exit, err := r.receive()
	// The order matters: a send that waits for the process to read ends with the stream, one that waits for a key ends with
	// the input.
	cause := context.Cause(ctx)
	stop()
	cancel(nil)
	_ = s.Stream.Close() // the connection may be gone already
	input.cancel()
	wg.Wait()
	input.close()
	if err != nil && cause != nil {
		err = cause
	}
	return exit, err
}

type runner struct {
	*Session
	term   *terminal
	cancel context.CancelCauseFunc
}

func (r *runner) openTerminal() (err error) {
	if r.TTY {
		r.term, err = makeRaw(r.Stdin)
	}
	return err
}

func (r *runner) signals() []os.Signal {
	list := []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP}
	if r.term != nil {
		// A broken pipe at stdout must not end this program before the mode is back.
		list = append(list, syscall.SIGPIPE, syscall.SIGTSTP)
	}
	if r.TTY && r.Screen != nil {
		list = append(list, syscall.SIGWINCH)
	}
	return list
}

// handle passes signals on until ctx ends.
func (r *runner) handle(ctx context.Context, signals <-chan os.Signal) {
	seen := 0
	for {
		var sig syscall.Signal
		select {
		case <-ctx.Done():
			return
		case v := <-signals:
			sig, _ = v.(syscall.Signal)
		}
		switch sig {
		case syscall.SIGWINCH:
			r.resize()
		case syscall.SIGPIPE: // the write that caused it reports it
		case syscall.SIGTSTP:
			r.suspend()
		case syscall.SIGHUP:
			// Nobody is there any more.
			r.cancel(&SignalError{sig})
		default:
			if sig == syscall.SIGINT {
				seen++
			}
			// In raw mode the keys arrive as bytes: a signal is somebody else's wish that this program ends.
			if r.TTY || seen >= interrupts || r.Stream.Signal(int(sig)) != nil {
				r.cancel(&SignalError{sig})
			}
		}
	}
}

func (r *runner) resize() {
	if size, ok := Size(r.Screen); ok {
		_ = r.Stream.Resize(size) // a lost stream is seen by receive
	}
}

// suspend stops this program as an outside SIGTSTP asks, with the terminal as the shell expects it.
func (r *runner) suspend() {
	r.term.restore()
	// To this very thread: one that another thread takes would let this one go on to raw mode before it stops.
	runtime.LockOSThread()
	_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGSTOP)
	runtime.UnlockOSThread()
	if term, err := makeRaw(r.Stdin); err == nil {
		r.term.again(term)
	}
	if r.Screen != nil {
		r.resize()
	}
}

// send copies the input to the process until the input, the session or the process's interest ends.
func (r *runner) send(in *input) {
	if in == nil {
		return
	}
	esc := escaper{char: r.Escape}
	if r.term == nil {
		esc.char = 0
	}
	buf := make([]byte, frame.MaxData)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			out, detach := esc.filter(buf[:n])
			if _, err := r.Stream.Write(out); err != nil {
				return
			}
			if detach {
				r.cancel(ErrDetached)
				return
			}
		}
		if err != nil {
			if !errors.Is(err, errCancelled) {
				_ = r.Stream.CloseStdin()
			}
			return
		}
	}
}

// receive writes the process's output until it ends.
func (r *runner) receive() (frame.ExitBody, error) {
	for {
		f, err := r.Stream.Recv()
		if err != nil {
			return frame.ExitBody{}, fmt.Errorf("%w: %w", ErrLost, err)
		}
		w := r.Stdout
		switch f.Type {
		case frame.Exit:
			var exit frame.ExitBody
			if err := json.Unmarshal(f.Payload, &exit); err != nil {
				return exit, fmt.Errorf("decode exit: %w", err)
			}
			return exit, nil
		case frame.Dropped:
			r.gap(f.Payload)
			continue
		case frame.Stderr:
			w = r.Stderr
		case frame.Stdout, frame.PTY:
		default: // a newer server's frame
			continue
		}
		_, data, err := frame.Output(f.Payload)
		if err != nil {
			return frame.ExitBody{}, err
		}
		if _, err := w.Write(data); err != nil {
			return frame.ExitBody{}, fmt.Errorf("write output: %w", err)
		}
	}
}

func (r *runner) gap(payload []byte) {
	var d frame.DroppedBody
	if json.Unmarshal(payload, &d) == nil && d.Bytes > 0 {
		fmt.Fprintf(r.Stderr, "\r\n[%d bytes of output were lost: they came faster than they were read]\r\n", d.Bytes)
	}
}

// ExitCode is the exit code for how a process ended: its own, or 128 and the signal's number.
func ExitCode(e frame.ExitBody) int {
	if e.Signal != 0 {
		return 128 + e.Signal
	}
	return e.Code & 0xff
}
