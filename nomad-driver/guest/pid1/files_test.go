package pid1

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

const create = unix.O_WRONLY | unix.O_CREAT | unix.O_TRUNC

func TestOpen_writesAndReadsAsTheUser(t *testing.T) {
	g := startGuest(t, guest.Boot{User: "user"})
	f, info, err := g.Open(g.ctx(), guest.FileRequest{Path: "a/b/new", Flags: create, Parents: true, Mode: 0o640})
	must.NoError(t, err)
	_, err = f.WriteString("content")
	must.NoError(t, err)
	must.NoError(t, f.Close())
	must.Eq(t, filepath.Join(g.home, "a/b/new"), info.Path)
	must.Eq(t, "user", info.Owner)
	must.Eq(t, 0o640, info.Mode)
	for _, p := range []string{"a", "a/b", "a/b/new"} {
		var st unix.Stat_t
		must.NoError(t, unix.Stat(filepath.Join(g.home, p), &st))
		must.Eq(t, testUID, st.Uid, must.Sprint(p))
		must.Eq(t, testUID, st.Gid, must.Sprint(p))
	}
	f, info, err = g.Open(g.ctx(), guest.FileRequest{Path: "~/a/b/new"})
	must.NoError(t, err)
	defer f.Close()
	b, err := io.ReadAll(f)
	must.NoError(t, err)
	must.Eq(t, "content", string(b))
	must.Eq(t, 7, info.Size)
	_, err = f.WriteString("x")
	must.Error(t, err)
}

func TestOpen_refuses(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	must.NoError(t, unix.Mkfifo(filepath.Join(g.home, "fifo"), 0o666))
	must.NoError(t, os.Symlink("/proc/self/mem", filepath.Join(g.home, "mem")))
	must.NoError(t, os.Symlink("loop", filepath.Join(g.home, "loop")))
	must.NoError(t, os.WriteFile(filepath.Join(g.dir, "private"), nil, 0o600))
	for _, c := range []struct {
		name, path, user string
		flags            int
		code             string
	}{
		{"a missing file", "/no/such", "", 0, guest.CodeNotFound},
		{"another's file", filepath.Join(g.dir, "private"), "user", 0, guest.CodePermission},
		{"another's directory", filepath.Join(g.dir, "new"), "user", create, guest.CodePermission},
		{"a FIFO to read", filepath.Join(g.home, "fifo"), "", 0, guest.CodeBadRequest},
		{"a FIFO to write", filepath.Join(g.home, "fifo"), "", unix.O_WRONLY, guest.CodeBadRequest},
		{"a device", "/dev/zero", "", 0, guest.CodeBadRequest},
		{"a directory to write", g.home, "", unix.O_WRONLY, guest.CodeIsDir},
		{"a file as a directory", "/etc/passwd/x", "", 0, guest.CodeNotDir},
		{"a file that exists", "/etc/passwd", "", unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL, guest.CodeExists},
		{"a loop", filepath.Join(g.home, "loop"), "", 0, guest.CodeLoop},
		{"the guest's descriptors", "/proc/self/fd/4", "", unix.O_WRONLY, guest.CodeLoop},
		{"the guest's root", "/proc/1/root/etc/passwd", "", 0, guest.CodeLoop},
		{"the guest's memory", "/proc/self/mem", "", unix.O_RDWR, guest.CodePermission},
		{"the guest's memory by its thread", "/proc/thread-self/mem", "", unix.O_RDWR, guest.CodePermission},
		{"the guest's memory by a link", filepath.Join(g.home, "mem"), "", unix.O_RDWR, guest.CodePermission},
		{"the guest's environment", "/proc/1/environ", "", 0, guest.CodePermission},
		{"an empty path", "", "", 0, guest.CodeBadRequest},
		{"a path with NUL", "/etc\x00", "", 0, guest.CodeBadRequest},
		{"a long path", "/" + strings.Repeat("x", 5000), "", 0, guest.CodeBadRequest},
		{"an unknown user", "/etc/passwd", "who", 0, guest.CodeUnknownUser},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := g.Open(g.ctx(), guest.FileRequest{Path: c.path, User: c.user, Flags: c.flags})
			must.Eq(t, c.code, failure(t, err).Code, must.Sprint(err))
		})
	}
	f, _, err := g.Open(g.ctx(), guest.FileRequest{Path: "/proc/meminfo", User: "user"})
	must.NoError(t, err)
	defer f.Close()
	b, err := io.ReadAll(f)
	must.NoError(t, err)
	must.StrContains(t, string(b), "MemTotal")
}

