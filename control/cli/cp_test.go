package cli

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

func put(t *testing.T, path, data string, mode os.FileMode) {
	t.Helper()
	must.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must.NoError(t, os.WriteFile(path, []byte(data), mode))
	must.NoError(t, os.Chmod(path, mode))
}

func holds(t *testing.T, path, data string, mode os.FileMode) {
	t.Helper()
	b, err := os.ReadFile(path)
	must.NoError(t, err)
	must.Eq(t, data, string(b), must.Sprint(path))
	st, err := os.Stat(path)
	must.NoError(t, err)
	must.Eq(t, mode, st.Mode(), must.Sprint(path))
}

func TestCp_files(t *testing.T) {
	f := newFake(t)
	c := f.call(t)
	id := string(boxOne) + ":"
	put(t, filepath.Join(f.root, "home/user/.keep"), "", 0o644)
	put(t, filepath.Join(f.root, "tmp/x"), "remote", 0o640)
	put(t, filepath.Join(f.root, "tmp/setuid"), "evil", 0o755)
	put(t, filepath.Join(f.root, "tmp/broken"), "half", 0o644)
	must.NoError(t, os.Symlink("tmp", filepath.Join(f.root, "lnk")))
	put(t, filepath.Join(c.dir, "run.sh"), "local", 0o750)

	must.Eq(t, 0, c.run(t, "cp", "run.sh", id), must.Sprint(c.stderr))
	holds(t, filepath.Join(f.root, "home/user/run.sh"), "local", 0o750)
	must.Eq(t, 0, c.run(t, "cp", "run.sh", id+"/tmp/other"))
	holds(t, filepath.Join(f.root, "tmp/other"), "local", 0o750)
	must.Eq(t, 0, c.run(t, "cp", "run.sh", id+"/tmp"))
	holds(t, filepath.Join(f.root, "tmp/run.sh"), "local", 0o750)
	must.Eq(t, 0, c.run(t, "cp", "run.sh", id+"/new/"))
	holds(t, filepath.Join(f.root, "new/run.sh"), "local", 0o750)
	must.Eq(t, 0, c.run(t, "cp", "run.sh", id+"/lnk"))
	c.stdin = "from a pipe"
	must.Eq(t, 0, c.run(t, "cp", "-", id+"/tmp/piped"))
	holds(t, filepath.Join(f.root, "tmp/piped"), "from a pipe", 0o644)
	must.Eq(t, 1, c.run(t, "cp", "-", id+"/tmp"))

	must.Eq(t, 0, c.run(t, "cp", id+"/tmp/x", "."))
	holds(t, filepath.Join(c.dir, "x"), "remote", 0o640)
	must.Eq(t, 0, c.run(t, "cp", id+"/tmp/x", "y"))
	holds(t, filepath.Join(c.dir, "y"), "remote", 0o640)
	must.Eq(t, 0, c.run(t, "cp", id+"/tmp/x", "-"))
	must.Eq(t, "remote", c.stdout)
	must.Eq(t, 0, c.run(t, "cp", id+"/tmp/setuid", "s"))
	holds(t, filepath.Join(c.dir, "s"), "evil", 0o755)
	put(t, filepath.Join(c.dir, "target"), "old", 0o600)
	must.NoError(t, os.Symlink("target", filepath.Join(c.dir, "alias")))
	must.Eq(t, 0, c.run(t, "cp", id+"/tmp/x", "alias"))
	holds(t, filepath.Join(c.dir, "target"), "remote", 0o640)

	put(t, filepath.Join(c.dir, "precious"), "old", 0o600)
	must.Eq(t, 1, c.run(t, "cp", id+"/tmp/broken", "precious"))
	must.StrContains(t, c.stderr, "unexpected EOF")
	holds(t, filepath.Join(c.dir, "precious"), "old", 0o600)
	entries, err := filepath.Glob(filepath.Join(c.dir, ".soulbox-cp-*"))
	must.NoError(t, err)
	must.SliceEmpty(t, entries)
}

