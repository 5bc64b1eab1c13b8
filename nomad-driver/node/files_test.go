package node

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// fileNode is a node with one sandbox whose files are those in a directory of the test.
func fileNode(t testing.TB) (*testNode, nodeapi.Sandbox, string) {
	t.Helper()
	n := startNode(t, testConfig(shortDir(t)), nil)
	n.rt.guest.root = t.TempDir()
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	return n, sb, n.rt.guest.root
}

func TestFiles_roundTrip(t *testing.T) {
	n, sb, root := fileNode(t)
	for _, size := range []int{0, 1, 4096, 1<<20 + 3} {
		content := bytes.Repeat([]byte{'x', 1}, size)[:size]
		info, err := n.client.WriteFile(t.Context(), sb.ID, "/a/b/file", bytes.NewReader(content), nodeapi.FileOptions{Mode: 0o600})
		must.NoError(t, err)
		must.Eq(t, int64(size), info.Size)
		must.Eq(t, 0o600, info.Mode)
		body, info, err := n.client.ReadFile(t.Context(), sb.ID, "/a/b/file", nodeapi.FileOptions{})
		must.NoError(t, err)
		got, err := io.ReadAll(body)
		must.NoError(t, err)
		must.NoError(t, body.Close())
		must.True(t, bytes.Equal(content, got))
		must.Eq(t, int64(size), info.Size)
	}
	entries, err := os.ReadDir(filepath.Join(root, "a/b"))
	must.NoError(t, err)
	must.Len(t, 1, entries, must.Sprint("a temporary file is left"))
}

func TestFiles_keepTheirModeAndFollowLinks(t *testing.T) {
	n, sb, root := fileNode(t)
	must.NoError(t, os.WriteFile(root+"/tool", []byte("old"), 0o755))
	must.NoError(t, os.Symlink("tool", root+"/link"))
	_, err := n.client.WriteFile(t.Context(), sb.ID, "/link", strings.NewReader("new"), nodeapi.FileOptions{})
	must.NoError(t, err)
	fi, err := os.Lstat(root + "/link")
	must.NoError(t, err)
	must.NotEq(t, 0, fi.Mode()&os.ModeSymlink, must.Sprint("the link was replaced"))
	fi, err = os.Stat(root + "/tool")
	must.NoError(t, err)
	must.Eq(t, 0o755, fi.Mode().Perm())
	must.Eq(t, 3, fi.Size())
}

func TestFiles_refusals(t *testing.T) {
	n, sb, root := fileNode(t)
	must.NoError(t, os.Mkdir(root+"/dir", 0o755))
	must.NoError(t, unix.Mkfifo(root+"/fifo", 0o600))
	must.NoError(t, os.Symlink("loop", root+"/loop"))
	for _, tc := range []struct {
		name, path string
		o          nodeapi.FileOptions
		write      bool
		status     int
		want       string
	}{
		{"read missing", "/none", nodeapi.FileOptions{}, false, 404, ""},
		{"read directory", "/dir", nodeapi.FileOptions{}, false, 400, "archive"},
		{"read FIFO", "/fifo", nodeapi.FileOptions{}, false, 400, "no regular file"},
		{"read nothing", "", nodeapi.FileOptions{}, false, 400, "path is empty"},
		{"read NUL", "/a\x00b", nodeapi.FileOptions{}, false, 400, "NUL"},
		{"read long", "/" + strings.Repeat("a", 5000), nodeapi.FileOptions{}, false, 400, "at most 4096"},
		{"read as nobody", "/dir", nodeapi.FileOptions{User: "a b"}, false, 400, "user"},
		{"write directory", "/dir", nodeapi.FileOptions{}, true, 400, "directory"},
		{"write FIFO", "/fifo", nodeapi.FileOptions{}, true, 400, "no regular file"},
		{"write loop", "/loop", nodeapi.FileOptions{}, true, 400, "symlinks"},
		{"write setuid", "/x", nodeapi.FileOptions{Mode: 0o4755}, true, 400, "mode"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var err error
			if tc.write {
				_, err = n.client.WriteFile(t.Context(), sb.ID, tc.path, strings.NewReader("x"), tc.o)
			} else {
				_, _, err = n.client.ReadFile(t.Context(), sb.ID, tc.path, tc.o)
			}
			must.ErrorContains(t, err, tc.want)
			must.Eq(t, tc.status, api.StatusOf(err))
		})
	}
}

type brokenReader struct{ left int }

func (b *brokenReader) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, errors.New("the cable is cut")
	}
	n := min(len(p), b.left)
	b.left -= n
	return n, nil
}

func TestFiles_brokenUploadChangesNothing(t *testing.T) {
	n, sb, root := fileNode(t)
	must.NoError(t, os.WriteFile(root+"/file", []byte("old"), 0o644))
	_, err := n.client.WriteFile(t.Context(), sb.ID, "/file", &brokenReader{left: 1 << 20}, nodeapi.FileOptions{})
	must.Error(t, err)
	waitUntil(t, "removal of the temporary file", func() bool {
		entries, err := os.ReadDir(root)
		must.NoError(t, err)
		return len(entries) == 1
	})
	b, err := os.ReadFile(root + "/file")
	must.NoError(t, err)
	must.Eq(t, "old", string(b))
}

