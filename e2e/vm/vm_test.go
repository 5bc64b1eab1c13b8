package vm

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// machine returns a Config whose kernel and init are ready.
func machine(t *testing.T) Config {
	t.Helper()
	kernel, err := FetchKernel(t.Context(), kernelDir(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	return Config{
		Kernel:  kernel,
		Init:    build(t, dir, "vminit", "./vminit"),
		Files:   map[string]string{},
		WorkDir: dir,
		Console: testLog{t},
	}
}

func kernelDir(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(cache, "soulbox", "vm-kernel")
}

// build compiles a static program of this module.
func build(t *testing.T, dir, name, pkg string) string {
	t.Helper()
	out := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", pkg, err, b)
	}
	return out
}

// testLog copies the console into the test's log, line by line.
type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(b), "\r\n"))
	return len(b), nil
}

func TestRun_bringsBackOutputAndExitCodes(t *testing.T) {
	c := machine(t)
	c.Files["/bin/busybox"] = "/bin/busybox"
	c.Jobs = []Job{
		{Name: "kernel", Argv: []string{"/bin/busybox", "uname", "-r"}},
		{Name: "fails", Argv: []string{"/bin/busybox", "sh", "-c", "exit 7"}},
		{Name: "killed", Argv: []string{"/bin/busybox", "sh", "-c", "kill -9 $$"}},
		{Name: "cgroup", Argv: []string{"/bin/busybox", "cat", "/sys/fs/cgroup/cgroup.controllers"}},
		{Name: "disk", Argv: []string{"/bin/busybox", "grep", "prjquota", "/proc/mounts"}},
	}
	results, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	want := []struct {
		name   string
		code   int
		output string
	}{
		{"kernel", 0, c.Kernel.Version},
		{"fails", 7, ""},
		{"killed", 137, ""},
		{"cgroup", 0, "memory"},
		{"disk", 0, "/data"},
	}
	if len(results) != len(want) {
		t.Fatalf("got %d results, want %d: %+v", len(results), len(want), results)
	}
	for i, w := range want {
		got := results[i]
		if got.Name != w.name || got.Code != w.code || !strings.Contains(got.Output, w.output) {
			t.Errorf("job %d: got %+v, want %+v", i, got, w)
		}
	}
}

func TestRun_tellsOfAPanic(t *testing.T) {
	c := machine(t)
	c.Files["/bin/busybox"] = "/bin/busybox"
	c.Jobs = []Job{
		{Name: "fine", Argv: []string{"/bin/busybox", "true"}},
		{Name: "panics", Argv: []string{"/bin/busybox", "sh", "-c", "echo c > /proc/sysrq-trigger"}},
	}
	results, err := Run(t.Context(), c)
	if !errors.Is(err, ErrPanic) {
		t.Fatalf("got %v", err)
	}
	if len(results) != 1 || results[0].Code != 0 {
		t.Fatalf("got %+v", results)
	}
}
