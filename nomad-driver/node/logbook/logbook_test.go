package logbook

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

const box api.SandboxID = "iaaaaaaaaaaaaaaaaaaaa"

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func entry(sec int, level, source, message string) Entry {
	return Entry{Time: noon.Add(time.Duration(sec) * time.Second), Level: level, Source: source, Message: message}
}

func put(t *testing.T, b *Books, id api.SandboxID, entries ...Entry) int {
	t.Helper()
	n, err := b.Append(id, entries...)
	must.NoError(t, err)
	return n
}

func messages(t *testing.T, b *Books, q Query) string {
	t.Helper()
	entries, err := b.Read(box, q)
	must.NoError(t, err)
	var m []string
	for _, e := range entries {
		m = append(m, e.Message)
	}
	return strings.Join(m, " ")
}

func TestRead_findsWhatIsAskedFor(t *testing.T) {
	b, err := Open(t.TempDir(), 0)
	must.NoError(t, err)
	put(t, b, box, entry(1, Debug, Platform, "one"), entry(2, Info, Stdout, "two"), entry(3, Warn, Stderr, "three"))
	put(t, b, box, entry(4, Error, Platform, "four"))
	for name, tc := range map[string]struct {
		q    Query
		want string
	}{
		"all":              {Query{}, "one two three four"},
		"after":            {Query{After: noon.Add(2 * time.Second)}, "three four"},
		"before":           {Query{Before: noon.Add(2 * time.Second)}, "one"},
		"level":            {Query{Level: Warn}, "three four"},
		"source":           {Query{Source: Stdout}, "two"},
		"text":             {Query{Search: "o"}, "one two four"},
		"first two":        {Query{Limit: 2}, "one two"},
		"newest first":     {Query{Backward: true}, "four three two one"},
		"newest two":       {Query{Backward: true, Limit: 2}, "four three"},
		"level and before": {Query{Level: Info, Before: noon.Add(4 * time.Second), Backward: true, Limit: 1}, "three"},
	} {
		t.Run(name, func(t *testing.T) { must.Eq(t, tc.want, messages(t, b, tc.q)) })
	}
	entries, err := b.Read("ibbbbbbbbbbbbbbbbbbbb", Query{})
	must.NoError(t, err)
	must.SliceEmpty(t, entries)
}

func TestAppend_keepsTheOrderOfTimes(t *testing.T) {
	b, err := Open(t.TempDir(), 0)
	must.NoError(t, err)
	put(t, b, box, entry(5, Info, Stdout, "a"), entry(5, Info, Stdout, "b"), entry(1, Info, Stdout, "c"))
	entries, err := b.Read(box, Query{})
	must.NoError(t, err)
	for i := 1; i < len(entries); i++ {
		must.True(t, entries[i].Time.After(entries[i-1].Time), must.Sprint(entries))
	}
	must.Eq(t, "b c", messages(t, b, Query{After: entries[0].Time}))
}

func TestBooks_areBounded(t *testing.T) {
	dir := t.TempDir()
	const size = 10_000
	b, err := Open(dir, size)
	must.NoError(t, err)
	for i := range 2000 {
		put(t, b, box, entry(i, Info, Stdout, fmt.Sprint("line ", i)))
	}
	var total int64
	files, err := os.ReadDir(dir)
	must.NoError(t, err)
	for _, f := range files {
		info, err := f.Info()
		must.NoError(t, err)
		total += info.Size()
	}
	must.LessEq(t, int64(2*size), total)
	put(t, b, box, many(3000)...)
	for _, name := range []string{string(box), string(box) + older} {
		info, err := os.Stat(filepath.Join(dir, name))
		must.NoError(t, err)
		must.LessEq(t, int64(size), info.Size(), must.Sprint("also after one large batch"))
	}
	put(t, b, box, entry(2000, Info, Stdout, "line 1999"))
	must.StrHasSuffix(t, "line 1999", messages(t, b, Query{}))
	must.Eq(t, "line 1999", messages(t, b, Query{Backward: true, Limit: 1}))
}

