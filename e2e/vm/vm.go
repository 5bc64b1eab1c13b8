// Package vm runs programs on a kernel of the field: it boots one under qemu, in software where need be, with an initramfs
// of our own test binaries, and brings back what they printed and how they ended.
//
// It owns the machine, its kernel, its initramfs and its scratch disk. It never uses the network and leaves nothing behind
// but the unpacked kernel in its cache folder.
package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// Job is one program to run inside, after the machine is up. Jobs run one after another as root.
type Job struct {
	Name string   `json:"name"` // one word; unique
	Argv []string `json:"argv"`
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`
}

// Config describes a machine and what it does.
type Config struct {
	Kernel   *Kernel
	Init     string            // host path of the built vminit
	Files    map[string]string // guest path → host path: programs and folders to take along
	Modules  []string          // kernel modules to load beyond those of the machine itself
	Jobs     []Job
	MemoryMB int    // 2048 by default
	DiskMB   int    // scratch disk, XFS with project quotas, mounted at /data; 2048 by default
	WorkDir  string // for the initramfs and the disk
	Console  io.Writer
}

// Result is how one job ended.
type Result struct {
	Name   string
	Code   int // exit code; 128+n for signal n
	Output string
}

// ErrPanic is in the chain of an error that says that the machine's kernel has given up, as it does when a processor is stuck in it for two minutes. The
// console has the reason.
var ErrPanic = errors.New("the machine's kernel panicked")

// panicWords begin the kernel's last message.
const panicWords = "Kernel panic - not syncing"

// The lines that vminit frames a job's output with on the console.
const (
	markStart = "@@vm-start "
	markEnd   = "@@vm-end "
	markDone  = "@@vm-done"
)

// machineModules are what every machine needs: its disk, its file systems.
var machineModules = []string{"virtio_pci", "virtio_blk", "xfs", "overlay"}

// Run boots the machine, runs the jobs and powers it off. It returns one Result per job that ended; an error where the
// machine did not get to the end of the plan. ctx ends the machine.
func Run(ctx context.Context, c Config) ([]Result, error) {
	if c.MemoryMB == 0 {
		c.MemoryMB = 2048
	}
	if c.DiskMB == 0 {
		c.DiskMB = 2048
	}
	initramfs := filepath.Join(c.WorkDir, "initramfs.cpio")
	if err := writeInitramfs(initramfs, c); err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	disk := filepath.Join(c.WorkDir, "disk.img")
	if err := makeDisk(ctx, disk, c.DiskMB); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", strconv.Itoa(c.MemoryMB),
		"-kernel", c.Kernel.Image, "-initrd", initramfs,
		"-append", "console=ttyS0 quiet panic=-1 watchdog_thresh=60 softlockup_panic=1 cgroup_no_v1=all tsc=unstable no_timer_check",
		"-drive", "if=virtio,format=raw,cache=unsafe,file="+disk,
		"-nic", "none", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot")
	stderr := &strings.Builder{}
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	results, done, panicked := readConsole(out, c.Console)
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return results, fmt.Errorf("machine stopped: %w", context.Cause(ctx))
	case panicked:
		return results, ErrPanic
	case err != nil:
		return results, fmt.Errorf("qemu: %w: %s", err, stderr)
	case !done:
		return results, errors.New("machine ended before the plan did; see its console")
	}
	return results, nil
}

func writeInitramfs(name string, c Config) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	a := newArchive(w)
	if err := a.add("init", c.Init); err != nil {
		return err
	}
	for _, dir := range []string{"proc/x", "sys/x", "dev/x", "tmp/x", "run/x", "data/x", "etc/x", "root/x"} {
		if err := a.parents(dir); err != nil {
			return err
		}
	}
	if err := a.entry("dev/console", modeChar|0o600, 5, 1, 0, nil); err != nil {
		return err
	}
	modules, err := moduleOrder(c.Kernel.Modules, append(append([]string{}, machineModules...), c.Modules...))
	if err != nil {
		return err
	}
	for _, m := range modules {
		if err := a.add(path.Join("modules", m), filepath.Join(c.Kernel.Modules, m)); err != nil {
			return err
		}
	}
	plan, err := json.Marshal(map[string]any{"modules": modules, "jobs": c.Jobs})
	if err != nil {
		return err
	}
	if err := a.addText("plan.json", string(plan), 0o644); err != nil {
		return err
	}
	if err := a.addFiles(c.Files); err != nil {
		return err
	}
	if err := a.close(); err != nil {
		return err
	}
	return w.Flush()
}

func makeDisk(ctx context.Context, name string, mb int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	err = errors.Join(f.Truncate(int64(mb)<<20), f.Close())
	if err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "mkfs.xfs", "-q", "-f", name).CombinedOutput(); err != nil {
		return fmt.Errorf("make the scratch disk: %w: %s", err, out)
	}
	return nil
}

// readConsole splits the console into the jobs' outputs until the machine ends.
func readConsole(r io.Reader, echo io.Writer) (results []Result, done, panicked bool) {
	if echo == nil {
		echo = io.Discard
	}
	var current *Result
	lines := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := lines.ReadString('\n')
		fmt.Fprint(echo, line)
		text := strings.TrimRight(line, "\r\n")
		panicked = panicked || strings.Contains(text, panicWords)
		switch {
		case strings.HasPrefix(text, markStart):
			current = &Result{Name: text[len(markStart):], Code: -1}
		case strings.HasPrefix(text, markEnd) && current != nil:
			name, code, _ := strings.Cut(text[len(markEnd):], " ")
			if n, err := strconv.Atoi(code); err == nil && name == current.Name {
				current.Code = n
			}
			results = append(results, *current)
			current = nil
		case text == markDone:
			done = true
		case current != nil && line != "":
			current.Output += text + "\n"
		}
		if err != nil {
			return results, done, panicked
		}
	}
}
