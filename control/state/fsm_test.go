package state

import (
	"bytes"
	"encoding/binary"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"
)

// update rewrites the golden files of the current version. Those of released versions are never touched.
var update = flag.Bool("update", false, "rewrite the golden files of the current format")

func TestFSM_sameLogMakesSameSnapshot(t *testing.T) {
	a, b := snapshotOf(t, replay(t, script())), snapshotOf(t, replay(t, script()))
	must.True(t, bytes.Equal(a, b))
	restored := replay(t, nil)
	must.NoError(t, restored.Restore(io.NopCloser(bytes.NewReader(a))))
	must.True(t, bytes.Equal(a, snapshotOf(t, restored)), must.Sprint("a restored snapshot makes the same snapshot"))
	must.Eq(t, uint64(10+len(script())-1), restored.store.Index())
}

func TestFSM_goldenSnapshotV1(t *testing.T) {
	path := filepath.Join("testdata", "snapshot-v1.bin")
	want := snapshotOf(t, replay(t, script()))
	if *update {
		must.NoError(t, os.WriteFile(path, want, 0o600))
	}
	got, err := os.ReadFile(path)
	must.NoError(t, err)
	f := replay(t, nil)
	must.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(got))))
	must.Eq(t, want, snapshotOf(t, f), must.Sprint("the golden file reads as what its script made"))
	sb, err := f.store.Sandbox(id(1))
	must.NoError(t, err)
	must.Eq(t, "ß", sb.Metadata["ü"])
	must.True(t, sb.EndAt.Equal(at(500)))
	must.Eq(t, Running, sb.State)
	must.Eq(t, "n2", sb.Node)
	must.False(t, *sb.AllowInternetAccess)
	must.True(t, sb.EndedAt.IsZero())
}

func TestFSM_goldenLogV1(t *testing.T) {
	path := filepath.Join("testdata", "log-v1.bin")
	if *update {
		var b []byte
		for _, c := range script() {
			entry, err := encodeCommand(c)
			must.NoError(t, err)
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(entry))), entry...)
		}
		must.NoError(t, os.WriteFile(path, b, 0o600))
	}
	b, err := os.ReadFile(path)
	must.NoError(t, err)
	f := replay(t, nil)
	for i := 0; len(b) > 0; i++ {
		n := binary.BigEndian.Uint32(b)
		f.Apply(&raft.Log{Index: uint64(i + 10), Data: b[4 : 4+n]})
		b = b[4+n:]
	}
	must.Eq(t, snapshotOf(t, replay(t, script())), snapshotOf(t, f))
}

func TestFSM_haltsOnWhatItCannotRead(t *testing.T) {
	good, err := encodeCommand(script()[0])
	must.NoError(t, err)
	newer := bytes.Clone(good)
	newer[1] = commandVersion + 1
	for name, entry := range map[string][]byte{
		"empty":           {},
		"unknown command": {250, commandVersion, 0x80},
		"newer encoding":  newer,
		"cut body":        good[:len(good)/2],
	} {
		t.Run(name, func(t *testing.T) {
			f := replay(t, script())
			before := snapshotOf(t, f)
			defer func() {
				must.NotNil(t, recover())
				must.Eq(t, before, snapshotOf(t, f))
			}()
			f.Apply(&raft.Log{Index: 100, Data: entry})
		})
	}
}

func TestSnapshot_refusesDamage(t *testing.T) {
	good := snapshotOf(t, replay(t, script()))
	for n := range len(good) {
		_, err := readSnapshot(bytes.NewReader(good[:n]))
		must.Error(t, err)
	}
	newer := bytes.Clone(good)
	newer[len(snapshotMagic)] = snapshotVersion + 1
	_, err := readSnapshot(bytes.NewReader(newer))
	must.ErrorContains(t, err, "format version 2")
	_, err = readSnapshot(bytes.NewReader(append([]byte("soulbox\x01"), 1, 0xff, 0xff, 0xff, 0xff)))
	must.ErrorContains(t, err, "exceeds")
}

func FuzzDecodeCommand(f *testing.F) {
	for _, c := range script() {
		entry, err := encodeCommand(c)
		must.NoError(f, err)
		f.Add(entry)
	}
	f.Fuzz(func(t *testing.T, entry []byte) {
		if c, err := decodeCommand(entry); err == nil {
			_ = c.check()
		}
	})
}

func FuzzReadSnapshot(f *testing.F) {
	f.Add(snapshotOf(f, replay(f, script())))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = readSnapshot(bytes.NewReader(b)) })
}
