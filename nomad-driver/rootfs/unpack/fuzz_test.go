package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/tree"
)

// FuzzInto feeds arbitrary archives: whatever they hold, nothing appears outside the tree, and a tree that is accepted is one
// that can be listed, packed and unpacked again to the same digest.
func FuzzInto(f *testing.F) {
	f.Add(archive(f, fileItem("a/b", "x"), hardItem("c", "a/b"), linkItem("d", "../.."), dirItem("e")))
	f.Add(archive(f, linkItem("x", "../.."), fileItem("x/canary", "x")))
	f.Add(archive(f, fileItem("../canary", "x")))
	f.Add(archive(f, fileItem("d/x", ""), hardItem("d", "d/x")))
	f.Add(archive(f, linkItem("dev", "/")))
	f.Add(archive(f, item{name: "dev/null", kind: tar.TypeChar, major: 1, minor: 3}))
	f.Add(archive(f, item{name: "f", body: "x", pax: map[string]string{"SCHILY.xattr.user.a": "b"}}))
	f.Add(archive(f, item{kind: tar.TypeXGlobalHeader, pax: map[string]string{tree.DefaultsRecord: `{"user":"user"}`}}, fileItem("a", "")))
	f.Add(archive(f, fileItem("oci-layout", `{"imageLayoutVersion":"1.0.0"}`), fileItem("index.json", `{"manifests":[{}]}`)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "work")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := Into(t.Context(), dir, bytes.NewReader(raw), Options{Limits: Limits{Bytes: 1 << 20, Files: 200, Depth: 16}})
		checkContained(t, outer)
		if err != nil {
			if errors.Is(err, unix.EBADF) {
				t.Fatalf("a descriptor was used after it was closed: %v", err)
			}
			return
		}
		checkRoundTrip(t, dir)
	})
}

func checkContained(t *testing.T, outer string) {
	t.Helper()
	names, err := os.ReadDir(outer)
	if err != nil || len(names) != 1 {
		t.Fatalf("outside the tree: %v, %v", names, err)
	}
	err = filepath.WalkDir(outer, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&(fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket) != 0 {
			t.Fatalf("%s is a %v", p, d.Type())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func checkRoundTrip(t *testing.T, dir string) {
	t.Helper()
	first, packed := listed(t, dir)
	again := filepath.Join(t.TempDir(), "again")
	if err := os.Mkdir(again, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Into(t.Context(), again, bytes.NewReader(packed), Options{}); err != nil {
		t.Fatalf("unpack what was packed: %v", err)
	}
	second, repacked := listed(t, again)
	if first != second {
		t.Fatalf("digest %s became %s", first, second)
	}
	if !bytes.Equal(packed, repacked) {
		t.Fatal("the packed tar changed")
	}
}

func listed(t *testing.T, dir string) (string, []byte) {
	t.Helper()
	root, err := os.Open(filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	sum, err := tree.Digest(context.Background(), root, tree.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tree.Pack(context.Background(), root, &b, tree.PackOptions{}); err != nil {
		t.Fatal(err)
	}
	return sum.Digest, b.Bytes()
}
