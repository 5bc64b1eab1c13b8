package attack

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// facts are what must not change on the host, by name.
type facts map[string]string

// hostFiles are files of the host that an escape would go for.
var hostFiles = []string{
	"/etc/passwd", "/etc/shadow", "/etc/group", "/etc/sudoers", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/ld.so.preload",
	"/etc/crontab", "/root/.ssh/authorized_keys", "/root/.bashrc", "/root/.profile", "/bin/sh", "/bin/bash", "/usr/bin/id",
}

// hostSettings are those by which one gets the kernel to run a program, or that all share.
var hostSettings = []string{
	"kernel/core_pattern", "kernel/core_uses_pid", "kernel/modprobe", "kernel/hotplug", "kernel/poweroff_cmd", "kernel/hostname",
	"kernel/domainname", "kernel/randomize_va_space", "kernel/sysrq", "kernel/panic", "kernel/pid_max", "kernel/kptr_restrict",
	"kernel/dmesg_restrict", "kernel/unprivileged_bpf_disabled", "kernel/perf_event_paranoid", "kernel/modules_disabled", "kernel/yama/ptrace_scope",
	"fs/protected_symlinks", "fs/protected_hardlinks", "fs/protected_regular", "fs/protected_fifos", "fs/suid_dumpable",
	"vm/overcommit_memory", "vm/drop_caches", "vm/swappiness", "net/ipv4/ip_forward", "user/max_user_namespaces",
}

// plantCanaries puts files on the host that a careless path would reach.
func (a *arena) plantCanaries(t *testing.T) {
	t.Helper()
	dir := a.dir + "/canaries"
	must.NoError(t, os.Mkdir(dir, 0o755))
	for name, mode := range map[string]os.FileMode{"secret": 0o600, "readable": 0o644, "writable": 0o666} {
		must.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(canary), 0o644))
		must.NoError(t, os.Chmod(filepath.Join(dir, name), mode))
	}
	must.NoError(t, os.Mkdir(dir+"/open", 0o777))
	must.NoError(t, os.Chmod(dir+"/open", 0o777|os.ModeSticky))
}

// canary is the text of files that no sandbox may read.
const canary = "canary: no sandbox reads this\n"

// look takes the facts.
func (a *arena) look(t *testing.T) facts {
	t.Helper()
	f := facts{}
	for _, path := range hostFiles {
		f["file "+path] = fileFact(path)
	}
	for _, name := range hostSettings {
		b, err := os.ReadFile("/proc/sys/" + name)
		f["sysctl "+name] = string(b) + errnoText(err)
	}
	f["init"] = fileFact(sandboxtest.Init(t))
	for _, dir := range []string{"canaries", "lower", "s/templates"} {
		for path, fact := range treeFacts(t, filepath.Join(a.dir, dir)) {
			f["tree "+path] = fact
		}
	}
	var u unix.Utsname
	must.NoError(t, unix.Uname(&u))
	f["host name"] = unix.ByteSliceToString(u.Nodename[:])
	b, err := os.ReadFile("/proc/modules")
	must.True(t, err == nil || errors.Is(err, fs.ErrNotExist))
	var modules []string
	for line := range strings.Lines(string(b)) {
		modules = append(modules, strings.Fields(line)[0])
	}
	slices.Sort(modules)
	f["modules"] = strings.Join(modules, " ")
	f["mounts of the arena"] = strings.Join(a.mounts(t), "\n")
	// The host's clock may be slewed by its owner, not set to another day.
	f["clock"] = strconv.FormatInt((time.Now().UnixNano()-monotonic())/int64(10*time.Minute), 10)
	return f
}

// monotonic reads the clock that nobody can set.
func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return ts.Nano()
}

func errnoText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// fileFact is everything of a file that an attack could change.
func fileFact(path string) string {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return errnoText(err)
	}
	fact := fmt.Sprintf("%o %d:%d %d links", st.Mode, st.Uid, st.Gid, st.Nlink)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		b, err := os.ReadFile(path)
		fact += fmt.Sprintf(" %x%s", sha256.Sum256(b), errnoText(err))
	case unix.S_IFLNK:
		to, err := os.Readlink(path)
		fact += " -> " + to + errnoText(err)
	}
	return fact
}

