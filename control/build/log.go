package build

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/state"
)

// Limits of a build's log, which is in the state of all servers.
const (
	maxEntries = 10_000
	maxLog     = 1 << 20 // bytes of all messages
	maxLine    = 4 << 10 // bytes
	maxChunk   = 128 << 10
	logGap     = 200 * time.Millisecond // that entries wait for others
)

var errEnded = errors.New("the build was ended meanwhile")

// build is a build that runs here. Its record is as it was at the start.
type build struct {
	state.Build
	caller auth.Identity
	s      *Service
	ctx    context.Context // of the build
	stop   context.CancelCauseFunc

	mu      sync.Mutex
	pending []state.BuildLogEntry // that the state does not have yet
	entries int                   // of the whole log
	bytes   int
}

// say adds an entry to the log. The last that fits says that there were more.
func (b *build) say(level, step, message string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.entries > maxEntries || b.bytes > maxLog {
		return
	}
	if len(message) > maxLine {
		message = message[:maxLine] + "…"
	}
	b.entries, b.bytes = b.entries+1, b.bytes+len(message)
	if b.entries > maxEntries || b.bytes > maxLog {
		level, message = "warn", "the log is full: what follows is left out"
	}
	b.pending = append(b.pending, entry(level, step, message))
}

func entry(level, step, message string) state.BuildLogEntry {
	return state.BuildLogEntry{At: time.Now().UTC(), Level: level, Step: step, Message: strings.ToValidUTF8(message, "\uFFFD")}
}

// take returns entries that the state does not have yet, as many as one command takes.
func (b *build) take() []state.BuildLogEntry {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, size := 0, 0
	for n < len(b.pending) && size < maxChunk {
		size += len(b.pending[n].Message) + len(b.pending[n].Step) + 64
		n++
	}
	out := b.pending[:n:n]
	b.pending = b.pending[n:]
	return out
}

// record keeps the state's log up to date until done is closed. A build that is not this server's any more is stopped.
func (b *build) record(done <-chan struct{}) {
	tick := time.NewTicker(logGap)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		if err := b.flush(b.ctx, ""); err != nil && b.ctx.Err() == nil {
			b.s.cfg.Logger.Warn("log of a build not recorded", "build", b.ID, "error", err)
			b.stop(err)
			return
		}
	}
}

// flush records what there is of the log, and the sandbox, if it is not empty.
func (b *build) flush(ctx context.Context, sandbox string) error {
	for {
		entries := b.take()
		if len(entries) == 0 && sandbox == "" {
			return nil
		}
		_, err := b.s.cfg.State.Apply(ctx, &state.BuildLog{ID: b.ID, Creator: b.s.run, Sandbox: sandbox, Entries: entries})
		if errors.Is(err, state.ErrState) || errors.Is(err, state.ErrNotFound) {
			return errEnded
		}
		if err != nil {
			return err
		}
		sandbox = ""
	}
}

// lines is a writer whose lines are entries of a build's log.
type lines struct {
	b           *build
	level, step string
	rest        []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 && len(l.rest) < maxLine {
			return len(p), nil
		}
		if i < 0 {
			i = len(l.rest) - 1
		}
		l.b.say(l.level, l.step, strings.TrimRight(string(l.rest[:i+1]), "\r\n"))
		l.rest = append(l.rest[:0], l.rest[i+1:]...)
	}
}

func (l *lines) end() {
	if len(l.rest) > 0 {
		l.b.say(l.level, l.step, string(l.rest))
		l.rest = nil
	}
}
