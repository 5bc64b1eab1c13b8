package attack

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// The file system, as root of the sandbox where it makes a difference.
func TestFileSystem(t *testing.T) {
	a := newArena(t)
	hidden := answers{"default": "EACCES", "strict": "ENOENT"}
	a.attempts(t, "F05", "the supervisor's binary overwritten (CVE-2019-5736)", "root", answers{"": "EROFS|EACCES"}, map[string]answers{
		"open /proc/1/exe for writing":         hidden,
		"put another in its place":             {"": "EXDEV"},
		"rename its directory":                 {"": "EBUSY"},
		"link init elsewhere":                  {"": "EXDEV"},
		"open the running program for writing": {"": "ETXTBSY"},
	})
	a.attempts(t, "F07", "settings of the kernel", "root", answers{"": "ENOENT"}, map[string]answers{
		"write /proc/sysrq-trigger":                {"default": "EROFS|EACCES|ENOENT"},
		"write /proc/sys/kernel/core_pattern":      {"default": "EROFS|EACCES"},
		"write /proc/sys/kernel/modprobe":          {"default": "EROFS|EACCES|ENOENT"},
		"write /proc/sys/kernel/hostname":          {"default": "EROFS|EACCES"},
		"write /proc/sys/kernel/shmmax":            {"default": "EROFS|EACCES"},
		"write /proc/sys/vm/drop_caches":           {"default": "EROFS|EACCES"},
		"write /proc/sys/vm/overcommit_memory":     {"default": "EROFS|EACCES"},
		"write /proc/sys/fs/file-max":              {"default": "EROFS|EACCES"},
		"write /proc/sys/fs/mqueue/queues_max":     {"default": "EROFS|EACCES"},
		"write /proc/sys/net/ipv4/ip_forward":      {"default": "EROFS|EACCES"},
		"write /proc/sys/user/max_user_namespaces": {"default": "EROFS|EACCES"},
		"write /proc/sys/fs/binfmt_misc/register":  {"default": "EROFS|EACCES|ENOENT"},
		"write /proc/irq/default_smp_affinity":     {"default": "EROFS|EACCES|ENOENT"},
		"write /proc/mtrr":                         {"default": "EACCES|ENOENT|EPERM"},
		"write /proc/fs/ext4":                      {"default": "EISDIR|EROFS|ENOENT"},
	})
	refused := answers{"": "empty|no addresses|ENOENT|EACCES|EPERM"}
	a.attempts(t, "F08", "what /proc and /sys tell of the host's kernel", "root", refused, nil)
	a.attempts(t, "F09", "devices of the host", "root", answers{"": "EPERM|EACCES"}, map[string]answers{"what else is in /dev": {"": "nothing"}})
	a.attempts(t, "F11", "mounts made writable again", "root", nil, nil)
	a.attempts(t, "F12", "out of the root directory", "root", answers{"": "the sandbox's own root"}, map[string]answers{
		"chroot twice, and up from an open directory": {"default": "the sandbox's own root", "strict": "EPERM"},
	})
	a.attempts(t, "F13", "from the writable layer into the template", "root", answers{"": "contained: ok"}, map[string]answers{
		"link a template's file into /tmp":                {"": "EXDEV"},
		"link /proc/self/exe":                             {"": "ok"},
		"exchange a template's directory with an own one": {"": "contained: EXDEV|contained: ok"},
	})
	a.attempts(t, "F18", "attributes that steer the overlay, and capabilities on files", "root", nil, map[string]answers{
		"setxattr security.selinux":                      {"": "EPERM|EOPNOTSUPP|ok"}, // a label of an own file: for SELinux to judge, and where it is not loaded some kernels let it pass; nothing reads it
		"setxattr user.overlay.redirect, without effect": {"": "then: ENOENT|EOPNOTSUPP"},
		"capabilities of the host on a file":             {"": "asked for: ok|asked for: EPERM"},
	})

	a.each(t, "F07b", "every file of /proc opened for writing", func(t *testing.T, j *judgement, p string, id api.SandboxID) {
		out := a.ok(t, id, "root", "intruder", "writable")
		j.inside(p, "files that open", strconv.Quote(out))
		must.Eq(t, "", out)
	})
	a.each(t, "F18b", "capabilities on a file hold in the sandbox alone", func(t *testing.T, j *judgement, p string, id api.SandboxID) {
		j.inside(p, "setxattr security.capability", a.ok(t, id, "root", "intruder", "one", "F18", "capabilities of the host on a file"))
		path := filepath.Join(a.upper(t, id), "home/capable")
		buf := make([]byte, 64)
		n, err := unix.Lgetxattr(path, "security.capability", buf)
		if err == nil {
			// Version 3 names the user namespace's root to whom alone they count.
			rooted := n == 24 && binary.LittleEndian.Uint32(buf)>>24 == 3 && binary.LittleEndian.Uint32(buf[20:]) >= idBase
			j.host(rooted, "%s: the attribute has version 3 and the root id of the sandbox", p)
		} else {
			j.host(true, "%s: the file has no capabilities (%v)", p, err)
		}
		for _, name := range []string{"home", "home/capable"} {
			j.host(!hasTrusted(t, filepath.Join(a.upper(t, id), name)), "%s: no trusted.overlay.redirect or opaque on %s", p, name)
		}
	})
	a.each(t, "F04", "a working directory behind a descriptor (CVE-2024-21626)", func(t *testing.T, j *judgement, p string, id api.SandboxID) {
		for _, cwd := range append(descriptorPaths(), "/proc/1/cwd", "/proc/1/root", "/proc/self/cwd", "/proc/self/root") {
			for _, user := range []string{"user", "root"} {
				var out bytes.Buffer
				_, err := a.node.Run(t.Context(), id, nodeapi.ExecRequest{Start: guest.Start{
					Argv: []string{"/bin/bash", "-c", "pwd -P; cat etc/marker ../etc/marker ../../../../etc/marker 2>/dev/null"}, Cwd: cwd, User: user,
				}}, nil, &out, nil)
				got := out.String()
				if err != nil {
					got = api.AsError(err).ErrorCode
				} else if strings.Contains(got, a.dir) || strings.Contains(got, "unreachable") {
					t.Errorf("cwd %s as %s: %s", cwd, user, got)
				}
				if user == "root" && !strings.Contains(cwd, "fd/") {
					j.inside(p, "cwd "+cwd, got)
				}
			}
		}
	})
	t.Run("F01", func(t *testing.T) {
		j := a.judge(t, "F01", "templates with links where the sandbox mounts, and archives that leave their tree")
		defer j.end()
		for _, tc := range hostileArchives(a.dir) {
			_, err := a.api.ImportTemplate(t.Context(), "hostile", bytes.NewReader(tc.archive), api.ImportOptions{Source: "test"})
			j.inside("import", tc.name, errText(err))
			if err == nil {
				t.Errorf("template %s was imported", tc.name)
				must.NoError(t, a.api.DeleteTemplate(t.Context(), "hostile"))
			}
		}
	})
	t.Run("F03", func(t *testing.T) {
		j := a.judge(t, "F03", "terminal devices swapped while terminals are opened (CVE-2025-52565)")
		defer j.end()
		for _, p := range profiles {
			sb := a.create(t, profile(p))
			swap := "cd /dev; while :; do mv ptmx old 2>/dev/null; ln -sf /etc/marker ptmx; rm -f ptmx; ln -sf /proc/1/mem ptmx; rm -f ptmx; mv old ptmx; done"
			loop := a.start(t, sb.ID, "root", "/bin/bash", "-c", swap)
			opened, refused := 0, 0
			for range 40 {
				s, err := a.node.Exec(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"/bin/bash", "-c", "test -t 0 && echo yes"}, TTY: true}})
				if err != nil {
					refused++
					continue
				}
				var out bytes.Buffer
				_, err = s.Copy(&out, nil)
				must.NoError(t, err)
				must.NoError(t, s.Close())
				must.Eq(t, "yes\r\n", out.String())
				opened++
			}
			j.inside(p, "40 terminals while /dev/ptmx changes", strconv.Itoa(opened)+" were terminals, "+strconv.Itoa(refused)+" were refused")
			must.NoError(t, a.node.Signal(t.Context(), sb.ID, nodeapi.SignalRequest{PID: loop.PID, Signal: 9}))
			a.destroy(t, sb.ID)
		}
	})
	t.Run("F14", func(t *testing.T) {
		j := a.judge(t, "F14", "more bytes than there are, in memory file systems")
		defer j.end()
		free := freeBytes(t, a.dir)
		for _, p := range profiles {
			sb := a.create(t, profile(p), func(r *nodeapi.CreateRequest) { r.Limits.TmpBytes = 64 << 20 })
			for _, line := range strings.Split(strings.TrimSpace(a.ok(t, sb.ID, "user", "intruder", "fill", "/tmp", "/dev/shm")), "\n") {
				what, got, _ := strings.Cut(line, "\t")
				j.inside(p, what, got)
				must.True(t, strings.HasPrefix(got, "ENOSPC") || strings.HasPrefix(got, "EFBIG") || strings.HasPrefix(got, "ENOMEM") || strings.HasPrefix(got, "killed"), must.Sprint(line))
			}
			a.destroy(t, sb.ID)
		}
		j.host(freeBytes(t, a.dir) > free-(1<<30), "the disk has the space it had, up to other users' 1 GiB")
	})
	t.Run("F15", func(t *testing.T) {
		j := a.judge(t, "F15", "more bytes and files than the sandbox's disk limit")
		defer j.end()
		free := freeBytes(t, a.dir)
		for _, p := range profiles {
			req := a.request(profile(p), func(r *nodeapi.CreateRequest) { r.Limits.DiskBytes, r.Limits.DiskInodes = 64<<20, 2000 })
			sb, err := a.node.Create(t.Context(), req)
			if err != nil {
				// No limiter on this machine: then the create is refused, with the reason.
				j.inside(p, "a disk limit", errText(err))
				must.StrContains(t, err.Error(), "disk")
				continue
			}
			for line := range strings.Lines(a.ok(t, sb.ID, "user", "intruder", "fill", "/home/user")) {
				what, got, _ := strings.Cut(strings.TrimSpace(line), "\t")
				j.inside(p, what, got)
				must.SliceContains(t, []string{"ENOSPC", "EFBIG", "EDQUOT"}, got, must.Sprint(line))
			}
			got := a.runFor(t, sb.ID, time.Minute, "intruder", "inodes", "/home/user", "20000")
			j.inside(p, "20000 files", got)
			must.False(t, strings.HasPrefix(got, "20000 "), must.Sprint(got))
			// F20: it is full, and goes on.
			j.inside(p, "an exec in the full sandbox", a.ok(t, sb.ID, "user", "/bin/bash", "-c", "echo alive"))
			took := a.destroy(t, sb.ID)
			j.host(took < destroyTime, "%s: destroyed, in %s", p, short(took))
		}
		j.host(freeBytes(t, a.dir) > free-(1<<30), "the disk has the space it had, up to other users' 1 GiB")
	})
	t.Run("F16", func(t *testing.T) {
		j := a.judge(t, "F16", "directories in one another, then the end")
		defer j.end()
		sb := a.create(t)
		j.inside("default", "20000 directories deep in the disk's layer", a.ok(t, sb.ID, "user", "intruder", "deep", "/home/user", "20000"))
		j.inside("default", "20000 directories deep in /tmp", a.ok(t, sb.ID, "user", "intruder", "deep", "/tmp", "20000"))
		took := a.destroy(t, sb.ID)
		j.host(took < destroyTime, "destroyed, in %s", short(took))
	})
}

