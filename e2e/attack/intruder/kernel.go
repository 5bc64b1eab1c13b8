package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func socket(family, kind, protocol int) string {
	fd, err := unix.Socket(family, kind, protocol)
	if err == nil {
		_ = unix.Close(fd)
	}
	return answer(err)
}

func try(name string, nr uintptr, args ...uintptr) attempt {
	return attempt{name, func() string { return call(nr, args...) }}
}

var namespaces = []struct {
	name string
	flag uintptr
}{
	{"CLONE_NEWUSER", unix.CLONE_NEWUSER}, {"CLONE_NEWNS", unix.CLONE_NEWNS}, {"CLONE_NEWNET", unix.CLONE_NEWNET},
	{"CLONE_NEWPID", unix.CLONE_NEWPID}, {"CLONE_NEWIPC", unix.CLONE_NEWIPC}, {"CLONE_NEWUTS", unix.CLONE_NEWUTS},
	{"CLONE_NEWCGROUP", unix.CLONE_NEWCGROUP}, {"CLONE_NEWTIME", unix.CLONE_NEWTIME},
}

func init() {
	cases["K01"] = []attempt{
		{"socket(AF_ALG, SOCK_SEQPACKET)", func() string { return socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0) }},
		{"socket(AF_ALG | 1<<32)", func() string { return call(unix.SYS_SOCKET, unix.AF_ALG|1<<32, unix.SOCK_SEQPACKET) }},
		{"socketpair(AF_ALG)", func() string {
			var fds [2]int32
			return call(unix.SYS_SOCKETPAIR, unix.AF_ALG, unix.SOCK_SEQPACKET, 0, pointer(&fds))
		}},
	}
	for _, f := range []struct {
		name         string
		family, kind int
	}{
		{"AF_RXRPC", 33, unix.SOCK_DGRAM}, {"AF_KEY", 15, unix.SOCK_RAW}, {"AF_VSOCK", 40, unix.SOCK_STREAM},
		{"AF_PACKET", 17, unix.SOCK_RAW}, {"AF_XDP", 44, unix.SOCK_RAW}, {"AF_TIPC", 30, unix.SOCK_RDM}, {"AF_CAN", 29, unix.SOCK_RAW},
		{"AF_BLUETOOTH", 31, unix.SOCK_RAW}, {"AF_SMC", 43, unix.SOCK_STREAM}, {"AF_RDS", 21, unix.SOCK_SEQPACKET}, {"AF_PPPOX", 24, unix.SOCK_DGRAM},
		{"AF_QIPCRTR", 42, unix.SOCK_DGRAM}, {"AF_NFC", 39, unix.SOCK_SEQPACKET}, {"AF_KCM", 41, unix.SOCK_DGRAM},
	} {
		cases["K02"] = append(cases["K02"], attempt{"socket(" + f.name + ")", func() string { return socket(f.family, f.kind, 0) }})
	}
	cases["K02"] = append(cases["K02"], attempt{"socket of every other family", func() string {
		return tally(0, 128, func(f int) string {
			switch f {
			case unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK:
				return ""
			}
			return socket(f, unix.SOCK_DGRAM, 0)
		})
	}})
	cases["K03"] = []attempt{
		{"socket(AF_NETLINK, NETLINK_XFRM)", func() string { return socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_XFRM) }},
		{"socket(AF_NETLINK, NETLINK_NETFILTER)", func() string { return socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER) }},
		{"socket(AF_NETLINK, every other)", func() string {
			return tally(1, 64, func(p int) string { return socket(unix.AF_NETLINK, unix.SOCK_RAW, p) })
		}},
		{"make a network interface", func() string { return newLink("dummy") }},
		{"make a veth to the host's namespace", func() string { return newLink("veth") }},
		{"raw socket", func() string { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) }},
		{"raw socket, IPv6", func() string { return socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6) }},
	}
	// Protocols of the Internet that few need, and whose code few read.
	for _, p := range []struct {
		name           string
		kind, protocol int
	}{
		{"SCTP", unix.SOCK_STREAM, 132}, {"DCCP", 6, 33}, {"UDPLITE", unix.SOCK_DGRAM, 136}, {"L2TP", unix.SOCK_DGRAM, 115},
		{"SMC", unix.SOCK_STREAM, 256}, {"VSOCK over IP", unix.SOCK_STREAM, 254},
	} {
		cases["K04"] = append(cases["K04"], attempt{"socket(AF_INET, " + p.name + ")", func() string { return socket(unix.AF_INET, p.kind, p.protocol) }})
	}
	var params [120]byte
	cases["K05"] = []attempt{
		{"io_uring_setup", func() string { return call(unix.SYS_IO_URING_SETUP, 1, pointer(&params)) }},
		try("io_uring_enter", unix.SYS_IO_URING_ENTER, 3, 1, 0, 0),
		try("io_uring_register", unix.SYS_IO_URING_REGISTER, ^uintptr(0), 0, 0, 0),
	}
	cases["K06"] = []attempt{
		{"bpf(BPF_MAP_CREATE)", func() string {
			attr := [32]uint32{2, 4, 4, 1}
			return call(unix.SYS_BPF, unix.BPF_MAP_CREATE, pointer(&attr), 64)
		}},
		{"bpf(BPF_PROG_LOAD)", func() string {
			insns := [2]uint64{0xb7, 0x95} // r0 = 0; exit
			license := text("GPL")
			attr := [16]uint64{uint64(unix.BPF_PROG_TYPE_SOCKET_FILTER) | 2<<32, uint64(pointer(&insns)), uint64(license)}
			return call(unix.SYS_BPF, unix.BPF_PROG_LOAD, pointer(&attr), 48)
		}},
		{"perf_event_open", func() string {
			attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}
			return call(unix.SYS_PERF_EVENT_OPEN, pointer(&attr), 0, ^uintptr(0), ^uintptr(0), 0)
		}},
		try("userfaultfd(0)", unix.SYS_USERFAULTFD, 0),
		try("userfaultfd(UFFD_USER_MODE_ONLY)", unix.SYS_USERFAULTFD, 1),
		{"open /dev/userfaultfd", func() string { return openAt("/dev/userfaultfd", unix.O_RDWR) }},
	}
	cases["K07"] = []attempt{
		{"add_key", func() string {
			return call(unix.SYS_ADD_KEY, text("user"), text("intruder"), text("x"), 1, uintptr(0xfffffffd)) // KEY_SPEC_SESSION_KEYRING
		}},
		{"request_key of the host's", func() string { return call(unix.SYS_REQUEST_KEY, text("user"), text("soulbox-attack-canary"), 0, 0) }},
		try("keyctl(SHOW session)", unix.SYS_KEYCTL, 0, uintptr(0xfffffffd), 0),
		try("keyctl(JOIN_SESSION_KEYRING)", unix.SYS_KEYCTL, 1, 0),
		{"keyctl(READ) of every key id up to 1000", func() string {
			return tally(1, 1000, func(id int) string { return call(unix.SYS_KEYCTL, 11, uintptr(id), 0, 0) })
		}},
		{"read /proc/keys", func() string { return content("/proc/keys") }},
		{"read /proc/key-users", func() string { return content("/proc/key-users") }},
	}
	for _, ns := range namespaces {
		cases["K08"] = append(cases["K08"], try("unshare("+ns.name+")", unix.SYS_UNSHARE, ns.flag),
			try("unshare("+ns.name+" | 1<<40)", unix.SYS_UNSHARE, ns.flag|1<<40))
		if ns.flag != unix.CLONE_NEWTIME { // the bit belongs to the signal there
			cases["K08"] = append(cases["K08"], attempt{"clone(" + ns.name + ")", func() string { return clone(ns.flag) }})
		}
		cases["K08"] = append(cases["K08"], attempt{"clone3(" + ns.name + ")", func() string {
			args := [11]uint64{uint64(ns.flag)}
			return child(unix.RawSyscall(unix.SYS_CLONE3, pointer(&args), 88, 0))
		}})
	}
	cases["K09"] = []attempt{
		{"mount(tmpfs)", func() string { return call(unix.SYS_MOUNT, text("none"), text("/tmp"), text("tmpfs"), 0, 0) }},
		{"mount(proc)", func() string { return call(unix.SYS_MOUNT, text("none"), text("/tmp"), text("proc"), 0, 0) }},
		{"mount(cgroup)", func() string {
			return call(unix.SYS_MOUNT, text("none"), text("/tmp"), text("cgroup"), 0, text("memory"))
		}},
		{"mount(bind /)", func() string { return call(unix.SYS_MOUNT, text("/"), text("/tmp"), 0, unix.MS_BIND, 0) }},
		{"umount2(/proc/sys)", func() string { return call(unix.SYS_UMOUNT2, text("/proc/sys"), unix.MNT_DETACH) }},
		{"umount2(/)", func() string { return call(unix.SYS_UMOUNT2, text("/"), unix.MNT_DETACH) }},
		{"pivot_root", func() string { return call(unix.SYS_PIVOT_ROOT, text("/tmp"), text("/tmp")) }},
		{"fsopen(tmpfs)", func() string { return call(unix.SYS_FSOPEN, text("tmpfs"), 0) }},
		try("fsconfig", unix.SYS_FSCONFIG, 3, 6, 0, 0, 0),
		try("fsmount", unix.SYS_FSMOUNT, 3, 0, 0),
		{"fspick(/)", func() string { return call(unix.SYS_FSPICK, uintptr(^uintptr(99)), text("/"), 0) }},
		{"open_tree(/, CLONE)", func() string { return call(unix.SYS_OPEN_TREE, ^uintptr(99), text("/"), 1) }},
		{"open_tree_attr", func() string { return call(467, ^uintptr(99), text("/"), 1, 0, 0) }},
		{"move_mount", func() string {
			return call(unix.SYS_MOVE_MOUNT, ^uintptr(99), text("/proc"), ^uintptr(99), text("/tmp"), 0)
		}},
		{"mount_setattr(/proc/sys, rw)", func() string {
			attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
			return call(unix.SYS_MOUNT_SETATTR, ^uintptr(99), text("/proc/sys"), 0, pointer(&attr), unsafe.Sizeof(attr))
		}},
		try("statmount", 457, 0, 0, 0, 0), try("listmount", 458, 0, 0, 0, 0),
	}
	cases["K10"] = []attempt{
		{"name_to_handle_at(/)", func() string {
			h := [32]uint32{120}
			var id int32
			return call(unix.SYS_NAME_TO_HANDLE_AT, ^uintptr(99), text("/"), pointer(&h), pointer(&id), 0)
		}},
		{"open_by_handle_at, inodes 1 to 2000", func() string {
			root, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
			if err != nil {
				return answer(err)
			}
			return tally(1, 2000, func(ino int) string {
				h := [4]uint32{8, 1, uint32(ino), 0} // bytes, FILEID_INO32_GEN, inode, generation
				return call(unix.SYS_OPEN_BY_HANDLE_AT, uintptr(root), uintptr(unsafe.Pointer(&h)), unix.O_RDONLY)
			})
		}},
	}
	var buf [256]byte
	cases["K11"] = []attempt{
		{"init_module", func() string { return call(unix.SYS_INIT_MODULE, pointer(&buf), 256, text("")) }},
		{"finit_module", func() string { return call(unix.SYS_FINIT_MODULE, 0, text(""), 0) }},
		{"delete_module", func() string { return call(unix.SYS_DELETE_MODULE, text("no-such-module"), unix.O_NONBLOCK) }},
		try("kexec_load", unix.SYS_KEXEC_LOAD, 0, 0, 0, 0),
		try("kexec_file_load", unix.SYS_KEXEC_FILE_LOAD, ^uintptr(0), ^uintptr(0), 0, 0, 0),
		try("reboot(CAD_OFF)", unix.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_CAD_OFF, 0),
		{"swapon", func() string { return call(unix.SYS_SWAPON, text("/etc/marker"), 0) }},
		{"swapoff", func() string { return call(unix.SYS_SWAPOFF, text("/etc/marker")) }},
		{"acct", func() string { return call(unix.SYS_ACCT, text("/etc/marker")) }},
		{"settimeofday", func() string { tv := [2]int64{1, 0}; return call(unix.SYS_SETTIMEOFDAY, pointer(&tv), 0) }},
		{"clock_settime", func() string { ts := [2]int64{1, 0}; return call(unix.SYS_CLOCK_SETTIME, 0, pointer(&ts)) }},
		{"adjtimex", func() string { tx := unix.Timex{Modes: 1}; return call(unix.SYS_ADJTIMEX, pointer(&tx)) }},
		{"clock_adjtime", func() string { tx := unix.Timex{Modes: 1}; return call(unix.SYS_CLOCK_ADJTIME, 0, pointer(&tx)) }},
		try("iopl(3)", unix.SYS_IOPL, 3), try("ioperm", unix.SYS_IOPERM, 0x70, 2, 1),
		{"modify_ldt", func() string { return call(unix.SYS_MODIFY_LDT, 1, pointer(&buf), 16) }},
		{"sethostname", func() string { return call(unix.SYS_SETHOSTNAME, text("owned"), 5) }},
		{"setdomainname", func() string { return call(unix.SYS_SETDOMAINNAME, text("owned"), 5) }},
		{"syslog(READ_ALL)", func() string { return call(unix.SYS_SYSLOG, 3, pointer(&buf), 256) }},
		{"quotactl", func() string { return call(unix.SYS_QUOTACTL, 0x80000100, text("/dev/root"), 0, 0) }},
		try("vhangup", unix.SYS_VHANGUP),
		{"fanotify_init", func() string { return call(unix.SYS_FANOTIFY_INIT, 0, 0) }},
		{"lookup_dcookie", func() string { return call(unix.SYS_LOOKUP_DCOOKIE, 1, pointer(&buf), 256) }},
		try("migrate_pages", unix.SYS_MIGRATE_PAGES, 1, 0, 0, 0), try("move_pages", unix.SYS_MOVE_PAGES, 1, 0, 0, 0, 0, 0),
		{"setpriority(-20)", func() string { return answer(unix.Setpriority(unix.PRIO_PROCESS, 0, -20)) }},
		{"sched_setscheduler(FIFO)", func() string { p := int32(50); return call(unix.SYS_SCHED_SETSCHEDULER, 0, 1, pointer(&p)) }},
		{"ioprio_set(realtime)", func() string { return call(unix.SYS_IOPRIO_SET, 1, 0, 1<<13) }},
		{"raise the limit on open files", func() string {
			return answer(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}))
		}},
		{"raise the limit on core files", func() string { return answer(unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1})) }},
	}
	cases["K13"] = []attempt{
		{"personality(READ_IMPLIES_EXEC)", func() string { return call(unix.SYS_PERSONALITY, 0x0400000) }},
		{"personality(ADDR_NO_RANDOMIZE)", func() string { return call(unix.SYS_PERSONALITY, 0x0040000) }},
		{"ioctl(TIOCSTI)", func() string { c := byte('x'); return call(unix.SYS_IOCTL, 0, unix.TIOCSTI, pointer(&c)) }},
		{"ioctl(TIOCSTI | 1<<32)", func() string { c := byte('x'); return call(unix.SYS_IOCTL, 0, unix.TIOCSTI|1<<32, pointer(&c)) }},
		{"ioctl(TIOCLINUX)", func() string { c := byte(2); return call(unix.SYS_IOCTL, 0, unix.TIOCLINUX, pointer(&c)) }},
		// Line disciplines are loaded as modules by whoever names them, and are written for devices that nobody has here.
		{"line discipline N_HDLC", func() string { return discipline(13) }},
		{"line discipline N_GSM0710", func() string { return discipline(21) }},
		{"line discipline N_SLIP", func() string { return discipline(1) }},
		{"every line discipline", func() string { return tally(1, 31, discipline) }},
		{"layer TLS on TCP", func() string { return layer(unix.SOCK_STREAM, unix.IPPROTO_TCP, unix.TCP_ULP, "tls") }},
		{"layer IPsec in UDP", func() string { return layer(unix.SOCK_DGRAM, unix.IPPROTO_UDP, 100, "\x02\x00\x00\x00") }},
	}
	cases["K14"] = []attempt{
		try("ptrace(ATTACH, 1)", unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1), try("ptrace(SEIZE, 1)", unix.SYS_PTRACE, unix.PTRACE_SEIZE, 1),
		try("ptrace(TRACEME)", unix.SYS_PTRACE, unix.PTRACE_TRACEME),
		{"process_vm_readv(1)", func() string {
			local, remote := unix.Iovec{Base: &buf[0], Len: 8}, [2]uintptr{0x400000, 8}
			pins.Pin(&buf)
			return call(unix.SYS_PROCESS_VM_READV, 1, pointer(&local), 1, pointer(&remote), 1, 0)
		}},
		{"process_vm_writev(1)", func() string {
			local, remote := unix.Iovec{Base: &buf[0], Len: 8}, [2]uintptr{0x400000, 8}
			pins.Pin(&buf)
			return call(unix.SYS_PROCESS_VM_WRITEV, 1, pointer(&local), 1, pointer(&remote), 1, 0)
		}},
		{"pidfd_getfd(1, 3)", func() string {
			fd, err := unix.PidfdOpen(1, 0)
			if err != nil {
				return "pidfd_open: " + answer(err)
			}
			return call(unix.SYS_PIDFD_GETFD, uintptr(fd), 3, 0)
		}},
		try("kcmp(1)", unix.SYS_KCMP, 1, 1, 0, 0, 0),
		{"open /proc/1/mem", func() string { return openAt("/proc/1/mem", unix.O_RDWR) }},
		{"open /proc/1/maps", func() string { return openAt("/proc/1/maps", unix.O_RDONLY) }},
		{"open /proc/1/environ", func() string { return openAt("/proc/1/environ", unix.O_RDONLY) }},
		{"list /proc/1/fd", func() string { _, err := os.ReadDir("/proc/1/fd"); return answer(err) }},
		{"list /proc/1/root", func() string { _, err := os.ReadDir("/proc/1/root/"); return answer(err) }},
		{"list /proc/1/cwd", func() string { _, err := os.ReadDir("/proc/1/cwd/"); return answer(err) }},
		{"list /proc/1/map_files", func() string { _, err := os.ReadDir("/proc/1/map_files"); return answer(err) }},
		{"read the links of /proc/1/fd", func() string { _, err := os.Readlink("/proc/1/fd/4"); return answer(err) }},
		{"open /proc/1/exe for writing", func() string { return openAt("/proc/1/exe", unix.O_WRONLY) }},
		{"raise oom_score_adj of 1", func() string { return answer(os.WriteFile("/proc/1/oom_score_adj", []byte("10"), 0)) }},
		{"lower oom_score_adj of 1", func() string { return answer(os.WriteFile("/proc/1/oom_score_adj", []byte("-1000"), 0)) }},
		{"write -1000 to own oom_score_adj", func() string { return answer(os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)) }},
		{"write own uid_map", func() string { return answer(os.WriteFile("/proc/self/uid_map", []byte("0 0 4294967295"), 0)) }},
		{"ready to be killed: kill(1, SIGKILL) and go on", func() string {
			if err := unix.Kill(1, unix.SIGKILL); err != nil {
				return answer(err)
			}
			return "still here"
		}},
	}
	cases["K18"] = []attempt{
		{"prctl(PR_SET_NO_NEW_PRIVS, 0)", func() string { return call(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0) }},
		{"capset of everything", func() string {
			h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			d := [2]unix.CapUserData{{Effective: ^uint32(0), Permitted: ^uint32(0)}, {Effective: 0x1ff, Permitted: 0x1ff}}
			return call(unix.SYS_CAPSET, pointer(&h), pointer(&d))
		}},
		{"ambient CAP_SYS_ADMIN", func() string {
			return call(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_SYS_ADMIN, 0, 0)
		}},
		{"securebits", func() string { return call(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, 0, 0, 0, 0) }},
		{"PR_SET_MM", func() string { return call(unix.SYS_PRCTL, unix.PR_SET_MM, unix.PR_SET_MM_BRK, 0, 0, 0) }},
		{"bounding and effective set", func() string { return status("CapBnd") + " " + status("CapEff") + " " + status("CapAmb") }},
		{"seccomp mode", func() string { return status("Seccomp") }},
		{"no_new_privs", func() string { return status("NoNewPrivs") }},
	}
	for _, ns := range []string{"mnt", "user", "pid", "net", "ipc", "uts", "cgroup", "time"} {
		cases["K19"] = append(cases["K19"],
			attempt{"setns(/proc/1/ns/" + ns + ")", func() string { return setns("/proc/1/ns/" + ns) }},
			attempt{"setns(own " + ns + ")", func() string { return setns("/proc/self/ns/" + ns) }})
	}
	cases["K19"] = append(cases["K19"],
		attempt{"setns(pidfd of 1)", func() string {
			fd, err := unix.PidfdOpen(1, 0)
			if err != nil {
				return "pidfd_open: " + answer(err)
			}
			return call(unix.SYS_SETNS, uintptr(fd), unix.CLONE_NEWNS|unix.CLONE_NEWUSER)
		}},
		// NS_GET_USERNS, NS_GET_PARENT: descriptors of namespaces further up.
		attempt{"ioctl(NS_GET_PARENT of own pid ns)", func() string { return nsIoctl("pid", 0xb702) }},
		attempt{"ioctl(NS_GET_PARENT of own user ns)", func() string { return nsIoctl("user", 0xb702) }},
		attempt{"ioctl(NS_GET_USERNS of own user ns)", func() string { return nsIoctl("user", 0xb701) }})
	works["namespaces"] = func([]string) error {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}
		for _, e := range entries {
			if _, err := strconv.Atoi(e.Name()); err != nil {
				continue
			}
			for _, ns := range []string{"mnt", "user", "pid", "net", "ipc", "uts", "cgroup"} {
				if link, err := os.Readlink("/proc/" + e.Name() + "/ns/" + ns); err == nil {
					fmt.Println(link)
				}
			}
		}
		return nil
	}
}

