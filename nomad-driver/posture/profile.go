package posture

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// Item is one thing that a sandbox has, and why.
type Item struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// Profile is what a sandbox of a profile may do.
type Profile struct {
	Name         string   `json:"name"`
	About        string   `json:"about"`
	Namespaces   []Item   `json:"namespaces"`
	Capabilities []Item   `json:"capabilities"` // bounding, permitted and effective set of its root, in its own user namespace
	Calls        []Calls  `json:"system_calls"`
	Unknown      string   `json:"unknown_calls"` // the answer to every other call
	Foreign      string   `json:"foreign_abis"`
	Mounts       []Mount  `json:"mounts"`
	Masked       []string `json:"masked"`
	ReadOnly     []string `json:"read_only"`
	Devices      []string `json:"devices"`
	Limits       []Item   `json:"resource_limits"`
	Landlock     []Item   `json:"landlock"` // what this kernel's Landlock holds of it, behind the other walls

	program []byte
}

// Mount is one mount of a sandbox.
type Mount struct {
	Path  string `json:"path"`
	Type  string `json:"type"`
	Flags string `json:"flags"`
	Why   string `json:"why"`
}

var namespaces = []Item{
	{"user", "65,536 host ids that no other sandbox has; root inside is nobody outside. It belongs to the sandbox's own id, so that the kernel's per-user limits are per sandbox"},
	{"pid", "sees and signals own processes only; they all end with PID 1"},
	{"mount", "nothing of the host is mounted; the old root is gone after the pivot"},
	{"network", "a loopback of its own and no other interface"},
	{"ipc", "own System V objects and message queues"},
	{"uts", "own host name"},
	{"cgroup", "its group looks like the root; no hierarchy is mounted"},
}

var capabilities = map[int]Item{
	unix.CAP_CHOWN:            {"CHOWN", "package managers give files to users"},
	unix.CAP_DAC_OVERRIDE:     {"DAC_OVERRIDE", "root writes other users' files, those of the sandbox's ids"},
	unix.CAP_FOWNER:           {"FOWNER", "root changes modes of other users' files"},
	unix.CAP_FSETID:           {"FSETID", "package managers keep setgid bits"},
	unix.CAP_KILL:             {"KILL", "root ends other users' processes"},
	unix.CAP_SETGID:           {"SETGID", "sudo, su, daemons"},
	unix.CAP_SETUID:           {"SETUID", "sudo, su, daemons"},
	unix.CAP_NET_BIND_SERVICE: {"NET_BIND_SERVICE", "ports below 1024"},
	unix.CAP_SYS_CHROOT:       {"SYS_CHROOT", "package managers run scripts in a root"},
	unix.CAP_SETFCAP:          {"SETFCAP", "packages set capabilities on files; they count in this user namespace alone"},
}

// devices of /dev, which is a file system of the sandbox's own.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty", "ptmx and own terminals (256)"}

var limitNames = map[int]string{
	unix.RLIMIT_CORE: "core", unix.RLIMIT_NOFILE: "nofile", unix.RLIMIT_MSGQUEUE: "msgqueue", unix.RLIMIT_MEMLOCK: "memlock",
	unix.RLIMIT_FSIZE: "fsize", unix.RLIMIT_NPROC: "nproc", unix.RLIMIT_SIGPENDING: "sigpending", unix.RLIMIT_STACK: "stack", unix.RLIMIT_RTPRIO: "rtprio",
	unix.RLIMIT_NICE: "nice",
}

// profile describes a profile from what PID 1 is told.
func profile(name string) (Profile, error) {
	boot, err := sandbox.Policy(name)
	if err != nil {
		return Profile{}, err
	}
	p := Profile{
		Name: name, Namespaces: namespaces, Masked: boot.MaskPaths, ReadOnly: boot.ReadonlyPath, Devices: devices, program: boot.Seccomp,
		Mounts: mounts(name == sandbox.ProfileStrict),
		About:  "setuid programs work, as sudo is promised: they make one root of the sandbox at most",
	}
	if name == sandbox.ProfileStrict {
		p.About = "no_new_privs and nosuid: nobody becomes more than they are; a /proc with nothing but own processes; fewer calls"
	}
	for c := range 64 {
		if boot.Capabilities&(1<<c) == 0 {
			continue
		}
		item, ok := capabilities[c]
		if !ok {
			item = Item{fmt.Sprint("capability ", c), "no reason is written down"}
		}
		p.Capabilities = append(p.Capabilities, item)
	}
	for _, l := range boot.Rlimits {
		n, ok := limitNames[l.Resource]
		if !ok {
			n = fmt.Sprint("resource ", l.Resource)
		}
		p.Limits = append(p.Limits, Item{n, fmt.Sprint(l.Hard)})
	}
	if p.Calls, err = calls(boot.Seccomp); err != nil {
		return Profile{}, fmt.Errorf("filter of profile %s: %w", name, err)
	}
	if p.Unknown, err = ask(boot.Seccomp, lastCall); err != nil {
		return Profile{}, err
	}
	p.Foreign = "entering the kernel as i386 or x32 kills the process"
	return p, nil
}

func mounts(strict bool) []Mount {
	root, proc := "nodev", "own processes, and the kernel's files but for what is masked and read-only"
	if strict {
		root, proc = "nosuid,nodev", "own processes only (subset=pid, hidepid)"
	}
	return []Mount{
		{"/", "overlay", root, "the template, idmapped and never written, below a writable layer of its own"},
		{"/proc", "proc", "nosuid,nodev,noexec", proc},
		{"/dev", "tmpfs", "nosuid,noexec", "devices bound from the host after a look at their numbers"},
		{"/dev/pts", "devpts", "nosuid,noexec", "terminals of its own"},
		{"/dev/shm", "tmpfs", "nosuid,nodev,noexec", "counts as its memory; bounded in bytes and files"},
		{"/dev/mqueue", "mqueue", "nosuid,nodev,noexec", "own message queues"},
		{"/tmp", "tmpfs", "nosuid,nodev", "counts as its memory; bounded in bytes and files"},
		{"/.soulbox", "tmpfs", "ro,nosuid,nodev", "the supervisor's binary, in a file system that nobody can write"},
	}
}