func treeFacts(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		out[path] = fileFact(path)
		return nil
	})
	must.NoError(t, err)
	return out
}

// mounts are those of the host that belong to the arena: there are none, sandboxes mount in their own namespace.
func (a *arena) mounts(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must.NoError(t, err)
	var out []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, a.dir) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

// changed lists what differs.
func (f facts) changed(now facts) []string {
	var out []string
	for name, was := range f {
		if now[name] != was {
			out = append(out, fmt.Sprintf("%s was %.200q, is %.200q", name, was, now[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if _, ok := f[name]; !ok {
			out = append(out, fmt.Sprintf("%s is new: %.200q", name, now[name]))
		}
	}
	return out
}

// strays are processes that carry an id of our sandboxes without being in one of their control groups, processes in such a
// group that carry another's id, and control groups that are not a sandbox's.
func (a *arena) strays(t *testing.T) []string {
	t.Helper()
	list, err := a.node.List(t.Context())
	must.NoError(t, err)
	known := map[string]bool{}
	for _, sb := range list {
		known[string(sb.ID)] = true
	}
	var out []string
	statuses, err := filepath.Glob("/proc/[0-9]*/status")
	must.NoError(t, err)
	for _, path := range statuses {
		// In this order: a version 1 hierarchy shows whatever is exiting in its root, and the status tells later whether it was.
		group, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cgroup"))
		if err != nil {
			continue // ended meanwhile
		}
		status, err := os.ReadFile(path)
		if err != nil || exiting(filepath.Dir(path)) {
			continue
		}
		ours, inside := false, strings.Contains(string(group), "/"+a.parent+"/")
		for line := range strings.Lines(string(status)) {
			if ids, ok := strings.CutPrefix(line, "Uid:"); ok {
				for _, f := range strings.Fields(ids) {
					id, _ := strconv.ParseInt(f, 10, 64)
					ours = ours || id >= idBase && id < idBase+int64(sandbox.IDRange)*4096
				}
			}
		}
		if ours == inside {
			continue
		}
		out = append(out, fmt.Sprintf("process %s: has an id of a sandbox: %v, is in a group of one: %v", filepath.Base(filepath.Dir(path)), ours, inside))
	}
	for _, pattern := range []string{"/sys/fs/cgroup/" + a.parent, "/sys/fs/cgroup/*/" + a.parent} {
		roots, err := filepath.Glob(pattern)
		must.NoError(t, err)
		for _, root := range roots {
			err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err != nil || !d.IsDir() || path == root {
					return nil // a group may end under the walk
				}
				if rel, _ := filepath.Rel(root, path); !known[rel] {
					out = append(out, "control group "+path)
				}
				return nil
			})
			must.NoError(t, err)
		}
	}
	return out
}

// exiting reports whether a process of /proc has begun to end, or has ended.
func exiting(dir string) bool {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return true
	}
	// proc(5): behind the name, which may have anything in it, come the state, five numbers, and the flags.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	flags, err := strconv.ParseUint(fields[6], 10, 32)
	const pfExiting = 0x4 // include/linux/sched.h
	return err != nil || flags&pfExiting != 0
}

// kernelLog reads what the kernel says from now on.
type kernelLog struct{ fd int }

func listen(t *testing.T) *kernelLog {
	t.Helper()
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &kernelLog{-1} // a host that shows nobody its log
	}
	_, err = unix.Seek(fd, 0, unix.SEEK_END)
	must.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return &kernelLog{fd}
}

var trouble = regexp.MustCompile(`BUG:|Oops|general protection fault|kernel panic|WARNING: |KASAN|UBSAN|refcount_t|list_(add|del) corruption|hung_task|soft lockup|rcu.*stall`)

// bad are the lines that tell of a kernel in trouble.
func (k *kernelLog) bad() []string {
	if k.fd < 0 {
		return nil
	}
	var out []string
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.Read(k.fd, buf)
		if errors.Is(err, unix.EPIPE) {
			continue // lines were overwritten
		}
		if err != nil || n <= 0 {
			return out
		}
		// CRIU, which a node asks for its version, finds out about the processor with an instruction that faults in a child.
		if line := string(buf[:n]); trouble.MatchString(line) && !strings.Contains(line, " in criu[") {
			out = append(out, strings.TrimSpace(line))
		}
	}
}