// tally makes attempts from first to last and counts the answers.
func tally(first, last int, f func(int) string) string {
	count := map[string]int{}
	var order []string
	for i := first; i <= last; i++ {
		a := f(i)
		if a == "" {
			continue
		}
		if count[a] == 0 {
			order = append(order, a)
		}
		count[a]++
	}
	return strings.Join(order, " ")
}

// clone tries to fork with flags.
func clone(flags uintptr) string {
	return child(unix.RawSyscall6(unix.SYS_CLONE, flags|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0))
}

// child ends a child at once.
func child(pid, _ uintptr, errno unix.Errno) string {
	if errno != 0 {
		return answer(errno)
	}
	if pid == 0 {
		for {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
	return "ok"
}

func setns(path string) string {
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return "open: " + answer(err)
	}
	return call(unix.SYS_SETNS, uintptr(fd), 0)
}

func nsIoctl(ns string, request uintptr) string {
	fd, err := unix.Open("/proc/self/ns/"+ns, unix.O_RDONLY, 0)
	if err != nil {
		return "open: " + answer(err)
	}
	return call(unix.SYS_IOCTL, uintptr(fd), request, 0)
}

func openAt(path string, flags int) string {
	fd, err := unix.Open(path, flags|unix.O_NONBLOCK, 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	return answer(err)
}

// content says whether a file says anything.
func content(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return answer(err)
	}
	if len(b) == 0 {
		return "empty"
	}
	return fmt.Sprintf("%d bytes: %.60q", len(b), b)
}

// status is a field of this process's status.
func status(field string) string {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return answer(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return "none"
}

// discipline sets a line discipline on a new terminal.
func discipline(n int) string {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return "open: " + answer(err)
	}
	defer unix.Close(fd)
	v := int32(n)
	return call(unix.SYS_IOCTL, uintptr(fd), unix.TIOCSETD, uintptr(unsafe.Pointer(&v)))
}

// layer puts a layer of the kernel's on a socket.
func layer(kind, level, name int, value string) string {
	fd, err := unix.Socket(unix.AF_INET, kind, 0)
	if err != nil {
		return "socket: " + answer(err)
	}
	defer unix.Close(fd)
	return answer(unix.SetsockoptString(fd, level, name, value))
}

// newLink asks for a new network interface, a veth with its other end in the namespace of process 1.
func newLink(kind string) string {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return "socket: " + answer(err)
	}
	defer unix.Close(fd)
	attr := func(t uint16, data []byte) []byte {
		b := make([]byte, 4, 4+len(data)+3)
		*(*uint16)(unsafe.Pointer(&b[0])), *(*uint16)(unsafe.Pointer(&b[2])) = uint16(4+len(data)), t
		b = append(b, data...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		return b
	}
	body := make([]byte, unix.SizeofIfInfomsg)
	body = append(body, attr(unix.IFLA_LINKINFO, attr(unix.IFLA_INFO_KIND, []byte(kind)))...)
	body = append(body, attr(unix.IFLA_NET_NS_PID, []byte{1, 0, 0, 0})...)
	msg := make([]byte, unix.SizeofNlMsghdr)
	h := (*unix.NlMsghdr)(unsafe.Pointer(&msg[0]))
	h.Len, h.Type = uint32(len(msg)+len(body)), unix.RTM_NEWLINK
	h.Flags = unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_EXCL
	if err := unix.Sendto(fd, append(msg, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return "send: " + answer(err)
	}
	reply := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, reply, 0)
	if err != nil || n < unix.SizeofNlMsghdr+4 {
		return "receive: " + answer(err)
	}
	if e := *(*int32)(unsafe.Pointer(&reply[unix.SizeofNlMsghdr])); e != 0 {
		return answer(unix.Errno(-e))
	}
	return "ok"
}
