package pid1

import (
	"errors"
	"os"
	"sync"
	"time"
)

// input is the writing end of a process's stdin, or its terminal. Writers take turns.
type input struct {
	file *os.File
	tty  bool // file is the terminal, which the output's pump closes

	turn chan struct{} // holds a token while bytes of one writer go in

	mu     sync.Mutex
	closed bool
}

// errStdinClosed is what a writer gets when there is nobody left to read.
var errStdinClosed = errors.New("stdin is closed")

func newInput(f *os.File, tty bool) *input {
	return &input{file: f, tty: tty, turn: make(chan struct{}, 1)}
}

// write hands p to the process. It blocks while the process does not read, until left is closed and then poke called.
func (in *input) write(p []byte, left <-chan struct{}) error {
	select {
	case in.turn <- struct{}{}:
		defer func() { <-in.turn }()
	case <-left:
		return os.ErrDeadlineExceeded
	}
	for len(p) > 0 {
		select {
		case <-left:
			return os.ErrDeadlineExceeded
		default:
		}
		n, err := in.file.Write(p)
		p = p[n:]
		if errors.Is(err, os.ErrDeadlineExceeded) {
			// Somebody's attachment has ended. Where it was not this one, go on.
			in.file.SetWriteDeadline(time.Time{})
			continue
		}
		if err != nil {
			return errStdinClosed
		}
	}
	return nil
}

// poke makes a blocked write ask whether its attachment is gone.
func (in *input) poke() { in.file.SetWriteDeadline(time.Unix(1, 0)) }

// eof closes stdin, or sends a terminal its end-of-file character.
func (in *input) eof(left <-chan struct{}) error {
	if in.tty {
		return in.write([]byte{4}, left) // VEOF of a new terminal
	}
	select {
	case in.turn <- struct{}{}:
		defer func() { <-in.turn }()
	case <-left:
		return os.ErrDeadlineExceeded
	}
	in.close()
	return nil
}

// close closes stdin at once, whoever writes. It may be repeated.
func (in *input) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.closed && !in.tty {
		in.closed = true
		in.file.Close()
	}
}
