// Command vminit is PID 1 of a test machine: it loads modules, moves from the initramfs to a root that can be pivoted,
// mounts what a host has, runs the jobs of /plan.json and powers the machine off.
//
// It owns nothing outside that machine. It never runs on a host: as anything but PID 1 it refuses.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

type plan struct {
	Modules []string `json:"modules"`
	Jobs    []struct {
		Name string   `json:"name"`
		Argv []string `json:"argv"`
		Env  []string `json:"env"`
		Dir  string   `json:"dir"`
	} `json:"jobs"`
}

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "vminit: runs as PID 1 of a test machine only")
		os.Exit(2)
	}
	stage := prepare
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		stage = serve
	}
	if err := stage(); err != nil {
		fmt.Println("vminit:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // nothing is left to do where it fails: the kernel panics and qemu ends
}

// prepare runs in the initramfs. pivot_root(2) cannot leave an initramfs, so all is copied to a tmpfs that becomes the
// root, as a host's own initramfs does.
func prepare() error {
	p, err := readPlan()
	if err != nil {
		return err
	}
	for _, m := range p.Modules {
		if err := loadModule(filepath.Join("/modules", m)); err != nil {
			return err
		}
	}
	const root = "/newroot"
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=755,size=80%"); err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	if err := moveTree("/", root); err != nil {
		return fmt.Errorf("copy the root: %w", err)
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Exec("/init", []string{"init", "serve"}, os.Environ())
}

func readPlan() (*plan, error) {
	b, err := os.ReadFile("/plan.json")
	if err != nil {
		return nil, err
	}
	p := &plan{}
	return p, json.Unmarshal(b, p)
}

func loadModule(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", name, err)
	}
	return nil
}

// moveTree copies what lies on the initramfs to root and frees it as it goes.
func moveTree(from, root string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(root, path)
		switch {
		case path == root || path == "/modules":
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(to, 0o755)
		case d.Type()&os.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(target, to)
		case d.Type().IsRegular():
			return moveFile(path, to)
		}
		return nil
	})
}

func moveFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	fi, err := os.Stat(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to, b, fi.Mode().Perm()); err != nil {
		return err
	}
	return os.Remove(from)
}

// serve runs in the real root.
func serve() error {
	type mount struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []mount{
		{"proc", "/proc", "proc", safe, ""},
		{"sysfs", "/sys", "sysfs", safe, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, ""},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID, "gid=5,mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, ""},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", safe, ""},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"/dev/vda", "/data", "xfs", 0, "prjquota"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := os.MkdirAll("/data/tmp", 0o1777); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	console, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	p, err := readPlan()
	if err != nil {
		return err
	}
	for _, j := range p.Jobs {
		fmt.Fprintf(console, "\n@@vm-start %s\n", j.Name)
		cmd := exec.Command(j.Argv[0], j.Argv[1:]...)
		cmd.Dir = j.Dir
		cmd.Env = append([]string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/root", "TMPDIR=/data/tmp"}, j.Env...)
		cmd.Stdout, cmd.Stderr = console, console
		fmt.Fprintf(console, "\n@@vm-end %s %d\n", j.Name, exitCode(cmd, console))
	}
	fmt.Fprintln(console, "@@vm-done")
	return nil
}

// loopbackUp gives the machine the one interface that every host has.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// exitCode runs cmd. Orphans of a job stay zombies until the machine ends: a job's own tree is its own to reap.
func exitCode(cmd *exec.Cmd, console *os.File) int {
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		ws, ok := exit.Sys().(syscall.WaitStatus)
		if ok && ws.Signaled() {
			return 128 + int(ws.Signal())
		}
		return exit.ExitCode()
	}
	fmt.Fprintln(console, err)
	return 127
}
