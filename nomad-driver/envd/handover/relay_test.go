package handover

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/shoenig/test/must"
)

func TestRelay(t *testing.T) {
	all := make([]byte, 5<<20+17)
	for i := range all {
		all[i] = byte(i * 7 >> 3)
	}
	broken, full := errors.New("broken"), errors.New("full")
	tests := []struct {
		name          string
		from          io.Reader
		limit         int64
		fails         int // the write that does, from 1 on
		want          int // bytes at the beginning that are written
		read, written error
	}{
		{name: "nothing", from: bytes.NewReader(nil), limit: 1},
		{name: "one piece", from: bytes.NewReader(all[:1000]), limit: 1000, want: 1000},
		{name: "one piece with the end in the same read", from: iotest.DataErrReader(bytes.NewReader(all[:1000])), limit: 1000, want: 1000},
		{name: "many pieces", from: bytes.NewReader(all), limit: int64(len(all)), want: len(all)},
		{name: "a byte at a time", from: iotest.OneByteReader(bytes.NewReader(all[:3*enough])), limit: 3 * enough, want: 3 * enough},
		{name: "halves", from: iotest.HalfReader(bytes.NewReader(all)), limit: int64(len(all)), want: len(all)},
		{name: "breaks in the first", from: io.MultiReader(bytes.NewReader(all[:10]), iotest.ErrReader(broken)), limit: 100, want: 10, read: broken},
		{name: "breaks later", from: io.MultiReader(bytes.NewReader(all[:1<<20]), iotest.ErrReader(broken)), limit: 2 << 20, want: 1 << 20, read: broken},
		{name: "too long at once", from: bytes.NewReader(all[:1000]), limit: 999, read: errTooLong},
		{name: "too long later", from: bytes.NewReader(all), limit: 1 << 20, want: 1 << 20, read: errTooLong},
		{name: "the first write fails", from: bytes.NewReader(all[:1000]), limit: 1000, fails: 1, written: full},
		{name: "a later write fails", from: bytes.NewReader(all), limit: int64(len(all)), fails: 4, want: 3 * copyBytes, written: full},
		{name: "a write fails of what never ends", from: endless{}, limit: 1 << 62, fails: 3, want: -1, written: full},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			var got []byte
			writes := 0
			var one sync.Mutex
			read, written := relay(tc.from, func(p []byte) error {
				must.True(t, one.TryLock(), must.Sprint("one write at a time"))
				defer one.Unlock()
				if writes++; writes == tc.fails {
					return full
				}
				must.False(t, tc.fails != 0 && writes > tc.fails, must.Sprint("nothing is written behind what failed"))
				got = append(got, p...)
				return nil
			}, tc.limit)
			must.ErrorIs(t, written, tc.written)
			if tc.written == nil {
				must.ErrorIs(t, read, tc.read)
			}
			if tc.want >= 0 {
				must.True(t, bytes.Equal(all[:tc.want], got), must.Sprintf("%d bytes are written", len(got)))
			}
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// It is read on while a write takes its time, and no further than there are buffers for.
func TestRelay_readsWhileItWrites(t *testing.T) {
	reads := make(chan int, 100)
	from := counted{reads}
	proceed := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := relay(from, func([]byte) error {
			<-proceed
			return nil
		}, 10*copyBytes)
		must.NoError(t, err)
	}()
	for range ahead {
		<-reads
	}
	select {
	case <-reads:
		t.Fatal("more is read than there are buffers for")
	case <-time.After(50 * time.Millisecond):
	}
	close(proceed)
	<-done
}

type counted struct{ reads chan int }

func (c counted) Read(p []byte) (int, error) {
	c.reads <- len(p)
	return len(p), nil
}
