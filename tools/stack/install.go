package stack

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Installer puts the programs into a folder.
type Installer struct {
	Tools    string    // the project's folder tools, with the modules to build from
	Bin      string    // where the programs go; made where it is missing
	Progress io.Writer // a line for each step; nil is nowhere; used by one call at a time
}

// Install puts the named programs, or all, into Bin: a link to one on PATH whose version serves, else to one that it builds from
// its pinned module, or, for CRIU, unpacks. What is there for the present pins is not touched: a repeated call costs the reading
// of the pins. Of several calls at once one works and the others wait.
func (i *Installer) Install(ctx context.Context, names ...string) error {
	if len(names) == 0 {
		names = Names()
	}
	if err := os.MkdirAll(i.Bin, 0o755); err != nil {
		return err
	}
	var lock *os.File
	for _, name := range names {
		tool, err := toolNamed(name)
		if err != nil {
			return err
		}
		pin, err := i.pin(tool)
		if err != nil {
			return err
		}
		if i.done(tool, pin) {
			continue
		}
		if lock == nil {
			if lock, err = i.lock(ctx); err != nil {
				return err
			}
			defer lock.Close()
			if i.done(tool, pin) {
				continue // another call did it meanwhile
			}
		}
		if err := i.install(ctx, tool, pin); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// madeDir is the folder in Bin with what was built or unpacked, one folder for each pin.
const madeDir = ".made"

// pin is a short hash over what decides which program this is.
func (i *Installer) pin(t Tool) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n", t.Serves, buildFlags, t.tags)
	if t.Name == criu {
		fmt.Fprintf(h, "%s\n%s\n", criuSuite, criuWrapper)
	} else {
		for _, name := range []string{"go.mod", "go.sum"} {
			b, err := os.ReadFile(filepath.Join(i.Tools, t.Name, name))
			if err != nil {
				return "", fmt.Errorf("pins of %s: %w", t.Name, err)
			}
			h.Write(b)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

// done reports whether Bin has the program for the pin. The stamp is a link whose text is the pin: made last, replaced in one
// step.
func (i *Installer) done(t Tool, pin string) bool {
	got, err := os.Readlink(i.stamp(t))
	if err != nil || got != pin {
		return false
	}
	return t.there(filepath.Join(i.Bin, t.Name))
}

func (i *Installer) stamp(t Tool) string { return filepath.Join(i.Bin, "."+t.Name+".pin") }

func (i *Installer) install(ctx context.Context, t Tool, pin string) error {
	place := filepath.Join(i.Bin, t.Name)
	if st, err := os.Lstat(place); err == nil && (st.Mode().IsRegular() || st.IsDir()) {
		// Somebody's own program, in a folder that SOULBOX_STACK names: it is never replaced.
		if err := t.check(place); err != nil {
			return fmt.Errorf("%w: remove it", err)
		}
		return link(pin, i.stamp(t))
	}
	target, err := t.onPath()
	switch {
	case err == nil && filepath.Dir(target) != i.Bin:
		i.say("%s: %s serves", t.Name, target)
	default:
		if target, err = i.make(ctx, t, pin); err != nil {
			return err
		}
	}
	if err := link(target, place); err != nil {
		return err
	}
	return link(pin, i.stamp(t))
}

// make builds or unpacks the program into a folder that is named after its pin, if it is not there, and returns its path.
func (i *Installer) make(ctx context.Context, t Tool, pin string) (string, error) {
	home := filepath.Join(i.Bin, madeDir, t.Name+"-"+pin)
	path := filepath.Join(home, t.Name)
	if t.check(path) == nil {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(home), 0o755); err != nil {
		return "", err
	}
	// Whatever an earlier call left half-made has no name that counts. The caller holds the lock.
	old, err := filepath.Glob(filepath.Join(i.Bin, madeDir, "making-*"))
	if err != nil {
		return "", err
	}
	for _, p := range append(old, home) {
		if err := os.RemoveAll(p); err != nil {
			return "", err
		}
	}
	work, err := os.MkdirTemp(filepath.Dir(home), "making-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work) //nolint:errcheck // empty after success; else swept by the next call
	if err := os.Chmod(work, 0o755); err != nil {
		return "", err
	}
	start := time.Now()
	if t.Name == criu {
		err = i.unpackCRIU(ctx, work)
	} else {
		err = i.build(ctx, t, work)
	}
	if err != nil {
		return "", err
	}
	if err := t.check(filepath.Join(work, t.Name)); err != nil {
		return "", err
	}
	if err := os.Rename(work, home); err != nil {
		return "", err
	}
	i.say("%s: made in %s", t.Name, time.Since(start).Round(time.Second))
	return path, nil
}

// link makes path a symbolic link with the given text, replacing one that is there.
func link(text, path string) error {
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(text, temp); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

func (i *Installer) progress() io.Writer {
	if i.Progress == nil {
		return io.Discard
	}
	return i.Progress
}

func (i *Installer) say(format string, args ...any) { fmt.Fprintf(i.progress(), format+"\n", args...) }

// lock waits for the lock on the folder. Closing the file releases it.
func (i *Installer) lock(ctx context.Context) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(i.Bin, ".lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for waits := 0; ; waits++ {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(err, f.Close())
		}
		if waits == 0 {
			i.say("waiting for another call that fills %s", i.Bin)
		}
		select {
		case <-time.After(200 * time.Millisecond): // flock cannot be waited for together with a context
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		}
	}
}

// run runs a program to its end, its output going to Progress; a cancelled context ends it with its children.
func (i *Installer) run(ctx context.Context, dir string, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = i.progress(), i.progress()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, errors.Join(err, ctx.Err()))
	}
	return nil
}
