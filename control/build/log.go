package build

import (
	"bytes"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Limits of a build's log.
const (
	maxEntries = 20_000
	maxLine    = 4 << 10 // bytes
)

// say adds an entry to a build's log. The last that fits says that there were more.
func (b *build) say(level, step, message string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch n := len(b.log); {
	case n > maxEntries:
		return
	case n == maxEntries:
		level, message = "warn", "the log is full: what follows is left out"
	}
	if len(message) > maxLine {
		message = message[:maxLine] + "…"
	}
	b.log = append(b.log, api.BuildLogEntry{Timestamp: time.Now().UTC(), Level: level, Message: strings.ToValidUTF8(message, "\uFFFD"), Step: step})
}

// lines is a writer whose lines are entries of a build's log.
type lines struct {
	a           *site
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
		l.a.say(l.level, l.step, strings.TrimRight(string(l.rest[:i+1]), "\r\n"))
		l.rest = append(l.rest[:0], l.rest[i+1:]...)
	}
}

func (l *lines) end() {
	if len(l.rest) > 0 {
		l.a.say(l.level, l.step, string(l.rest))
		l.rest = nil
	}
}
