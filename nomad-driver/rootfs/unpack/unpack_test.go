package unpack

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/tree"
)

// item is one entry of a test's archive.
type item struct {
	name  string
	kind  byte // tar type; 0 is a regular file
	body  string
	link  string
	mode  int64 // 0 is 0644, or 0755 for a directory
	uid   int
	gid   int
	major int64
	minor int64
	time  time.Time
	pax   map[string]string
}

func dirItem(name string) item          { return item{name: name, kind: tar.TypeDir} }
func fileItem(name, body string) item   { return item{name: name, body: body} }
func linkItem(name, target string) item { return item{name: name, kind: tar.TypeSymlink, link: target} }
func hardItem(name, target string) item { return item{name: name, kind: tar.TypeLink, link: target} }

func archive(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, it := range items {
		h := &tar.Header{
			Name: it.name, Typeflag: it.kind, Linkname: it.link, Mode: it.mode, Uid: it.uid, Gid: it.gid,
			Devmajor: it.major, Devminor: it.minor, ModTime: it.time, PAXRecords: it.pax, Size: int64(len(it.body)),
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 && h.Typeflag != tar.TypeXGlobalHeader {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			h = &tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: it.pax}
		}
		must.NoError(t, w.WriteHeader(h))
		_, err := io.WriteString(w, it.body)
		must.NoError(t, err)
	}
	must.NoError(t, w.Close())
	return b.Bytes()
}

// unpacked unpacks an archive and returns the root. Nothing may appear beside it, whatever the archive holds.
func unpacked(t testing.TB, raw []byte, o Options) (string, Result, error) {
	t.Helper()
	outer := t.TempDir()
	canary := filepath.Join(outer, "canary")
	must.NoError(t, os.WriteFile(canary, []byte("untouched"), 0o600))
	dir := filepath.Join(outer, "work")
	must.NoError(t, os.Mkdir(dir, 0o700))
	res, err := Into(t.Context(), dir, bytes.NewReader(raw), o)
	names, rerr := os.ReadDir(outer)
	must.NoError(t, rerr)
	must.Len(t, 2, names)
	b, rerr := os.ReadFile(canary)
	must.NoError(t, rerr)
	must.Eq(t, "untouched", string(b))
	return filepath.Join(dir, "root"), res, err
}

func TestInto_keepsWhatATarSays(t *testing.T) {
	when := time.Unix(1_700_000_000, 0)
	root, res, err := unpacked(t, archive(t,
		item{name: "./", kind: tar.TypeDir, mode: 0o700, uid: 1000},
		item{name: "./bin/", kind: tar.TypeDir, time: when},
		item{name: "./bin/tool", body: "#!", mode: 0o4755, time: when},
		item{name: "./home/user", kind: tar.TypeDir, uid: 1000, gid: 1000, mode: 0o2750, time: when},
		hardItem("./bin/alias", "./bin/tool"),
		linkItem("./lib", "usr/lib"),
		linkItem("./usr/abs", "/etc/passwd"),
		fileItem("./etc/passwd", "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/bash\n"),
		fileItem("./odd\nna\xffme", "x"),
	), Options{})
	must.NoError(t, err)
	must.Eq(t, "user", res.Defaults.User)
	must.Eq(t, KindTar, res.Kind)

	var st unix.Stat_t
	must.NoError(t, unix.Lstat(root, &st))
	must.Eq(t, 0o755, st.Mode&0o7777)
	must.Eq(t, uint32(0), st.Uid)
	must.NoError(t, unix.Lstat(root+"/bin/tool", &st))
	must.Eq(t, 0o4755, st.Mode&0o7777)
	must.Eq(t, uint64(2), st.Nlink)
	must.Eq(t, when.Unix(), st.Mtim.Sec)
	must.NoError(t, unix.Lstat(root+"/bin", &st))
	must.Eq(t, when.Unix(), st.Mtim.Sec)
	must.NoError(t, unix.Lstat(root+"/home/user", &st))
	must.Eq(t, 0o2750, st.Mode&0o7777)
	must.Eq(t, uint32(1000), st.Gid)
	must.NoError(t, unix.Lstat(root+"/home", &st))
	must.Eq(t, 0o755, st.Mode&0o7777)
	must.NoError(t, unix.Lstat(root+"/odd\nna\xffme", &st))
	target, err := os.Readlink(root + "/usr/abs")
	must.NoError(t, err)
	must.Eq(t, "/etc/passwd", target)
}

