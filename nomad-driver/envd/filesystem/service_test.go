package filesystem_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/envdtest"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/filesystem"
	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/filesystem"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/filesystem/filesystemconnect"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { sandboxtest.Main(m) }

func start(t *testing.T) (*envdtest.Server, []filesystemconnect.FilesystemClient) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var watchers sync.WaitGroup
	_, h := filesystem.New(filesystem.Config{Context: ctx, Watchers: &watchers})
	s := envdtest.Start(t, h)
	t.Cleanup(func() { cancel(); watchers.Wait() })
	return s, []filesystemconnect.FilesystemClient{
		filesystemconnect.NewFilesystemClient(s.Client, s.URL),
		filesystemconnect.NewFilesystemClient(s.Client, s.URL, connect.WithProtoJSON()),
	}
}

func as[T any](user string, m *T) *connect.Request[T] {
	r := connect.NewRequest(m)
	if user != "" {
		h := &http.Request{Header: r.Header()}
		h.SetBasicAuth(user, "")
	}
	return r
}

func TestReal_tree(t *testing.T) {
	s, clients := start(t)
	for _, c := range clients {
		s.Shell(t, "user", "rm -rf ~/* && mkdir -p ~/a/b/c ~/z && echo hi > ~/a/f && ln -s a/f ~/link && ln -s gone ~/dangling && chmod 2750 ~/z")
		st := func(path string) *wire.EntryInfo {
			r, err := c.Stat(t.Context(), as("", &wire.StatRequest{Path: path}))
			must.NoError(t, err)
			return r.Msg.GetEntry()
		}
		e := st("link")
		must.Eq(t, "link", e.GetName())
		must.Eq(t, "/home/user/link", e.GetPath())
		must.Eq(t, wire.FileType_FILE_TYPE_FILE, e.GetType())
		must.Eq(t, "Lrwxrwxrwx", e.GetPermissions())
		must.Eq(t, 0o644, e.GetMode())
		must.Eq(t, "/home/user/a/f", e.GetSymlinkTarget())
		must.Eq(t, "user", e.GetOwner())
		must.Eq(t, "user", e.GetGroup())
		must.Less(t, time.Minute, time.Since(e.GetModifiedTime().AsTime()))
		must.Eq(t, wire.FileType_FILE_TYPE_SYMLINK, st("~/dangling").GetType())
		must.Eq(t, "/home/user/gone", st("~/dangling").GetSymlinkTarget())
		must.Eq(t, "/home/user", st("").GetPath())
		must.Eq(t, "dgrwxr-x---", st("z").GetPermissions())
		must.Eq(t, "/", st("/").GetName())
		must.Nil(t, st("a/f").SymlinkTarget) //nolint:protogetter // whether it is set

		names := func(path string, depth uint32) string {
			r, err := c.ListDir(t.Context(), as("", &wire.ListDirRequest{Path: path, Depth: depth}))
			must.NoError(t, err)
			var out []string
			for _, e := range r.Msg.GetEntries() {
				out = append(out, strings.TrimPrefix(e.GetPath(), "/home/user/"))
			}
			return strings.Join(out, " ")
		}
		must.Eq(t, "a dangling link z", names("~", 0))
		must.Eq(t, "a a/b a/f dangling link z", names("/home/user", 2))
		must.Eq(t, "a/b a/b/c a/f", names("a", 4_000_000_000))

		_, err := c.MakeDir(t.Context(), as("", &wire.MakeDirRequest{Path: "new/deep"}))
		must.NoError(t, err)
		_, err = c.Move(t.Context(), as("", &wire.MoveRequest{Source: "a/f", Destination: "elsewhere/f"}))
		must.NoError(t, err)
		r, err := c.Move(t.Context(), as("", &wire.MoveRequest{Source: "elsewhere", Destination: "/tmp/elsewhere"})) // another file system
		must.NoError(t, err)
		must.Eq(t, "/tmp/elsewhere", r.Msg.GetEntry().GetPath())
		must.Eq(t, "hi\n", s.Shell(t, "user", "cat /tmp/elsewhere/f; rm -r /tmp/elsewhere"))
		for range 2 {
			_, err = c.Remove(t.Context(), as("", &wire.RemoveRequest{Path: "a"}))
			must.NoError(t, err)
		}
	}
}

