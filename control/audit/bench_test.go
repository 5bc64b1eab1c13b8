package audit

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkEvent is the work on the processor for each event: masked, encoded and chained, and every 1,024 a head signed. The floor is
// the hash alone.
func BenchmarkEvent(b *testing.B) {
	s := newSigner()
	e := event(1)
	var buf, scratch []byte
	var prev Hash
	n := uint64(0)
	run := func(count int) time.Duration {
		start := time.Now()
		for range count {
			n++
			c := clean(e)
			buf = appendEvent(buf[:0], &c)
			patch(buf, n, start)
			prev, scratch = chain(scratch, hashedEvent, prev, buf)
			if n%1024 == 0 {
				h := Head{Format: headFormat, Kind: kindHead, Index: n, Hash: prev.String(), Time: start}
				if _, err := s.Sign(b.Context(), [][]byte{message(h)}); err != nil {
					b.Fatal(err)
				}
			}
		}
		return time.Since(start)
	}
	const each = 20_000
	run(each)
	var total, floor time.Duration
	for b.Loop() {
		total += run(each)
		start := time.Now()
		for range each {
			prev, scratch = chain(scratch, hashedEvent, prev, buf)
		}
		floor += time.Since(start)
	}
	b.ReportMetric(float64(b.N*each)/total.Seconds(), "events/s/core")
	b.ReportMetric(float64(b.N*each)/floor.Seconds(), "floor/s/core")
	b.ReportMetric(float64(len(buf)), "bytes/event")
}

// BenchmarkDurable is what 256 callers get at once, each of which waits until its event is on the disk. The floor is a write and an
// fdatasync for each group of 256 events.
func BenchmarkDurable(b *testing.B) {
	l := open(b, Config{Dir: b.TempDir(), SignEvery: time.Second})
	const callers, each = 256, 40
	for b.Loop() {
		start := time.Now()
		var mu sync.Mutex
		var waits []time.Duration
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				own := make([]time.Duration, 0, each)
				for range each {
					at := time.Now()
					if err := l.Append(event(rand.Int())); err != nil {
						b.Error(err)
					}
					own = append(own, time.Since(at))
				}
				mu.Lock()
				defer mu.Unlock()
				waits = append(waits, own...)
			})
		}
		wg.Wait()
		took := time.Since(start)
		slices.Sort(waits)
		b.ReportMetric(callers*each/took.Seconds(), "events/s")
		b.ReportMetric(float64(waits[len(waits)/2].Microseconds()), "p50-µs")
		b.ReportMetric(float64(waits[len(waits)*99/100].Microseconds()), "p99-µs")
	}
	buf := make([]byte, 0, callers*300)
	for range callers {
		e := clean(event(1))
		buf = append(appendEvent(buf, &e), make([]byte, hashBytes+lengthBytes)...)
	}
	f := l.file
	at := l.at.offset
	start := time.Now()
	for range each {
		if _, err := f.WriteAt(buf, at); err != nil {
			b.Fatal(err)
		}
		if err := datasync(f); err != nil {
			b.Fatal(err)
		}
		at += int64(len(buf))
	}
	b.ReportMetric(callers*each/time.Since(start).Seconds(), "floor/s")
	_ = f.Truncate(l.at.offset)
	runtime.KeepAlive(l)
}
