// Package binaries builds the programs of this module for tests that run them as users do.
//
// It owns one folder of built programs per test process. It never installs anything.
package binaries

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

var programs = map[string]string{
	"soulbox":              "./control/cmd/soulbox",
	"nomad-driver-soulbox": "./nomad-driver/cmd/nomad-driver-soulbox",
	"soulbox-init":         "./nomad-driver/cmd/soulbox-init",
}

var build = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("SOULBOX_BIN"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.MkdirTemp("", "soulbox-bin-")
	if err != nil {
		return "", err
	}
	for name, pkg := range programs {
		cmd := exec.Command("go", "build", "-trimpath", "-tags=hashicorpmetrics", "-ldflags=-s -w",
			"-o", filepath.Join(dir, name), pkg)
		cmd.Dir = Root()
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w: %s", name, err, out)
		}
	}
	return dir, nil
})

// Dir returns a folder with soulbox, nomad-driver-soulbox and soulbox-init: SOULBOX_BIN where it is set, else built once per
// test process.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Remove deletes what Dir built. A TestMain calls it last.
func Remove() error {
	if os.Getenv("SOULBOX_BIN") != "" {
		return nil
	}
	dir, err := build()
	if err != nil {
		return nil //nolint:nilerr // nothing was built
	}
	return os.RemoveAll(dir)
}

// Root is the module's folder: the nearest one above the working directory with a go.mod.
func Root() string {
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return "."
}
