package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

func TestIDRanges_keepClearOfOthers(t *testing.T) {
	const base, step = 1 << 20, sandbox.IDRange
	for _, tc := range []struct {
		name  string
		avoid []span
		want  []uint32 // the first ranges
	}{
		{"nothing to avoid", nil, []uint32{base, base + step}},
		{"below", []span{{100000, 165536}}, []uint32{base, base + step}},
		{"one id in the middle", []span{{base + step + 5, base + step + 6}}, []uint32{base, base + 2*step}},
		{"across the base", []span{{0, base + 1}}, []uint32{base + step}},
		{"across two", []span{{base + step - 1, base + step + 1}}, []uint32{base + 2*step}},
		{"to the end of the ids", []span{{base + step, 1 << 32}}, []uint32{base}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newIDRanges(base, tc.avoid)
			for _, want := range tc.want {
				got, err := r.take()
				must.NoError(t, err)
				must.Eq(t, want, got)
			}
		})
	}
}

func TestIDRanges_exhaustionAndReuse(t *testing.T) {
	r := newIDRanges(maxIDBase-2*sandbox.IDRange+1, nil)
	var got []uint32
	for {
		b, err := r.take()
		if err != nil {
			must.ErrorIs(t, err, errNoIDRange)
			break
		}
		got = append(got, b)
	}
	must.Len(t, r.slots, got)
	for _, b := range got {
		must.LessEq(t, 1<<31, uint64(b)+sandbox.IDRange)
	}
	r.free(got[0])
	b, err := r.take()
	must.NoError(t, err)
	must.Eq(t, got[0], b)
}

func TestIDRanges_freedOneComesRoundLast(t *testing.T) {
	r := newIDRanges(1<<20, nil)
	a, _ := r.take()
	r.free(a)
	b, _ := r.take()
	must.NotEq(t, a, b)
}

func TestIDRanges_reservedByAnEarlierDaemonWithAnotherBase(t *testing.T) {
	r := newIDRanges(1<<20, nil)
	r.reserve(1<<20 + 100) // overlaps the first two
	r.reserve(70000)       // below the base: nobody's
	got, err := r.take()
	must.NoError(t, err)
	must.Eq(t, 1<<20+2*sandbox.IDRange, got)
}

func TestParseSubordinateIDs(t *testing.T) {
	spans, err := parseSubordinateIDs(strings.NewReader("# comment\nalice:100000:65536\n\nbob:x:1\nbob:200000:0\n:300000:1\ncarol:1:2:3\n"))
	must.NoError(t, err)
	must.Eq(t, []span{{100000, 165536}, {300000, 300001}}, spans)
}

func TestDeadlines_fireInOrderAndOnlyOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var fired []string
		start := time.Now()
		d := newDeadlines(func(id api.SandboxID) {
			mu.Lock()
			defer mu.Unlock()
			fired = append(fired, fmt.Sprintf("%s@%s", id, time.Since(start)))
		})
		ctx, cancel := context.WithCancel(t.Context())
		go d.run(ctx)
		d.set("c", start.Add(3*time.Minute))
		d.set("a", start.Add(time.Second))
		d.set("b", start.Add(2*time.Second))
		d.set("gone", start.Add(1500*time.Millisecond))
		d.set("gone", time.Time{})
		d.set("moved", start.Add(time.Second))
		d.set("moved", start.Add(4*time.Second))
		d.set("past", start.Add(-time.Hour))
		time.Sleep(10 * time.Minute)
		cancel()
		synctest.Wait()
		must.Eq(t, []string{"past@0s", "a@1s", "b@2s", "moved@4s", "c@3m0s"}, fired)
		must.MapEmpty(t, d.byID)
	})
}

func TestHub_resume(t *testing.T) {
	h := newHub("e1", func() []nodeapi.Sandbox { return nil })
	for range 10 {
		h.publish(nodeapi.EventTemplate, "", nil)
	}
	for _, tc := range []struct {
		name  string
		epoch string
		since uint64
		next  uint64
		ok    bool
	}{
		{"continues", "e1", 4, 5, true},
		{"is up to date", "e1", 10, 11, true},
		{"from the beginning", "e1", 0, 1, true},
		{"another epoch", "e0", 4, 0, false},
		{"first contact", "", 0, 0, false},
		{"from the future", "e1", 11, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			next, ok := h.position(tc.epoch, tc.since)
			must.Eq(t, tc.ok, ok)
			must.Eq(t, tc.next, next)
		})
	}
	lines, _, ok := h.read(8)
	must.True(t, ok)
	must.Len(t, 3, lines)
}

func TestHub_slowReaderMustSync(t *testing.T) {
	h := newHub("e1", func() []nodeapi.Sandbox { return []nodeapi.Sandbox{{ID: "x"}} })
	h.publish(nodeapi.EventTemplate, "", nil)
	for range historyLen {
		h.publish(nodeapi.EventTemplate, "", nil)
	}
	_, _, ok := h.read(1)
	must.False(t, ok, must.Sprint("the first event has left the history"))
	_, _, ok = h.read(2)
	must.True(t, ok)
	_, ok = h.position("e1", 0)
	must.False(t, ok)
	line, next := h.sync()
	must.StrContains(t, string(line), `"sync"`)
	must.StrContains(t, string(line), `"x"`)
	must.Eq(t, historyLen+2, next)
}

func TestHub_wakesReaders(t *testing.T) {
	h := newHub("e1", nil)
	lines, news, ok := h.read(1)
	must.True(t, ok)
	must.SliceEmpty(t, lines)
	h.publish(nodeapi.EventBeat, "", nil)
	<-news
	lines, _, _ = h.read(1)
	must.Len(t, 1, lines)
}

func TestEvents_tellALifeInOrder(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	s, err := n.client.Events(t.Context(), "", 0)
	must.NoError(t, err)
	defer s.Close()
	first, err := s.Next()
	must.NoError(t, err)
	must.Eq(t, nodeapi.EventSync, first.Type)
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	must.NoError(t, n.client.Delete(t.Context(), sb.ID))
	var types []nodeapi.EventType
	last := first
	for !slices.Contains(types, nodeapi.EventRemoved) {
		e, err := s.Next()
		must.NoError(t, err)
		must.Eq(t, last.Seq+1, e.Seq)
		must.Eq(t, sb.ID, e.ID)
		types = append(types, e.Type)
		last = e
	}
	must.Eq(t, []nodeapi.EventType{
		nodeapi.EventCreated, nodeapi.EventRunning, nodeapi.EventUpdated, nodeapi.EventStopped, nodeapi.EventRemoved,
	}, types)

	again, err := n.client.Events(t.Context(), first.Epoch, last.Seq-1)
	must.NoError(t, err)
	defer again.Close()
	e, err := again.Next()
	must.NoError(t, err)
	must.Eq(t, last, e)
}
