package audit

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
)

func TestVerify_ofWhatWasWritten(t *testing.T) {
	dir := filled(t, 10, Config{}, 4, 7)
	r := verify(t, dir, VerifyOptions{})
	must.Nil(t, r.Bad)
	must.Eq(t, uint64(1), r.First)
	must.Eq(t, uint64(10), r.Last)
	must.Eq(t, uint64(10), r.SignedTo)
	must.Eq(t, 3, r.Heads)
	must.Eq(t, uint64(0), r.Unsigned)
	must.True(t, r.OwnKeys)
}

// Every single bit of a log counts: wherever one is changed, the event that it belongs to is named.
func TestVerify_namesTheEventOfAnyChangedBit(t *testing.T) {
	dir := filled(t, 6, Config{}, 3)
	path := lastSegment(t, dir)
	good, err := os.ReadFile(path)
	must.NoError(t, err)
	head, list := records(t, path)
	must.Len(t, 6, list)
	at := len(head)
	want := make([]uint64, len(good)) // by byte: the event that a change is to be found at
	for i := range head {
		want[i] = 1
	}
	for i, rec := range list {
		for range rec {
			want[at] = uint64(i + 1)
			at++
		}
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		must.NoError(t, os.WriteFile(path, bad, 0o600))
		r := verify(t, dir, VerifyOptions{})
		must.NotNil(t, r.Bad, must.Sprintf("byte %d", i))
		must.Eq(t, want[i], r.Bad.Index, must.Sprintf("byte %d: %v", i, r.Bad))
	}
}

func TestVerify_namesTheFirstEventThatIsNotInItsPlace(t *testing.T) {
	for name, c := range map[string]struct {
		change func(list [][]byte) [][]byte
		want   uint64
	}{
		"the first one removed":    {func(l [][]byte) [][]byte { return l[1:] }, 1},
		"one removed":              {func(l [][]byte) [][]byte { return slices.Delete(l, 4, 5) }, 5},
		"two exchanged":            {func(l [][]byte) [][]byte { l[2], l[3] = l[3], l[2]; return l }, 3},
		"one twice":                {func(l [][]byte) [][]byte { return slices.Insert(l, 3, l[2]) }, 4},
		"one of another log":       {func(l [][]byte) [][]byte { l[5] = foreign(t)[5]; return l }, 6},
		"the last one removed":     {func(l [][]byte) [][]byte { return l[:9] }, 10},
		"all removed":              {func([][]byte) [][]byte { return nil }, 1},
		"half of the last removed": {func(l [][]byte) [][]byte { l[9] = l[9][:len(l[9])/2]; return l }, 10},
		"the frame of one grown":   {func(l [][]byte) [][]byte { l[6] = append([]byte{0, 0, 0xff, 0xff}, l[6][4:]...); return l }, 7},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filled(t, 10, Config{}, 4)
			path := lastSegment(t, dir)
			head, list := records(t, path)
			list = c.change(slices.Clone(list))
			must.NoError(t, os.WriteFile(path, slices.Concat(append([][]byte{head}, list...)...), 0o600))
			r := verify(t, dir, VerifyOptions{})
			must.NotNil(t, r.Bad)
			must.Eq(t, c.want, r.Bad.Index, must.Sprint(r.Bad))
		})
	}
}

func foreign(t *testing.T) [][]byte {
	_, list := records(t, lastSegment(t, filled(t, 10, Config{})))
	return list
}

// forge changes an event and makes the whole chain behind it fit again, as somebody can who knows the format but has no key.
func forge(t *testing.T, dir string, n int) {
	t.Helper()
	path := lastSegment(t, dir)
	f, err := os.Open(path)
	must.NoError(t, err)
	h, begin, err := readHeader(f)
	must.NoError(t, err)
	must.NoError(t, f.Close())
	head, list := records(t, path)
	must.Eq(t, begin, int64(len(head)))
	prev := h.hash()
	out := bytes.Clone(head)
	for i, rec := range list {
		body := bytes.Clone(rec[lengthBytes : len(rec)-hashBytes])
		if i+1 == n {
			body = bytes.Replace(body, []byte("acme"), []byte("evil"), 1)
		}
		sum, _ := chain(nil, hashedEvent, prev, body)
		out = append(append(append(out, rec[:lengthBytes]...), body...), sum[:]...)
		prev = sum
	}
	must.NoError(t, os.WriteFile(path, out, 0o600))
}

func TestVerify_findsAChainThatWasMadeAnew(t *testing.T) {
	dir := filled(t, 10, Config{}, 4, 8)
	forge(t, dir, 6)
	r := verify(t, dir, VerifyOptions{})
	must.NotNil(t, r.Bad)
	must.Eq(t, uint64(5), r.Bad.Index, must.Sprint("the first event behind the last head that fits"))
	must.StrContains(t, r.Bad.Problem, "from here to 8")
}

func TestVerify_needsTheRightKey(t *testing.T) {
	s := newSigner()
	dir := filled(t, 3, Config{Signer: s})
	own, err := s.PublicKeys(t.Context())
	must.NoError(t, err)
	r := verify(t, dir, VerifyOptions{Keys: own})
	must.Nil(t, r.Bad)
	must.False(t, r.OwnKeys)

	other := newSigner()
	other.rotate()
	list, err := other.PublicKeys(t.Context())
	must.NoError(t, err)
	r = verify(t, dir, VerifyOptions{Keys: list[1:]})
	must.NotNil(t, r.Bad)
	must.StrContains(t, r.Bad.Problem, "is not known")
}