// upper is a sandbox's writable layer on the host.
func (a *arena) upper(t *testing.T, id api.SandboxID) string {
	t.Helper()
	found, err := filepath.Glob(a.dir + "/s/sandboxes/" + string(id) + "/upper")
	must.NoError(t, err)
	must.Len(t, 1, found)
	return found[0]
}

func hasTrusted(t *testing.T, path string) bool {
	t.Helper()
	for _, name := range []string{"trusted.overlay.redirect", "trusted.overlay.opaque"} {
		if _, err := unix.Lgetxattr(path, name, make([]byte, 64)); err == nil {
			return true
		}
	}
	return false
}

func descriptorPaths() []string {
	var out []string
	for n := range 20 {
		out = append(out, "/proc/self/fd/"+strconv.Itoa(n), "/proc/1/fd/"+strconv.Itoa(n))
	}
	return out
}

func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	must.NoError(t, unix.Statfs(dir, &st))
	return int64(st.Bavail) * st.Bsize
}

func errText(err error) string {
	if err == nil {
		return "TAKEN"
	}
	if e := api.AsError(err); e != nil {
		return strconv.Itoa(e.Code) + " " + e.Message
	}
	return err.Error()
}

type hostileArchive struct {
	name    string
	archive []byte
}

// hostileArchives are what neither an import nor an upload may obey.
func hostileArchives(dir string) []hostileArchive {
	var out []hostileArchive
	add := func(name string, headers ...tar.Header) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			h.Mode, h.ModTime = 0o755|h.Mode, time.Unix(1, 0)
			if h.Typeflag == 0 {
				h.Typeflag, h.Size = tar.TypeReg, 5
			}
			if err := w.WriteHeader(&h); err != nil {
				panic(err)
			}
			if h.Size > 0 {
				_, _ = w.Write([]byte("owned"))
			}
		}
		_ = w.Close()
		out = append(out, hostileArchive{name, b.Bytes()})
	}
	for _, d := range []string{"dev", "proc", "sys", "etc", "run", "tmp"} {
		add("/"+d+" is a link to /", tar.Header{Name: d, Typeflag: tar.TypeSymlink, Linkname: "/"})
	}
	add("/.soulbox is a link", tar.Header{Name: ".soulbox", Typeflag: tar.TypeSymlink, Linkname: dir})
	add("../../etc/cron.d/x", tar.Header{Name: "../../../../../../etc/cron.d/soulbox-attack"})
	add("a/../../x", tar.Header{Name: "a/../../../../../../../" + dir + "/canaries/open/x"})
	add("a file through a link", tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: dir + "/canaries/open"}, tar.Header{Name: "link/x"})
	add("a hard link to a file of the host", tar.Header{Name: "secret", Typeflag: tar.TypeLink, Linkname: dir + "/canaries/secret"})
	add("a hard link up and out", tar.Header{Name: "secret", Typeflag: tar.TypeLink, Linkname: "../../../../etc/shadow"})
	add("a block device", tar.Header{Name: "disk", Typeflag: tar.TypeBlock, Devmajor: 254})
	add("a FIFO", tar.Header{Name: "fifo", Typeflag: tar.TypeFifo})
	add("an attribute of the overlay", tar.Header{Name: "d/", Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/../.."}})
	huge := make([]byte, 512)
	copy(huge, "huge")
	copy(huge[100:], "0000644\x000000000\x000000000\x00")
	copy(huge[124:], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff")
	copy(huge[136:], "00000000000\x00")
	copy(huge[148:], "        ")
	huge[156] = '0'
	copy(huge[257:], "ustar\x0000")
	sum := 0
	for _, c := range huge {
		sum += int(c)
	}
	copy(huge[148:], []byte(strconv.FormatInt(int64(sum)+1<<24, 8))[3:])
	out = append(out, hostileArchive{"a header that promises 2^63 bytes", huge}, hostileArchive{"no archive at all", bytes.Repeat([]byte("x"), 4096)})
	return out
}
