package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const initPath = "/.soulbox/init"

func init() {
	cases["F05"] = []attempt{
		{"open /proc/1/exe for writing", func() string { return openAt("/proc/1/exe", unix.O_WRONLY) }},
		{"open init for writing", func() string { return openAt(initPath, unix.O_WRONLY) }},
		{"open init, and its descriptor again for writing", func() string {
			fd, err := unix.Open(initPath, unix.O_PATH, 0)
			if err != nil {
				return answer(err)
			}
			return openAt(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDWR)
		}},
		{"truncate init", func() string { return answer(unix.Truncate(initPath, 0)) }},
		{"remove init", func() string { return answer(unix.Unlink(initPath)) }},
		{"put another in its place", func() string { return answer(unix.Rename("/bin/true", initPath)) }},
		{"rename its directory", func() string { return answer(unix.Rename("/.soulbox", "/soulbox-old")) }},
		{"link init elsewhere", func() string { return answer(unix.Link(initPath, "/home/user/init")) }},
		{"change its mode", func() string { return answer(unix.Chmod(initPath, 0o777)) }},
		{"open the running program for writing", func() string { return openAt("/proc/self/exe", unix.O_WRONLY) }},
	}
	for _, path := range []string{
		"/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hostname", "/proc/sys/kernel/shmmax",
		"/proc/sys/vm/drop_caches", "/proc/sys/vm/overcommit_memory", "/proc/sys/fs/file-max", "/proc/sys/fs/mqueue/queues_max",
		"/proc/sys/net/ipv4/ip_forward", "/proc/sys/user/max_user_namespaces", "/proc/sys/fs/binfmt_misc/register", "/proc/irq/default_smp_affinity",
		"/proc/mtrr", "/proc/fs/ext4", "/sys/kernel/uevent_helper", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory/release_agent",
		"/sys/kernel/debug/tracing/trace", "/dev/kmsg", "/dev/mem", "/dev/port",
	} {
		cases["F07"] = append(cases["F07"], attempt{"write " + path, func() string { return openAt(path, unix.O_WRONLY) }})
	}
	for _, path := range []string{
		"/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/sched_debug", "/proc/latency_stats", "/proc/interrupts",
		"/proc/kmsg", "/proc/kallsyms", "/proc/kpagecount", "/proc/kpageflags", "/proc/vmallocinfo", "/proc/slabinfo", "/proc/iomem",
		"/proc/pagetypeinfo", "/proc/acpi/wakeup", "/proc/scsi/scsi", "/sys/firmware/acpi/tables", "/sys/class/net", "/sys/devices/virtual/powercap",
		"/dev/mem", "/dev/kmem",
	} {
		cases["F08"] = append(cases["F08"], attempt{"read " + path, func() string {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				return answer(err)
			}
			defer unix.Close(fd)
			buf := make([]byte, 4096)
			n, err := unix.Read(fd, buf)
			if err != nil {
				return answer(err)
			}
			if n == 0 {
				return "empty"
			}
			// Readers without a right to them see addresses as zeros.
			if strings.HasPrefix(string(buf[:n]), "00000000-00000000 : ") {
				return "no addresses"
			}
			return fmt.Sprintf("says %.60q", buf[:n])
		}})
	}
	for _, d := range []struct {
		name         string
		mode         uint32
		major, minor uint32
	}{
		{"the disk (254:0)", unix.S_IFBLK, 254, 0}, {"the disk (8:0)", unix.S_IFBLK, 8, 0}, {"the disk (259:0)", unix.S_IFBLK, 259, 0},
		{"a loop device", unix.S_IFBLK, 7, 0}, {"memory", unix.S_IFCHR, 1, 1}, {"ports", unix.S_IFCHR, 1, 4}, {"the kernel's log", unix.S_IFCHR, 1, 11},
		{"FUSE", unix.S_IFCHR, 10, 229}, {"tun", unix.S_IFCHR, 10, 200}, {"KVM", unix.S_IFCHR, 10, 232}, {"vsock", unix.S_IFCHR, 10, 241},
		{"loop control", unix.S_IFCHR, 10, 237}, {"even null", unix.S_IFCHR, 1, 3}, {"a whiteout", unix.S_IFCHR, 0, 0},
	} {
		for _, dir := range []string{"/home/user", "/tmp", "/dev"} {
			cases["F09"] = append(cases["F09"], attempt{"mknod " + d.name + " in " + dir, func() string {
				path := filepath.Join(dir, "device")
				if err := unix.Mknod(path, d.mode|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
					return answer(err)
				}
				return "made, open: " + openAt(path, unix.O_RDWR)
			}})
		}
	}
	cases["F09"] = append(cases["F09"], attempt{"what else is in /dev", func() string {
		entries, err := os.ReadDir("/dev")
		if err != nil {
			return answer(err)
		}
		known := " null zero full random urandom tty ptmx pts shm mqueue fd stdin stdout stderr "
		for _, e := range entries {
			if !strings.Contains(known, " "+e.Name()+" ") {
				return e.Name()
			}
		}
		return "nothing"
	}})
	cases["F11"] = []attempt{
		{"remount / with suid and dev", func() string {
			return call(unix.SYS_MOUNT, text("none"), text("/"), 0, unix.MS_REMOUNT|unix.MS_BIND, 0)
		}},
		{"remount /.soulbox for writing", func() string {
			return call(unix.SYS_MOUNT, text("none"), text("/.soulbox"), 0, unix.MS_REMOUNT|unix.MS_BIND, 0)
		}},
		{"remount /proc/sys for writing", func() string {
			return call(unix.SYS_MOUNT, text("none"), text("/proc/sys"), 0, unix.MS_REMOUNT|unix.MS_BIND, 0)
		}},
		{"bind /proc over a masked file", func() string {
			return call(unix.SYS_MOUNT, text("/proc/self/mem"), text("/proc/kcore"), 0, unix.MS_BIND, 0)
		}},
		{"make / shared", func() string { return call(unix.SYS_MOUNT, text("none"), text("/"), 0, unix.MS_SHARED|unix.MS_REC, 0) }},
	}
	cases["F12"] = []attempt{
		{"chroot twice, and up from an open directory", chrootEscape},
		{"a hundred times ..", func() string { return whose(strings.Repeat("../", 100)) }},
		{"/proc/self/root/..", func() string { return whose("/proc/self/root/../") }},
		{"/proc/self/cwd/../../..", func() string { return whose("/proc/self/cwd/../../../../") }},
	}
	cases["F13"] = []attempt{
		{"link a template's file into /tmp", func() string { return answer(unix.Link("/etc/marker", "/tmp/marker")) }},
		{"link /proc/self/exe", func() string {
			return answer(unix.Linkat(unix.AT_FDCWD, "/proc/self/exe", unix.AT_FDCWD, "/home/user/l", unix.AT_SYMLINK_FOLLOW))
		}},
		{"link a template's file beside it, and write it", func() string {
			if err := unix.Link("/etc/marker", "/etc/marker2"); err != nil {
				return answer(err)
			}
			return "contained: " + answer(os.WriteFile("/etc/marker2", []byte("changed"), 0))
		}},
		{"replace a template's file by renaming", func() string {
			if err := os.WriteFile("/etc/new", []byte("changed"), 0o644); err != nil {
				return answer(err)
			}
			return "contained: " + answer(unix.Rename("/etc/new", "/etc/marker"))
		}},
		{"exchange a template's directory with an own one", func() string {
			if err := os.Mkdir("/mine", 0o755); err != nil {
				return answer(err)
			}
			return "contained: " + answer(unix.Renameat2(unix.AT_FDCWD, "/etc", unix.AT_FDCWD, "/mine", unix.RENAME_EXCHANGE))
		}},
		{"write a template's program", func() string { return "contained: " + answer(os.WriteFile("/bin/setuid-id", []byte("x"), 0)) }},
		{"append to a template's program through a descriptor opened before", func() string {
			fd, err := unix.Open("/bin/bash", unix.O_RDONLY, 0)
			if err != nil {
				return answer(err)
			}
			return "contained: " + openAt(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDWR|unix.O_APPEND)
		}},
		{"remove a template's directory", func() string { return "contained: " + answer(os.RemoveAll("/usr")) }},
	}
	cases["F18"] = []attempt{
		{"setxattr trusted.overlay.opaque", func() string { return answer(unix.Setxattr("/home", "trusted.overlay.opaque", []byte("y"), 0)) }},
		{"setxattr trusted.overlay.redirect", func() string { return answer(unix.Setxattr("/home", "trusted.overlay.redirect", []byte("/../.."), 0)) }},
		{"setxattr trusted.x", func() string { return answer(unix.Setxattr("/home", "trusted.x", []byte("y"), 0)) }},
		{"setxattr security.selinux", func() string { return answer(unix.Setxattr("/home", "security.selinux", []byte("y"), 0)) }},
		{"setxattr user.overlay.redirect, without effect", func() string {
			if err := unix.Setxattr("/home", "user.overlay.redirect", []byte("/etc"), 0); err != nil {
				return answer(err)
			}
			_, err := os.Stat("/home/marker")
			return "then: " + answer(err)
		}},
		{"capabilities of the host on a file", func() string {
			if err := os.WriteFile("/home/capable", []byte("#!/bin/sh\n"), 0o755); err != nil {
				return answer(err)
			}
			// Version 2, which holds in every namespace: all capabilities, permitted and effective.
			v := binary.LittleEndian.AppendUint32(nil, 0x02000001)
			for range 4 {
				v = binary.LittleEndian.AppendUint32(v, 0xffffffff)
			}
			return "asked for: " + answer(unix.Setxattr("/home/capable", "security.capability", v, 0))
		}},
	}
	// deep makes directories in one another.
	works["deep"] = func(args []string) error {
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		if err := os.Chdir(args[0]); err != nil {
			return err
		}
		made := 0
		for ; made < n; made++ {
			if err := unix.Mkdir("d", 0o700); err != nil {
				break
			}
			if err := unix.Chdir("d"); err != nil {
				break
			}
		}
		fmt.Println(made)
		return nil
	}
	// flip swaps a name between a directory and a link, for a while.
	works["flip"] = func(args []string) error {
		d, err := time.ParseDuration(args[1])
		if err != nil {
			return err
		}
		name, to := args[0], args[2]
		if err := os.MkdirAll(name+".d", 0o755); err != nil {
			return err
		}
		if err := os.Symlink(to, name); err != nil {
			return err
		}
		flips := 0
		for end := time.Now().Add(d); time.Now().Before(end); flips++ {
			if err := unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, name+".d", unix.RENAME_EXCHANGE); err != nil {
				return err
			}
		}
		fmt.Println(flips)
		return nil
	}
}

// chrootEscape is the classic: a directory outside the new root is still open.
func chrootEscape() string {
	root, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return answer(err)
	}
	if err := os.MkdirAll("/home/jail", 0o755); err != nil {
		return answer(err)
	}
	if err := unix.Chroot("/home/jail"); err != nil {
		return answer(err)
	}
	if err := unix.Fchdir(root); err != nil {
		return answer(err)
	}
	for range 100 {
		if err := unix.Chdir(".."); err != nil {
			return answer(err)
		}
	}
	if err := unix.Chroot("."); err != nil {
		return answer(err)
	}
	return whose("")
}

// whose says to whom the file system at a path belongs.
func whose(path string) string {
	b, err := os.ReadFile(path + "/etc/marker")
	if err != nil {
		return answer(err)
	}
	if string(b) == "template\n" {
		return "the sandbox's own root"
	}
	return "another root"
}
