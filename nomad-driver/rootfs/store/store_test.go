package store

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/unpack"
)

// The wire type and the store's own have the same fields.
var _ = nodeapi.Template(Template{})

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(Config{Dir: filepath.Join(t.TempDir(), "store")})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, s.Close()) })
	return s
}

// rootTar is a small root with the file /content.
func rootTar(t testing.TB, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []*tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./bin/su", Mode: 0o4755, ModTime: time.Unix(1_600_000_000, 0)},
		{Name: "./bin/also", Typeflag: tar.TypeLink, Linkname: "./bin/su"},
		{Name: "./lib", Typeflag: tar.TypeSymlink, Linkname: "usr/lib"},
		{Name: "./content", Mode: 0o644, Uid: 1000, Size: int64(len(content)), PAXRecords: map[string]string{"SCHILY.xattr.user.k": "v\x00"}},
	} {
		must.NoError(t, w.WriteHeader(h))
		if h.Size > 0 {
			_, err := io.WriteString(w, content)
			must.NoError(t, err)
		}
	}
	must.NoError(t, w.Close())
	return b.Bytes()
}

func imported(t *testing.T, s *Store, name, content string) Template {
	t.Helper()
	tpl, err := s.Import(t.Context(), name, bytes.NewReader(rootTar(t, content)), ImportOptions{})
	must.NoError(t, err)
	return tpl
}

// count returns how many trees and temporary folders are on disk.
func count(t *testing.T, s *Store) (trees, temps int) {
	t.Helper()
	a, err := os.ReadDir(filepath.Join(s.dir, treesDir))
	must.NoError(t, err)
	b, err := os.ReadDir(filepath.Join(s.dir, tempDir))
	must.NoError(t, err)
	return len(a), len(b)
}

func TestImport_storesTheSameTreeOnce(t *testing.T) {
	s := open(t)
	a := imported(t, s, "a", "x")
	b := imported(t, s, "b", "x")
	c := imported(t, s, "c", "y")
	must.Eq(t, a.Digest, b.Digest)
	must.NotEq(t, a.Digest, c.Digest)
	must.Eq(t, a.CreatedAt, b.CreatedAt)
	must.Eq(t, int64(1), a.Bytes)
	trees, temps := count(t, s)
	must.Eq(t, 2, trees)
	must.Eq(t, 0, temps)

	got, root, err := s.Lookup("b")
	must.NoError(t, err)
	must.Eq(t, b, got)
	content, err := os.ReadFile(filepath.Join(root, "content"))
	must.NoError(t, err)
	must.Eq(t, "x", string(content))
	byDigest, sameRoot, err := s.Lookup(a.Digest)
	must.NoError(t, err)
	must.Eq(t, root, sameRoot)
	must.Eq(t, "", byDigest.Name)
	must.Eq(t, []string{"a", "b", "c"}, []string{s.List()[0].Name, s.List()[1].Name, s.List()[2].Name})
}

// The digest is a promise between machines and releases: this one may never change.
func TestImport_digestIsStable(t *testing.T) {
	s := open(t)
	got := imported(t, s, "golden", "golden").Digest
	must.Eq(t, goldenDigest, got)
}

func TestImport_digestCoversDefaults(t *testing.T) {
	s := open(t)
	plain := imported(t, s, "plain", "x")
	with, err := s.Import(t.Context(), "with", bytes.NewReader(rootTar(t, "x")), ImportOptions{User: "u", Cwd: "/c", Env: []string{"A=b"}})
	must.NoError(t, err)
	must.NotEq(t, plain.Digest, with.Digest)
	must.Eq(t, "u", with.User)
	must.Eq(t, "/c", with.Cwd)
	must.Eq(t, []string{"A=b"}, with.Env)
}