func TestArchive_roundTrip(t *testing.T) {
	n, sb, root := fileNode(t)
	must.NoError(t, os.MkdirAll(root+"/src/sub/empty", 0o755))
	must.NoError(t, os.WriteFile(root+"/src/file", []byte("content"), 0o640))
	must.NoError(t, os.WriteFile(root+"/src/sub/ümlaut name", []byte("2"), 0o755))
	must.NoError(t, os.Symlink("../file", root+"/src/sub/link"))
	must.NoError(t, unix.Mkfifo(root+"/src/fifo", 0o600)) // has nothing to copy
	body, err := n.client.ReadArchive(t.Context(), sb.ID, "/src", nodeapi.FileOptions{})
	must.NoError(t, err)
	b, err := io.ReadAll(body)
	must.NoError(t, err)
	must.NoError(t, body.Close())
	must.NoError(t, n.client.WriteArchive(t.Context(), sb.ID, "/dst/deep", bytes.NewReader(b), nodeapi.FileOptions{}))
	var got []string
	must.NoError(t, filepath.Walk(root+"/dst/deep", func(p string, fi os.FileInfo, err error) error {
		rel, _ := filepath.Rel(root+"/dst/deep", p)
		got = append(got, fmt.Sprintf("%s %s", rel, fi.Mode()))
		return err
	}))
	must.Eq(t, []string{
		". drwxr-xr-x", "src drwxr-xr-x", "src/file -rw-r-----", "src/sub drwxr-xr-x", "src/sub/empty drwxr-xr-x",
		"src/sub/link Lrwxrwxrwx", "src/sub/ümlaut name -rwxr-xr-x",
	}, got)
	// Again, over what is there now.
	must.NoError(t, n.client.WriteArchive(t.Context(), sb.ID, "/dst/deep", bytes.NewReader(b), nodeapi.FileOptions{}))
}

func TestArchive_errorInTheMiddleIsNotSilent(t *testing.T) {
	n, sb, root := fileNode(t)
	deep := root + "/src"
	for range maxArchiveDepth + 1 {
		deep += "/d"
	}
	must.NoError(t, os.MkdirAll(deep, 0o755))
	body, err := n.client.ReadArchive(t.Context(), sb.ID, "/src", nodeapi.FileOptions{})
	must.NoError(t, err)
	defer body.Close()
	b, err := io.ReadAll(body)
	must.ErrorContains(t, err, "deeper than")
	must.Eq(t, http.StatusRequestEntityTooLarge, api.StatusOf(err))
	tr := tar.NewReader(bytes.NewReader(b)) // somebody who knows nothing of trailers
	for err = nil; err == nil; _, err = tr.Next() {
		if _, cerr := io.Copy(io.Discard, tr); cerr != nil {
			err = cerr
			break
		}
	}
	must.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

type entry struct {
	h    tar.Header
	body string
}

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range entries {
		e.h.Size = int64(len(e.body))
		set(&e.h.Mode, 0o644)
		must.NoError(t, tw.WriteHeader(&e.h))
		_, err := io.WriteString(tw, e.body)
		must.NoError(t, err)
	}
	must.NoError(t, tw.Close())
	return b.Bytes()
}