func TestInto_makesMountPoints(t *testing.T) {
	root, _, err := unpacked(t, archive(t, fileItem("init", "x")), Options{})
	must.NoError(t, err)
	for _, m := range mountPoints {
		st, err := os.Lstat(filepath.Join(root, m.path))
		must.NoError(t, err)
		must.True(t, st.IsDir())
	}
	var st unix.Stat_t
	must.NoError(t, unix.Lstat(root+"/tmp", &st))
	must.Eq(t, 0o1777, st.Mode&0o7777)
	must.NoError(t, unix.Lstat(root+"/.soulbox/init", &st))
	must.Eq(t, unix.S_IFREG, int(st.Mode&unix.S_IFMT))
}

// Nothing of the time of an import is in the tree: its export would differ.
func TestInto_givesATimeToEverything(t *testing.T) {
	root, _, err := unpacked(t, archive(t, item{name: "./", kind: tar.TypeDir, time: time.Unix(7, 0)}, fileItem("a/b/c", "x"), linkItem("a/l", "b")), Options{})
	must.NoError(t, err)
	must.NoError(t, filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		must.NoError(t, err)
		info, err := d.Info()
		must.NoError(t, err)
		must.Less(t, 10, info.ModTime().Unix(), must.Sprint(p))
		return nil
	}))
}

func TestInto_laterEntriesReplaceEarlierOnes(t *testing.T) {
	root, _, err := unpacked(t, archive(t,
		fileItem("a/old", "1"), hardItem("b", "a/old"), fileItem("a/old", "2"),
		fileItem("d/x/y", "1"), fileItem("d", "now a file"),
		linkItem("l", "a"), dirItem("l"), fileItem("l/in", "x"),
		fileItem("h", "1"), hardItem("h", "a/old"),
	), Options{})
	must.NoError(t, err)
	for name, want := range map[string]string{"a/old": "2", "b": "1", "d": "now a file", "l/in": "x", "h": "2"} {
		b, err := os.ReadFile(filepath.Join(root, name))
		must.NoError(t, err)
		must.Eq(t, want, string(b), must.Sprint(name))
	}
	_, err = os.Lstat(filepath.Join(root, "a/in"))
	must.ErrorIs(t, err, os.ErrNotExist)
}