func TestBooks_outliveTheDaemon(t *testing.T) {
	dir := t.TempDir()
	b, err := Open(dir, 0)
	must.NoError(t, err)
	put(t, b, box, entry(1, Info, Stdout, "before"))
	f, err := os.OpenFile(filepath.Join(dir, string(box)), os.O_APPEND|os.O_WRONLY, 0)
	must.NoError(t, err)
	_, err = f.WriteString(`{"time":"2026-11-24T12:00:02Z","mess`) // a crash in the middle of a line
	must.NoError(t, err)
	must.NoError(t, f.Close())
	again, err := Open(dir, 0)
	must.NoError(t, err)
	last, err := again.Last(box)
	must.NoError(t, err)
	must.Eq(t, noon.Add(time.Second), last)
	must.Eq(t, "before", messages(t, again, Query{}))
	put(t, again, box, entry(3, Info, Stdout, "after"))
	must.Eq(t, "before after", messages(t, again, Query{}), must.Sprint("the torn line spoils none"))
}

func TestSweep_removesOldBooksThatNobodyNeeds(t *testing.T) {
	dir := t.TempDir()
	b, err := Open(dir, 0)
	must.NoError(t, err)
	ids := []api.SandboxID{"i00000000000000000001", "i00000000000000000002", "i00000000000000000003"}
	for i, id := range ids {
		put(t, b, id, entry(1, Info, Stdout, "x"))
		at := time.Now().Add(-time.Duration(i) * time.Hour)
		must.NoError(t, os.Chtimes(filepath.Join(dir, string(id)), at, at))
	}
	left := func() int {
		files, err := os.ReadDir(dir)
		must.NoError(t, err)
		return len(files)
	}
	must.NoError(t, b.Sweep(90*time.Minute, 10, func(id api.SandboxID) bool { return id == ids[2] }))
	must.Eq(t, 3, left(), must.Sprint("the only old one is kept"))
	must.NoError(t, b.Sweep(90*time.Minute, 10, func(api.SandboxID) bool { return false }))
	must.Eq(t, 2, left())
	must.Eq(t, 1, len(b.open), must.Sprint("one that ended an hour ago is not held in memory"))
	entries, err := b.Read(ids[1], Query{})
	must.NoError(t, err)
	must.Len(t, 1, entries, must.Sprint("and is read from its file all the same"))
	must.NoError(t, b.Sweep(90*time.Minute, 1, func(api.SandboxID) bool { return false }))
	must.Eq(t, 1, left(), must.Sprint("the newest stays"))
}

func TestClean_makesLinesHarmless(t *testing.T) {
	for in, want := range map[string]string{
		"plain\ttext":                "plain\ttext",
		"\x1b[31mred\x1b[0m":         "red",
		"\x1b]0;title\x07after":      "after",
		"\x1b]8;;http://x\x1b\\link": "link",
		"\x1bPq#0;2;0\x1b\\sixel":    "sixel",
		"\x1b(Bcharset":              "charset",
		"\x1b[2J\x1b[H\x1bcreset":    "reset",
		"bell\x07 nul\x00":           "bell\ufffd nul\ufffd",
		"over\rwritten\b":            "overwritten",
		"line\nbreak":                "line\ufffdbreak",
		"\xff\xfebad":                "\ufffd\ufffdbad",
		"\u202eevil":                 "\ufffdevil",
		"\u009b31mC1":                "\ufffd31mC1",
		"unfinished\x1b[":            "unfinished",
		"unfinished\x1b]":            "unfinished",
		"\x1b":                       "",
		"grüße 世界":                   "grüße 世界",
	} {
		must.Eq(t, want, Clean(in))
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"", "a\x1b[0m", "\x1b]x", "\xff", "\u202e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Clean(s)
		if !utf8.ValidString(got) {
			t.Fatalf("%q is no UTF-8", got)
		}
		for _, r := range got {
			if r == 0x1b || r < ' ' && r != '\t' || r >= 0x7f && r < 0xa0 {
				t.Fatalf("%q has %U", got, r)
			}
		}
		if again := Clean(got); again != got {
			t.Fatalf("%q is cleaned again to %q", got, again)
		}
	})
}
