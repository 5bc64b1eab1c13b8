package unpack

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/shoenig/test/must"
)

// layout builds an OCI layout in memory: path → content.
type layout map[string][]byte

func (l layout) blob(mt types.MediaType, b []byte) v1.Descriptor {
	sum := sha256.Sum256(b)
	h := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
	l["blobs/sha256/"+h.Hex] = b
	return v1.Descriptor{MediaType: mt, Size: int64(len(b)), Digest: h}
}

func (l layout) json(t *testing.T, mt types.MediaType, v any) v1.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	must.NoError(t, err)
	return l.blob(mt, b)
}

func (l layout) image(t *testing.T, cfg v1.Config, layers ...[]byte) v1.Descriptor {
	t.Helper()
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	m.Config = l.json(t, types.OCIConfigJSON, v1.ConfigFile{Architecture: runtime.GOARCH, OS: "linux", Config: cfg})
	for _, raw := range layers {
		m.Layers = append(m.Layers, l.blob(types.OCILayer, raw))
	}
	return l.json(t, types.OCIManifestSchema1, m)
}

func (l layout) archive(t *testing.T, images ...v1.Descriptor) []byte {
	t.Helper()
	l["oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	b, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, Manifests: images})
	must.NoError(t, err)
	l["index.json"] = b
	var items []item
	for name, body := range l {
		items = append(items, fileItem(name, string(body)))
	}
	sort.Slice(items, func(i, j int) bool { return items[i].name < items[j].name })
	return archive(t, items...)
}

func packedGzip(t *testing.T, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzipped(&b)
	_, err := io.Copy(z, bytes.NewReader(raw))
	must.NoError(t, err)
	must.NoError(t, z.Close())
	return b.Bytes()
}

func TestInto_appliesTheLayersOfAnImage(t *testing.T) {
	l := layout{}
	raw := l.archive(t, l.image(t,
		v1.Config{User: "1000:1000", WorkingDir: "/srv", Env: []string{"PATH=/bin", "A=b=c"}},
		packedGzip(t, archive(t, fileItem("etc/keep", "1"), fileItem("etc/gone", "1"), fileItem("opaque/a", "1"), fileItem("opaque/sub/b", "1"),
			fileItem("dir/x", "1"), linkItem("link", "etc"), fileItem("both/old", "1"), fileItem("mode", "1"))),
		archive(t, fileItem("etc/.wh.gone", ""), fileItem("opaque/sub/new", "2"), fileItem("opaque/.wh..wh..opq", ""),
			fileItem("dir", "now a file"), dirItem("link"), fileItem("link/in", "2"),
			fileItem("both/new", "2"), fileItem(".wh.both", ""), fileItem("nowhere/.wh.x", ""), fileItem(".wh..wh.plnk", "")),
	))
	root, res, err := unpacked(t, raw, Options{})
	must.NoError(t, err)
	must.Eq(t, KindOCI, res.Kind)
	must.Eq(t, "1000:1000", res.Defaults.User)
	must.Eq(t, "/srv", res.Defaults.Cwd)
	must.Eq(t, []string{"PATH=/bin", "A=b=c"}, res.Defaults.Env)
	for name, want := range map[string]string{
		"etc/keep": "1", "opaque/sub/new": "2", "dir": "now a file", "link/in": "2", "both/new": "2", "mode": "1",
	} {
		b, err := os.ReadFile(filepath.Join(root, name))
		must.NoError(t, err)
		must.Eq(t, want, string(b), must.Sprint(name))
	}
	for _, name := range []string{"etc/gone", "opaque/a", "opaque/sub/b", "both/old", "etc/in", "oci-layout", "blobs"} {
		_, err := os.Lstat(filepath.Join(root, name))
		must.ErrorIs(t, err, os.ErrNotExist, must.Sprint(name))
	}
}

func TestInto_choosesAmongImages(t *testing.T) {
	l := layout{}
	ours := l.image(t, v1.Config{}, archive(t, fileItem("ours", "")))
	ours.Annotations = map[string]string{refAnno: "one"}
	other := l.image(t, v1.Config{}, archive(t, fileItem("other", "")))
	other.Annotations = map[string]string{refAnno: "two"}
	foreign := other
	foreign.Platform = &v1.Platform{OS: "linux", Architecture: "s390x"}
	nested := l.json(t, types.OCIImageIndex, v1.IndexManifest{SchemaVersion: 2, Manifests: []v1.Descriptor{foreign, ours}})

	both := l.archive(t, ours, other)
	_, _, err := unpacked(t, both, Options{})
	must.ErrorContains(t, err, `["one" "two"]`)
	root, _, err := unpacked(t, both, Options{Ref: "two"})
	must.NoError(t, err)
	must.True(t, isFile(root, "other"))
	_, _, err = unpacked(t, both, Options{Ref: "three"})
	must.ErrorContains(t, err, `no image "three"`)

	root, _, err = unpacked(t, l.archive(t, nested), Options{})
	must.NoError(t, err)
	must.True(t, isFile(root, "ours"))
	_, _, err = unpacked(t, l.archive(t, foreign), Options{})
	must.ErrorContains(t, err, "no image for linux/")
	_, _, err = unpacked(t, archive(t, fileItem("a", "")), Options{Ref: "one"})
	must.ErrorContains(t, err, "no OCI layout")
}

func TestInto_refusesImages(t *testing.T) {
	l := layout{}
	cases := map[string]struct {
		raw  []byte
		says string
	}{
		"layer through a lower layer's symlink": {
			l.archive(t, l.image(t, v1.Config{}, archive(t, linkItem("x", "../..")), archive(t, fileItem("x/canary", "")))), "symbolic link"},
		"whiteout through a symlink": {
			l.archive(t, l.image(t, v1.Config{}, archive(t, linkItem("x", "../..")), archive(t, fileItem("x/.wh.canary", "")))), "symbolic link"},
		"opaque through a symlink": {
			l.archive(t, l.image(t, v1.Config{}, archive(t, linkItem("x", "../..")), archive(t, fileItem("x/.wh..wh..opq", "")))), "symbolic link"},
		"whiteout of ..": {l.archive(t, l.image(t, v1.Config{}, archive(t, fileItem("d/.wh...", "")))), "nothing that has a name"},
		"whiteout of .":  {l.archive(t, l.image(t, v1.Config{}, archive(t, fileItem("d/.wh..", "")))), "nothing that has a name"},
		"/dev as a symlink in an upper layer": {
			l.archive(t, l.image(t, v1.Config{}, archive(t, dirItem("dev")), archive(t, linkItem("dev", "/")))), "/dev is a symbolic link"},
		"relative working directory": {l.archive(t, l.image(t, v1.Config{WorkingDir: "x"}, archive(t, fileItem("a", "")))), "not absolute"},
		"malformed environment":      {l.archive(t, l.image(t, v1.Config{Env: []string{"=x"}}, archive(t, fileItem("a", "")))), "KEY=value"},
		"no layers":                  {l.archive(t, l.image(t, v1.Config{})), "no files"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, _, err := unpacked(t, c.raw, Options{})
			must.ErrorIs(t, err, ErrInvalid)
			must.ErrorContains(t, err, c.says)
		})
	}
}

