package sandbox_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// What is copied beside a dump is what a dump of the same processes has that CRIU has made alone, page by page; and it comes back, at once and later, and again.
func TestCheckpoint_memoryCopiedBesideIsThatOfTheDump(t *testing.T) {
	e := engine(t)
	must.NoError(t, e.Beside())
	h := sandboxtest.NewHost(t)
	c := h.Config()
	c.NodeOwned = !sandbox.CanDump()
	s, err := sandbox.Create(t.Context(), c)
	must.NoError(t, err)
	defer func() { sandboxtest.Release(t, s) }()
	ask := startAsked(t, s, keeps)
	want := ask(s)
	must.StrHasSuffix(t, "-\n", want)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	base := filepath.Join(filepath.Dir(h.StateDir), "b")
	must.NoError(t, os.Mkdir(base, 0o700))
	for _, tc := range []struct {
		name       string
		room, lazy bool
	}{{"at once", false, false}, {"through memory", true, false}, {"of memory that came later", false, true}, {"and after that", true, true}} {
		t.Run(tc.name, func(t *testing.T) {
			dir := sandbox.CheckpointDir(filepath.Join(base, tc.name))
			alone := dir + "-alone"
			var room *checkpoint.Room
			if tc.room {
				room, err = s.MakeRoom(e)
				must.NoError(t, err)
				must.NotNil(t, room)
				defer func() { must.NoError(t, room.Free()) }()
			}
			sandboxtest.Shell(t, s, "", keepsStill)
			must.NoError(t, s.Park(ctx))
			must.NoError(t, s.Freeze(ctx))
			d, err := s.Checkpoint(ctx, startDump(t, e), dir, sandbox.CheckpointOptions{Room: room})
			must.NoError(t, err)
			must.NoError(t, d.Again)
			must.Greater(t, 10_000_000, d.Stats.Beside)
			must.Eq(t, tc.room, d.Late != nil)
			whole, err := s.Checkpoint(ctx, startDump(t, e), alone, sandbox.CheckpointOptions{Alone: true})
			must.NoError(t, err)
			must.Eq(t, 0, whole.Stats.Beside)
			must.NoError(t, s.End(ctx))
			if tc.room { // what was copied is all that there is of it
				bytes, err := d.Late.Finish()
				must.NoError(t, err)
				must.Greater(t, d.Stats.Beside, bytes)
			}
			_, err = os.Lstat(filepath.Join(string(dir), "beside"))
			must.ErrorIs(t, err, os.ErrNotExist)
			sameImages(t, alone.Images(), dir.Images(), "pagemap-1.img") // PID 1 looks at its clock between the two dumps
			rc := sandbox.RestoreConfig{Config: c, Engine: e, Dir: dir, Dump: d}
			if tc.lazy && e.Lazy() == nil {
				rc.Lazy = &sandbox.Lazy{Dir: filepath.Join(base, "pages "+tc.name), Least: 1 << 20}
			}
			again, err := sandbox.Restore(ctx, rc)
			must.NoError(t, err)
			s = again
			must.Eq(t, rc.Lazy != nil, s.Pages() != nil)
			must.NoError(t, s.Wake(ctx, nil))
			must.Eq(t, want, ask(s))
			if s.Pages() != nil {
				must.NoError(t, s.Pages().Wait(ctx))
			}
		})
	}
}

// keeps is a shell with 10 MB, beside one that has 5 MB and waits.
const keeps = `mkfifo /tmp/go /tmp/came /tmp/never; exec 3<>/tmp/go
bash -c 'x=$(head -c 4000000 /dev/urandom | base64 -w0); read y < /tmp/never' &
x=$(head -c 7500000 /dev/urandom | base64 -w0)
while read -u 3 c; do echo -n "$x" | sha256sum > /tmp/came; done`

// keepsStill returns once both wait: the one for a line, the other one for somebody to open what it opens. Between two dumps they may be let run.
const keepsStill = `for i in $(seq 3000); do
	n=0
	for p in /proc/[0-9]*; do
		grep -qE "read -u [3]|/tmp/neve[r]" $p/cmdline 2>/dev/null || continue
		case "$(cat $p/syscall)" in "0 0x3 "*|"257 "*) n=$((n+1));; *) n=9;; esac
	done
	[ $n = 2 ] && exit 0
	sleep 0.01
done; exit 1`

// Where memory cannot be copied beside it, CRIU copies it.
func TestCheckpoint_withoutAFolderForTheCopy(t *testing.T) {
	e := engine(t)
	h := sandboxtest.NewHost(t)
	c := h.Config()
	c.NodeOwned = !sandbox.CanDump()
	s, err := sandbox.Create(t.Context(), c)
	must.NoError(t, err)
	defer func() { sandboxtest.Release(t, s) }()
	ask := startAsked(t, s, keeps)
	want := ask(s)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := sandbox.CheckpointDir(filepath.Join(filepath.Dir(h.StateDir), "b"))
	must.NoError(t, os.MkdirAll(filepath.Join(string(dir), "beside", "already"), 0o700))
	must.NoError(t, s.Park(ctx))
	must.NoError(t, s.Freeze(ctx))
	d, err := s.Checkpoint(ctx, startDump(t, e), dir, sandbox.CheckpointOptions{})
	must.NoError(t, err)
	must.ErrorIs(t, d.Again, os.ErrExist)
	must.Eq(t, 0, d.Stats.Beside)
	must.NoError(t, s.End(ctx))
	s, err = sandbox.Restore(ctx, sandbox.RestoreConfig{Config: c, Engine: e, Dir: dir, Dump: d})
	must.NoError(t, err)
	must.NoError(t, s.Wake(ctx, nil))
	must.Eq(t, want, ask(s))
}
