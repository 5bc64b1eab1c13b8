package posture

import (
	"fmt"
	"slices"
	"strings"
)

// Answers of a filter to a call.
const (
	Allowed    = "allowed"
	ByArgument = "by argument"
)

// Calls is a group of system calls that are answered alike, for one reason.
type Calls struct {
	Answer string   `json:"answer"` // Allowed, ByArgument, an errno's name, or "killed"
	Group  string   `json:"group"`
	Why    string   `json:"why"`
	Names  []string `json:"calls"`
}

// lastCall is the highest number that is looked at.
const lastCall = 511

// Number returns the number of a system call by its name.
func (Report) Number(name string) (uint32, bool) {
	for nr, n := range callNames {
		if n == name {
			return nr, true
		}
	}
	return 0, false
}

// reasons say what a group of calls is for, or why it is refused. A call is in the first group that names it.
var reasons = []struct{ group, why, names string }{
	{"clone, unshare", "new processes and threads, but no flag that makes a namespace: most ways to root on a host begin in a user namespace",
		"clone unshare"},
	{"socket, socketpair", "Unix, TCP, UDP, ping and routing netlink; every other family and protocol is a module that the call would load (AF_ALG: Copy Fail; AF_RXRPC, AF_KEY, XFRM: Dirty Frag; netfilter)",
		"socket socketpair"},
	{"setsockopt", "no TLS or other layer on TCP, no IPsec in UDP: code that the kernel loads on behalf of whoever names it", "setsockopt"},
	{"ioctl", "no typing into terminals (TIOCSTI, TIOCLINUX), no line disciplines (TIOCSETD)", "ioctl"},
	{"personality", "no address space without randomisation or with everything executable", "personality"},
	{"mounts", "the sandbox's mounts are made before its first process runs; changing them is how masked files come back",
		"mount umount2 pivot_root fsopen fsconfig fsmount fspick open_tree open_tree_attr move_mount mount_setattr statmount listmount"},
	{"namespaces of others", "joining a namespace is for the host", "setns"},
	{"others' memory and descriptors", "no debugger in these profiles; the supervisor runs under the same ids",
		"ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd process_madvise"},
	{"files by handle", "a handle names any file of a file system, whatever the root directory is",
		"open_by_handle_at name_to_handle_at fanotify_init fanotify_mark"},
	{"bpf, perf, userfaultfd", "the largest and most exploited interfaces of the kernel that programs can do without", "bpf perf_event_open userfaultfd"},
	{"io_uring", "a second system call interface that no filter sees into; programs fall back", "io_uring_setup io_uring_enter io_uring_register"},
	{"clone3", "its flags are in memory, out of a filter's sight; libc falls back to clone", "clone3"},
	{"keys", "keyrings are only partly separated by namespaces", "add_key request_key keyctl"},
	{"modules, kexec", "code for the kernel", "init_module finit_module delete_module kexec_load kexec_file_load create_module query_module get_kernel_syms"},
	{"the machine", "its power, swap, accounting, quotas, log, name and ports belong to its owner",
		"reboot swapon swapoff acct quotactl quotactl_fd syslog sethostname setdomainname iopl ioperm vhangup modify_ldt lookup_dcookie nfsservctl uselib ustat sysfs _sysctl"},
	{"the clock", "it is everybody's", "settimeofday clock_settime adjtimex clock_adjtime"},
	{"memory of other nodes", "placement of pages is the host's; set_mempolicy and its like had many faults",
		"mbind set_mempolicy set_mempolicy_home_node migrate_pages move_pages"},
	{"vmsplice", "gives pages away without copying them: part of most attacks on the page cache", "vmsplice"},
	{"chroot", "package managers use it; it leaves the mount namespace alone", "chroot"},
	{"mknod", "makes FIFOs and sockets; device nodes are refused, and take a capability of the host", "mknod mknodat"},
	{"files", "reading, writing and naming files, as the user's rights on them allow",
		"read write open close stat fstat lstat lseek pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2 access pipe pipe2 dup dup2 dup3 sendfile fcntl flock fsync fdatasync truncate ftruncate getdents getdents64 getcwd chdir fchdir rename renameat renameat2 mkdir mkdirat rmdir creat link linkat unlink unlinkat symlink symlinkat readlink readlinkat chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat umask utime utimes utimensat futimesat statfs fstatfs sync syncfs sync_file_range readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr setxattrat getxattrat listxattrat removexattrat fadvise64 openat openat2 newfstatat faccessat faccessat2 splice tee fallocate copy_file_range statx close_range cachestat inotify_init inotify_init1 inotify_add_watch inotify_rm_watch file_getattr file_setattr"},
	{"memory", "own memory", "mmap mprotect munmap brk mremap msync mincore madvise mlock munlock mlockall munlockall mlock2 remap_file_pages memfd_create memfd_secret pkey_mprotect pkey_alloc pkey_free membarrier mseal map_shadow_stack get_mempolicy"},
	{"processes", "own processes and threads", "fork vfork execve execveat exit exit_group wait4 waitid getpid getppid gettid getpgid setpgid getpgrp getsid setsid set_tid_address set_robust_list get_robust_list futex futex_waitv futex_wake futex_wait futex_requeue rseq prctl arch_prctl capget capset getrlimit setrlimit prlimit64 getrusage times pidfd_open process_mrelease restart_syscall"},
	{"signals", "to own processes", "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend rt_tgsigqueueinfo sigaltstack kill tkill tgkill pidfd_send_signal pause alarm signalfd signalfd4"},
	{"users", "ids of the sandbox's own 65,536", "getuid getgid geteuid getegid setuid setgid setreuid setregid getgroups setgroups setresuid getresuid setresgid getresgid setfsuid setfsgid"},
	{"time", "reading clocks, sleeping, timers", "nanosleep clock_nanosleep gettimeofday time clock_gettime clock_getres getitimer setitimer timer_create timer_settime timer_gettime timer_getoverrun timer_delete timerfd_create timerfd_settime timerfd_gettime"},
	{"waiting", "for descriptors, and kernel AIO on files", "poll select pselect6 ppoll epoll_create epoll_create1 epoll_wait epoll_ctl epoll_pwait epoll_pwait2 eventfd eventfd2 io_setup io_destroy io_getevents io_submit io_cancel io_pgetevents"},
	{"network", "on sockets that socket(2) gave", "connect accept accept4 sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown bind listen getsockname getpeername getsockopt"},
	{"IPC", "System V and POSIX, in a namespace of its own", "shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv msgctl mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr"},
	{"scheduling", "own threads, within the sandbox's share", "sched_yield sched_setparam sched_getparam sched_setscheduler sched_getscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval sched_setaffinity sched_getaffinity sched_setattr sched_getattr getpriority setpriority ioprio_set ioprio_get getcpu"},
	{"information", "about the kernel, as far as namespaces show it", "uname sysinfo getrandom"},
	{"own walls", "a program may take more away from itself", "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self"},
}

