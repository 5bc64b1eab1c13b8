package logbook

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func many(n int) []Entry {
	out := make([]Entry, n)
	for i := range out {
		out[i] = entry(i, []string{Debug, Info, Warn}[i%3], Stdout, fmt.Sprintf("line %d %s", i, strings.Repeat("x", i%700)))
	}
	return out
}

// TestRead_isTheSameAsLookingAtEveryEntry holds for books of both files, larger than what is searched at once.
func TestRead_isTheSameAsLookingAtEveryEntry(t *testing.T) {
	b, err := Open(t.TempDir(), 700_000)
	must.NoError(t, err)
	for batch := range slices.Chunk(many(3000), 37) {
		put(t, b, box, batch...)
	}
	all, err := b.Read(box, Query{})
	must.NoError(t, err)
	must.Greater(t, 1000, len(all))
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		q := Query{Backward: rnd.IntN(2) == 0, Limit: rnd.IntN(50), Level: []string{"", Warn}[rnd.IntN(2)]}
		if rnd.IntN(3) > 0 {
			q.After = noon.Add(time.Duration(rnd.IntN(3100)) * time.Second)
		}
		if rnd.IntN(3) > 0 {
			q.Before = noon.Add(time.Duration(rnd.IntN(3100)) * time.Second)
		}
		var want []string
		for _, e := range all {
			if !q.early(e.Time) && !q.late(e.Time) && (q.Level == "" || e.Level == Warn) {
				want = append(want, e.Message)
			}
		}
		if q.Backward {
			slices.Reverse(want)
		}
		if q.Limit > 0 {
			want = want[:min(len(want), q.Limit)]
		}
		entries, err := b.Read(box, q)
		must.NoError(t, err)
		var got []string
		for _, e := range entries {
			got = append(got, e.Message)
		}
		must.Eq(t, want, got, must.Sprintf("%+v", q))
	}
}

func TestAppend_keepsEntriesOfOneMomentApart(t *testing.T) {
	b, err := Open(t.TempDir(), 0)
	must.NoError(t, err)
	same := make([]Entry, 2000)
	for i := range same {
		same[i] = entry(0, Info, Stdout, fmt.Sprint(i))
	}
	put(t, b, box, same...)
	entries, err := b.Read(box, Query{})
	must.NoError(t, err)
	must.Len(t, len(same), entries)
	millis := map[int64]bool{}
	for i, e := range entries {
		if i > 0 {
			must.True(t, e.Time.After(entries[i-1].Time))
		}
		if i < 200 {
			must.False(t, millis[e.Time.UnixMilli()], must.Sprint("a few have a millisecond each"))
		}
		millis[e.Time.UnixMilli()] = true
		must.LessEq(t, 300*time.Millisecond, e.Time.Sub(noon), must.Sprint("and none is moved far"))
	}
}

// TestRead_pagesByMillisecondsLeaveNothingOut is what a client does that knows times in milliseconds only.
func TestRead_pagesByMillisecondsLeaveNothingOut(t *testing.T) {
	b, err := Open(t.TempDir(), 100_000)
	must.NoError(t, err)
	for i := range 2000 {
		put(t, b, box, entry(i/1500, Info, Stdout, fmt.Sprint(i))) // most of them crowd
	}
	all, err := b.Read(box, Query{Backward: true})
	must.NoError(t, err)
	for _, limit := range []int{1, 7, 100, 1000} {
		var got []Entry
		q := Query{Backward: true, Limit: limit, WholeMillis: true}
		for {
			page, err := b.Read(box, q)
			must.NoError(t, err)
			if len(page) == 0 {
				break
			}
			if len(page) > limit {
				must.Eq(t, milli(page[0]), milli(page[len(page)-1]))
			}
			got = append(got, page...)
			q.Before = time.UnixMilli(milli(page[len(page)-1]))
		}
		must.Eq(t, all, got, must.Sprint(limit))
	}
}

func TestFollow_seesEveryEntryOnce(t *testing.T) {
	b, err := Open(t.TempDir(), 0)
	must.NoError(t, err)
	put(t, b, box, entry(1, Info, Stdout, "skipped"), entry(2, Info, Stdout, "history"))
	f := b.Follow(box, Query{After: noon.Add(time.Second)})
	const n = 5000
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range n {
			if _, err := b.Append(box, entry(i+3, Info, Stdout, fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		}
	})
	defer wg.Wait()
	var got []string
	for len(got) < n+1 {
		entries, wait, err := f.Next()
		must.NoError(t, err)
		for _, e := range entries {
			got = append(got, e.Message)
		}
		if wait != nil && len(got) < n+1 {
			<-wait
		}
	}
	must.Eq(t, "history", got[0])
	for i, m := range got[1:] {
		must.Eq(t, fmt.Sprint(i), m)
	}
}

func TestFollow_saysWhatItHasMissed(t *testing.T) {
	b, err := Open(t.TempDir(), 10_000)
	must.NoError(t, err)
	f := b.Follow(box, Query{})
	put(t, b, box, entry(1, Info, Stdout, "seen"))
	_, _, err = f.Next()
	must.NoError(t, err)
	put(t, b, box, many(200)...)
	entries, _, err := f.Next()
	must.NoError(t, err)
	must.StrContains(t, entries[0].Message, "missing")
	must.Eq(t, noon.Add(time.Second), entries[0].Time, must.Sprint("who goes on from there misses nothing more"))
	for wait := (<-chan struct{})(nil); wait == nil; {
		var more []Entry
		more, wait, err = f.Next()
		must.NoError(t, err)
		entries = append(entries, more...)
	}
	must.StrHasPrefix(t, "line 199 ", entries[len(entries)-1].Message)
}

func TestAppend_makesFieldsHarmless(t *testing.T) {
	b, err := Open(t.TempDir(), 0)
	must.NoError(t, err)
	e := entry(1, Info, Stdout, "x")
	e.Fields = map[string]string{"tag": "a\x1b]0;title\x07b\r\n{\"level\":\"error\"}"}
	put(t, b, box, e)
	entries, err := b.Read(box, Query{})
	must.NoError(t, err)
	must.Len(t, 1, entries)
	must.Eq(t, map[string]string{"tag": "ab\ufffd{\"level\":\"error\"}"}, entries[0].Fields)
}

func FuzzScan(f *testing.F) {
	f.Add([]byte("{\"time\":\"2026-11-24T12:00:02Z\"}\n\n{\"time\":\"x\"}\nrest"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := strings.NewReader(string(data))
		var there, back [][]byte
		must.NoError(t, forward(r, 0, r.Size(), func(line []byte, _ int64) bool { there = append(there, slices.Clone(line)); return true }))
		must.NoError(t, backward(r, r.Size(), func(line []byte) bool { back = append(back, slices.Clone(line)); return true }))
		slices.Reverse(back)
		must.Eq(t, there, back)
		if _, _, err := search(r, r.Size(), func(at time.Time) bool { return at.After(noon) }); err != nil {
			t.Fatal(err)
		}
	})
}

// BenchmarkFollow is what an entry costs a follower of a full book.
func BenchmarkFollow(b *testing.B) {
	books, err := Open(b.TempDir(), 0)
	must.NoError(b, err)
	for range 20 {
		_, err := books.Append(box, many(1000)...)
		must.NoError(b, err)
	}
	f := books.Follow(box, Query{})
	drain := func() {
		for {
			_, wait, err := f.Next()
			must.NoError(b, err)
			if wait != nil {
				return
			}
		}
	}
	drain()
	for b.Loop() {
		_, err := books.Append(box, entry(0, Info, Stdout, "one"))
		must.NoError(b, err)
		drain()
	}
}
