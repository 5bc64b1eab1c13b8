package stack

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// program writes an executable that prints s.
func program(t *testing.T, dir, name, s string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	must.NoError(t, os.MkdirAll(dir, 0o755))
	must.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\necho '"+s+"'\n"), 0o755))
	return path
}

func TestParseVersion(t *testing.T) {
	for out, want := range map[string]string{
		"Nomad v1.11.3\nBuildDate 2025\n":                                                "1.11.3",
		"Nomad v1.11.3-dev\nRevision x":                                                  "1.11.3-dev",
		"Consul v1.21.0\nBuild Date 1970-01-01":                                          "1.21.0",
		"Vault v1.21.1 (abc), built 2025-11-18T13:04:32Z":                                "1.21.1",
		"Vault v1.21.1, built 2025-11-23T21:20:19Z (cgo)":                                "1.21.1",
		"Warn  (criu/x.c:1285): something\nVersion: 4.1.1\n":                             "4.1.1",
		"Version: 4.2\nGitID: v4.2":                                                      "4.2.0",
		"CNI host-local plugin v1.10.0\nCNI protocol versions supported: 0.1.0, 1.1.0\n": "1.10.0",
	} {
		v, err := parseVersion("x", out)
		must.NoError(t, err, must.Sprint(out))
		must.Eq(t, want, v.String())
	}
	_, err := parseVersion("x", "usage: x")
	must.ErrorContains(t, err, "no version")
}

func TestFind_order(t *testing.T) {
	onPath, own := t.TempDir(), t.TempDir()
	t.Setenv("PATH", onPath+":"+os.Getenv("PATH"))
	t.Setenv(Env, own)
	program(t, onPath, "nomad", "Nomad v1.4.0")
	_, err := Find("nomad")
	must.ErrorIs(t, err, ErrMissing)
	must.ErrorContains(t, err, "make stack")
	must.ErrorContains(t, err, "1.4.0")
	want := program(t, onPath, "nomad", "Nomad v1.11.0")
	got, err := Find("nomad")
	must.NoError(t, err)
	must.Eq(t, want, got)
	want = program(t, own, "nomad", "Nomad v1.11.3")
	got, err = Find("nomad")
	must.NoError(t, err)
	must.Eq(t, want, got)
	_, err = Find("terraform")
	must.ErrorContains(t, err, "no program of the stack")
}

func TestDir_isInTheCache(t *testing.T) {
	t.Setenv(Env, "")
	t.Setenv("XDG_CACHE_HOME", "/cache")
	dir, err := Dir()
	must.NoError(t, err)
	must.Eq(t, "/cache/soulbox/stack/bin", dir)
}

// installer has modules and a `go` that builds a program which prints a version, and counts its calls.
func installer(t *testing.T) (i *Installer, builds func() int) {
	t.Helper()
	dir, tools := t.TempDir(), t.TempDir()
	log := filepath.Join(dir, "builds")
	must.NoError(t, os.WriteFile(filepath.Join(dir, "go"), []byte(`#!/bin/sh
echo build >>`+log+`
while [ "$1" != -o ]; do shift; done
test -f go.mod && test -f go.sum || exit 9
printf '#!/bin/sh\necho "Consul v1.21.0"\n' >"$2"
chmod +x "$2"
sleep 0.1
`), 0o755))
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	must.NoError(t, os.Mkdir(filepath.Join(tools, "consul"), 0o755))
	for _, name := range []string{"go.mod", "go.sum"} {
		must.NoError(t, os.WriteFile(filepath.Join(tools, "consul", name), []byte("pins"), 0o644))
	}
	return &Installer{Tools: tools, Bin: filepath.Join(t.TempDir(), "a", "bin")}, func() int {
		b, _ := os.ReadFile(log)
		return len(b) / len("build\n")
	}
}

