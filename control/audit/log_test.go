package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

func TestLog_keepsWhatItIsGivenInOrder(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Config{Dir: dir})
	fill(t, l, 3)
	must.NoError(t, l.Close())
	l = open(t, Config{Dir: dir})
	fill(t, l, 2)
	got, next, err := l.Query(t.Context(), Query{}, Page{Ascending: true})
	must.NoError(t, err)
	must.Eq(t, uint64(0), next)
	must.Len(t, 5, got)
	seen := map[string]bool{}
	for i, e := range got {
		must.Eq(t, uint64(i+1), e.Index)
		must.Eq(t, "sandbox.create", e.Action)
		must.Eq(t, "base", e.Details["template"])
		seen[e.ID] = true
		if i > 0 {
			must.False(t, e.Time.Before(got[i-1].Time))
		}
	}
	must.MapLen(t, 5, seen, must.Sprint("ids differ"))
}

func TestLog_manyAtOnce(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Config{Dir: dir, SegmentBytes: minSegment})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for range 100 {
				if err := l.Append(event(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	must.NoError(t, l.Close())
	r := verify(t, dir, VerifyOptions{})
	must.Nil(t, r.Bad)
	must.Eq(t, uint64(1600), r.Last)
	must.Eq(t, uint64(1600), r.SignedTo)
}

func TestLog_timesNeverGoBack(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	var mu sync.Mutex
	l := open(t, Config{Dir: t.TempDir(), Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	fill(t, l, 1)
	mu.Lock()
	now = now.Add(-time.Hour)
	mu.Unlock()
	fill(t, l, 1)
	got, _, err := l.Query(t.Context(), Query{}, Page{Ascending: true})
	must.NoError(t, err)
	must.Eq(t, got[0].Time, got[1].Time)
}

func TestLog_secretsAndHostileTextsAreNotKept(t *testing.T) {
	l := open(t, Config{Dir: t.TempDir()})
	key := "sb_00000000000000aa_" + strings.Repeat("ab", 32)
	e := event(1)
	e.Agent, e.ResourceID = "curl\n\x00"+key, strings.Repeat("x", 2000)
	e.User, e.Details = "\xff\xfe", map[string]string{"url": "https://u:hunter2222@h/?k=" + key, "authorization": "Bearer abcdefghijkl"}
	for i := range 40 {
		e.Details[fmt.Sprint("k", i)] = strings.Repeat("v", 600)
	}
	must.NoError(t, l.Append(e))
	b, err := os.ReadFile(lastSegment(t, l.cfg.Dir))
	must.NoError(t, err)
	for _, secret := range []string{key[20:], "hunter2222", "abcdefghijkl"} {
		must.StrNotContains(t, string(b), secret)
	}
	got, _, err := l.Query(t.Context(), Query{}, Page{})
	must.NoError(t, err)
	must.LessEq(t, maxText, len(got[0].ResourceID))
	must.LessEq(t, maxDetails, len(got[0].Details))
	must.MapContainsKey(t, got[0].Details, "…")
}

func TestEvent_fitsAtItsLimits(t *testing.T) {
	long := strings.Repeat("é", 5000)
	e := Event{ID: long, Tenant: long, User: long, Action: long, Resource: long, ResourceID: long, Result: long, Source: long, Agent: long, Request: long, Details: map[string]string{}}
	for i := range 100 {
		e.Details[fmt.Sprint(i, long)] = long
	}
	e = clean(e)
	must.LessEq(t, maxBody, len(appendEvent(nil, &e)))
}

func TestLog_twoProcessesAreOneTooMany(t *testing.T) {
	l := open(t, Config{Dir: t.TempDir()})
	_, err := Open(Config{Dir: l.cfg.Dir, Signer: newSigner()})
	must.ErrorContains(t, err, "another process")
}

// A crash leaves a prefix of what was written last, or garbage in its place: what was acknowledged stays, the rest goes, and the log
// goes on and says so.
func TestOpen_afterACrash(t *testing.T) {
	for name, damage := range map[string]func(last []byte) []byte{
		"a part of a record": func(b []byte) []byte { return b[:len(b)-7] },
		"a length alone":     func(b []byte) []byte { return b[:4] },
		"zeros":              func(b []byte) []byte { return make([]byte, len(b)) },
		"garbage":            func(b []byte) []byte { b[30] ^= 0xff; return b },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filled(t, 5, Config{})
			path := lastSegment(t, dir)
			good, err := os.ReadFile(path)
			must.NoError(t, err)
			_, more := records(t, lastSegment(t, filled(t, 6, Config{})))
			must.NoError(t, os.WriteFile(path, append(good, damage(more[5])...), 0o600))
			l := open(t, Config{Dir: dir})
			until(t, "the log tells", func() bool { i, _ := l.Last(); return i == 6 })
			got, _, err := l.Query(t.Context(), Query{Action: "audit.recover"}, Page{})
			must.NoError(t, err)
			must.Len(t, 1, got)
			aside, err := os.ReadFile(filepath.Join(dir, got[0].ResourceID))
			must.NoError(t, err)
			must.Positive(t, len(aside))
			fill(t, l, 1)
			must.NoError(t, l.Close())
			r := verify(t, dir, VerifyOptions{})
			must.Nil(t, r.Bad)
			must.Eq(t, uint64(7), r.Last)
		})
	}
}

func TestOpen_refusesALogThatLacksWhatAHeadVouchesFor(t *testing.T) {
	dir := filled(t, 5, Config{})
	path := lastSegment(t, dir)
	head, list := records(t, path)
	must.NoError(t, os.Truncate(path, int64(len(head)+len(list[0])+len(list[1])+len(list[2])/2)))
	_, err := Open(Config{Dir: dir, Signer: newSigner()})
	var bad *DamageError
	must.True(t, errors.As(err, &bad))
	must.Eq(t, uint64(3), bad.Index)
	must.StrContains(t, err.Error(), dir)
}

func TestOpen_afterACrashWhileHeadsWereWritten(t *testing.T) {
	dir := filled(t, 5, Config{}, 2)
	path := filepath.Join(dir, headsName(1))
	b, err := os.ReadFile(path)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(path, b[:len(b)-9], 0o600))
	l := open(t, Config{Dir: dir})
	_, waiting := l.Head()
	must.Eq(t, 1, waiting)
	must.NoError(t, l.Close())
	r := verify(t, dir, VerifyOptions{})
	must.Nil(t, r.Bad)
	must.Eq(t, uint64(5), r.SignedTo)
}

func TestHeads_waitForTheSigner(t *testing.T) {
	dir := t.TempDir()
	s := newSigner()
	s.down.Store(true)
	l := open(t, Config{Dir: dir, Signer: s})
	for range 3 {
		fill(t, l, 2)
		l.sign(t.Context())
	}
	signed, waiting := l.Head()
	must.Nil(t, signed)
	must.Eq(t, 3, waiting)
	must.NoError(t, l.Close())
	r := verify(t, dir, VerifyOptions{})
	must.Nil(t, r.Bad)
	must.Eq(t, 3, r.Waiting)
	must.Eq(t, uint64(6), r.Unsigned)

	s.down.Store(false)
	s.rotate()
	calls := s.sign.Load()
	l = open(t, Config{Dir: dir, Signer: s})
	l.sign(t.Context())
	must.Eq(t, calls+1, s.sign.Load(), must.Sprint("they are signed in one batch"))
	signed, waiting = l.Head()
	must.Eq(t, 0, waiting)
	must.Eq(t, uint64(6), signed.Index)
	must.Eq(t, 2, signed.Signature.Version)
	must.NoError(t, l.Close())
	r = verify(t, dir, VerifyOptions{})
	must.Eq(t, 3, r.Heads)
	must.Eq(t, uint64(0), r.Unsigned)
}

func TestHeads_areMadeByTime(t *testing.T) {
	l := open(t, Config{Dir: t.TempDir(), SignEvery: time.Millisecond})
	fill(t, l, 1)
	until(t, "a signed head", func() bool { h, _ := l.Head(); return h != nil && h.Index == 1 })
}

func TestRetain_byBytesKeepsTheRestVerifiable(t *testing.T) {
	dir := t.TempDir()
	s := newSigner()
	l := open(t, Config{Dir: dir, Signer: s, SegmentBytes: minSegment, MaxBytes: 3 * minSegment, RetainEvery: time.Hour})
	fill(t, l, 2000)
	s.down.Store(true)
	l.retain(t.Context())
	firsts, err := listSegments(dir)
	must.NoError(t, err)
	must.Eq(t, uint64(1), firsts[0], must.Sprint("nothing goes without a signed checkpoint"))
	s.down.Store(false)
	l.retain(t.Context())
	firsts, err = listSegments(dir)
	must.NoError(t, err)
	must.Greater(t, 1, firsts[0])
	_, _, err = l.Query(t.Context(), Query{}, Page{Ascending: true, From: 1})
	must.NoError(t, err)
	until(t, "the log tells", func() bool {
		got, _, err := l.Query(t.Context(), Query{Action: "audit.retain"}, Page{})
		return err == nil && len(got) > 0
	})
	must.NoError(t, l.Close())
	r := verify(t, dir, VerifyOptions{})
	must.Nil(t, r.Bad)
	must.Eq(t, firsts[0], r.First)
	must.Eq(t, firsts[0]-1, r.Removed)

	l = open(t, Config{Dir: dir, Signer: s, SegmentBytes: minSegment, MaxBytes: 3 * minSegment})
	fill(t, l, 1)
	must.NoError(t, l.Close())
	must.NoError(t, os.Remove(filepath.Join(dir, segmentName(firsts[0]))))
	must.Eq(t, firsts[0], verify(t, dir, VerifyOptions{}).Bad.Index, must.Sprint("a removal without a checkpoint is found"))
}

func TestRetain_byAge(t *testing.T) {
	var mu sync.Mutex
	now := time.Now()
	l := open(t, Config{
		Dir: t.TempDir(), SegmentBytes: minSegment, MaxAge: time.Hour,
		Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now },
	})
	fill(t, l, 500)
	l.retain(t.Context())
	before, err := listSegments(l.cfg.Dir)
	must.NoError(t, err)
	must.Eq(t, uint64(1), before[0])
	mu.Lock()
	now = now.Add(2 * time.Hour)
	mu.Unlock()
	l.retain(t.Context())
	after, err := listSegments(l.cfg.Dir)
	must.NoError(t, err)
	must.Len(t, 1, after, must.Sprint("the one that is written to stays"))
}

