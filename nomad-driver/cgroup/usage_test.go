package cgroup

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestUsage_addsUpDevices(t *testing.T) {
	for _, tc := range []struct {
		name    string
		parse   func([]byte) (uint64, uint64)
		file    string
		in, out uint64
	}{
		{"v1", parseV1IO, "8:0 Read 4096\n8:0 Write 512\n8:0 Sync 4608\n8:0 Total 4608\n7:1 Read 4\n7:1 Write 0\nTotal 4612\n", 4100, 512},
		{"v1, nothing yet", parseV1IO, "Total 0\n", 0, 0},
		{"v1, not numbers", parseV1IO, "8:0 Read -1\n8:0 Write x\n\n8:0\n", 0, 0},
		{"v2", parseV2IO, "8:0 rbytes=4096 wbytes=512 rios=1 wios=1 dbytes=9 dios=1\n253:0 rbytes=4 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n", 4100, 512},
		{"v2, nothing yet", parseV2IO, "", 0, 0},
		{"v2, not numbers", parseV2IO, "8:0 rbytes= wbytes=x rbytes\n", 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in, out := tc.parse([]byte(tc.file))
			must.Eq(t, tc.in, in)
			must.Eq(t, tc.out, out)
		})
	}
}

func TestUsage_ofVersion2(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "parent", "box")
	must.NoError(t, os.MkdirAll(dir, 0o755))
	for name, text := range map[string]string{
		"cpu.stat": "usage_usec 12\nuser_usec 7\n", "memory.current": "5000\n", "pids.current": "3\n",
		"memory.stat": "anon 1000\nfile_mapped 9\nfile 3000\ninactive_file 2000\n", "io.stat": "8:0 rbytes=1 wbytes=2\n",
	} {
		must.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	g := &Group{tree: &Tree{h: &v2{root: root}, parent: "parent"}, name: "box", rel: "parent/box"}
	u, err := g.Usage()
	must.NoError(t, err)
	must.Eq(t, Usage{CPUNanos: 12000, MemoryBytes: 3000, MemoryCache: 3000, PIDs: 3, DiskRead: 1, DiskWritten: 2}, u)

	must.NoError(t, os.Remove(filepath.Join(dir, "io.stat"))) // a kernel without the controller
	u, err = g.Usage()
	must.NoError(t, err)
	must.Eq(t, 0, u.DiskRead)

	must.NoError(t, os.RemoveAll(dir))
	_, err = g.Usage()
	must.ErrorIs(t, err, ErrNotExist)
}

// On the kernel at hand, the few files of Usage say what the many of Stats say.
func TestGroup_usageIsWhatStatsSay(t *testing.T) {
	g := newGroup(t, newKernel(t), Limits{})
	before, err := g.Usage()
	must.NoError(t, err)
	run(t, g, "sh", "-c", "while :; do :; done")
	var s Stats
	for deadline := time.Now().Add(10 * time.Second); s.CPUNanos < 1e7 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		s, err = g.Stats()
		must.NoError(t, err)
	}
	must.NoError(t, g.Freeze(t.Context()))
	t.Cleanup(func() { must.NoError(t, g.Thaw(context.Background())) }) // a frozen process of v1 does not even die
	s, err = g.Stats()
	must.NoError(t, err)
	u, err := g.Usage()
	must.NoError(t, err)
	must.Greater(t, before.CPUNanos, u.CPUNanos)
	must.Eq(t, s.CPUNanos, u.CPUNanos)
	must.Eq(t, s.PIDs, u.PIDs)
	must.Eq(t, s.MemoryBytes, u.MemoryBytes)
	must.Eq(t, s.MemoryCache, u.MemoryCache)
}

func TestMeter_readsAGroupUntilItIsGone(t *testing.T) {
	m := newKernel(t)
	g, err := m.Create("metered", Limits{})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, g.Remove(context.Background())) })
	meter, err := g.Meter()
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, meter.Close()) })
	_, err = meter.Usage()
	must.NoError(t, err)
	must.NoError(t, g.Remove(t.Context()))
	_, err = meter.Usage()
	must.ErrorIs(t, err, ErrNotExist)
	_, err = g.Meter()
	must.ErrorIs(t, err, ErrNotExist)
}

func TestField_isThatOfAWholeKey(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		want       uint64
	}{
		{"first", "file 7\nanon 1\n", 7},
		{"last", "anon 1\nfile 7\n", 7},
		{"behind longer and shorter ones", "inactive_file 1\nfile_mapped 2\nfi 3\nfile 7\n", 7},
		{"without an end", "file 7", 7},
		{"missing", "inactive_file 1\nfile_mapped 2\n", 0},
		{"no number", "file x\n", 0},
		{"empty", "", 0},
	} {
		t.Run(tc.name, func(t *testing.T) { must.Eq(t, tc.want, field([]byte(tc.file), "file")) })
	}
}

// BenchmarkMeter reads a group's usage from open files, and, as the floor's counterpart, from files that it opens each time.
func BenchmarkMeter(b *testing.B) {
	m, err := Detect("/sys/fs/cgroup", "soulbox-cgbench")
	must.NoError(b, err)
	b.Cleanup(func() { must.NoError(b, m.Close()) })
	g, err := m.Create("g", Limits{})
	must.NoError(b, err)
	b.Cleanup(func() { must.NoError(b, g.Remove(context.Background())) })
	meter, err := g.Meter()
	must.NoError(b, err)
	b.Cleanup(func() { must.NoError(b, meter.Close()) })
	b.Run("kept", func(b *testing.B) {
		for b.Loop() {
			_, err := meter.Usage()
			must.NoError(b, err)
		}
	})
	b.Run("opened", func(b *testing.B) {
		for b.Loop() {
			_, err := g.Usage()
			must.NoError(b, err)
		}
	})
}