func TestInstall_buildsOnce(t *testing.T) {
	i, builds := installer(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := i.Install(context.Background(), "consul"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	must.NoError(t, i.Install(t.Context(), "consul"))
	must.Eq(t, 1, builds())
	tool, err := toolNamed("consul")
	must.NoError(t, err)
	must.NoError(t, tool.check(filepath.Join(i.Bin, "consul")))

	must.NoError(t, os.WriteFile(filepath.Join(i.Tools, "consul", "go.sum"), []byte("other pins"), 0o644))
	must.NoError(t, i.Install(t.Context(), "consul"))
	must.Eq(t, 2, builds())
	must.NoError(t, os.WriteFile(filepath.Join(i.Tools, "consul", "go.sum"), []byte("pins"), 0o644))
	must.NoError(t, i.Install(t.Context(), "consul"))
	must.Eq(t, 2, builds(), must.Sprint("what was built for other pins is kept"))
}

func TestInstall_makesAgainWhatIsGone(t *testing.T) {
	i, builds := installer(t)
	must.NoError(t, i.Install(t.Context(), "consul"))
	must.NoError(t, os.RemoveAll(filepath.Join(i.Bin, madeDir)))
	must.NoError(t, os.MkdirAll(filepath.Join(i.Bin, madeDir, "making-1", "x"), 0o755))
	must.NoError(t, i.Install(t.Context(), "consul"))
	must.Eq(t, 2, builds())
	left, err := filepath.Glob(filepath.Join(i.Bin, madeDir, "making-*"))
	must.NoError(t, err)
	must.SliceEmpty(t, left)
}

func TestInstall_linksWhatServesOnPath(t *testing.T) {
	i, builds := installer(t)
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	want := program(t, dir, "consul", "Consul v1.20.5")
	must.NoError(t, i.Install(t.Context(), "consul"))
	must.Eq(t, 0, builds())
	got, err := filepath.EvalSymlinks(filepath.Join(i.Bin, "consul"))
	must.NoError(t, err)
	must.Eq(t, want, got)
}

// plugins writes a folder of CNI plugins that say a version.
func plugins(t *testing.T, dir, v string) {
	t.Helper()
	tool, err := toolNamed(cni)
	must.NoError(t, err)
	for name := range tool.programs {
		must.NoError(t, os.MkdirAll(dir, 0o755))
		must.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n[ $# = 0 ] && echo 'CNI "+name+" plugin "+v+"' >&2\n"), 0o755))
	}
}

func TestInstall_buildsAFolderOfPlugins(t *testing.T) {
	dir, tools := t.TempDir(), t.TempDir()
	made := filepath.Join(dir, "made")
	plugins(t, made, "v1.7.0")
	must.NoError(t, os.WriteFile(filepath.Join(dir, "go"), []byte(`#!/bin/sh
[ "$1" = list ] && { echo v1.7.0; exit; }
case "$*" in *buildversion.BuildVersion=v1.7.0*plugins/meta/portmap*) ;; *) exit 9 ;; esac
while [ "$1" != -o ]; do shift; done
cp -r `+made+` "$2"
`), 0o755))
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	must.NoError(t, os.Mkdir(filepath.Join(tools, cni), 0o755))
	for _, name := range []string{"go.mod", "go.sum"} {
		must.NoError(t, os.WriteFile(filepath.Join(tools, cni, name), []byte("pins"), 0o644))
	}
	i := &Installer{Tools: tools, Bin: filepath.Join(t.TempDir(), "bin")}
	must.NoError(t, i.Install(t.Context(), cni))
	must.NoError(t, os.Remove(filepath.Join(dir, "go"))) // nothing is built again
	must.NoError(t, i.Install(t.Context(), cni))
	t.Setenv(Env, i.Bin)
	got, err := Find(cni)
	must.NoError(t, err)
	tool, err := toolNamed(cni)
	must.NoError(t, err)
	must.NoError(t, tool.check(got))
	must.NoError(t, os.Remove(filepath.Join(got, "portmap")))
	must.ErrorContains(t, tool.check(got), "portmap")
}

func TestFind_takesAFolderOfPluginsWhereItServes(t *testing.T) {
	dir := t.TempDir()
	tool, err := toolNamed(cni)
	must.NoError(t, err)
	tool.folders = []string{filepath.Join(dir, "none"), filepath.Join(dir, "old"), filepath.Join(dir, "good")}
	plugins(t, tool.folders[1], "v1.1.1")
	_, err = tool.onPath()
	must.ErrorContains(t, err, "is version 1.1.1")
	plugins(t, tool.folders[2], "v1.6.2")
	got, err := tool.onPath()
	must.NoError(t, err)
	must.Eq(t, tool.folders[2], got)
}

func TestInstall_passesOverWhatDoesNotServe(t *testing.T) {
	for _, v := range []string{"Consul v1.9.0", "Consul v2.0.0", "something else"} {
		i, builds := installer(t)
		dir := t.TempDir()
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
		program(t, dir, "consul", v)
		must.NoError(t, i.Install(t.Context(), "consul"))
		must.Eq(t, 1, builds())
	}
}

func TestInstall_keepsAProgramOfTheFoldersOwner(t *testing.T) {
	i, builds := installer(t)
	path := program(t, i.Bin, "consul", "Consul v1.21.9")
	must.NoError(t, i.Install(t.Context(), "consul"))
	must.Eq(t, 0, builds())
	program(t, i.Bin, "consul", "Consul v1.0.0")
	must.NoError(t, os.WriteFile(filepath.Join(i.Tools, "consul", "go.mod"), []byte("new"), 0o644))
	err := i.Install(t.Context(), "consul")
	must.ErrorContains(t, err, "1.0.0")
	must.ErrorContains(t, err, "remove it")
	_, err = os.Stat(path)
	must.NoError(t, err)
}

func TestInstall_leavesNothingOfAFailedBuild(t *testing.T) {
	i, _ := installer(t)
	dir := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(dir, "go"), []byte("#!/bin/sh\necho no space >&2; exit 1\n"), 0o755))
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	err := i.Install(t.Context(), "consul")
	must.ErrorContains(t, err, "consul: go: exit status 1")
	left, err := os.ReadDir(filepath.Join(i.Bin, madeDir))
	must.NoError(t, err)
	must.SliceEmpty(t, left)
	must.ErrorContains(t, i.Install(t.Context(), "nonsense"), "no program of the stack")
}

// The pinned modules are there, and their sums cover what a build needs.
func TestPins(t *testing.T) {
	i := &Installer{Tools: ".."}
	seen := map[string]bool{}
	for _, tool := range tools {
		pin, err := i.pin(tool)
		must.NoError(t, err)
		must.False(t, seen[pin], must.Sprint(fmt.Sprint(tool.Name, " has the pin of another")))
		seen[pin] = true
	}
}
