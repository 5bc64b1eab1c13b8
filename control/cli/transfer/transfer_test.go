package transfer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func write(t *testing.T, path, data string, mode os.FileMode) {
	t.Helper()
	must.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must.NoError(t, os.WriteFile(path, []byte(data), mode))
	must.NoError(t, os.Chmod(path, mode))
}

func TestPackUnpack_keepsContentModesTimesAndLinks(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	write(t, filepath.Join(src, "a/b/run.sh"), "#!/bin/sh\n", 0o751)
	write(t, filepath.Join(src, "a/secret"), "x", 0o600)
	write(t, filepath.Join(src, "empty"), "", 0o444)
	must.NoError(t, os.Symlink("b/run.sh", filepath.Join(src, "a/link")))
	must.NoError(t, os.Mkdir(filepath.Join(src, "locked"), 0o755))
	write(t, filepath.Join(src, "locked/in"), "in", 0o644)
	must.NoError(t, os.Chmod(filepath.Join(src, "locked"), 0o555))
	must.NoError(t, unix.Mkfifo(filepath.Join(src, "pipe"), 0o600))
	then := time.Unix(1_500_000_000, 0)
	must.NoError(t, os.Chtimes(filepath.Join(src, "a/secret"), then, then))

	s := Packed(t.Context(), src)
	got, err := Unpack(t.Context(), dst, s, 0)
	must.NoError(t, err)
	must.NoError(t, s.Close())
	must.NoError(t, s.Err)
	must.Eq(t, []Skip{{"pipe", "is neither a file, a folder nor a link"}}, s.Report.Skipped)
	must.Eq(t, Report{Files: 4, Dirs: 4, Links: 1, Bytes: 13}, got)

	for path, mode := range map[string]os.FileMode{"a/b/run.sh": 0o751, "a/secret": 0o600, "empty": 0o444, "locked": 0o555, "locked/in": 0o644} {
		st, err := os.Stat(filepath.Join(dst, path))
		must.NoError(t, err)
		must.Eq(t, mode, st.Mode().Perm(), must.Sprint(path))
	}
	b, err := os.ReadFile(filepath.Join(dst, "a/link"))
	must.NoError(t, err)
	must.Eq(t, "#!/bin/sh\n", string(b))
	st, err := os.Stat(filepath.Join(dst, "a/secret"))
	must.NoError(t, err)
	must.Eq(t, then.Unix(), st.ModTime().Unix())
	must.NoError(t, os.Chmod(filepath.Join(dst, "locked"), 0o755))
	must.NoError(t, os.Chmod(filepath.Join(src, "locked"), 0o755))
}

func TestPacked_canBeGivenUp(t *testing.T) {
	src := t.TempDir()
	write(t, filepath.Join(src, "big"), strings.Repeat("x", 1<<20), 0o644)
	s := Packed(t.Context(), src)
	_, err := s.Read(make([]byte, 10))
	must.NoError(t, err)
	must.NoError(t, s.Close())
	must.Error(t, s.Err)
}

// archive makes a tar of headers; a regular file's content is its own name.
func archive(t testing.TB, entries ...tar.Header) io.Reader {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		data := ""
		if h.Typeflag == tar.TypeReg {
			data = h.Name
			h.Size = int64(len(data))
		}
		must.NoError(t, w.WriteHeader(&h))
		_, err := io.WriteString(w, data)
		must.NoError(t, err)
	}
	must.NoError(t, w.Close())
	return &buf
}