func TestImport_refusesBadInput(t *testing.T) {
	s := open(t)
	for _, name := range []string{
		"", "-x", "A", "a b", "a\x00", "../x", "a/b/c", "a:", "/a", "a/", "sha256:" + strings.Repeat("0", 64), strings.Repeat("a", 129), "ä", "a\nb",
	} {
		_, err := s.Import(t.Context(), name, bytes.NewReader(rootTar(t, "x")), ImportOptions{})
		must.ErrorIs(t, err, ErrInvalid, must.Sprintf("%q", name))
		must.ErrorContains(t, err, "template name")
	}
	for _, o := range []ImportOptions{
		{User: "a b"}, {User: strings.Repeat("u", 300)}, {Cwd: "relative"}, {Cwd: "/\x00"}, {Env: []string{"novalue"}}, {Env: []string{"A=\x00"}},
		{Env: make([]string, 1000)}, {Ref: "x"},
	} {
		_, err := s.Import(t.Context(), "ok", bytes.NewReader(rootTar(t, "x")), o)
		must.ErrorIs(t, err, ErrInvalid, must.Sprintf("%v", o))
	}
	_, err := s.Import(t.Context(), "ok", strings.NewReader("no tar"), ImportOptions{})
	must.ErrorIs(t, err, ErrInvalid)
	_, err = s.Import(t.Context(), "ok", bytes.NewReader(rootTar(t, "xyz")), ImportOptions{Limits: unpack.Limits{Bytes: 2}})
	must.ErrorIs(t, err, unpack.ErrLimit)
	must.ErrorContains(t, err, "bytes of 2")
	trees, temps := count(t, s)
	must.Eq(t, 0, trees)
	must.Eq(t, 0, temps)
	must.SliceEmpty(t, s.List())
}

func TestImport_leavesNothingWhenTheSenderGoes(t *testing.T) {
	s := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	go func() {
		w.Write(rootTar(t, "x")[:2048]) //nolint:errcheck // the reader ends it
		cancel()
		w.CloseWithError(io.ErrUnexpectedEOF)
	}()
	_, err := s.Import(ctx, "a", r, ImportOptions{})
	must.Error(t, err)
	_, temps := count(t, s)
	must.Eq(t, 0, temps)
}

func TestImport_leavesNothingOnAFullDisk(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1m,mode=0755"); err != nil {
		t.Skipf("this machine does not let tests mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { must.NoError(t, unix.Unmount(disk, 0)) })
	s, err := Open(Config{Dir: filepath.Join(disk, "store")})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, s.Close()) })
	small := imported(t, s, "small", "x")
	_, err = s.Import(t.Context(), "large", bytes.NewReader(rootTar(t, strings.Repeat("x", 2<<20))), ImportOptions{})
	must.ErrorIs(t, err, unpack.ErrNoSpace)
	must.ErrorContains(t, err, "no space left")
	must.ErrorContains(t, err, "import template large")
	trees, temps := count(t, s)
	must.Eq(t, 1, trees)
	must.Eq(t, 0, temps)
	must.NoError(t, s.Verify(t.Context(), small.Digest))
	imported(t, s, "next", "y")
}

