package node

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Every released version must stay readable: these files are never changed, only added to.
func TestDecodeRecord_golden(t *testing.T) {
	for _, tc := range []struct {
		file  string
		state nodeapi.State
	}{
		{"record-v1-running.json", nodeapi.StateRunning},
		{"record-v1-stopped.json", nodeapi.StateStopped},
	} {
		t.Run(tc.file, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join("testdata", tc.file))
			must.NoError(t, err)
			r, err := decodeRecord(b)
			must.NoError(t, err)
			must.Eq(t, api.SandboxID("iabcdefghij0123456789"), r.Sandbox.ID)
			must.Eq(t, tc.state, r.Sandbox.State)
			must.Eq(t, 1179648, r.IDBase)
			again, err := json.Marshal(r)
			must.NoError(t, err)
			must.EqJSON(t, string(b), string(again))
		})
	}
}

func TestDecodeRecord_refuses(t *testing.T) {
	for name, s := range map[string]string{
		"nothing":         ``,
		"version 0":       `{"sandbox":{"id":"iabcdefghij0123456789","state":"running"},"ref":{"id":"iabcdefghij0123456789"}}`,
		"future":          `{"version":99,"sandbox":{"id":"iabcdefghij0123456789","state":"running"},"ref":{"id":"iabcdefghij0123456789"}}`,
		"path as id":      `{"version":1,"sandbox":{"id":"../../../../etc/passwd","state":"running"}}`,
		"other ref":       `{"version":1,"sandbox":{"id":"iabcdefghij0123456789","state":"running"},"ref":{"id":"izzzzzzzzzz0123456789"}}`,
		"starting":        `{"version":1,"sandbox":{"id":"iabcdefghij0123456789","state":"starting"},"ref":{"id":"iabcdefghij0123456789"}}`,
		"no exit":         `{"version":1,"sandbox":{"id":"iabcdefghij0123456789","state":"stopped"},"ref":{"id":"iabcdefghij0123456789"}}`,
		"released, alive": `{"version":1,"sandbox":{"id":"iabcdefghij0123456789","state":"running"},"released":true}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := decodeRecord([]byte(s))
			must.Error(t, err)
		})
	}
}

func TestRecords_removeIsIdempotent(t *testing.T) {
	r := &records{dir: t.TempDir(), sync: newSyncer(hclog.NewNullLogger())}
	id := api.NewSandboxID()
	must.NoError(t, r.remove(id))
	must.NoError(t, r.put(&record{Sandbox: nodeapi.Sandbox{ID: id}}))
	must.NoError(t, r.remove(id))
	good, bad, err := r.load()
	must.NoError(t, err)
	must.SliceEmpty(t, good)
	must.MapEmpty(t, bad)
	r.sync.flush()
	must.MapEmpty(t, r.sync.dirty)
}

// A record that takes the place of a longer one ends where it ends, and whichever way it was written, it is the last one that is read.
func TestRecords_theLastOneIsRead(t *testing.T) {
	r := &records{dir: t.TempDir(), sync: newSyncer(hclog.NewNullLogger())}
	id := api.NewSandboxID()
	rec := record{Sandbox: nodeapi.Sandbox{ID: id, State: nodeapi.StateRunning}}
	rec.Ref.ID = id
	pause := record{Sandbox: nodeapi.Sandbox{ID: id, State: nodeapi.StatePaused, Pause: &nodeapi.Pause{}}, Pause: &pauseRecord{}}
	pause.Ref.ID = id
	frozen := record{Sandbox: nodeapi.Sandbox{ID: id, State: nodeapi.StatePaused, Pause: &nodeapi.Pause{Depth: nodeapi.DepthFrozen}}, Pause: &pauseRecord{}}
	frozen.Ref.ID = id
	for i, step := range []record{rec, frozen, rec, rec, pause, rec, frozen, pause, pause, rec, rec} {
		step.Env = map[string]string{"STEP": strconv.Itoa(i), "LONG": strings.Repeat("x", 5000*((i+1)%3))}
		must.NoError(t, r.put(&step))
		got, err := readRecord(r.path(id))
		must.NoError(t, err)
		must.Eq(t, step.Env, got.Env)
		must.Eq(t, step.Sandbox.State, got.Sandbox.State)
		files, err := os.ReadDir(r.dir)
		must.NoError(t, err)
		must.LessEq(t, 2, len(files))
	}
	must.NoError(t, r.remove(id))
	files, err := os.ReadDir(r.dir)
	must.NoError(t, err)
	must.SliceEmpty(t, files)
}

// BenchmarkRecords_put writes the record of a sandbox that runs, and as a floor the same bytes as a new file that is renamed over the old one.
func BenchmarkRecords_put(b *testing.B) {
	r := &records{dir: b.TempDir(), sync: newSyncer(hclog.NewNullLogger())}
	rec := record{Sandbox: nodeapi.Sandbox{ID: api.NewSandboxID(), State: nodeapi.StateRunning}, Env: map[string]string{"A": strings.Repeat("x", 1500)}}
	must.NoError(b, r.put(&rec))
	bytes, err := json.Marshal(rec)
	must.NoError(b, err)
	b.Run("exchange", func(b *testing.B) {
		for b.Loop() {
			must.NoError(b, r.put(&rec))
		}
	})
	b.Run("replace", func(b *testing.B) {
		for b.Loop() {
			must.NoError(b, replace(filepath.Join(r.dir, "x"), filepath.Join(r.dir, "y"), bytes))
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	for _, name := range []string{"record-v1-running.json", "record-v1-stopped.json"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		if id, err := api.ParseSandboxID(string(r.Sandbox.ID)); err != nil || id != r.Sandbox.ID {
			t.Fatalf("accepted id %q", r.Sandbox.ID)
		}
		if r.Sandbox.State == nodeapi.StateStopped && r.Sandbox.Exit == nil {
			t.Fatal("accepted a stopped sandbox without an exit")
		}
	})
}