func TestUnpack_nothingLeavesTheFolder(t *testing.T) {
	link := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}
	}
	hard := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}
	}
	dir := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir} }
	file := func(name string) tar.Header { return tar.Header{Name: name} }
	for _, tc := range []struct {
		name    string
		entries []tar.Header
		skipped []string
	}{
		{"parent", []tar.Header{file("../evil"), file("ok")}, []string{"../evil"}},
		{"parent in the middle", []tar.Header{dir("a"), file("a/../../evil")}, []string{"a/../../evil"}},
		{"absolute", []tar.Header{file("/tmp/evil")}, []string{"/tmp/evil"}},
		{"absolute link", []tar.Header{link("l", "/etc"), file("l/evil")}, []string{"l"}},
		{"climbing link", []tar.Header{link("l", "../outside")}, []string{"l"}},
		{"link that climbs after going down", []tar.Header{dir("a"), link("a/l", "b/../../../outside")}, []string{"a/l"}},
		{"link to its own folder's parent is fine", []tar.Header{dir("a"), link("a/l", ".."), link("a/m", "../b")}, nil},
		{"file through a link", []tar.Header{dir("d"), link("l", "d"), file("l/f")}, []string{"l/f"}},
		{"link through links that deceive", []tar.Header{dir("x/y"), link("x/y/d", "../.."), dir("e"), link("x/y/d/e/l", "../../../outside")}, []string{"x/y/d/e/l"}},
		{"hard link out", []tar.Header{hard("h", "../outside/secret")}, []string{"h"}},
		{"hard link absolute", []tar.Header{hard("h", "/etc/passwd")}, []string{"h"}},
		{"hard link to a link", []tar.Header{file("f"), link("l", "f"), hard("h", "l")}, []string{"h"}},
		{"device", []tar.Header{{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}, []string{"dev"}},
		{"fifo", []tar.Header{{Name: "fifo", Typeflag: tar.TypeFifo}}, []string{"fifo"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			base := t.TempDir()
			in, out := filepath.Join(base, "in"), filepath.Join(base, "outside")
			must.NoError(t, os.Mkdir(in, 0o755))
			must.NoError(t, os.Mkdir(out, 0o755))
			write(t, filepath.Join(out, "secret"), "secret", 0o600)
			r, err := Unpack(t.Context(), in, archive(t, tc.entries...), 0)
			must.NoError(t, err)
			var names []string
			for _, s := range r.Skipped {
				if s.Path != "l/evil" { // its link was skipped: it is a file in a folder then
					names = append(names, s.Path)
				}
			}
			must.Eq(t, tc.skipped, names)
			contained(t, base)
		})
	}
}

// contained checks that nothing outside base/in was made, and that no link in it leads out.
func contained(t testing.TB, base string) {
	t.Helper()
	top, err := os.ReadDir(base)
	must.NoError(t, err)
	must.Len(t, 2, top)
	out, err := os.ReadDir(filepath.Join(base, "outside"))
	must.NoError(t, err)
	must.Len(t, 1, out)
	in := filepath.Join(base, "in")
	err = filepath.Walk(in, func(path string, info os.FileInfo, err error) error {
		must.NoError(t, err)
		must.Zero(t, info.Mode()&(os.ModeSetuid|os.ModeSetgid|os.ModeSticky|os.ModeDevice|os.ModeNamedPipe|os.ModeSocket), must.Sprint(path))
		if info.Mode()&os.ModeSymlink != 0 {
			if real, err := filepath.EvalSymlinks(path); err == nil {
				must.True(t, real == in || strings.HasPrefix(real, in+"/"), must.Sprintf("%s leads to %s", path, real))
			}
		}
		return nil
	})
	must.NoError(t, err)
}

func TestUnpack_existingThings(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "victim")
	write(t, outside, "old", 0o600)
	must.NoError(t, os.Symlink(outside, filepath.Join(dir, "f")))
	must.NoError(t, unix.Mkfifo(filepath.Join(dir, "p"), 0o600))
	_, err := Unpack(t.Context(), dir, archive(t, tar.Header{Name: "f"}, tar.Header{Name: "p", Mode: 0o6755}), 0)
	must.NoError(t, err)
	b, err := os.ReadFile(outside)
	must.NoError(t, err)
	must.Eq(t, "old", string(b))
	st, err := os.Lstat(filepath.Join(dir, "p"))
	must.NoError(t, err)
	must.Eq(t, os.FileMode(0o755), st.Mode())

	must.NoError(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	_, err = Unpack(t.Context(), dir, archive(t, tar.Header{Name: "d"}), 0)
	must.ErrorContains(t, err, "there is a directory")
}

