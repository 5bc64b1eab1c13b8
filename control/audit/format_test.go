package audit

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// update rewrites the golden files of the current version. Those of released versions are never touched.
var update = flag.Bool("update", false, "rewrite the golden files of the current format")

// The log in testdata was written by version 1 of the format, and is read as it was written by every later version.
func TestFormat_goldenV1(t *testing.T) {
	const dir = "testdata/v1"
	if *update {
		must.NoError(t, os.RemoveAll(dir))
		now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
		cfg := Config{Dir: dir, Now: func() time.Time { return now }}
		filled(t, 3, cfg, 2)
		must.NoError(t, os.Remove(filepath.Join(dir, "lock")))
	}
	s := newSigner()
	trusted, err := s.PublicKeys(t.Context())
	must.NoError(t, err)
	r := verify(t, dir, VerifyOptions{Keys: trusted})
	must.Nil(t, r.Bad)
	must.Eq(t, uint64(3), r.Last)
	must.Eq(t, uint64(3), r.SignedTo)
	must.Eq(t, 2, r.Heads)

	copied := t.TempDir()
	must.NoError(t, os.CopyFS(copied, os.DirFS(dir)))
	l := open(t, Config{Dir: copied, Signer: s})
	got, _, err := l.Query(t.Context(), Query{}, Page{Ascending: true})
	must.NoError(t, err)
	for i := range got {
		want := event(i + 1)
		want.Index, want.ID, want.Time = uint64(i+1), got[i].ID, time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
		must.Eq(t, want, got[i])
	}
	must.Len(t, 3, got)
}

func TestDecode_refuses(t *testing.T) {
	e := clean(event(1))
	good := appendEvent(nil, &e)
	_, err := decodeEvent(good)
	must.NoError(t, err)
	for n := range good {
		_, err := decodeEvent(good[:n])
		must.Error(t, err)
	}
	newer := bytes.Clone(good)
	newer[0] = eventVersion + 1
	_, err = decodeEvent(newer)
	must.ErrorContains(t, err, "version 2")
	_, err = decodeEvent(append(bytes.Clone(good), 0))
	must.ErrorContains(t, err, "follow")
	_, err = decodeEvent(append(good[:fieldsAt:fieldsAt], 0x80, 0x00))
	must.ErrorContains(t, err, "longer than need be")
}

// FuzzDecodeEvent: what is read as an event is written in no other way.
func FuzzDecodeEvent(f *testing.F) {
	for i := range 3 {
		e := clean(event(i))
		if i == 2 {
			e.Details = nil
		}
		f.Add(appendEvent(nil, &e))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEvent(b)
		if err != nil {
			return
		}
		must.True(t, bytes.Equal(b, appendEvent(nil, &e)))
	})
}

// FuzzSegment: no file makes the reader fail otherwise than with an error, and no reader takes more than there is.
func FuzzSegment(f *testing.F) {
	b, err := os.ReadFile("testdata/v1/" + segmentName(1))
	must.NoError(f, err)
	f.Add(b)
	f.Add(b[:len(b)-3])
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		_, begin, err := readHeader(r)
		if err != nil {
			return
		}
		sc := newScanner(r, begin, int64(len(b)))
		for {
			rec, err := sc.next()
			if err != nil {
				must.True(t, err == io.EOF || rec.offset <= int64(len(b)))
				return
			}
			_, _ = decodeEvent(rec.body)
		}
	})
}

// FuzzHeads: a file of heads gives heads or an error, and never a signature without its head.
func FuzzHeads(f *testing.F) {
	b, err := os.ReadFile("testdata/v1/" + headsName(1))
	must.NoError(f, err)
	f.Add(string(b))
	f.Add(strings.ReplaceAll(string(b), "signature", "head"))
	f.Fuzz(func(t *testing.T, s string) {
		path := filepath.Join(t.TempDir(), "heads")
		must.NoError(t, os.WriteFile(path, []byte(s), 0o600))
		list, err := readHeads(path)
		if err == nil {
			for _, h := range list {
				must.True(t, strings.Contains(s, `"head"`) || h.Index == 0)
			}
		}
	})
}

// C12: whatever field a secret comes in by, the log has it masked, also on the disk.
func TestC12_secretsAreMaskedInEveryField(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Config{Dir: dir})
	secrets := []string{
		"sb_0123456789abcdef_" + strings.Repeat("5ec2e7", 10) + "abcd", "e2b_" + strings.Repeat("5ec2e7aa", 10), "hvs.CAESIJ5ec2e75ec2e75ec2e7",
		"eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiI1ZWMyZTcifQ.5ec2e7_signature", strings.Repeat("5ec2e7ab", 8),
	}
	for _, s := range secrets {
		must.NoError(t, l.Append(Event{
			Tenant: s, User: "key " + s, Action: s, Resource: s, ResourceID: "https://x/?token=" + s, Result: s, Source: s, Agent: "curl " + s, Request: s,
			Details: map[string]string{"argv": "login --token " + s, s: "name", "error": "open https://user:" + s + "@host: refused"},
		}))
		l.Deny(Event{User: s, Details: map[string]string{"why": s}})
	}
	must.NoError(t, l.Close())
	files, err := os.ReadDir(dir)
	must.NoError(t, err)
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		must.NoError(t, err)
		for _, s := range secrets {
			must.StrNotContains(t, string(b), s[len(s)-24:], must.Sprint(f.Name()))
		}
	}
}