func TestInto_refuses(t *testing.T) {
	long := strings.Repeat("n", 256)
	cases := []struct {
		name  string
		items []item
		says  string
	}{
		{"absolute path", []item{fileItem("/etc/cron.d/x", "x")}, "absolute"},
		{"path with ..", []item{fileItem("../canary", "x")}, `".."`},
		{"path with .. inside", []item{fileItem("a/../../canary", "x")}, `".."`},
		{"file through a symlink to the outside", []item{linkItem("x", "../.."), fileItem("x/canary", "x")}, "symbolic link"},
		{"file through an absolute symlink", []item{linkItem("x", "/tmp"), fileItem("x/canary", "x")}, "symbolic link"},
		{"file through a symlink inside", []item{dirItem("a"), linkItem("x", "a"), fileItem("x/f", "x")}, "symbolic link"},
		{"file through two symlinks", []item{dirItem("a"), linkItem("a/b", "../.."), linkItem("x", "a/b"), fileItem("x/canary", "")}, "symbolic link"},
		{"file below a file", []item{fileItem("a", "x"), fileItem("a/b", "x")}, "no directory"},
		{"hard link to the outside", []item{hardItem("x", "../canary")}, `".."`},
		{"hard link to an absolute path", []item{hardItem("x", "/etc/shadow")}, "absolute"},
		{"hard link through a symlink", []item{linkItem("x", "../.."), hardItem("y", "x/canary")}, "symbolic link"},
		{"hard link to nothing", []item{hardItem("x", "y")}, "not there"},
		{"hard link into nothing", []item{hardItem("x", "y/z")}, "not there"},
		{"hard link to a directory", []item{dirItem("d"), hardItem("x", "d")}, "directory"},
		{"hard link to itself", []item{fileItem("x", ""), hardItem("x", "x")}, "its own target"},
		{"hard link over its target's directory", []item{fileItem("d/x", ""), hardItem("d", "d/x")}, "holds its target"},
		{"block device", []item{{name: "dev/sda", kind: tar.TypeBlock, major: 8}}, "block device"},
		{"character device", []item{{name: "dev/mem", kind: tar.TypeChar, major: 1, minor: 1}}, "character device"},
		{"overlay whiteout device", []item{{name: "etc/shadow", kind: tar.TypeChar}}, "character device"},
		{"standard device elsewhere", []item{{name: "null", kind: tar.TypeChar, major: 1, minor: 3}}, "character device"},
		{"false standard device", []item{{name: "dev/null", kind: tar.TypeChar, major: 1, minor: 1}}, "character device"},
		{"FIFO", []item{{name: "f", kind: tar.TypeFifo}}, "FIFO"},
		{"unknown type", []item{{name: "f", kind: 'Z'}}, "unknown tar type"},
		{"/dev as a symlink", []item{linkItem("dev", "/")}, "/dev is a symbolic link"},
		{"/proc as a symlink", []item{linkItem("proc", "/tmp")}, "/proc is a symbolic link"},
		{"/sys as a symlink", []item{linkItem("sys", "tmp")}, "/sys is a symbolic link"},
		{"/etc as a symlink", []item{linkItem("etc", "../../etc")}, "/etc is a symbolic link"},
		{"/run as a symlink", []item{linkItem("run", "var/run")}, "/run is a symbolic link"},
		{"/tmp as a symlink", []item{linkItem("tmp", "/")}, "/tmp is a symbolic link"},
		{"/proc as a file", []item{fileItem("proc", "")}, "/proc is a file"},
		{"PID 1's place as a symlink", []item{linkItem(".soulbox", "/etc")}, "/.soulbox is a symbolic link"},
		{"PID 1's file as a symlink", []item{linkItem(".soulbox/init", "/etc/passwd")}, "not a regular file"},
		{"the root as a symlink", []item{linkItem("./", "/")}, ""},
		{"uid out of range", []item{{name: "f", uid: 65536}}, "65535"},
		{"gid out of range", []item{{name: "f", gid: 1 << 31}}, "65535"},
		{"negative uid", []item{{name: "f", uid: -1}}, "65535"},
		{"trusted xattr", []item{{name: "d", kind: tar.TypeDir, pax: map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y"}}}, "trusted.overlay"},
		{"user.overlay xattr", []item{{name: "d", kind: tar.TypeDir, pax: map[string]string{"SCHILY.xattr.user.overlay.redirect": "/x"}}}, "user.overlay"},
		{"trusted xattr of a symlink", []item{{name: "d", kind: tar.TypeSymlink, link: "x", pax: map[string]string{"SCHILY.xattr.trusted.x": "y"}}}, "trusted.x"},
		{"foreign file capabilities", []item{{name: "f", pax: map[string]string{"SCHILY.xattr.security.capability": strings.Repeat("\x03", 24)}}}, "revision 2"},
		{"long name", []item{fileItem(long, "")}, "255"},
		{"long link target", []item{linkItem("l", strings.Repeat("x/", 3000))}, "4095"},
		{"no entries", nil, "no files"},
		{"defaults that are not JSON", []item{{kind: tar.TypeXGlobalHeader, pax: map[string]string{tree.DefaultsRecord: "{"}}}, tree.DefaultsRecord},
		{"defaults with a relative directory", []item{{kind: tar.TypeXGlobalHeader, pax: map[string]string{tree.DefaultsRecord: `{"cwd":"x"}`}}}, "not absolute"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := unpacked(t, archive(t, c.items...), Options{})
			must.ErrorIs(t, err, ErrInvalid)
			must.ErrorContains(t, err, c.says)
		})
	}
}

func TestInto_limits(t *testing.T) {
	deep := strings.Repeat("d/", 40) + "f"
	big := strings.Repeat("x", 5000)
	cases := []struct {
		name   string
		limits Limits
		items  []item
		limit  string
	}{
		{"bytes", Limits{Bytes: 9000}, []item{fileItem("a", big), fileItem("b", big)}, "bytes"},
		{"bytes written over and over", Limits{Bytes: 9000}, []item{fileItem("a", big), fileItem("a", big)}, "bytes"},
		{"one file", Limits{FileBytes: 4999}, []item{fileItem("a", big)}, "file_bytes"},
		{"files", Limits{Files: 2}, []item{fileItem("a", ""), fileItem("b", ""), fileItem("c", "")}, "files"},
		{"the same file", Limits{Files: 2}, []item{fileItem("a", ""), fileItem("a", ""), fileItem("a", "")}, "files"},
		{"depth", Limits{Depth: 40}, []item{fileItem(deep, "")}, "depth"},
		{"path", Limits{PathBytes: 50}, []item{fileItem(strings.Repeat("x", 51), "")}, "path_bytes"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := unpacked(t, archive(t, c.items...), Options{Limits: c.limits})
			must.ErrorIs(t, err, ErrLimit)
			var le *LimitError
			must.True(t, errors.As(err, &le))
			must.Eq(t, c.limit, le.Limit)
		})
	}
}

// zeros is a compressed tar of one file of n zero bytes.
func zeros(t *testing.T, n int64, compressor func(io.Writer) io.WriteCloser) []byte {
	t.Helper()
	var b bytes.Buffer
	z := compressor(&b)
	w := tar.NewWriter(z)
	must.NoError(t, w.WriteHeader(&tar.Header{Name: "zeros", Mode: 0o644, Size: n}))
	_, err := io.CopyN(w, zeroReader{}, n)
	must.NoError(t, err)
	must.NoError(t, w.Close())
	must.NoError(t, z.Close())
	return b.Bytes()
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func gzipped(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }

func zstded(w io.Writer) io.WriteCloser {
	z, err := zstd.NewWriter(w)
	if err != nil {
		panic(err) // no option can be wrong
	}
	return z
}

func TestInto_endsCompressionBombs(t *testing.T) {
	for name, c := range map[string]func(io.Writer) io.WriteCloser{"gzip": gzipped, "zstd": zstded} {
		t.Run(name, func(t *testing.T) {
			root, _, err := unpacked(t, zeros(t, RatioGrace+32<<20, c), Options{})
			var le *LimitError
			must.True(t, errors.As(err, &le))
			must.Eq(t, "ratio", le.Limit)
			st, err := os.Stat(filepath.Join(root, "zeros"))
			must.NoError(t, err)
			must.Less(t, RatioGrace+1<<20, st.Size())
		})
	}
}

func TestInto_endsABombOfHeaders(t *testing.T) {
	header := archive(t, dirItem("./"))[:512]
	var b bytes.Buffer
	z := zstded(&b)
	for range RatioGrace/512 + 10_000 {
		_, err := z.Write(header)
		must.NoError(t, err)
	}
	must.NoError(t, z.Close())
	_, _, err := unpacked(t, b.Bytes(), Options{})
	must.ErrorIs(t, err, ErrLimit)
}

func TestInto_endsTrailingGarbage(t *testing.T) {
	raw := append(archive(t, fileItem("a", "x")), make([]byte, maxTrailer+1024)...)
	_, _, err := unpacked(t, raw, Options{})
	must.ErrorIs(t, err, ErrInvalid)
	must.ErrorContains(t, err, "follow the end")
}

func TestInto_detectsCompression(t *testing.T) {
	plain := archive(t, fileItem("a", "content"))
	pack := func(c func(io.Writer) io.WriteCloser) []byte {
		var b bytes.Buffer
		z := c(&b)
		_, err := z.Write(plain)
		must.NoError(t, err)
		must.NoError(t, z.Close())
		return b.Bytes()
	}
	for name, raw := range map[string][]byte{"plain": plain, "gzip": pack(gzipped), "zstd": pack(zstded)} {
		root, _, err := unpacked(t, raw, Options{})
		must.NoError(t, err, must.Sprint(name))
		b, err := os.ReadFile(filepath.Join(root, "a"))
		must.NoError(t, err)
		must.Eq(t, "content", string(b))
	}
	damaged := pack(gzipped)
	damaged[len(damaged)-6] ^= 1 // its checksum
	for name, raw := range map[string][]byte{
		"empty": {}, "xz": []byte("\xfd7zXZ\x00\x00\x00"), "zip": []byte("PK\x03\x04xxxx"), "text": []byte("hello, world"),
		"cut gzip": pack(gzipped)[:40], "cut file": plain[:600], "gzip of nothing": nil, "damaged gzip": damaged,
	} {
		_, _, err := unpacked(t, raw, Options{})
		must.ErrorIs(t, err, ErrInvalid, must.Sprint(name))
	}
}

func TestInto_keepsAndDropsXattrs(t *testing.T) {
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	root, res, err := unpacked(t, archive(t,
		item{name: "ping", mode: 0o755, uid: 5, pax: map[string]string{
			"SCHILY.xattr.security.capability":       capability,
			"SCHILY.xattr.security.selinux":          "label",
			"SCHILY.xattr.system.posix_acl_access":   "acl",
			"SCHILY.xattr.user.note":                 "n\x00b",
			"SCHILY.xattr." + "com.example.metadata": "x",
		}},
		item{name: "dev/null", kind: tar.TypeChar, major: 1, minor: 3},
	), Options{})
	must.NoError(t, err)
	buf := make([]byte, 100)
	n, err := unix.Lgetxattr(root+"/ping", "security.capability", buf)
	must.NoError(t, err)
	must.Eq(t, capability, string(buf[:n]))
	n, err = unix.Lgetxattr(root+"/ping", "user.note", buf)
	must.NoError(t, err)
	must.Eq(t, "n\x00b", string(buf[:n]))
	must.Eq(t, map[string]int{
		"extended attributes security.*": 1, "extended attributes system.*": 1, "extended attributes of unknown kind": 1,
		"standard device nodes in /dev": 1,
	}, res.Dropped)
	_, err = os.Lstat(root + "/dev/null")
	must.ErrorIs(t, err, os.ErrNotExist)
}

func TestInto_endsWithTheContext(t *testing.T) {
	ctx, cancel := contextWithCancel(t)
	r, w := io.Pipe()
	go func() {
		raw := archive(t, fileItem("a", "x"), fileItem("b", strings.Repeat("x", 1<<20)))
		w.Write(raw[:1<<19]) //nolint:errcheck // the reader ends it
		cancel()
		w.Write(raw[1<<19:]) //nolint:errcheck // the reader ends it
		w.Close()
	}()
	_, err := Into(ctx, t.TempDir(), r, Options{})
	r.Close()
	must.ErrorIs(t, err, ctx.Err())
}

func TestInto_reportsProgress(t *testing.T) {
	var last Progress
	_, res, err := unpacked(t, archive(t, fileItem("a", "123"), fileItem("b", "4567")), Options{Progress: func(p Progress) { last = p }})
	must.NoError(t, err)
	must.Eq(t, int64(7), last.Bytes)
	must.Eq(t, int64(2), last.Files)
	must.Eq(t, res.Bytes, last.Bytes)
}
