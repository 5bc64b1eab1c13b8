package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/logbook"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

const (
	logRate  = 512 << 10 // bytes a second that a sandbox's book grows by, whatever its processes print
	logBurst = 4 << 20   // bytes that it may grow by at once
	// maxLines is how many entries are made of one piece of output before the next is looked at: empty lines take the most room.
	maxLines = 256
	// partialWait is how long the beginning of a line waits for its end.
	partialWait = time.Second
	maxShownCmd = 256            // bytes of a command line in an entry
	logKeep     = 24 * time.Hour // books of sandboxes that are gone
	logBooks    = 10_000         // files of such books
)

// note writes an entry about a sandbox. That it cannot be written is no reason to fail anything.
func (n *Node) note(b *box, level, message string, fields map[string]string) {
	n.write(b, logbook.Entry{Time: time.Now().UTC(), Level: level, Source: logbook.Platform, Message: message, Fields: fields})
}

// write puts entries into a sandbox's book, and says how long nothing more should be written.
func (n *Node) write(b *box, entries ...logbook.Entry) time.Duration {
	if n.books == nil {
		return 0
	}
	size, err := n.books.Append(b.id, entries...)
	if err != nil {
		n.metrics.IncrCounter([]string{"log_failures"}, 1)
		n.log.Debug("entries of a logbook are lost", "sandbox", b.id, "error", err)
	}
	return b.logged.spend(size, time.Now())
}

// processStarted follows the output of a process that was started through the node, for the sandbox's book.
func (n *Node) processStarted(b *box, g guestClient, p guest.ProcessInfo) {
	if n.books == nil {
		return
	}
	n.wg.Go(func() {
		n.note(b, logbook.Debug, "process started: "+commandOf(p), fieldsOf(p))
		n.follow(b, g, p, guest.Attach{PID: p.PID, Lossy: true})
	})
}

// logAgain goes on with the processes of a sandbox that an earlier daemon made. What they printed in between is lost.
func (n *Node) logAgain(b *box, g guestClient) {
	if n.books == nil {
		return
	}
	n.wg.Go(func() {
		all, err := g.List(n.ctx)
		if err != nil {
			return // the sandbox is ending
		}
		for _, p := range all {
			if p.Exit == nil {
				n.wg.Go(func() { n.follow(b, g, p, guest.Attach{PID: p.PID, Stdout: -1, Stderr: -1, Lossy: true}) })
			}
		}
	})
}

func fieldsOf(p guest.ProcessInfo) map[string]string {
	fields := map[string]string{"pid": strconv.Itoa(int(p.PID))}
	if p.Tag != "" {
		fields["tag"] = p.Tag
	}
	return fields
}

func commandOf(p guest.ProcessInfo) string {
	shown := strings.Join(p.Argv, " ")
	if len(shown) > maxShownCmd {
		shown = shown[:maxShownCmd] + "…"
	}
	return shown
}

// follow is one process's way into the book. The process never waits for it: what it cannot take is lost, and counted.
func (n *Node) follow(b *box, g guestClient, p guest.ProcessInfo, from guest.Attach) {
	fields := fieldsOf(p)
	stream, err := g.Attach(n.ctx, from)
	if err != nil {
		return // it, or the sandbox, is gone
	}
	defer stream.Close()
	defer context.AfterFunc(n.ctx, func() { stream.Close() })()
	l := &lines{n: n, b: b, fields: fields}
	defer l.end()
	for {
		f, err := stream.Recv()
		if err != nil {
			return
		}
		switch f.Type {
		case frame.Exit:
			e, err := guest.ExitOf(f)
			if err != nil {
				return
			}
			l.end()
			level, how := logbook.Debug, "process ended: exit code "+strconv.Itoa(e.Code)
			if e.Signal != 0 {
				how = "process ended: signal " + strconv.Itoa(e.Signal)
			}
			n.note(b, level, how, fields)
			return
		case frame.Dropped:
			var d frame.DroppedBody
			if json.Unmarshal(f.Payload, &d) != nil {
				return
			}
			l.end()
			n.note(b, logbook.Warn, fmt.Sprintf("%d bytes of output are missing here: the process printed faster than they can be kept", d.Bytes), fields)
		case frame.Stdout, frame.Stderr, frame.PTY:
			_, data, err := frame.Output(f.Payload)
			if err != nil {
				return
			}
			for len(data) > 0 {
				var wait time.Duration
				if data, wait = l.add(f.Type, data); !sleep(n.ctx, wait) {
					return
				}
			}
		}
	}
}