func TestVerify_ofHeadsThatWereChanged(t *testing.T) {
	for name, c := range map[string]struct {
		from, to string
		want     uint64
	}{
		"an index":     {`"index":3,"hash"`, `"index":2,"hash"`, 1},
		"a hash":       {`"hash":"`, `"hash":"0`, 1},
		"a log":        {`"log":"`, `"log":"0`, 3},
		"a signature":  {`"value":"`, `"value":"AAAA`, 3},
		"no JSON":      {`{"head"`, `{"head`, 1},
		"no signature": {`"signature":{`, `"nothing":{`, 1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filled(t, 3, Config{})
			path := filepath.Join(dir, headsName(1))
			b, err := os.ReadFile(path)
			must.NoError(t, err)
			changed := bytes.Replace(b, []byte(c.from), []byte(c.to), 1)
			must.NotEq(t, string(b), string(changed))
			must.NoError(t, os.WriteFile(path, changed, 0o600))
			r := verify(t, dir, VerifyOptions{})
			must.NotNil(t, r.Bad)
			must.Eq(t, c.want, r.Bad.Index, must.Sprint(r.Bad))
		})
	}
}

// What nothing in a folder can tell: that log and heads were cut back together. A head that was kept elsewhere tells.
func TestVerify_ofALogThatWasCutBackWithItsHeads(t *testing.T) {
	dir := t.TempDir()
	filled(t, 5, Config{Dir: dir})
	path, heads := lastSegment(t, dir), filepath.Join(dir, headsName(1))
	oldLog, err := os.ReadFile(path)
	must.NoError(t, err)
	oldHeads, err := os.ReadFile(heads)
	must.NoError(t, err)
	filled(t, 5, Config{Dir: dir})
	now := verify(t, dir, VerifyOptions{})
	must.Eq(t, uint64(10), now.Last)
	hash, err := ParseHash(now.LastHash)
	must.NoError(t, err)
	expect := &Expect{Index: 10, Hash: hash}
	must.Nil(t, verify(t, dir, VerifyOptions{Expect: expect}).Bad)

	must.NoError(t, os.WriteFile(path, oldLog, 0o600))
	must.NoError(t, os.WriteFile(heads, oldHeads, 0o600))
	must.Nil(t, verify(t, dir, VerifyOptions{}).Bad)
	r := verify(t, dir, VerifyOptions{Expect: expect})
	must.NotNil(t, r.Bad)
	must.Eq(t, uint64(6), r.Bad.Index)
	r = verify(t, dir, VerifyOptions{Expect: &Expect{Index: 5}})
	must.Eq(t, uint64(5), r.Bad.Index)
	must.StrContains(t, r.Bad.Problem, "is expected")
}

func TestVerify_acrossSegments(t *testing.T) {
	dir := filled(t, 1500, Config{SegmentBytes: minSegment})
	firsts, err := listSegments(dir)
	must.NoError(t, err)
	must.Greater(t, 3, len(firsts))
	r := verify(t, dir, VerifyOptions{})
	must.Nil(t, r.Bad)
	must.Eq(t, len(firsts), r.Segments)
	must.Eq(t, uint64(1500), r.SignedTo)

	t.Run("one is missing", func(t *testing.T) {
		path := filepath.Join(dir, segmentName(firsts[1]))
		b, err := os.ReadFile(path)
		must.NoError(t, err)
		must.NoError(t, os.Remove(path))
		must.Eq(t, firsts[1], verify(t, dir, VerifyOptions{}).Bad.Index)
		must.NoError(t, os.WriteFile(path, b, 0o600))
	})
	t.Run("the first is missing", func(t *testing.T) {
		path := filepath.Join(dir, segmentName(1))
		b, err := os.ReadFile(path)
		must.NoError(t, err)
		must.NoError(t, os.Remove(path))
		must.Eq(t, uint64(1), verify(t, dir, VerifyOptions{}).Bad.Index)
		forgeCheckpoint(t, dir, firsts[1]-1)
		must.StrContains(t, verify(t, dir, VerifyOptions{}).Bad.Problem, "checkpoint")
		must.NoError(t, os.WriteFile(path, b, 0o600))
		must.NoError(t, os.Remove(filepath.Join(dir, checkpointFile)))
	})
	t.Run("one is cut at its end", func(t *testing.T) {
		path := filepath.Join(dir, segmentName(firsts[1]))
		st, err := os.Stat(path)
		must.NoError(t, err)
		must.NoError(t, os.Truncate(path, st.Size()-1))
		must.Eq(t, firsts[2]-1, verify(t, dir, VerifyOptions{}).Bad.Index)
	})
}

// forgeCheckpoint makes a checkpoint of a head, which is signed, but not as a checkpoint.
func forgeCheckpoint(t *testing.T, dir string, index uint64) {
	t.Helper()
	heads, err := readHeads(filepath.Join(dir, headsName(1)))
	must.NoError(t, err)
	for _, h := range heads {
		if h.Index == index {
			must.NotNil(t, h.Signature)
			h.Kind = kindCheckpoint
			b, err := json.Marshal(h)
			must.NoError(t, err)
			must.NoError(t, os.WriteFile(filepath.Join(dir, checkpointFile), b, 0o600))
			return
		}
	}
	t.Fatalf("no head of event %d", index)
}