func TestUnpack_strip(t *testing.T) {
	dir := t.TempDir()
	_, err := Unpack(t.Context(), dir, archive(t, tar.Header{Name: "top/", Typeflag: tar.TypeDir}, tar.Header{Name: "top/f"}), 1)
	must.NoError(t, err)
	_, err = os.Stat(filepath.Join(dir, "f"))
	must.NoError(t, err)
	_, err = Unpack(t.Context(), dir, archive(t, tar.Header{Name: "file"}), 1)
	must.ErrorContains(t, err, "not a directory")
}

func TestUnpack_brokenStream(t *testing.T) {
	b, err := io.ReadAll(archive(t, tar.Header{Name: "f"}, tar.Header{Name: "g"}))
	must.NoError(t, err)
	_, err = Unpack(t.Context(), t.TempDir(), bytes.NewReader(b[:1024+300]), 0)
	must.ErrorIs(t, err, io.ErrUnexpectedEOF)
	// A service that breaks off says why where the stream ends, which is after what a tar reader wants.
	_, err = Unpack(t.Context(), t.TempDir(), io.MultiReader(bytes.NewReader(b), iotest.ErrReader(errBroken)), 0)
	must.ErrorIs(t, err, errBroken)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Unpack(ctx, t.TempDir(), bytes.NewReader(b), 0)
	must.ErrorIs(t, err, context.Canceled)
}

var errBroken = errors.New("the disk of the sandbox failed")

func FuzzUnpack(f *testing.F) {
	seed := func(h ...tar.Header) {
		b, _ := io.ReadAll(archive(f, h...))
		f.Add(b, 0)
		f.Add(b, 1)
	}
	seed(tar.Header{Name: "a/", Typeflag: tar.TypeDir}, tar.Header{Name: "a/l", Typeflag: tar.TypeSymlink, Linkname: ".."}, tar.Header{Name: "a/l/f"})
	seed(tar.Header{Name: "f", Mode: 0o7777}, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "f"})
	seed(tar.Header{Name: "../x"}, tar.Header{Name: "/x"}, tar.Header{Name: "c", Typeflag: tar.TypeChar})
	f.Fuzz(func(t *testing.T, b []byte, strip int) {
		if len(b) > 1<<16 || strip < 0 || strip > 3 {
			return
		}
		base := t.TempDir()
		must.NoError(t, os.Mkdir(filepath.Join(base, "in"), 0o755))
		must.NoError(t, os.Mkdir(filepath.Join(base, "outside"), 0o755))
		write(t, filepath.Join(base, "outside/secret"), "secret", 0o600)
		// A tar may announce files of any size that its bytes do not hold; sparse ones are read as zeroes.
		_, _ = Unpack(t.Context(), filepath.Join(base, "in"), io.LimitReader(bytes.NewReader(b), 1<<16), strip)
		contained(t, base)
	})
}

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	p := NewProgress(&out, "file", 100)
	_, err := io.Copy(io.Discard, p.Reader(strings.NewReader(strings.Repeat("x", 50))))
	must.NoError(t, err)
	must.StrContains(t, out.String(), "file  50 B of 100 B  [==========          ]  50%")
	p.Done()
	must.True(t, strings.HasSuffix(out.String(), " \r"))
	var none *Progress
	must.Eq(t, io.Reader(out2{}), none.Reader(out2{}))
	none.Done()
}

type out2 struct{}

func (out2) Read([]byte) (int, error) { return 0, io.EOF }

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 342023680: "326.2 MiB", 1 << 40: "1.0 TiB", 1 << 62: "4096.0 PiB"} {
		must.Eq(t, want, Bytes(n))
	}
}