func TestReal_errors(t *testing.T) {
	s, clients := start(t)
	s.Shell(t, "root", "mkdir /root/x; chmod 700 /root; echo > /home/user/file; chown 1000 /home/user/file; mkdir /home/user/dir")
	for _, c := range clients {
		for _, tc := range []struct {
			name string
			err  error
			code connect.Code
			text string
		}{
			{"stat of nothing", second(c.Stat(t.Context(), as("", &wire.StatRequest{Path: "no"}))), connect.CodeNotFound, "path '/home/user/no' does not exist"},
			{"stat below a file", second(c.Stat(t.Context(), as("", &wire.StatRequest{Path: "file/x"}))), connect.CodeNotFound, "path '/home/user/file/x' does not exist"},
			{"list of nothing", second(c.ListDir(t.Context(), as("", &wire.ListDirRequest{Path: "/no"}))), connect.CodeNotFound, "path '/no' does not exist"},
			{"list of a file", second(c.ListDir(t.Context(), as("", &wire.ListDirRequest{Path: "file"}))), connect.CodeInvalidArgument, "path '/home/user/file' is not a directory"},
			{"another's directory", second(c.ListDir(t.Context(), as("", &wire.ListDirRequest{Path: "/root"}))), connect.CodePermissionDenied, ""},
			{"unknown user", second(c.Stat(t.Context(), as("who", &wire.StatRequest{Path: "/"}))), connect.CodeUnauthenticated, "invalid username: 'who'"},
			{"directory that exists", second(c.MakeDir(t.Context(), as("", &wire.MakeDirRequest{Path: "dir"}))), connect.CodeAlreadyExists, "directory already exists: /home/user/dir"},
			{"file where a directory is to be", second(c.MakeDir(t.Context(), as("", &wire.MakeDirRequest{Path: "file"}))), connect.CodeInvalidArgument, ""},
			{"move of nothing", second(c.Move(t.Context(), as("", &wire.MoveRequest{Source: "no", Destination: "x"}))), connect.CodeNotFound, ""},
			{"removal of the root", second(c.Remove(t.Context(), as("", &wire.RemoveRequest{Path: "/"}))), connect.CodeInvalidArgument, ""},
			{"NUL", second(c.Stat(t.Context(), as("", &wire.StatRequest{Path: "/a\x00b"}))), connect.CodeInvalidArgument, ""},
			{"magic link", second(c.ListDir(t.Context(), as("root", &wire.ListDirRequest{Path: "/proc/1/root"}))), connect.CodeInvalidArgument, ""}, // A04
			{"watcher of a file", second(c.CreateWatcher(t.Context(), as("", &wire.CreateWatcherRequest{Path: "file"}))), connect.CodeInvalidArgument, ""},
			{"watcher of nothing", second(c.CreateWatcher(t.Context(), as("", &wire.CreateWatcherRequest{Path: "no"}))), connect.CodeNotFound, ""},
			{"events of no watcher", second(c.GetWatcherEvents(t.Context(), as("", &wire.GetWatcherEventsRequest{WatcherId: "x"}))), connect.CodeNotFound, ""},
			{"removal of no watcher", second(c.RemoveWatcher(t.Context(), as("", &wire.RemoveWatcherRequest{WatcherId: "x"}))), connect.CodeNotFound, ""},
		} {
			must.Eq(t, tc.code, connect.CodeOf(tc.err), must.Sprint(tc.name, ": ", tc.err))
			must.StrContains(t, tc.err.Error(), tc.text)
		}
		_, err := c.ListDir(t.Context(), as("root", &wire.ListDirRequest{Path: "~"}))
		must.NoError(t, err)
	}
}

