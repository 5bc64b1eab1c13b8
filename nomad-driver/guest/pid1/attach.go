package pid1

import (
	"encoding/binary"
	"encoding/json"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// lingerFor is how long an attachment that has been told of the end is kept open for its client to close it.
const lingerFor = 5 * time.Second

// attachment is one client's place at a process. The conversation's goroutine reads what the client sends (serve), a
// second one writes output (write); serve joins it.
type attachment struct {
	s       *supervisor
	p       *process
	c       *conn
	readers []*reader // one for each of p.out

	once sync.Once
	left chan struct{} // closed when the client has left
}

// join registers a new attachment. The process's mutex must not be held.
func (s *supervisor) join(p *process, c *conn, a guest.Attach, lossless bool) *attachment {
	at := &attachment{s: s, p: p, c: c, left: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, o := range p.out {
		want := a.Stdout
		if i == 1 {
			want = a.Stderr
		}
		r := &reader{off: o.ring.end, lossless: lossless, lossy: a.Lossy, lagging: a.Lossy}
		if want >= 0 {
			r.off = min(uint64(want), o.ring.end)
		}
		o.readers = append(o.readers, r)
		at.readers = append(at.readers, r)
	}
	p.unexpect()
	return at
}

// expect makes the process's output wait for a first attachment, at most for d. Its output must not be pumped yet.
func (p *process) expect(d time.Duration) {
	for _, o := range p.out {
		r := &reader{lossless: true}
		o.readers = append(o.readers, r)
		p.expected = append(p.expected, r)
	}
	time.AfterFunc(d, func() {
		p.mu.Lock()
		p.unexpect()
		p.mu.Unlock()
	})
}

// unexpect ends what expect began. The process's mutex is held.
func (p *process) unexpect() {
	for i, r := range p.expected {
		p.out[i].leave(r)
	}
	p.expected = nil
	p.cond.Broadcast()
}

// leave gives the attachment's claim on the rings up.
func (a *attachment) leave() {
	a.p.mu.Lock()
	defer a.p.mu.Unlock()
	for i, o := range a.p.out {
		o.leave(a.readers[i])
	}
	a.p.cond.Broadcast()
}

func (o *output) leave(r *reader) {
	for n, have := range o.readers {
		if have == r {
			o.readers = append(o.readers[:n], o.readers[n+1:]...)
			return
		}
	}
}

// gone reports whether the client has left.
func (a *attachment) gone() bool {
	select {
	case <-a.left:
		return true
	default:
		return false
	}
}

// hangup notes that the client has left and wakes everything that works for it.
func (a *attachment) hangup() {
	a.once.Do(func() { close(a.left) })
	a.c.f.SetWriteDeadline(time.Unix(1, 0))
	if a.p.in != nil {
		a.p.in.poke()
	}
	a.p.broadcast()
}

// serve works for the client until it leaves or the process has ended.
func (a *attachment) serve(killOnDetach bool) {
	written := make(chan bool, 1)
	go func() {
		told := a.write()
		if told {
			// Let the client close first: bytes of it that were not read yet would make the kernel answer with a
			// reset in place of the end.
			a.c.closeWrite()
			a.c.readUntil(time.Now().Add(lingerFor))
			a.p.mu.Lock()
			a.p.told = true
			a.p.cond.Broadcast()
			a.p.mu.Unlock()
		} else {
			a.hangup()
			a.c.readUntil(time.Unix(1, 0))
		}
		written <- told
	}()
	a.input()
	a.hangup()
	<-written
	a.leave()
	if killOnDetach && !a.c.parked.Load() && !a.p.hasEnded() {
		a.s.killSession(a.p)
	}
}

// input reads the client's frames until it leaves.
func (a *attachment) input() {
	fr := frame.NewReader(a.c.f)
	for {
		f, err := fr.Read()
		if err != nil {
			return
		}
		if a.p.hasEnded() {
			continue // it cannot have known
		}
		switch f.Type {
		case frame.Stdin:
			if !a.stdin(f.Payload, false) {
				return
			}
		case frame.StdinClose:
			if !a.stdin(nil, true) {
				return
			}
		case frame.Resize:
			var size frame.Size
			if json.Unmarshal(f.Payload, &size) != nil {
				return
			}
			a.s.resize(a.p, size)
		case frame.Signal:
			var body frame.SignalBody
			if json.Unmarshal(f.Payload, &body) != nil || checkSignal(body.Number) != nil {
				return
			}
			a.s.signal(a.p, body.Number, false)
		default:
			return
		}
	}
}

// stdin hands data to the process, or its end. While the process does not read, nothing more is read from the client, but
// its leaving is seen. It returns false where the client has left.
func (a *attachment) stdin(data []byte, end bool) bool {
	in := a.p.in
	if in == nil {
		return true // it reads /dev/null
	}
	work := func() {
		// That the process has closed its stdin is its own business: what is sent to it is lost, as in a shell's pipe.
		if end {
			_ = in.eof(a.left)
		} else {
			_ = in.write(data, a.left)
		}
	}
	return a.c.during(work, a.hangup) && !a.gone()
}

// write sends output until the process's end has been told, which it reports, or the client is gone.
func (a *attachment) write() (told bool) {
	p := a.p
	var buf []byte
	defer func() { frames.put(buf) }()
	turn := 0
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if a.gone() {
			return false
		}
		n, dropped := a.next(&turn, &buf)
		if n == 0 && dropped == nil {
			if p.exit != nil && a.hasAll() {
				body := *p.exit
				p.mu.Unlock()
				err := frame.WriteJSON(a.c.f, frame.Exit, body)
				p.mu.Lock()
				return err == nil
			}
			frames.put(buf) // an idle attachment holds no memory
			buf = nil
			p.cond.Wait()
			continue
		}
		p.mu.Unlock()
		var err error
		if dropped != nil {
			err = frame.WriteJSON(a.c.f, frame.Dropped, dropped)
		} else {
			_, err = a.c.f.Write(buf[:n])
		}
		p.mu.Lock()
		if err != nil {
			return false
		}
	}
}

// next takes the next bytes from a ring and returns the length of the frame that it made of them in buf, or tells of a
// gap. The streams take turns. The process's mutex is held.
func (a *attachment) next(turn *int, buf *[]byte) (int, *frame.DroppedBody) {
	for range a.p.out {
		i := *turn % len(a.p.out)
		*turn++
		o, r := a.p.out[i], a.readers[i]
		if r.off < o.ring.start {
			d := &frame.DroppedBody{Stream: o.typ, Bytes: o.ring.start - r.off, Offset: o.ring.start}
			r.off = o.ring.start
			return 0, d
		}
		if r.off == o.ring.end {
			continue
		}
		if *buf == nil {
			*buf = frames.get()
		}
		b := *buf
		n := o.ring.read(b[outputHeader:], r.off)
		binary.BigEndian.PutUint32(b, uint32(n+outputHeader-frameHeader))
		b[4] = byte(o.typ)
		binary.BigEndian.PutUint64(b[frameHeader:], r.off)
		r.took(r.off+uint64(n), o)
		a.p.cond.Broadcast()
		return outputHeader + n, nil
	}
	return 0, nil
}

// hasAll reports whether everything that the ended process wrote has been sent. The process's mutex is held.
func (a *attachment) hasAll() bool {
	for i, o := range a.p.out {
		if !o.drained || a.readers[i].off < o.final {
			return false
		}
	}
	return true
}

const (
	frameHeader  = 5
	outputHeader = frameHeader + 8
)

// frames lends the buffers in which output frames are built.
var frames bufferPool

type bufferPool struct{ pool sync.Pool }

func (b *bufferPool) get() []byte {
	if v, ok := b.pool.Get().(*[outputHeader + frame.MaxData]byte); ok {
		return v[:]
	}
	return make([]byte, outputHeader+frame.MaxData)
}

func (b *bufferPool) put(p []byte) {
	if p != nil {
		b.pool.Put((*[outputHeader + frame.MaxData]byte)(p))
	}
}