func TestDeny_repeatedIsCounted(t *testing.T) {
	l := open(t, Config{Dir: t.TempDir()})
	refused := Event{Action: "auth", Resource: "key", Result: ResultDenied, Source: "192.0.2.1", Details: map[string]string{"status": "401"}}
	for range 100 {
		l.Deny(refused)
	}
	other := refused
	other.Source = "192.0.2.2"
	l.Deny(other)
	l.flushRepeats()
	until(t, "all are stored", func() bool { i, _ := l.Last(); return i == 3 })
	got, _, err := l.Query(t.Context(), Query{}, Page{Ascending: true})
	must.NoError(t, err)
	must.Eq(t, "99", got[2].Details["repeated"])
	for i := range 3 * maxRepeats {
		refused.Source = fmt.Sprint("s", i)
		l.Deny(refused)
	}
	l.flushRepeats()
	until(t, "all are stored", func() bool { i, _ := l.Last(); return i == 3+maxRepeats+1 })
	got, _, err = l.Query(t.Context(), Query{Action: "audit.repeated"}, Page{})
	must.NoError(t, err)
	must.Eq(t, fmt.Sprint(2*maxRepeats), got[0].Details["repeated"])
}

func TestQuery(t *testing.T) {
	l := open(t, Config{Dir: t.TempDir(), SegmentBytes: minSegment})
	for i := 1; i <= 900; i++ {
		e := event(i)
		if i%3 == 0 {
			e.Tenant, e.Action, e.Result = "other", "file.update", ResultFailed
		}
		l.Note(e) // in this order, and at more than one time
	}
	until(t, "all are stored", func() bool { i, _ := l.Last(); return i == 900 })
	all, _, err := l.Query(t.Context(), Query{}, Page{Ascending: true, Limit: MaxPage})
	must.NoError(t, err)
	for name, c := range map[string]struct {
		q    Query
		want int
	}{
		"all":         {Query{}, 900},
		"tenant":      {Query{Tenant: "other"}, 300},
		"user":        {Query{User: "key:0123456789abcdef"}, 900},
		"no user":     {Query{User: "key:x"}, 0},
		"action":      {Query{Action: "file.update"}, 300},
		"actions":     {Query{Action: "sandbox.*"}, 600},
		"resource":    {Query{Resource: "sandbox"}, 900},
		"one":         {Query{Resource: "sandbox/" + all[41].ResourceID}, 1},
		"result":      {Query{Result: ResultFailed}, 300},
		"request":     {Query{Request: "r7"}, 1},
		"after":       {Query{After: all[800].Time}, 100},
		"before":      {Query{Before: all[100].Time}, 100},
		"both":        {Query{After: all[100].Time, Before: all[200].Time, Tenant: "other"}, 33},
		"before all":  {Query{Before: all[0].Time}, 0},
		"after all":   {Query{After: all[899].Time.Add(time.Hour)}, 0},
		"all and all": {Query{Tenant: "other", Action: "sandbox.create"}, 0},
	} {
		for _, ascending := range []bool{true, false} {
			t.Run(fmt.Sprint(name, " ", ascending), func(t *testing.T) {
				var want, got []uint64
				for i := range all {
					e := &all[i]
					if !ascending {
						e = &all[len(all)-1-i]
					}
					if c.q.Match(e) {
						want = append(want, e.Index)
					}
				}
				p := Page{Limit: 77, Ascending: ascending}
				for pages := 0; ; pages++ {
					part, next, err := l.Query(t.Context(), c.q, p)
					must.NoError(t, err)
					must.LessEq(t, 77, len(part))
					for _, e := range part {
						got = append(got, e.Index)
					}
					if next == 0 {
						break
					}
					p.From = next
				}
				must.Eq(t, want, got)
				if !strings.Contains(name, "after") && !strings.Contains(name, "before") && name != "both" { // times may be equal
					must.Len(t, c.want, got)
				}
			})
		}
	}
	_, _, err = l.Query(t.Context(), Query{}, Page{Limit: MaxPage + 1})
	must.Error(t, err)
}

func TestWait_followsLive(t *testing.T) {
	l := open(t, Config{Dir: t.TempDir()})
	done := make(chan error, 1)
	go func() { done <- l.Wait(t.Context(), 0) }()
	fill(t, l, 1)
	must.NoError(t, <-done)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- l.Wait(ctx, 1) }()
	cancel()
	must.ErrorIs(t, <-done, context.Canceled)
	go func() { done <- l.Wait(t.Context(), 1) }()
	must.NoError(t, l.Close())
	must.ErrorIs(t, <-done, ErrUnavailable)
	must.Eq(t, 503, api.StatusOf(l.Append(event(1))))
}
