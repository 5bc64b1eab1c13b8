package base

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeTool puts a mmdebstrap of ours first on PATH.
func fakeTool(t *testing.T, script string) (calls func() int) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "calls")
	must.NoError(t, os.WriteFile(filepath.Join(dir, tool), []byte("#!/bin/sh\necho call >>"+log+"\n"+script), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() int {
		b, err := os.ReadFile(log)
		if err != nil {
			return 0
		}
		return strings.Count(string(b), "\n")
	}
}

// The last argument of mmdebstrap is the tar that it writes.
const writesItsTar = `for last; do :; done; echo made >"$last"`

func TestBuild_onceForAllCallers(t *testing.T) {
	calls := fakeTool(t, "sleep 0.2; "+writesItsTar)
	dir := filepath.Join(t.TempDir(), "new")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			path, err := Build(context.Background(), Options{Dir: dir})
			if err != nil {
				t.Error(err)
				return
			}
			if b, err := os.ReadFile(path); err != nil || string(b) != "made\n" {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
	wg.Wait()
	must.Eq(t, 1, calls())
	_, err := Build(t.Context(), Options{Dir: dir, Refresh: true})
	must.NoError(t, err)
	must.Eq(t, 2, calls())
	path, ok, err := Cached(dir)
	must.NoError(t, err)
	must.True(t, ok)
	must.StrContains(t, path, Pins())
}

func TestBuild_saysWhatTheToolSaid(t *testing.T) {
	fakeTool(t, "echo 'I: working'; echo 'E: the mirror is away' >&2; exit 7")
	dir := t.TempDir()
	var progress strings.Builder
	_, err := Build(t.Context(), Options{Dir: dir, Progress: &progress})
	must.ErrorContains(t, err, "build the base template")
	must.ErrorContains(t, err, "exit status 7")
	must.ErrorContains(t, err, "the mirror is away")
	must.StrContains(t, progress.String(), "I: working\n")
	left, err := filepath.Glob(dir + "/b*")
	must.NoError(t, err)
	must.SliceEmpty(t, left)
}

func TestBuild_endsWithTheContext(t *testing.T) {
	fakeTool(t, "trap 'exit 1' TERM; sleep 60 & touch $TMPDIR/ready; wait")
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	go func() {
		for {
			if m, _ := filepath.Glob(dir + "/build-*/ready"); len(m) > 0 || t.Context().Err() != nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}()
	_, err := Build(ctx, Options{Dir: dir})
	must.ErrorIs(t, err, context.Canceled)
	left, err := filepath.Glob(dir + "/b*")
	must.NoError(t, err)
	must.SliceEmpty(t, left)
}

func TestBuild_sweepsWhatAKilledBuildLeft(t *testing.T) {
	fakeTool(t, writesItsTar)
	dir := t.TempDir()
	must.NoError(t, os.MkdirAll(filepath.Join(dir, "build-123", "root"), 0o700))
	_, err := Build(t.Context(), Options{Dir: dir})
	must.NoError(t, err)
	left, err := filepath.Glob(dir + "/build-*")
	must.NoError(t, err)
	must.SliceEmpty(t, left)
}

func TestBuild_saysHowToGetTheTool(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Build(t.Context(), Options{Dir: t.TempDir()})
	must.ErrorContains(t, err, "mmdebstrap is not installed")
	must.ErrorContains(t, err, "import a root file system")
}

// The real thing: what is promised of the template is in it.
func TestBuild_base(t *testing.T) {
	path, ok, err := Cached("")
	must.NoError(t, err)
	if !ok {
		if testing.Short() {
			t.Skip("the base template is not in the cache, and building it takes half a minute and the network")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		path, err = Build(ctx, Options{Progress: os.Stderr})
		must.NoError(t, err)
	}
	f, err := os.Open(path)
	must.NoError(t, err)
	defer f.Close()
	s, err := store.Open(store.Config{Dir: filepath.Join(t.TempDir(), "store")})
	must.NoError(t, err)
	defer s.Close()
	tpl, err := s.Import(t.Context(), Name, f, store.ImportOptions{})
	must.NoError(t, err)
	must.Eq(t, "user", tpl.User)
	_, root, err := s.Lookup(Name)
	must.NoError(t, err)
	for _, p := range []string{"bin/bash", "usr/bin/python3", "usr/bin/node", "usr/bin/git", "usr/bin/curl", "usr/bin/ss", "usr/bin/sudo", "usr/bin/pip3", "home/user/.bashrc"} {
		_, err := os.Stat(filepath.Join(root, p))
		must.NoError(t, err)
	}
	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	must.NoError(t, err)
	must.StrContains(t, string(passwd), "user:x:1000:1000::/home/user:/bin/bash\n")
	st, err := os.Stat(filepath.Join(root, "etc/sudoers.d/user"))
	must.NoError(t, err)
	must.Eq(t, os.FileMode(0o440), st.Mode().Perm())
	st, err = os.Stat(filepath.Join(root, "usr/bin/sudo"))
	must.NoError(t, err)
	must.True(t, st.Mode()&os.ModeSetuid != 0)
	if _, err := os.Lstat(filepath.Join(root, "dev/null")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("dev/null: %v", err)
	}
}