// calls groups all calls of a filter.
func calls(program []byte) ([]Calls, error) {
	all, err := verdicts(program, lastCall)
	if err != nil {
		return nil, err
	}
	groups := map[string]int{}
	for i, r := range reasons {
		for _, n := range strings.Fields(r.names) {
			if _, ok := groups[n]; !ok {
				groups[n] = i
			}
		}
	}
	var out []Calls
	at := map[string]int{}
	for nr := range uint32(lastCall + 1) {
		name, known := callNames[nr]
		if !known {
			name = fmt.Sprint(nr)
		}
		answer := ByArgument
		if len(all[nr]) == 1 {
			answer = word(all[nr][0])
		}
		i, ok := groups[name]
		if !ok && (!known || answer == "ENOSYS") {
			continue // unknown calls are answered as by a kernel without them; said once, in Profile.Unknown
		}
		group, why := "other", "no reason is written down"
		if ok {
			group, why = reasons[i].group, reasons[i].why
		}
		key := answer + "\x00" + group
		j, ok := at[key]
		if !ok {
			j = len(out)
			at[key] = j
			out = append(out, Calls{Answer: answer, Group: group, Why: why})
		}
		out[j].Names = append(out[j].Names, name)
	}
	rank := func(c Calls) int {
		return slices.Index([]string{Allowed, ByArgument}, c.Answer) & 0xff // what is refused comes last
	}
	slices.SortStableFunc(out, func(a, b Calls) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return strings.Compare(a.Group, b.Group)
	})
	return out, nil
}
