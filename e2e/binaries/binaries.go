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

// Env names a folder with programs that are built already.
const Env = "SOULBOX_BIN"

var programs = map[string]string{
	"soulbox":              "./control/cmd/soulbox",
	"nomad-driver-soulbox": "./nomad-driver/cmd/nomad-driver-soulbox",
	"soulbox-init":         "./nomad-driver/cmd/soulbox-init",

	"vault-plugin-secrets-soulbox": "./vault-plugin/cmd/vault-plugin-secrets-soulbox",
	"fakegpu":                      fakeGPU,
}

// fakeGPU is a device plugin of tests, which no folder of built programs has.
const fakeGPU = "./e2e/fakegpu"

// built is what this process has built.
var built struct {
	sync.Mutex
	dir   string
	paths map[string]string
}

// Path returns the path of a program: in SOULBOX_BIN where that is set, else built once per test process.
func Path(t testing.TB, name string) string {
	t.Helper()
	path, err := find(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Killed returns the path of a program that can be killed at its steps (package failpoint), built once per test process.
func Killed(t testing.TB, name string) string {
	t.Helper()
	path, err := build(name, "failpoints")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func find(name string) (string, error) {
	if dir := os.Getenv(Env); dir != "" && programs[name] != "" && programs[name] != fakeGPU {
		return filepath.Abs(filepath.Join(dir, name))
	}
	return build(name, "")
}

func build(name, tag string) (string, error) {
	pkg, ok := programs[name]
	if !ok {
		return "", fmt.Errorf("%q is no program of this module", name)
	}
	built.Lock()
	defer built.Unlock()
	if path, ok := built.paths[name+tag]; ok {
		return path, nil
	}
	if built.dir == "" {
		dir, err := os.MkdirTemp("", "soulbox-bin-")
		if err != nil {
			return "", err
		}
		built.dir, built.paths = dir, map[string]string{}
	}
	path := filepath.Join(built.dir, tag, name)
	cmd := exec.Command("go", "build", "-trimpath", "-tags=hashicorpmetrics,"+tag, "-ldflags=-s -w", "-o", path, pkg)
	cmd.Dir = Root()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", name, err, out)
	}
	built.paths[name+tag] = path
	return path, nil
}

// Main runs a package's tests and deletes what Path built for them. It is the whole of a TestMain.
func Main(m *testing.M) {
	code := m.Run()
	if err := remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func remove() error {
	built.Lock()
	defer built.Unlock()
	dir := built.dir
	built.dir, built.paths = "", nil
	if dir == "" {
		return nil
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