// What a user was let make in a directory of root's can be moved and removed by them, too; their home, and what is root's, stay.
func TestReal_whatIsTheUsersGoesAgain(t *testing.T) {
	s, clients := start(t)
	for _, c := range clients {
		made := second(c.MakeDir(t.Context(), as("", &wire.MakeDirRequest{Path: "/app/sub"})))
		must.NoError(t, made)
		must.NoError(t, second(c.Move(t.Context(), as("", &wire.MoveRequest{Source: "/app", Destination: "/other"}))))
		must.NoError(t, second(c.Remove(t.Context(), as("", &wire.RemoveRequest{Path: "/other"}))))
		s.Shell(t, "root", "mkdir -p /rootdir; touch /etc/mine /roots; chown user /etc/mine; ! [ -e /app ] && ! [ -e /other ]")
		for _, path := range []string{"/etc/mine", "/roots", "/home/user", "~", "/rootdir"} {
			must.Eq(t, connect.CodePermissionDenied, connect.CodeOf(second(c.Remove(t.Context(), as("", &wire.RemoveRequest{Path: path})))), must.Sprint(path))
			must.Eq(t, connect.CodePermissionDenied, connect.CodeOf(second(c.Move(t.Context(), as("", &wire.MoveRequest{Source: path, Destination: "/there"})))), must.Sprint(path))
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestReal_watch(t *testing.T) {
	s, clients := start(t)
	for _, c := range clients {
		s.Shell(t, "user", "rm -rf ~/*; mkdir ~/w ~/w/old")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		st, err := c.WatchDir(ctx, as("", &wire.WatchDirRequest{Path: "w", Recursive: true, IncludeEntry: true}))
		must.NoError(t, err)
		defer st.Close()
		must.True(t, st.Receive(), must.Sprint(st.Err()))
		must.NotNil(t, st.Msg().GetStart())
		w, err := c.CreateWatcher(ctx, as("", &wire.CreateWatcherRequest{Path: "w"}))
		must.NoError(t, err)
		s.Shell(t, "user", "cd ~/w; echo x > f; chmod 600 f; mv f g; mkdir -p n/m; echo y > n/m/deep; echo z > old/o; rm g; echo > .end")
		var got []string
		for st.Receive() {
			e := st.Msg().GetFilesystem()
			got = append(got, strings.TrimPrefix(e.GetType().String(), "EVENT_TYPE_")+" "+e.GetName())
			if e.GetName() == "n" {
				must.Eq(t, "/home/user/w/n", e.GetEntry().GetPath())
			}
			if e.GetName() == ".end" {
				break
			}
		}
		must.NoError(t, st.Err())
		all := strings.Join(got, "\n")
		for _, want := range []string{"CREATE f", "WRITE f", "CHMOD f", "RENAME f", "CREATE g", "CREATE n", "CREATE n/m", "CREATE n/m/deep", "CREATE old/o", "WRITE old/o", "REMOVE g"} {
			must.StrContains(t, all, want)
			if strings.HasPrefix(want, "CREATE") {
				must.Eq(t, 1, strings.Count(all+"\n", want+"\n"), must.Sprint(want, " in ", all))
			}
		}
		var polled string
		for !strings.Contains(polled, ".end") {
			must.NoError(t, ctx.Err())
			r, err := c.GetWatcherEvents(ctx, as("", &wire.GetWatcherEventsRequest{WatcherId: w.Msg.GetWatcherId()}))
			must.NoError(t, err)
			for _, e := range r.Msg.GetEvents() {
				polled += e.GetName() + " "
				must.Nil(t, e.GetEntry())
			}
			time.Sleep(5 * time.Millisecond)
		}
		must.StrContains(t, polled, "f f")
		must.StrNotContains(t, polled, "/")
		_, err = c.RemoveWatcher(ctx, as("", &wire.RemoveWatcherRequest{WatcherId: w.Msg.GetWatcherId()}))
		must.NoError(t, err)
		_, err = c.RemoveWatcher(ctx, as("", &wire.RemoveWatcherRequest{WatcherId: w.Msg.GetWatcherId()}))
		must.Eq(t, connect.CodeNotFound, connect.CodeOf(err))
	}
}

// What happens faster than a client takes it is bounded, and said.
func TestReal_watchOverflow(t *testing.T) {
	s, clients := start(t)
	s.Shell(t, "user", "mkdir ~/w")
	w, err := clients[0].CreateWatcher(t.Context(), as("", &wire.CreateWatcherRequest{Path: "w"}))
	must.NoError(t, err)
	// More than the watcher's queue and the kernel's hold together: who reads slowly loses some as well as who does not.
	s.Shell(t, "user", "cd ~/w; for i in $(seq 15000); do : > $i; echo > $i; done")
	ok := false
	for end := time.Now().Add(20 * time.Second); !ok && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		_, err = clients[0].GetWatcherEvents(t.Context(), as("", &wire.GetWatcherEventsRequest{WatcherId: w.Msg.GetWatcherId()}))
		ok = connect.CodeOf(err) == connect.CodeResourceExhausted
	}
	must.True(t, ok, must.Sprint(err))
	// What is on its way yet may overflow it once more; then the watcher goes on.
	for end := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		_, err = clients[0].GetWatcherEvents(t.Context(), as("", &wire.GetWatcherEventsRequest{WatcherId: w.Msg.GetWatcherId()}))
	}
	must.NoError(t, err)
}

// The end of the sandbox ends a watch at once, and is not held up by it.
func TestReal_watchEndsWithTheSandbox(t *testing.T) {
	s, clients := start(t)
	st, err := clients[0].WatchDir(t.Context(), as("", &wire.WatchDirRequest{Path: "/home/user"}))
	must.NoError(t, err)
	defer st.Close()
	must.True(t, st.Receive())
	begin := time.Now()
	must.NoError(t, s.Sandbox.Kill(t.Context()))
	must.False(t, st.Receive())
	must.Eq(t, connect.CodeUnavailable, connect.CodeOf(st.Err()), must.Sprint(st.Err()))
	must.Less(t, 5*time.Second, time.Since(begin))
}
