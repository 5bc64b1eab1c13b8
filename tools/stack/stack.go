// Package stack puts the programs that SoulBox stands on where the project's tests and `soulbox dev -cluster` find them: Nomad,
// Consul, Vault, CRIU and the CNI plugins.
//
// It owns the pins, and one folder of the user's cache. It never installs anything into the system. It builds programs from
// modules of their own beside it under tools/, so that their dependencies never meet the project's.
package stack

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/hashicorp/go-version"
)

// Env names the folder with the programs, in place of the one in the user's cache.
const Env = "SOULBOX_STACK"

// Tool is one program of the stack, or one folder of them.
type Tool struct {
	Name string
	// Serves are the versions of a program on PATH that are as good as the pinned one: not older than what the project is
	// tested with in earnest, and of the same major version.
	Serves string
	arg    string // makes it print its version
	module string // that it is built from
	tags   string // of its build: "ui" has Nomad serve its pages

	// Of a folder of programs:
	programs map[string]string // the folder of the module with each; nil: it is one program
	folders  []string          // where they are looked for, as they are on no PATH
}

var tools = []Tool{
	{Name: "nomad", Serves: ">= 1.10.0, < 2.0.0", arg: "version", module: "github.com/hashicorp/nomad", tags: "ui"},
	{Name: "consul", Serves: ">= 1.20.0, < 2.0.0", arg: "version", module: "github.com/hashicorp/consul"},
	{Name: "vault", Serves: ">= 1.19.0, < 2.0.0", arg: "version", module: "github.com/hashicorp/vault"},
	// Older ones wait for ever at the end of a dump on Linux 6.18.
	{Name: criu, Serves: ">= 4.2.0, < 5.0.0", arg: "--version"},
	// Those that Nomad's network mode bridge needs.
	{
		Name: cni, Serves: ">= 1.6.0, < 2.0.0", module: cniModule, folders: []string{"/opt/cni/bin", "/usr/lib/cni"},
		programs: map[string]string{
			"bridge": "plugins/main/bridge", "loopback": "plugins/main/loopback", "host-local": "plugins/ipam/host-local",
			"portmap": "plugins/meta/portmap", "firewall": "plugins/meta/firewall",
		},
	},
}

// ErrMissing is in the chain of an error that says that a program is not there.
var ErrMissing = errors.New("not in the stack")

// Names returns the names of the programs.
func Names() []string {
	var out []string
	for _, t := range tools {
		out = append(out, t.Name)
	}
	return out
}

// Dir returns the folder in which the programs are, or will be: what SOULBOX_STACK names, else soulbox/stack/bin in the
// user's cache.
func Dir() (string, error) {
	if dir := os.Getenv(Env); dir != "" {
		return filepath.Abs(dir)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("folder of the stack: %w; name it in %s", err, Env)
	}
	return filepath.Join(cache, "soulbox", "stack", "bin"), nil
}

// Find returns the path of a program, or of a folder of them: the one in Dir, else one on PATH whose version serves.
func Find(name string) (string, error) {
	tool, err := toolNamed(name)
	if err != nil {
		return "", err
	}
	dir, err := Dir()
	if err != nil {
		return "", err
	}
	if path := filepath.Join(dir, name); tool.there(path) {
		return path, nil
	}
	path, err := tool.onPath()
	if err != nil {
		return "", fmt.Errorf("%s is %w: run \"make stack\", or name its folder in %s (%w)", name, ErrMissing, Env, err)
	}
	return path, nil
}

func toolNamed(name string) (Tool, error) {
	for _, t := range tools {
		if t.Name == name {
			return t, nil
		}
	}
	return Tool{}, fmt.Errorf("%q is no program of the stack: it has %q", name, Names())
}

// there reports whether path is a program, or the folder that it should be.
func (t Tool) there(path string) bool {
	st, err := os.Stat(path)
	if t.programs != nil {
		return err == nil && st.IsDir()
	}
	return err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0
}

// onPath returns the path of the program on PATH if its version serves.
func (t Tool) onPath() (string, error) {
	if t.programs != nil {
		errs := []error{fmt.Errorf("in none of %q", t.folders)}
		for _, dir := range t.folders {
			err := t.check(dir)
			if err == nil {
				return dir, nil
			}
			errs = append(errs, err)
		}
		return "", errors.Join(errs...)
	}
	path, err := exec.LookPath(t.Name)
	if err != nil {
		return "", err
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	return path, t.check(path)
}

// check tells why the program at path, or one of those in it, does not serve.
func (t Tool) check(path string) error {
	want, err := version.NewConstraint(t.Serves)
	if err != nil {
		return err
	}
	paths := []string{path}
	if t.programs != nil {
		paths = nil
		for name := range t.programs {
			paths = append(paths, filepath.Join(path, name))
		}
	}
	for _, path := range paths {
		got, err := t.version(path)
		if err != nil {
			return err
		}
		if !want.Check(got.Core()) {
			return fmt.Errorf("%s is version %s; what serves is %s", path, got, t.Serves)
		}
	}
	return nil
}
