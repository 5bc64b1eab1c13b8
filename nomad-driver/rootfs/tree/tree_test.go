package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func TestDefaults_Validate(t *testing.T) {
	good := []Defaults{
		{},
		{User: "user"}, {User: "1000:1000"}, {User: "app:group"},
		{Cwd: "/"}, {Cwd: "/home/user dir"},
		{Env: []string{"A=", "B=c=d", "C=\n"}},
	}
	for _, d := range good {
		must.NoError(t, d.Validate(), must.Sprintf("%+v", d))
	}
	bad := map[string]Defaults{
		"user is longer than 256":           {User: strings.Repeat("u", 257)},
		"no user name has":                  {User: "a b"},
		"directory is longer than 4095":     {Cwd: "/" + strings.Repeat("x", 4095)},
		"directory has a NUL":               {Cwd: "/\x00"},
		"is not absolute":                   {Cwd: "home"},
		"more than 512 variables":           {Env: make([]string, 513)},
		"is not KEY=value":                  {Env: []string{"A"}},
		"environment is larger than 131072": {Env: []string{"A=" + strings.Repeat("x", 128<<10)}},
	}
	for says, d := range bad {
		err := d.Validate()
		must.ErrorIs(t, err, ErrInvalid)
		must.ErrorContains(t, err, says)
	}
}

func TestXattr(t *testing.T) {
	for name, want := range map[string]XattrRule{
		"security.capability": XattrKeep, "user.note": XattrKeep,
		"security.selinux": XattrDrop, "security.ima": XattrDrop, "system.posix_acl_access": XattrDrop, "other": XattrDrop,
		"trusted.overlay.opaque": XattrRefuse, "trusted.x": XattrRefuse, "user.overlay.redirect": XattrRefuse,
	} {
		must.Eq(t, want, Xattr(name), must.Sprint(name))
	}
}

func openDir(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	must.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestWalk_sortsByPathBytes(t *testing.T) {
	dir := t.TempDir()
	must.NoError(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755))
	for _, name := range []string{"a.b", "a/b/c", "a-b", "Z"} {
		must.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	entries, err := Walk(t.Context(), openDir(t, dir), false)
	must.NoError(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Path)
	}
	must.Eq(t, []string{"", "Z", "a", "a-b", "a.b", "a/b", "a/b/c"}, got)
}

func TestWalk_specialFiles(t *testing.T) {
	dir := t.TempDir()
	must.NoError(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	_, err := Walk(t.Context(), openDir(t, dir), false)
	must.ErrorIs(t, err, ErrInvalid)
	must.ErrorContains(t, err, `"fifo" is a FIFO`)
	entries, err := Walk(t.Context(), openDir(t, dir), true)
	must.NoError(t, err)
	must.Len(t, 1, entries)
}

func TestOpen_staysInTheTree(t *testing.T) {
	dir := t.TempDir()
	must.NoError(t, os.Symlink("/", filepath.Join(dir, "out")))
	root := openDir(t, dir)
	for _, path := range []string{"out/etc", "../x", "/etc", "out"} {
		_, err := Open(root, path, unix.O_RDONLY)
		must.Error(t, err, must.Sprint(path))
	}
}

// A file of a folder that somebody writes to while it is packed must not give a tar whose sizes lie.
func TestPack_noticesAFileThatChanges(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	must.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	w := &truncating{path: path}
	must.Error(t, Pack(t.Context(), openDir(t, dir), w, PackOptions{}))
}

type truncating struct {
	path string
	done bool
}

func (w *truncating) Write(p []byte) (int, error) {
	if !w.done {
		w.done = true
		return len(p), os.Truncate(w.path, 10)
	}
	return len(p), nil
}

func TestPack_rootOwned(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	must.NoError(t, os.WriteFile(path, nil, 0o600))
	must.NoError(t, os.Chown(path, 70_000, 70_000))
	var b bytes.Buffer
	must.NoError(t, Pack(t.Context(), openDir(t, dir), &b, PackOptions{RootOwned: true}))
	r := tar.NewReader(&b)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		must.NoError(t, err)
		must.Eq(t, 0, h.Uid)
		must.Eq(t, 0, h.Gid)
	}
}
