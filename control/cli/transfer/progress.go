package transfer

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

const drawEvery = 100 * time.Millisecond

// Progress shows how far a transfer is, on one line of a terminal. A nil one shows nothing.
type Progress struct {
	w     io.Writer
	label string
	total int64 // bytes; 0: not known
	start time.Time

	mu    sync.Mutex
	bytes int64
	drawn time.Time
	width int
	note  string
}

// NewProgress shows a transfer on w, which must be a terminal. total is in bytes, 0 where it is not known.
func NewProgress(w io.Writer, label string, total int64) *Progress {
	return &Progress{w: w, label: label, total: total, start: time.Now()}
}

// Reader returns r with its bytes counted.
func (p *Progress) Reader(r io.Reader) io.Reader {
	if p == nil {
		return r
	}
	return countingReader{r, p}
}

type countingReader struct {
	r io.Reader
	p *Progress
}

func (c countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.p.Add(int64(n))
	return n, err
}

// Add counts n bytes.
func (p *Progress) Add(n int64) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes += n
	if now := time.Now(); now.Sub(p.drawn) >= drawEvery {
		p.draw(now)
	}
}

// Note shows a text behind the numbers.
func (p *Progress) Note(s string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.note = s
	p.draw(time.Now())
}

// Done removes the line.
func (p *Progress) Done() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.width > 0 {
		fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", p.width))
		p.width = 0
	}
}

func (p *Progress) draw(now time.Time) {
	p.drawn = now
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s", p.label, Bytes(p.bytes))
	if p.total > 0 {
		const cells = 20
		part := min(1, float64(p.bytes)/float64(p.total))
		full := int(part * cells)
		fmt.Fprintf(&b, " of %s  [%s%s] %3.0f%%", Bytes(p.total), strings.Repeat("=", full), strings.Repeat(" ", cells-full), part*100)
	}
	if s := now.Sub(p.start).Seconds(); s > 0.2 {
		fmt.Fprintf(&b, "  %s/s", Bytes(int64(float64(p.bytes)/s)))
	}
	if p.note != "" {
		fmt.Fprintf(&b, "  %s", p.note)
	}
	line := b.String()
	fmt.Fprintf(p.w, "\r%s%s", line, strings.Repeat(" ", max(0, p.width-len(line))))
	p.width = len(line)
}

// Bytes writes a number of bytes for people, in units of 1024.
func Bytes(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n)/1024, []string{"KiB", "MiB", "GiB", "TiB", "PiB"}
	for v >= 1024 && len(units) > 1 {
		v, units = v/1024, units[1:]
	}
	return fmt.Sprintf("%.1f %s", v, units[0])
}