func TestImport_concurrently(t *testing.T) {
	s := open(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			_, err := s.Import(context.Background(), fmt.Sprintf("t%d", i), bytes.NewReader(rootTar(t, fmt.Sprint(i%2))), ImportOptions{})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	trees, temps := count(t, s)
	must.Eq(t, 2, trees)
	must.Eq(t, 0, temps)
	must.Len(t, 8, s.List())
}

func TestImport_movesAName(t *testing.T) {
	s := open(t)
	old := imported(t, s, "a", "1")
	lease, err := s.Acquire("a")
	must.NoError(t, err)
	moved := imported(t, s, "a", "2")
	got, _, err := s.Lookup("a")
	must.NoError(t, err)
	must.Eq(t, moved.Digest, got.Digest)
	must.Eq(t, old.Digest, lease.Template.Digest)
	must.Eq(t, "", s.List()[1].Name)

	pruned, err := s.Prune(t.Context(), 0)
	must.NoError(t, err)
	must.SliceEmpty(t, pruned)
	lease.Release()
	pruned, err = s.Prune(t.Context(), time.Hour)
	must.NoError(t, err)
	must.SliceEmpty(t, pruned)
	pruned, err = s.Prune(t.Context(), 0)
	must.NoError(t, err)
	must.Eq(t, []string{old.Digest}, pruned)
}

func TestRemove_refusesWhatIsInUse(t *testing.T) {
	s := open(t)
	a := imported(t, s, "a", "x")
	imported(t, s, "b", "x")
	lease, err := s.Acquire("a")
	must.NoError(t, err)
	other, err := s.Acquire(a.Digest)
	must.NoError(t, err)
	must.NoError(t, s.Remove(t.Context(), "b")) // not the last name
	must.ErrorIs(t, s.Remove(t.Context(), "a"), ErrInUse)
	must.ErrorIs(t, s.Remove(t.Context(), a.Digest), ErrInUse)
	lease.Release()
	lease.Release() // once
	must.ErrorIs(t, s.Remove(t.Context(), "a"), ErrInUse)
	other.Release()
	must.NoError(t, s.Remove(t.Context(), "a"))
	must.ErrorIs(t, s.Remove(t.Context(), "a"), ErrNotFound)
	_, _, err = s.Lookup(a.Digest)
	must.ErrorIs(t, err, ErrNotFound)
	_, err = s.Acquire("a")
	must.ErrorIs(t, err, ErrNotFound)
	trees, temps := count(t, s)
	must.Eq(t, 0, trees)
	must.Eq(t, 0, temps)
}

func TestRemove_byDigestTakesAllNames(t *testing.T) {
	s := open(t)
	a := imported(t, s, "a", "x")
	imported(t, s, "b", "x")
	must.NoError(t, s.Remove(t.Context(), a.Digest))
	must.SliceEmpty(t, s.List())
}

func TestExport_isDeterministicAndImportsToTheSameDigest(t *testing.T) {
	s := open(t)
	tpl, err := s.Import(t.Context(), "a", bytes.NewReader(rootTar(t, "x")), ImportOptions{User: "u", Env: []string{"A=b"}})
	must.NoError(t, err)
	var first, second bytes.Buffer
	must.NoError(t, s.Export(t.Context(), "a", &first))
	must.NoError(t, s.Export(t.Context(), tpl.Digest, &second))
	must.Eq(t, first.Bytes(), second.Bytes())

	elsewhere := open(t)
	again, err := elsewhere.Import(t.Context(), "b", &first, ImportOptions{})
	must.NoError(t, err)
	must.Eq(t, tpl.Digest, again.Digest)
	must.Eq(t, "u", again.User)
	var third bytes.Buffer
	must.NoError(t, elsewhere.Export(t.Context(), "b", &third))
	must.Eq(t, second.Bytes(), third.Bytes())
	must.ErrorIs(t, s.Export(t.Context(), "nothing", io.Discard), ErrNotFound)
	must.ErrorIs(t, s.Export(t.Context(), "a", brokenWriter{}), errBroken)
}

type brokenWriter struct{}

var errBroken = errors.New("broken pipe")

func (brokenWriter) Write([]byte) (int, error) { return 0, errBroken }

func TestVerify_findsAChange(t *testing.T) {
	changes := map[string]func(root string) error{
		"content":  func(r string) error { return os.WriteFile(r+"/content", []byte("y"), 0o600) },
		"mode":     func(r string) error { return os.Chmod(r+"/bin/su", 0o755) },
		"owner":    func(r string) error { return os.Chown(r+"/content", 0, 0) },
		"xattr":    func(r string) error { return unix.Setxattr(r+"/content", "user.k", []byte("w"), 0) },
		"new file": func(r string) error { return os.WriteFile(r+"/new", nil, 0o600) },
		"link":     func(r string) error { return errors.Join(os.Remove(r+"/lib"), os.Symlink("lib64", r+"/lib")) },
		"hard link": func(r string) error {
			return errors.Join(os.Remove(r+"/bin/also"), os.Link(r+"/content", r+"/bin/also"))
		},
		"empty dir":  func(r string) error { return os.Mkdir(r+"/new", 0o755) },
		"dir's mode": func(r string) error { return os.Chmod(r+"/bin", 0o777) },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			tpl := imported(t, s, "a", "x")
			must.NoError(t, s.Verify(t.Context(), "a"))
			must.NoError(t, change(s.root(tpl.Digest)))
			must.ErrorContains(t, s.Verify(t.Context(), "a"), "changed on disk")
		})
	}
}

