package sandbox

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/seccomp"
)

// Profiles of guest.Boot.Profile.
const (
	ProfileDefault = "default" // setuid programs work; root inside is nobody outside
	ProfileStrict  = "strict"  // no_new_privs, a bare /proc, fewer system calls
)

// Capabilities are what root in a sandbox has of its own user namespace, and the bounding set of everything in it: what
// package managers and sudo need, and none that reaches the host.
const Capabilities uint64 = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID |
	1<<unix.CAP_KILL | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_SYS_CHROOT |
	1<<unix.CAP_SETFCAP

// without is what tests and benchmarks take away from sandboxes, wall by wall, to see what the others hold and what each
// costs. Nothing but a test sets it.
var without struct{ seccomp, landlock, masks, capabilities bool }

// keptCapabilities returns Capabilities, or all where a test wants that.
func keptCapabilities() uint64 {
	if without.capabilities {
		return 1<<(lastCapability()+1) - 1
	}
	return Capabilities
}

// tmpInodes bounds the files of /tmp and /dev/shm each.
const tmpInodes = 1 << 18

// maskPaths tell of the host or reach into it. Those under /proc exist as the host's kernel has them. What only the host's
// root may read (vmallocinfo, slabinfo, kpageflags, …) needs no mask, each of which is a mount: nobody in a sandbox is that.
var maskPaths = []string{
	"/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/sched_debug", "/proc/latency_stats",
	"/proc/interrupts", "/proc/kmsg", "/proc/kallsyms", "/proc/scsi", "/proc/acpi", "/proc/asound", "/proc/timer_stats", "/proc/driver", "/proc/pressure",
}

var readonlyPaths = []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"}

// mountPoint is a directory of the host that everybody may search, on which PID 1 attaches its root, in its own mount
// namespace: the node's own directories are closed to it.
const mountPoint = "/proc"

// maxFileBytes bounds a single file: no larger than what can hold it, and where nothing bounds that, a TiB.
func maxFileBytes(l Limits) uint64 {
	if l.DiskBytes > 0 {
		return uint64(max(l.DiskBytes, l.TmpBytes))
	}
	return 1 << 40
}

// setMemory sets the sizes of the file systems in memory.
func setMemory(b *guest.Boot, l Limits) {
	b.TmpBytes, b.ShmBytes, b.TmpInodes = l.TmpBytes, min(l.TmpBytes, 64<<20), tmpInodes
}

// bootMessage completes Config.Boot.
func bootMessage(c Config) (guest.Boot, error) {
	b := guest.Boot{
		Version: guest.ProtocolVersion, SandboxID: string(c.ID), MountPoint: mountPoint,
		Hostname: c.Boot.Hostname, User: c.Boot.User, Cwd: c.Boot.Cwd, Env: c.Boot.Env, Files: c.Boot.Files, Main: c.Boot.Main,
		Profile: c.Boot.Profile, Capabilities: keptCapabilities(), Landlock: !without.landlock,
		MaskPaths: maskPaths, ReadonlyPath: readonlyPaths,
		Rlimits: []guest.Rlimit{
			{Resource: unix.RLIMIT_CORE},
			{Resource: unix.RLIMIT_NOFILE, Soft: uint64(c.Limits.NoFile), Hard: uint64(c.Limits.NoFile)},
			{Resource: unix.RLIMIT_FSIZE, Soft: maxFileBytes(c.Limits), Hard: maxFileBytes(c.Limits)},
			{Resource: unix.RLIMIT_MSGQUEUE, Soft: 819_200, Hard: 819_200},
			{Resource: unix.RLIMIT_MEMLOCK, Soft: 8 << 20, Hard: 8 << 20},
			{Resource: unix.RLIMIT_SIGPENDING, Soft: 16_384, Hard: 16_384},
			{Resource: unix.RLIMIT_RTPRIO},
			{Resource: unix.RLIMIT_NICE},
		},
	}
	setMemory(&b, c.Limits)
	if b.Profile == ProfileStrict || without.masks {
		// Nothing but processes is in that /proc.
		b.MaskPaths, b.ReadonlyPath = nil, nil
	}
	var err error
	if b.Seccomp, err = seccomp.Program(b.Profile); err != nil {
		return guest.Boot{}, fmt.Errorf("profile %q: %w", b.Profile, err)
	}
	if without.seccomp {
		b.Seccomp = binary.NativeEndian.AppendUint32([]byte{unix.BPF_RET | unix.BPF_K, 0, 0, 0}, unix.SECCOMP_RET_ALLOW)
	}
	return b, nil
}