// The thread that worked for one user must not keep anything of it for the next.
func TestFiles_identitiesDoNotMix(t *testing.T) {
	g := startGuest(t, guest.Boot{})
	must.NoError(t, os.Mkdir(filepath.Join(g.dir, "grouped"), 0o770))
	must.NoError(t, os.Chown(filepath.Join(g.dir, "grouped"), 0, 777))
	path := filepath.Join(g.dir, "grouped", "f")
	errs := make(chan error, 60)
	for i := range cap(errs) {
		go func() {
			var err error
			switch i % 3 {
			case 0: // a supplementary group of the user's
				_, err = g.Stat(g.ctx(), guest.FileRequest{Path: filepath.Dir(path) + "/.", User: "user"})
			case 1:
				_, err = g.Stat(g.ctx(), guest.FileRequest{Path: filepath.Dir(path) + "/.", User: "root"})
			case 2:
				if _, err = g.Stat(g.ctx(), guest.FileRequest{Path: filepath.Dir(path) + "/.", User: "homeless"}); err == nil {
					err = fmt.Errorf("a stranger got in")
				} else {
					err = nil
				}
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		must.NoError(t, <-errs)
	}
}

func TestStatAndReadDir(t *testing.T) {
	g := startGuest(t, guest.Boot{User: "user"})
	must.NoError(t, os.WriteFile(filepath.Join(g.home, "b"), []byte("12345"), 0o4755))
	must.NoError(t, os.Symlink("b", filepath.Join(g.home, "a")))
	must.NoError(t, os.Mkdir(filepath.Join(g.home, "c"), 0o700))
	must.NoError(t, unix.Mkfifo(filepath.Join(g.home, "d"), 0o600))
	list, err := g.ReadDir(g.ctx(), guest.FileRequest{Path: "~"})
	must.NoError(t, err)
	var got []string
	for _, f := range list {
		got = append(got, fmt.Sprintf("%s %s %s %s", f.Name, f.Type, f.Target, f.Owner))
	}
	must.Eq(t, []string{"a symlink b root", "b file  root", "c directory  root", "d other  root"}, got)
	i, err := g.Stat(g.ctx(), guest.FileRequest{Path: "a"})
	must.NoError(t, err)
	must.Eq(t, "symlink", i.Type)
	i, err = g.Stat(g.ctx(), guest.FileRequest{Path: "/"})
	must.NoError(t, err)
	must.Eq(t, "directory", i.Type)
	must.Eq(t, "/", i.Path)
	_, err = g.ReadDir(g.ctx(), guest.FileRequest{Path: "/root"})
	must.Eq(t, guest.CodePermission, failure(t, err).Code)

	for i := range 3000 {
		must.NoError(t, os.WriteFile(filepath.Join(g.home, "c", fmt.Sprintf("%s%04d", strings.Repeat("n", 200), i)), nil, 0o600))
	}
	_, err = g.ReadDir(g.ctx(), guest.FileRequest{Path: "c", User: "root:0"})
	must.Eq(t, guest.CodeNotFound, failure(t, err).Code) // relative to another's home
	list, err = g.ReadDir(g.ctx(), guest.FileRequest{Path: g.home + "/c", User: "root"})
	must.NoError(t, err)
	must.Len(t, 3000, list)
}

func TestMkdirRenameSymlinkRemove(t *testing.T) {
	g := startGuest(t, guest.Boot{User: "user"})
	i, err := g.Mkdir(g.ctx(), guest.FileRequest{Path: "x/y/z", Parents: true})
	must.NoError(t, err)
	must.Eq(t, "user", i.Owner)
	_, err = g.Mkdir(g.ctx(), guest.FileRequest{Path: "x/y/z", Parents: true})
	must.NoError(t, err)
	_, err = g.Mkdir(g.ctx(), guest.FileRequest{Path: "x"})
	must.Eq(t, guest.CodeExists, failure(t, err).Code)
	_, err = g.Mkdir(g.ctx(), guest.FileRequest{Path: "/etc/passwd/x", Parents: true})
	must.Eq(t, guest.CodeNotDir, failure(t, err).Code)
	must.NoError(t, g.Rename(g.ctx(), guest.FileRequest{Path: "x", Target: "moved"}))
	must.NoError(t, g.Symlink(g.ctx(), guest.FileRequest{Path: "link", Target: "/etc"}))
	must.Eq(t, guest.CodeExists, failure(t, g.Symlink(g.ctx(), guest.FileRequest{Path: "link", Target: "x"})).Code)

	// Removing a link leaves what it points to, also below a directory.
	must.NoError(t, os.Symlink("/etc", filepath.Join(g.home, "moved/y/etc")))
	must.NoError(t, g.Remove(g.ctx(), guest.FileRequest{Path: "link"}))
	must.NoError(t, g.Remove(g.ctx(), guest.FileRequest{Path: "moved"}))
	must.NoError(t, g.Remove(g.ctx(), guest.FileRequest{Path: "moved"}))
	must.FileExists(t, "/etc/hosts")
	list, err := g.ReadDir(g.ctx(), guest.FileRequest{Path: "~"})
	must.NoError(t, err)
	must.SliceEmpty(t, list)
	must.Eq(t, guest.CodePermission, failure(t, g.Remove(g.ctx(), guest.FileRequest{Path: "/etc/passwd"})).Code)
	must.Error(t, g.Remove(g.ctx(), guest.FileRequest{Path: "/"}))
	must.Error(t, g.Remove(g.ctx(), guest.FileRequest{Path: ".."}))
}

// A tree as deep as a hostile program makes it goes away in bounded time, stack and descriptors (attack case F16).
func TestRemove_deepTree(t *testing.T) {
	g := startGuest(t, guest.Boot{User: "user"})
	const depth = 20_000
	at, err := unix.Open(g.home, unix.O_PATH|unix.O_DIRECTORY, 0)
	must.NoError(t, err)
	for range depth {
		must.NoError(t, unix.Mkdirat(at, "d", 0o777))
		must.NoError(t, unix.Fchownat(at, "d", testUID, testUID, 0))
		fd, err := unix.Openat(at, "d", unix.O_PATH|unix.O_DIRECTORY, 0)
		must.NoError(t, err)
		must.NoError(t, unix.Close(at))
		at = fd
	}
	must.NoError(t, unix.Close(at))
	begin := time.Now()
	must.NoError(t, g.Remove(g.ctx(), guest.FileRequest{Path: "d"}))
	t.Logf("%d levels in %v", depth, time.Since(begin))
	must.FileNotExists(t, filepath.Join(g.home, "d"))
}

func TestLookupUser(t *testing.T) {
	g := startGuest(t, guest.Boot{User: "user"})
	u, err := g.LookupUser(g.ctx(), "")
	must.NoError(t, err)
	must.Eq(t, guest.UserInfo{Name: "user", UID: testUID, GID: testUID, Groups: []uint32{777}, Home: g.home, Shell: "/bin/bash"}, u)
	_, err = g.LookupUser(g.ctx(), "-1")
	must.Eq(t, guest.CodeUnknownUser, failure(t, err).Code)
}
