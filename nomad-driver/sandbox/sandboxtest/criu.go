package sandboxtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// CRIU returns the path of the CRIU that `make stack` installs, or of one on PATH, or skips the test.
func CRIU(tb testing.TB) string {
	tb.Helper()
	dir := os.Getenv("SOULBOX_STACK")
	if dir == "" {
		if cache, err := os.UserCacheDir(); err == nil {
			dir = filepath.Join(cache, "soulbox", "stack", "bin")
		}
	}
	for _, name := range []string{filepath.Join(dir, "criu"), "criu"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	tb.Skip("no CRIU: run \"make stack\"")
	return ""
}