func TestCp_folders(t *testing.T) {
	f := newFake(t)
	c := f.call(t)
	id := string(boxOne) + ":"
	put(t, filepath.Join(f.root, "home/user/.keep"), "", 0o644)
	put(t, filepath.Join(c.dir, "src/a/run.sh"), "local", 0o751)
	must.NoError(t, os.Symlink("a/run.sh", filepath.Join(c.dir, "src/link")))

	must.Eq(t, 1, c.run(t, "cp", "src", id))
	must.StrContains(t, c.stderr, "-r copies it")
	must.Eq(t, 0, c.run(t, "cp", "-r", "src", id), must.Sprint(c.stderr))
	holds(t, filepath.Join(f.root, "home/user/src/a/run.sh"), "local", 0o751)
	must.Eq(t, 0, c.run(t, "cp", "-r", "src", id+"/fresh"))
	holds(t, filepath.Join(f.root, "fresh/link"), "local", 0o751)
	must.Eq(t, 0, c.run(t, "cp", "-r", "src/.", id+"/home/user"))
	holds(t, filepath.Join(f.root, "home/user/a/run.sh"), "local", 0o751)

	// The fake adds an entry that leads out of the folder to each archive: it is left out, and said so.
	must.Eq(t, 1, c.run(t, "cp", id+"src", "."))
	must.StrContains(t, c.stderr, "-r copies it")
	must.Eq(t, 1, c.run(t, "cp", "-r", id+"src", "."))
	must.StrContains(t, c.stderr, "Left out out/../../evil")
	must.Eq(t, 1, c.run(t, "cp", "-r", id+"src", "copy"))
	holds(t, filepath.Join(c.dir, "copy/a/run.sh"), "local", 0o751)
	must.Eq(t, 1, c.run(t, "cp", "-r", id+"src", "copy"))
	holds(t, filepath.Join(c.dir, "copy/src/link"), "local", 0o751)
	must.Eq(t, 1, c.run(t, "cp", "-r", id+"src/.", "flat"))
	holds(t, filepath.Join(c.dir, "flat/a/run.sh"), "local", 0o751)
	must.Eq(t, 1, c.run(t, "cp", "-r", id+".", "home"))
	holds(t, filepath.Join(c.dir, "home/src/a/run.sh"), "local", 0o751)
	_, err := os.Stat(filepath.Join(c.dir, "..", "evil"))
	must.ErrorIs(t, err, os.ErrNotExist)
	must.NoError(t, os.Symlink("home/user/src", filepath.Join(f.root, "lnk")))
	must.Eq(t, 1, c.run(t, "cp", "-r", id+"/lnk", "."))
	holds(t, filepath.Join(c.dir, "lnk/a/run.sh"), "local", 0o751)
	must.NoError(t, os.Symlink("loop", filepath.Join(f.root, "loop")))
	must.Eq(t, 1, c.run(t, "cp", "-r", id+"/loop", "."))
	must.StrContains(t, c.stderr, "path '/loop' does not exist")
}

func TestCp_badInput(t *testing.T) {
	c := newFake(t).call(t)
	id := string(boxOne) + ":"
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"a"}, "a source and a target"},
		{[]string{"a", "b"}, "one of the two must be in a sandbox"},
		{[]string{id + "a", id + "b"}, "two steps"},
		{[]string{"a:b", "c"}, "./a:b"},
		{[]string{"", id}, "empty"},
		{[]string{"none", id}, "no such file"},
		{[]string{id + "/none", "."}, "path '/none' does not exist"},
		{[]string{id + "/none", "nodir/"}, "path '/none' does not exist"},
		{[]string{"-r", "izzzzzzzzzzzzzzzzzzzz:/x", "."}, "sandbox izzzzzzzzzzzzzzzzzzzz does not exist"},
	} {
		must.Eq(t, 1, c.run(t, append([]string{"cp"}, tc.args...)...), must.Sprint(tc.args))
		must.StrContains(t, c.stderr, tc.want)
	}
}
