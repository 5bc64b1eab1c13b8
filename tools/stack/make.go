package stack

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// buildFlags are those of every build. The modules' own go.mod and go.sum hold all versions; -mod=mod because they were never
// tidied: tests of dependencies ask for what is in no proxy.
const buildFlags = "-mod=mod -trimpath -buildvcs=false -ldflags=-s -w"

// build builds a program from its pinned module. The module is copied first: a build may not touch the files of the
// repository, and -mod=mod would.
func (i *Installer) build(ctx context.Context, t Tool, out string) error {
	module := filepath.Join(out, "module")
	if err := os.Mkdir(module, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(i.Tools, t.Name, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(module, name), b, 0o644); err != nil {
			return err
		}
	}
	i.say("%s: building it from its pinned module: some minutes, once", t.Name)
	env := []string{"GOWORK=off", "GOFLAGS="}
	ldflags, to, packages := "-s -w", filepath.Join(out, t.Name), []string{t.module}
	if t.programs != nil {
		v, err := i.moduleVersion(ctx, module, env, t.module)
		if err != nil {
			return err
		}
		ldflags += " -X " + cniVersion + "=" + v
		to, packages = to+"/", nil
		for _, dir := range slices.Sorted(maps.Values(t.programs)) {
			packages = append(packages, t.module+"/"+dir)
		}
	}
	args := append([]string{"build", "-mod=mod", "-trimpath", "-buildvcs=false", "-tags=" + t.tags, "-ldflags=" + ldflags, "-o", to}, packages...)
	if err := i.run(ctx, module, env, "go", args...); err != nil {
		return err
	}
	return os.RemoveAll(module)
}

// moduleVersion returns the version of a module that the module in dir pins.
func (i *Installer) moduleVersion(ctx context.Context, dir string, env []string, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-mod=mod", "-m", "-f", "{{.Version}}", module)
	cmd.Dir, cmd.Env, cmd.Stderr = dir, append(os.Environ(), env...), i.progress()
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("version of %s: %w", module, err)
	}
	return strings.TrimSpace(string(out)), nil
}

const (
	cni       = "cni"
	cniModule = "github.com/containernetworking/plugins"
	// cniVersion is the variable that the plugins print as their version: Nomad places jobs by it, and a plain build has none.
	cniVersion = cniModule + "/pkg/utils/buildversion.BuildVersion"
)

const (
	criu = "criu"
	// criuSuite is the Debian release whose CRIU is unpacked: trixie's 4.1 waits for ever at the end of a dump on Linux 6.18.
	criuSuite = "sid"
	// criuOptions let apt take an index of that release from a mirror that lags behind: what it signs stays good for some days only.
	criuOptions = `--aptopt=Acquire::Check-Valid-Until "false"`
	// criuWrapper starts CRIU with the libraries that it came with, through their own dynamic linker: the system's libc may be
	// older, and must not be replaced.
	criuWrapper = `#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
for ld in "$root"/usr/lib64/ld-linux-*.so.* "$root"/usr/lib/ld-linux-*.so.*; do
	[ -x "$ld" ] && exec "$ld" --library-path "$(echo "$root"/usr/lib/*-linux-gnu)" "$root/usr/sbin/criu" "$@"
done
echo "no dynamic linker below $root" >&2
exit 127
`
	// criuCheck holds what `criu check` says about this machine.
	criuCheck = "check.txt"
)

// unpackCRIU unpacks CRIU and its libraries, with the distribution's own tools and signatures, and records what it says about
// this machine.
func (i *Installer) unpackCRIU(ctx context.Context, out string) error {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return fmt.Errorf("no CRIU on PATH serves, and mmdebstrap, which unpacks one, is not installed: run \"make deps\" (%w)", err)
	}
	root := filepath.Join(out, "root")
	i.say("%s: unpacking it from Debian %s", criu, criuSuite)
	if err := i.run(ctx, out, []string{"LC_ALL=C.UTF-8"}, "mmdebstrap", "--quiet", "--variant=extract", criuOptions, "--include="+criu, criuSuite, root); err != nil {
		return err
	}
	path := filepath.Join(out, criu)
	if err := os.WriteFile(path, []byte(criuWrapper), 0o755); err != nil {
		return err
	}
	said, err := exec.CommandContext(ctx, path, "check").CombinedOutput()
	if err != nil {
		said = fmt.Appendf(said, "%v\n", err)
		i.say("%s: this machine cannot checkpoint: %s", criu, strings.TrimSpace(string(bytes.ToValidUTF8(said, nil))))
	}
	return os.WriteFile(filepath.Join(out, criuCheck), said, 0o644)
}