func TestInto_comparesDigests(t *testing.T) {
	l := layout{}
	img := l.image(t, v1.Config{}, archive(t, fileItem("a", "good")))
	for name, b := range l {
		if bytes.Contains(b, []byte("good")) {
			l[name] = bytes.Replace(b, []byte("good"), []byte("evil"), 1)
		}
	}
	_, _, err := unpacked(t, l.archive(t, img), Options{})
	must.ErrorIs(t, err, ErrInvalid)
	must.ErrorContains(t, err, "another digest")

	escape := v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: v1.Hash{Algorithm: "sha256", Hex: "../../../canary"}}
	_, _, err = unpacked(t, layout{}.archive(t, escape), Options{})
	must.ErrorIs(t, err, ErrInvalid)
}

func TestSource_packsAFolder(t *testing.T) {
	dir := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600))
	must.NoError(t, os.Link(filepath.Join(dir, "file"), filepath.Join(dir, "zlink")))
	must.NoError(t, os.Symlink("/nowhere", filepath.Join(dir, "sym")))
	r, err := Source(t.Context(), dir)
	must.NoError(t, err)
	raw, err := io.ReadAll(r)
	must.NoError(t, err)
	must.NoError(t, r.Close())
	root, _, err := unpacked(t, raw, Options{})
	must.NoError(t, err)
	a, err := os.Stat(filepath.Join(root, "file"))
	must.NoError(t, err)
	b, err := os.Stat(filepath.Join(root, "zlink"))
	must.NoError(t, err)
	must.True(t, os.SameFile(a, b))

	_, err = Source(t.Context(), filepath.Join(dir, "missing"))
	must.ErrorIs(t, err, os.ErrNotExist)
	_, err = Source(t.Context(), "/dev/null")
	must.ErrorIs(t, err, ErrInvalid)
}

func TestSource_canBeClosedEarly(t *testing.T) {
	dir := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(dir, "file"), make([]byte, 4<<20), 0o600))
	r, err := Source(t.Context(), dir)
	must.NoError(t, err)
	_, err = io.ReadFull(r, make([]byte, 600))
	must.NoError(t, err)
	must.NoError(t, r.Close())
}