func TestOpen_findsEverythingAgainAndSweeps(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s, err := Open(Config{Dir: dir})
	must.NoError(t, err)
	a := imported(t, s, "a", "x")
	b := imported(t, s, "b", "y")
	must.NoError(t, s.setName("b", "")) // as a crash between two steps of a removal leaves it
	_, err = Open(Config{Dir: dir})
	must.ErrorIs(t, err, ErrLocked)
	must.NoError(t, s.Close())
	must.NoError(t, os.MkdirAll(filepath.Join(dir, tempDir, "import-1", "root", "bin"), 0o755))
	must.NoError(t, os.WriteFile(filepath.Join(dir, tempDir, "names.json.123"), []byte("{"), 0o600))

	s, err = Open(Config{Dir: dir})
	must.NoError(t, err)
	defer s.Close()
	list := s.List()
	must.Len(t, 2, list)
	must.Eq(t, a, list[0])
	must.Eq(t, b.Digest, list[1].Digest)
	_, temps := count(t, s)
	must.Eq(t, 0, temps)
	st, err := os.Stat(dir)
	must.NoError(t, err)
	must.Eq(t, os.FileMode(0o700), st.Mode().Perm())
}

func TestOpen_namesWhatIsDamaged(t *testing.T) {
	digest := strings.Repeat("a", 64)
	cases := map[string]struct {
		file, content, says string
	}{
		"names of a later version":    {"names.json", `{"version":2}`, "version 2"},
		"names that are cut":          {"names.json", `{"version":1,`, "names.json"},
		"a name without a tree":       {"names.json", `{"version":1,"names":{"a":"sha256:` + digest + `"}}`, "missing"},
		"a tree of a later version":   {"trees/" + digest + "/template.json", `{"version":9}`, "version 9"},
		"a tree with another digest":  {"trees/" + digest + "/template.json", `{"version":1,"digest":"sha256:b"}`, "says that its digest"},
		"a tree without its record":   {"trees/" + digest + "/x", ``, "template.json"},
		"a folder that is not a tree": {"trees/x/y", ``, "not a digest"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "store")
			path := filepath.Join(dir, c.file)
			must.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
			must.NoError(t, os.WriteFile(path, []byte(c.content), 0o600))
			_, err := Open(Config{Dir: dir})
			must.ErrorContains(t, err, c.says)
		})
	}
}

// What a released version wrote is read for ever.
func TestOpen_readsVersion1(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	must.NoError(t, os.CopyFS(dir, os.DirFS("testdata/v1")))
	s, err := Open(Config{Dir: dir})
	must.NoError(t, err)
	defer s.Close()
	got, _, err := s.Lookup("team/golden:1")
	must.NoError(t, err)
	must.Eq(t, Template{
		Name: "team/golden:1", Digest: "sha256:" + strings.Repeat("a", 64), Bytes: 6, Files: 12, CreatedAt: time.Date(2026, 11, 23, 20, 0, 0, 0, time.UTC),
		User: "user", Cwd: "/srv", Env: []string{"A=b"},
	}, got)
	b, err := json.Marshal(nodeapi.Template(got))
	must.NoError(t, err)
	must.StrContains(t, string(b), `"digest":"sha256:`)
}

func TestClose_endsImports(t *testing.T) {
	s, err := Open(Config{Dir: filepath.Join(t.TempDir(), "store")})
	must.NoError(t, err)
	must.NoError(t, s.Close())
	must.NoError(t, s.Close())
	_, err = s.Import(t.Context(), "a", bytes.NewReader(rootTar(t, "x")), ImportOptions{})
	must.ErrorIs(t, err, os.ErrClosed)
}