func TestArchive_refusals(t *testing.T) {
	n, sb, root := fileNode(t)
	outside := root + "/outside"
	must.NoError(t, os.Mkdir(outside, 0o755))
	file := func(name string) entry { return entry{tar.Header{Name: name, Typeflag: tar.TypeReg}, "evil"} }
	for _, tc := range []struct {
		name    string
		entries []entry
		want    string
	}{
		{"absolute", []entry{file("/etc/passwd")}, "absolute"},
		{"dots", []entry{file("a/../../outside/x")}, ".."},
		{"dots at the end", []entry{file("a/..")}, ".."},
		{"through its own symlink", []entry{{tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/outside"}, ""}, file("l/x")}, "symlink"},
		{"symlink becomes directory", []entry{{tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/outside"}, ""}, {tar.Header{Name: "l/", Typeflag: tar.TypeDir}, ""}}, "symlink"},
		{"hard link out", []entry{{tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "../../etc/shadow"}, ""}}, ".."},
		{"hard link to what was there", []entry{{tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "other"}, ""}}, "same archive"},
		{"hard link to a symlink", []entry{{tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/outside"}, ""}, {tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "l"}, ""}}, "same archive"},
		{"device", []entry{{tar.Header{Name: "d", Typeflag: tar.TypeBlock}, ""}}, "type"},
		{"FIFO", []entry{{tar.Header{Name: "d", Typeflag: tar.TypeFifo}, ""}}, "type"},
		{"depth", []entry{file(strings.Repeat("d/", maxArchiveDepth+1) + "x")}, "deeper"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := n.client.WriteArchive(t.Context(), sb.ID, "/dst", bytes.NewReader(makeTar(t, tc.entries...)), nodeapi.FileOptions{})
			must.ErrorContains(t, err, tc.want)
			must.Between(t, 400, api.StatusOf(err), 413)
			left, err := os.ReadDir(outside)
			must.NoError(t, err)
			must.SliceEmpty(t, left)
		})
	}
	t.Run("cut off", func(t *testing.T) {
		b := makeTar(t, entry{tar.Header{Name: "x", Typeflag: tar.TypeReg}, strings.Repeat("y", 2000)})
		err := n.client.WriteArchive(t.Context(), sb.ID, "/dst", bytes.NewReader(b[:1000]), nodeapi.FileOptions{})
		must.Eq(t, http.StatusBadRequest, api.StatusOf(err))
	})
	t.Run("no archive", func(t *testing.T) {
		err := n.client.WriteArchive(t.Context(), sb.ID, "/dst", strings.NewReader(strings.Repeat("garbage", 1000)), nodeapi.FileOptions{})
		must.Eq(t, http.StatusBadRequest, api.StatusOf(err))
	})
}

func TestArchive_dropsSetuidAndCopiesHardLinks(t *testing.T) {
	n, sb, root := fileNode(t)
	b := makeTar(t,
		entry{tar.Header{Name: "tool", Typeflag: tar.TypeReg, Mode: 0o6755}, "tool"},
		entry{tar.Header{Name: "same", Typeflag: tar.TypeLink, Linkname: "tool"}, ""})
	must.NoError(t, n.client.WriteArchive(t.Context(), sb.ID, "/dst", bytes.NewReader(b), nodeapi.FileOptions{}))
	for _, name := range []string{"tool", "same"} {
		fi, err := os.Stat(filepath.Join(root, "dst", name))
		must.NoError(t, err)
		must.Eq(t, 0o755, fi.Mode())
		content, err := os.ReadFile(filepath.Join(root, "dst", name))
		must.NoError(t, err)
		must.Eq(t, "tool", string(content))
	}
}

// Whatever an archive holds, nothing is written outside of the directory that it is unpacked in.
func FuzzUnpack(f *testing.F) {
	f.Add(makeTar(f, entry{tar.Header{Name: "a/b", Typeflag: tar.TypeReg}, "x"}))
	f.Add(makeTar(f, entry{tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, ""}, entry{tar.Header{Name: "l/x", Typeflag: tar.TypeReg}, "x"}))
	f.Add(makeTar(f, entry{tar.Header{Name: "../x", Typeflag: tar.TypeReg}, "x"}))
	f.Add(makeTar(f, entry{tar.Header{Name: "a", Typeflag: tar.TypeReg}, "x"}, entry{tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "a"}, ""}))
	f.Fuzz(func(t *testing.T, b []byte) {
		root := t.TempDir()
		g := &fakeGuest{root: root}
		must.NoError(t, os.Mkdir(root+"/dst", 0o755))
		u := unpacker{target: fileTarget{guest: g}, root: "/dst", made: map[string]byte{}}
		_ = u.unpack(t.Context(), bytes.NewReader(b))
		entries, err := os.ReadDir(root)
		must.NoError(t, err)
		must.Len(t, 1, entries)
	})
}

func FuzzCreateRequest(f *testing.F) {
	f.Add([]byte(`{"id":"iabcdefghij0123456789","template":"base","limits":{"pids":64}}`))
	f.Add([]byte(`{"id":"iabcdefghij0123456789","template":"base","env":{"A":"\u0000"},"deadline":"9999-12-31T23:59:59-23:00"}`))
	n := &Node{bounds: machineBounds()}
	n.defaults = defaultLimits(n.bounds)
	f.Fuzz(func(t *testing.T, b []byte) {
		var req nodeapi.CreateRequest
		if decodeJSON(bytes.NewReader(b), &req) != nil || n.normalise(&req) != nil {
			return
		}
		if _, err := requestHash(req); err != nil {
			t.Fatal(err)
		}
		for k, v := range req.Env {
			if strings.ContainsAny(k, "=\x00 ") || strings.ContainsRune(v, 0) {
				t.Fatalf("accepted env %q=%q", k, v)
			}
		}
		if req.Limits.MemoryBytes <= 0 || req.Limits.PIDs <= 0 || req.Limits.CPUMillis <= 0 {
			t.Fatalf("accepted limits %+v", req.Limits)
		}
	})
}

func FuzzExecRequest(f *testing.F) {
	f.Add([]byte(`{"argv":["a"],"env":["A=b"],"user":"user","tty":true,"size":{"cols":80,"rows":24}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var req nodeapi.ExecRequest
		if decodeJSON(bytes.NewReader(b), &req) != nil || checkStart("process", req.Start) != nil {
			return
		}
		if len(req.Argv) == 0 || len(req.Argv) > guest.MaxArgs {
			t.Fatalf("accepted %d arguments", len(req.Argv))
		}
	})
}
