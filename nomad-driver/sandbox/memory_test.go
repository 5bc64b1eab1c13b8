package sandbox_test

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// What /tmp, /dev/shm and /dev are like, from inside: their mounts, what they hold, and who may do what there.
const looks = `while read -r id parent dev root at rest; do [ "$at" = / ] || echo "$at $root $rest"; done < /proc/self/mountinfo
stat -c '%n %F %a %u %g' /tmp /dev/shm /dev /dev/* /.soulbox /.soulbox/init
stat -c '%n %F %a %u %g %s' /tmp/* /dev/shm/* /dev/file 2>/dev/null
readlink /dev/fd /dev/stdin /dev/stdout /dev/stderr /dev/ptmx /tmp/*
cat /tmp/* /dev/shm/* /dev/file 2>/dev/null; true`

// A file system in memory that holds what a new one does is not in the images, and is as it was after a restore all the same; any other is in them.
func TestCheckpoint_ofWhatIsInMemory(t *testing.T) {
	e := engine(t)
	for name, tc := range map[string]struct {
		do     string   // before the first checkpoint
		images []string // what the images hold
		after  string   // printed after each restore
	}{
		"as new":               {do: ":"},
		"written in":           {do: "echo a > /tmp/a; mkdir /tmp/d; echo b > /dev/shm/b; ln -s /tmp/a /tmp/l", images: []string{"/tmp", "/dev/shm"}, after: "cat /tmp/l /dev/shm/b"},
		"written in and empty": {do: "echo a > /tmp/a; rm /tmp/a"},
		"a device more":        {do: "echo c > /dev/file", images: []string{"/dev"}, after: "cat /dev/file"},
		"another link":         {do: "ln -sfn /tmp /dev/fd", images: []string{"/dev"}},
		"another mode":         {do: "chmod 700 /tmp /dev/shm", images: []string{"/tmp", "/dev/shm"}},
		"another owner":        {do: "chown 1000 /tmp", images: []string{"/tmp"}},
		"open without a name": {
			do: `exec 5>/tmp/five 6>/dev/shm/six; echo five >&5; echo six >&6; rm /tmp/five /dev/shm/six; sleep 1000 5>&5 6>&6 & echo $! > /var/pid`,
			// As the sandbox's root, which is who runs it.
			after: "cat /proc/$(cat /var/pid)/fd/5 /proc/$(cat /var/pid)/fd/6",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := sandboxtest.NewHost(t)
			c := h.Config()
			c.NodeOwned = !sandbox.CanDump()
			c.Limits.TmpBytes = 20 << 20
			s, err := sandbox.Create(t.Context(), c)
			must.NoError(t, err)
			defer func() { sandboxtest.Release(t, s) }()
			run := func(script string) string {
				out, err := sandboxtest.Exec(t.Context(), s, guest.Start{Argv: []string{"/bin/bash", "-c", script}, User: "root"})
				must.NoError(t, err)
				return out.Stdout
			}
			run(tc.do)
			look := func() []string {
				lines := strings.Split(run(looks), "\n")
				slices.Sort(lines) // mounts come back in another order
				return lines
			}
			before, after := look(), run(tc.after)
			must.SliceContainsFunc(t, before, "/tmp / rw,nosuid,nodev,relatime - tmpfs none rw,size=20480k", strings.HasPrefix)
			for round := range 2 {
				dir := sandbox.CheckpointDir(filepath.Join(filepath.Dir(h.StateDir), "c"+strconv.Itoa(round)))
				must.NoError(t, s.Park(t.Context()))
				must.NoError(t, s.Freeze(t.Context()))
				d, err := s.Checkpoint(t.Context(), startDump(t, e), dir, sandbox.CheckpointOptions{})
				must.NoError(t, err)
				want := []string{"/.soulbox", "/dev", "/dev/shm", "/tmp"}
				want = slices.DeleteFunc(want, func(p string) bool { return slices.Contains(tc.images, p) })
				var got []string
				for _, m := range d.Mounts {
					if m.Memory() && m.Source != "nothing" {
						got = append(got, m.Point)
					}
				}
				slices.Sort(got)
				must.Eq(t, want, got)
				must.NoError(t, s.End(t.Context()))
				c.Limits.TmpBytes = 10 << 20 // what a new one would have: it stays as large as it was
				s, err = sandbox.Restore(t.Context(), sandbox.RestoreConfig{Config: c, Engine: e, Dir: dir, Dump: d})
				must.NoError(t, err)
				must.NoError(t, s.Wake(t.Context(), nil))
				must.Eq(t, before, look())
				must.Eq(t, after, run(tc.after))
			}
		})
	}
}
