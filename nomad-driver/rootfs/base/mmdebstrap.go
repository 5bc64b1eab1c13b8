package base

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const tool = "mmdebstrap"

// build makes the tar at path. What it needs meanwhile is in a folder beside it, which it removes, as well as those of builds
// that were killed: the caller holds the lock.
func build(ctx context.Context, r Recipe, path string, progress io.Writer) (err error) {
	if err := install(ctx, progress); err != nil {
		return err
	}
	dir := filepath.Dir(path)
	old, err := filepath.Glob(filepath.Join(dir, "build-*"))
	if err != nil {
		return err
	}
	for _, p := range old {
		if err := os.RemoveAll(p); err != nil {
			return fmt.Errorf("remove what an earlier build left: %w", err)
		}
	}
	work, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	// apt downloads as a user of its own, who has to get here.
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	hook := filepath.Join(work, "customize")
	if err := os.WriteFile(hook, []byte(customize), 0o755); err != nil {
		return err
	}
	hooks := []string{"--customize-hook=" + hook}
	if r.files != nil {
		own, err := r.unpack(work)
		if err != nil {
			return err
		}
		hooks = append(hooks, "--customize-hook=sh "+own+"/install "+own+" \"$1\"")
	}
	out := filepath.Join(work, "root.tar")
	args := []string{"--variant=minbase", "--format=tar", "--skip=cleanup/apt", "--include=" + strings.Join(r.all(), ",")}
	args = append(args, hooks...)
	for _, o := range dpkgOptions {
		args = append(args, "--dpkgopt="+o)
	}
	if os.Geteuid() == 0 {
		args = append(args, "--mode=root")
	}
	start := time.Now()
	fmt.Fprintf(progress, "making the template %s with %s, once: half a minute or more\n", r.Name, tool)
	if err := run(ctx, progress, work, tool, append(args, suite, out)...); err != nil {
		return err
	}
	if err := publish(out, path); err != nil {
		return err
	}
	fmt.Fprintf(progress, "made the template %s in %s\n", r.Name, time.Since(start).Round(time.Second))
	return nil
}

// unpack writes the recipe's files and its script into a folder of dir.
func (r Recipe) unpack(dir string) (string, error) {
	own := filepath.Join(dir, "own")
	if err := os.Mkdir(own, 0o755); err != nil {
		return "", err
	}
	for _, name := range r.names() {
		b, err := fs.ReadFile(r.files, name)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(own, filepath.Base(name)), b, 0o644); err != nil {
			return "", err
		}
	}
	return own, os.WriteFile(filepath.Join(own, "install"), []byte(r.script), 0o755)
}

// publish moves a finished tar to its place, durably.
func publish(from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Chmod(from, 0o644); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// install installs mmdebstrap where it is missing.
func install(ctx context.Context, progress io.Writer) error {
	if _, err := exec.LookPath(tool); err == nil {
		return nil
	}
	const other = "or import a root file system of your own under the name " + Name
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		return fmt.Errorf("%s is not installed, and there is no apt-get to install it: install it, %s", tool, other)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s is not installed: run \"apt-get install %s\" as root, %s", tool, tool, other)
	}
	fmt.Fprintf(progress, "installing %s\n", tool)
	args := []string{"install", "-y", "--no-install-recommends", tool, "debian-archive-keyring"}
	if run(ctx, io.Discard, "", apt, args...) == nil {
		return nil
	}
	// The lists of packages are old or were never there.
	if err := run(ctx, progress, "", apt, "update"); err != nil {
		return err
	}
	return run(ctx, progress, "", apt, args...)
}

// run runs a program to its end, with its lines going to progress. Its error holds the last of them. A cancelled context ends
// the program with all its children.
func run(ctx context.Context, progress io.Writer, temp, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
	if temp != "" {
		cmd.Env = append(cmd.Env, "TMPDIR="+temp)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 {
		// Whatever it mounts goes with it, however it ends.
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	lines := &tail{to: progress}
	cmd.Stdout, cmd.Stderr = lines, lines
	err := cmd.Run()
	lines.flush()
	if ctx.Err() != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what outlived the SIGTERM; none is the usual case
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%s: %w:\n%s", filepath.Base(name), err, strings.Join(lines.last, "\n"))
	}
	return nil
}

// tail passes whole lines on and keeps the last ones.
type tail struct {
	to   io.Writer
	part []byte
	last []string
}

const tailLines = 15

func (t *tail) Write(p []byte) (int, error) {
	t.part = append(t.part, p...)
	for {
		i := bytes.IndexByte(t.part, '\n')
		if i < 0 {
			return len(p), nil
		}
		t.line(string(t.part[:i]))
		t.part = t.part[i+1:]
	}
}

func (t *tail) flush() {
	if len(t.part) > 0 {
		t.line(string(t.part))
		t.part = nil
	}
}

func (t *tail) line(s string) {
	s = strings.TrimRight(s, "\r")
	if t.last = append(t.last, s); len(t.last) > tailLines {
		t.last = t.last[1:]
	}
	fmt.Fprintln(t.to, s)
}
