package session

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/term"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// IsTerminal reports whether f is a terminal.
func IsTerminal(f *os.File) bool { return f != nil && term.IsTerminal(int(f.Fd())) }

// IsTerminalFd is IsTerminal for an open descriptor.
func IsTerminalFd(fd uintptr) bool { return term.IsTerminal(int(fd)) }

// Size returns the size of the terminal f. ok is false where it is none, or has no size.
func Size(f *os.File) (size frame.Size, ok bool) {
	if f == nil {
		return frame.Size{}, false
	}
	cols, rows, err := term.GetSize(int(f.Fd()))
	if err != nil || cols <= 0 || rows <= 0 || cols > 1<<15 || rows > 1<<15 {
		return frame.Size{}, false
	}
	return frame.Size{Cols: uint16(cols), Rows: uint16(rows)}, true
}

// terminal is a terminal in raw mode. A nil one is none.
type terminal struct {
	mu    sync.Mutex
	file  *os.File
	saved *term.State // nil while the mode is the old one
}

// makeRaw sets f to raw mode. It returns nil where f is no terminal.
func makeRaw(f *os.File) (*terminal, error) {
	if !IsTerminal(f) {
		return nil, nil
	}
	saved, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("set terminal to raw mode: %w", err)
	}
	return &terminal{file: f, saved: saved}, nil
}

// restore brings the mode from before makeRaw back. More calls do nothing.
func (t *terminal) restore() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.saved != nil {
		_ = term.Restore(int(t.file.Fd()), t.saved) // fails only where the terminal is gone
		t.saved = nil
	}
}

// again takes over the state of a later makeRaw on the same file.
func (t *terminal) again(other *terminal) {
	if t == nil || other == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.saved = other.saved
}
