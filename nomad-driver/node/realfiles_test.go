package node

import (
	"archive/tar"
	"bytes"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func TestReal_files(t *testing.T) {
	d := startDaemon(t)
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Limits.TmpBytes = 2 << 20 })
	write := func(path, content string, o nodeapi.FileOptions) error {
		_, err := d.client.WriteFile(t.Context(), sb.ID, path, strings.NewReader(content), o)
		return err
	}
	must.NoError(t, write("notes/today.txt", "hello", nodeapi.FileOptions{})) // relative to the user's home
	out, _ := d.exec(sb, "bash", "-c", "cat ~/notes/today.txt; stat -c ' %U %G %a' ~/notes/today.txt")
	must.Eq(t, "hello user user 644\n", out)

	must.NoError(t, write("/etc/soulbox.conf", "x", nodeapi.FileOptions{User: "root", Mode: 0o600}))
	out, _ = d.exec(sb, "stat", "-c", "%U %a", "/etc/soulbox.conf")
	must.Eq(t, "root 600\n", out)
	_, _, err := d.client.ReadFile(t.Context(), sb.ID, "/etc/soulbox.conf", nodeapi.FileOptions{})
	must.Eq(t, http.StatusForbidden, api.StatusOf(err))
	must.Eq(t, http.StatusForbidden, api.StatusOf(write("/etc/other", "x", nodeapi.FileOptions{})))

	// A link means what it means inside; the host's file of that name is another one.
	d.exec(sb, "bash", "-c", "ln -s /etc/marker ~/link; ln -s / ~/all; echo mine > ~/real; ln -s real ~/alias")
	body, info, err := d.client.ReadFile(t.Context(), sb.ID, "all/etc/marker", nodeapi.FileOptions{})
	must.NoError(t, err)
	b, err := io.ReadAll(body)
	must.NoError(t, err)
	must.NoError(t, body.Close())
	must.Eq(t, "template\n", string(b))
	must.Eq(t, 9, info.Size)
	must.NoError(t, write("alias", "changed", nodeapi.FileOptions{}))
	out, _ = d.exec(sb, "bash", "-c", "cat ~/real; readlink ~/alias")
	must.Eq(t, "changedreal\n", out)

	// In a directory that is not the user's a file of the user's is written in place.
	d.exec(sb, "bash", "-c", "true")
	must.NoError(t, write("/etc/mine", "old", nodeapi.FileOptions{User: "root", Mode: 0o666}))
	must.NoError(t, write("/etc/mine", "new", nodeapi.FileOptions{}))
	out, _ = d.exec(sb, "cat", "/etc/mine")
	must.Eq(t, "new", out)

	// A full file system is an answer, and leaves no half file.
	_, err = d.client.WriteFile(t.Context(), sb.ID, "/tmp/big", io.LimitReader(zeros{}, 8<<20), nodeapi.FileOptions{})
	must.Eq(t, http.StatusInsufficientStorage, api.StatusOf(err), must.Sprint(err))
	list, err := d.client.ReadDir(t.Context(), sb.ID, "/tmp", nodeapi.FileOptions{})
	must.NoError(t, err)
	must.SliceEmpty(t, list)
}

func TestReal_archive(t *testing.T) {
	d := startDaemon(t)
	sb := d.create()
	in := makeTar(t,
		entry{tar.Header{Name: "p/", Typeflag: tar.TypeDir, Mode: 0o755}, ""},
		entry{tar.Header{Name: "p/run", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 0}, "#!/bin/bash\n"},
		entry{tar.Header{Name: "p/sub/deep/file", Typeflag: tar.TypeReg}, "x"},
		entry{tar.Header{Name: "p/link", Typeflag: tar.TypeSymlink, Linkname: "run"}, ""},
		entry{tar.Header{Name: "p/new/link", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, ""},
		entry{tar.Header{Name: "p/copy", Typeflag: tar.TypeLink, Linkname: "p/run"}, ""})
	for range 2 { // the second time everything is there already
		must.NoError(t, d.client.WriteArchive(t.Context(), sb.ID, "/home/user/in", bytes.NewReader(in), nodeapi.FileOptions{}))
	}
	out, _ := d.exec(sb, "bash", "-c", "cd ~/in && find . -exec stat -c '%n %U %A' {} +")
	lines := strings.SplitAfter(out, "\n")
	slices.Sort(lines)
	must.Eq(t, `. user drwxr-xr-x
./p user drwxr-xr-x
./p/copy user -rwxr-xr-x
./p/link user lrwxrwxrwx
./p/new user drwxr-xr-x
./p/new/link user lrwxrwxrwx
./p/run user -rwxr-xr-x
./p/sub user drwxr-xr-x
./p/sub/deep user drwxr-xr-x
./p/sub/deep/file user -rw-r--r--
`, strings.Join(lines, ""))
	body, err := d.client.ReadArchive(t.Context(), sb.ID, "in/p", nodeapi.FileOptions{})
	must.NoError(t, err)
	defer body.Close()
	var names []string
	tr := tar.NewReader(body)
	for {
		h, err := tr.Next()
		if err != nil {
			must.ErrorIs(t, err, io.EOF)
			break
		}
		names = append(names, h.Name)
	}
	must.Eq(t, []string{"p/", "p/copy", "p/link", "p/new/", "p/new/link", "p/run", "p/sub/", "p/sub/deep/", "p/sub/deep/file"}, names)
}