// lines cuts output into entries.
type lines struct {
	n      *Node
	b      *box
	fields map[string]string

	mu    sync.Mutex
	parts [2][]byte // the line that has begun, of stdout or the terminal, and of stderr
	kinds [2]frame.Type
	timer *time.Timer
}

// add takes output in, up to some number of lines. It returns what is left of it, and how long that should wait.
func (l *lines) add(t frame.Type, data []byte) (rest []byte, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := 0
	if t == frame.Stderr {
		i = 1
	}
	l.kinds[i] = t
	var out []logbook.Entry
	now := time.Now().UTC()
	for len(data) > 0 && len(out) < maxLines {
		line, rest, whole := bytes.Cut(data, []byte{'\n'})
		for room := logbook.MaxMessage - len(l.parts[i]); len(line) > room; room = logbook.MaxMessage {
			out = append(out, l.entry(t, now, append(l.parts[i], line[:room]...)))
			l.parts[i], line = l.parts[i][:0], line[room:]
		}
		l.parts[i] = append(l.parts[i], line...)
		if whole {
			out = append(out, l.entry(t, now, l.parts[i]))
			l.parts[i] = l.parts[i][:0]
		}
		data = rest
	}
	if len(out) > 0 {
		wait = l.n.write(l.b, out...)
	}
	if l.timer != nil {
		l.timer.Stop()
	}
	if len(l.parts[0])+len(l.parts[1]) > 0 {
		l.timer = time.AfterFunc(partialWait, l.flush)
	}
	return data, wait
}

func (l *lines) entry(t frame.Type, now time.Time, line []byte) logbook.Entry {
	e := logbook.Entry{Time: now, Level: logbook.Info, Source: logbook.Stdout, Message: string(bytes.TrimSuffix(line, []byte{'\r'})), Fields: l.fields}
	switch t {
	case frame.Stderr:
		e.Level, e.Source = logbook.Warn, logbook.Stderr
	case frame.PTY:
		e.Source = logbook.Terminal
	}
	return e
}

// flush writes lines that have only begun.
func (l *lines) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now().UTC()
	for i, p := range l.parts {
		if len(p) > 0 {
			l.n.write(l.b, l.entry(l.kinds[i], now, p))
			l.parts[i] = nil
		}
	}
}

func (l *lines) end() {
	l.mu.Lock()
	if l.timer != nil {
		l.timer.Stop()
	}
	l.mu.Unlock()
	l.flush()
}

// budget bounds how fast a book grows. All processes of a sandbox spend from one: safe for concurrent use.
type budget struct {
	rate, burst float64 // bytes a second; bytes

	mu   sync.Mutex
	left float64
	at   time.Time
}

func newBudget(rate, burst float64) *budget {
	return &budget{rate: rate, burst: burst, left: burst}
}

// spend takes what has been written, and returns how long it is until that is paid for. Whoever waits so long before the next writing
// leaves at most one writing of debt.
func (b *budget) spend(n int, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.at.IsZero() {
		b.left = min(b.burst, b.left+max(now.Sub(b.at).Seconds(), 0)*b.rate)
	}
	b.left -= float64(n)
	b.at = now
	if b.left >= 0 {
		return 0
	}
	return time.Duration(-b.left / b.rate * float64(time.Second))
}

// noteEnd says in the book how a sandbox ended.
func (n *Node) noteEnd(b *box, e *nodeapi.Exit) {
	level, message := logbook.Info, "sandbox ended"
	if e != nil {
		message += ": " + e.Reason
		switch {
		case e.OOM:
			level, message = logbook.Error, message+", out of memory"
		case e.Reason == nodeapi.ExitKilled:
			level = logbook.Error
		}
		if e.PIDs {
			message += ", processes were refused at its limit"
		}
		if e.Message != "" {
			message += ": " + e.Message
		}
	}
	n.note(b, level, message, nil)
}
