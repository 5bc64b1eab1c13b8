package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// cgroups is what is mounted for control groups.
type cgroups struct {
	v2     string            // mount point of cgroup v2; empty: none
	v2Has  []string          // its controllers
	v1     map[string]string // controller → mount point
	layout string            // v1, v2 or hybrid
}

// findCgroups reads what is mounted, wherever that is.
func findCgroups() (cgroups, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return cgroups{}, err
	}
	defer f.Close()
	c := cgroups{v1: map[string]string{}}
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		head, tail, ok := strings.Cut(sc.Text(), " - ")
		fields, kind := strings.Fields(head), strings.Fields(tail)
		if !ok || len(fields) < 5 || len(kind) < 3 {
			continue
		}
		switch kind[0] {
		case "cgroup2":
			if c.v2 == "" {
				c.v2 = fields[4]
			}
		case "cgroup":
			for _, o := range strings.Split(kind[2], ",") {
				c.v1[o] = fields[4]
			}
		}
	}
	if err := sc.Err(); err != nil {
		return cgroups{}, err
	}
	if c.v2 != "" {
		b, err := os.ReadFile(filepath.Join(c.v2, "cgroup.controllers"))
		if err != nil {
			return cgroups{}, err
		}
		c.v2Has = strings.Fields(string(b))
	}
	switch {
	case c.v2 != "" && len(c.v1) > 0:
		c.layout = "hybrid"
	case c.v2 != "":
		c.layout = "v2"
	case len(c.v1) > 0:
		c.layout = "v1"
	default:
		return cgroups{}, errors.New("no control groups are mounted")
	}
	return c, nil
}

func checkCgroup(context.Context, Options) (string, error) {
	c, err := findCgroups()
	return c.layout, err
}

// checkController finds a controller in either version.
func checkController(name string) func(context.Context, Options) (string, error) {
	return func(context.Context, Options) (string, error) {
		c, err := findCgroups()
		if err != nil {
			return "", err
		}
		if slices.Contains(c.v2Has, name) {
			return "v2", nil
		}
		if _, ok := c.v1[name]; ok {
			return "v1", nil
		}
		return "", fmt.Errorf("no control group has the %s controller", name)
	}
}

func checkFreezer(ctx context.Context, o Options) (string, error) {
	return inV2Group(o, func(dir string) error {
		_, err := os.Stat(filepath.Join(dir, "cgroup.freeze"))
		return err
	}, func(c cgroups) bool { _, ok := c.v1["freezer"]; return ok })
}

func checkCgroupKill(_ context.Context, o Options) (string, error) {
	return inV2Group(o, func(dir string) error {
		_, err := os.Stat(filepath.Join(dir, "cgroup.kill"))
		return err
	}, nil)
}

func checkCloneIntoCgroup(_ context.Context, o Options) (string, error) {
	return inV2Group(o, func(dir string) error {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		c, err := startChild(syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd})
		if err != nil {
			return err
		}
		c.done()
		return nil
	}, nil)
}

// inV2Group runs check in a new, empty group of cgroup v2. Where there is none, or check fails, v1 may serve instead.
func inV2Group(_ Options, check func(dir string) error, v1 func(cgroups) bool) (string, error) {
	c, err := findCgroups()
	if err != nil {
		return "", err
	}
	err = errors.New("cgroup v2 is not mounted")
	if c.v2 != "" {
		var dir string
		if dir, err = os.MkdirTemp(c.v2, "soulbox-probe-"); err == nil {
			err = check(dir)
			_ = unix.Rmdir(dir)
		}
		if err == nil {
			return "v2", nil
		}
	}
	if v1 != nil && v1(c) {
		return "v1", nil
	}
	return "", err
}
