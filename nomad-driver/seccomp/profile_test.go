package seccomp

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// call is the part of struct seccomp_data that programs look at.
type call struct {
	nr, arch uint32
	args     [6]uint64
}

func amd64(nr uint32, args ...uint64) call {
	c := call{nr: nr, arch: unix.AUDIT_ARCH_X86_64}
	copy(c.args[:], args)
	return c
}

// run interprets a program as the kernel does and returns its verdict and how many instructions that took.
func run(t *testing.T, prog []unix.SockFilter, c call) (verdict, int) {
	t.Helper()
	var acc uint32
	for pc, n := 0, 1; ; n++ {
		if pc >= len(prog) {
			t.Fatalf("call %+v runs past the program's end", c)
		}
		f := prog[pc]
		jump := func(holds bool) {
			if holds {
				pc += int(f.Jt)
			} else {
				pc += int(f.Jf)
			}
		}
		switch f.Code {
		case opLoad:
			switch {
			case f.K == offsetNr:
				acc = c.nr
			case f.K == offsetArch:
				acc = c.arch
			case f.K >= offsetArgs && f.K%8 == 0:
				acc = uint32(c.args[(f.K-offsetArgs)/8])
			default:
				t.Fatalf("load of offset %d", f.K)
			}
		case opAnd:
			acc &= f.K
		case opEqual:
			jump(acc == f.K)
		case opGE:
			jump(acc >= f.K)
		case opJump:
			pc += int(f.K)
		case opRet:
			return verdict(f.K), n
		default:
			t.Fatalf("instruction %#x", f.Code)
		}
		pc++
	}
}

func (v verdict) String() string {
	switch {
	case v == allow:
		return "allow"
	case v == kill:
		return "kill"
	case v&unix.SECCOMP_RET_ACTION == unix.SECCOMP_RET_ERRNO:
		return unix.ErrnoName(unix.Errno(v & unix.SECCOMP_RET_DATA))
	}
	return fmt.Sprintf("%#x", uint32(v))
}

func mustCompile(t *testing.T, p policy) []unix.SockFilter {
	t.Helper()
	prog, err := p.compile()
	if err != nil {
		t.Fatal(err)
	}
	return prog
}

func TestPolicies_decideCalls(t *testing.T) {
	base, strict := mustCompile(t, basePolicy()), mustCompile(t, strictPolicy())
	high := uint64(1) << 40 // the kernel looks at the low half only
	for _, tt := range []struct {
		name         string
		call         call
		base, strict string // strict: as base where empty
	}{
		{"read", amd64(unix.SYS_READ), "allow", ""},
		{"execve", amd64(unix.SYS_EXECVE), "allow", ""},
		{"chroot", amd64(unix.SYS_CHROOT), "allow", "EPERM"},
		{"vmsplice", amd64(unix.SYS_VMSPLICE), "allow", "EPERM"},
		{"i386 entry", call{nr: 3, arch: unix.AUDIT_ARCH_I386}, "kill", ""},
		{"x32 entry", amd64(0x40000000), "kill", ""},
		{"x32 mount", amd64(0x40000000 | unix.SYS_MOUNT), "kill", ""},
		{"fork by clone", amd64(unix.SYS_CLONE, uint64(unix.SIGCHLD)), "allow", ""},
		{"thread by clone", amd64(unix.SYS_CLONE, unix.CLONE_VM|unix.CLONE_FS|unix.CLONE_FILES|unix.CLONE_SIGHAND|unix.CLONE_THREAD), "allow", ""},
		{"clone newuser", amd64(unix.SYS_CLONE, unix.CLONE_NEWUSER), "EPERM", ""},
		{"clone newns with others", amd64(unix.SYS_CLONE, unix.CLONE_NEWNS|unix.CLONE_VM), "EPERM", ""},
		{"clone newuser behind high bits", amd64(unix.SYS_CLONE, unix.CLONE_NEWUSER|high), "EPERM", ""},
		{"clone3", amd64(unix.SYS_CLONE3), "ENOSYS", ""},
		{"unshare files", amd64(unix.SYS_UNSHARE, unix.CLONE_FILES), "allow", ""},
		{"unshare newuser", amd64(unix.SYS_UNSHARE, unix.CLONE_NEWUSER), "EPERM", ""},
		{"unshare newtime", amd64(unix.SYS_UNSHARE, unix.CLONE_NEWTIME), "EPERM", ""},
		{"setns", amd64(unix.SYS_SETNS), "EPERM", ""},
		{"mount", amd64(unix.SYS_MOUNT), "EPERM", ""},
		{"umount2", amd64(unix.SYS_UMOUNT2), "EPERM", ""},
		{"pivot_root", amd64(unix.SYS_PIVOT_ROOT), "EPERM", ""},
		{"fsopen", amd64(unix.SYS_FSOPEN), "EPERM", ""},
		{"open_tree", amd64(unix.SYS_OPEN_TREE), "EPERM", ""},
		{"move_mount", amd64(unix.SYS_MOVE_MOUNT), "EPERM", ""},
		{"mount_setattr", amd64(unix.SYS_MOUNT_SETATTR), "EPERM", ""},
		{"open_by_handle_at", amd64(unix.SYS_OPEN_BY_HANDLE_AT), "EPERM", ""},
		{"init_module", amd64(unix.SYS_INIT_MODULE), "EPERM", ""},
		{"finit_module", amd64(unix.SYS_FINIT_MODULE), "EPERM", ""},
		{"kexec_load", amd64(unix.SYS_KEXEC_LOAD), "EPERM", ""},
		{"reboot", amd64(unix.SYS_REBOOT), "EPERM", ""},
		{"swapon", amd64(unix.SYS_SWAPON), "EPERM", ""},
		{"acct", amd64(unix.SYS_ACCT), "EPERM", ""},
		{"settimeofday", amd64(unix.SYS_SETTIMEOFDAY), "EPERM", ""},
		{"iopl", amd64(unix.SYS_IOPL), "EPERM", ""},
		{"bpf", amd64(unix.SYS_BPF), "EPERM", ""},
		{"perf_event_open", amd64(unix.SYS_PERF_EVENT_OPEN), "EPERM", ""},
		{"userfaultfd", amd64(unix.SYS_USERFAULTFD), "EPERM", ""},
		{"io_uring_setup", amd64(unix.SYS_IO_URING_SETUP), "ENOSYS", ""},
		{"keyctl", amd64(unix.SYS_KEYCTL), "EPERM", ""},
		{"add_key", amd64(unix.SYS_ADD_KEY), "EPERM", ""},
		{"request_key", amd64(unix.SYS_REQUEST_KEY), "EPERM", ""},
		{"quotactl", amd64(unix.SYS_QUOTACTL), "EPERM", ""},
		{"ptrace", amd64(unix.SYS_PTRACE, 16), "EPERM", ""},
		{"process_vm_writev", amd64(unix.SYS_PROCESS_VM_WRITEV), "EPERM", ""},
		{"pidfd_getfd", amd64(unix.SYS_PIDFD_GETFD), "EPERM", ""},
		{"personality ask", amd64(unix.SYS_PERSONALITY, 0xffffffff), "allow", ""},
		{"personality linux", amd64(unix.SYS_PERSONALITY, 0), "allow", ""},
		{"personality linux32", amd64(unix.SYS_PERSONALITY, 8), "allow", ""},
		{"personality no randomisation", amd64(unix.SYS_PERSONALITY, 0x40000), "EPERM", ""},
		{"socket unix", amd64(unix.SYS_SOCKET, unix.AF_UNIX), "allow", ""},
		{"socket inet", amd64(unix.SYS_SOCKET, unix.AF_INET), "allow", ""},
		{"socket inet6", amd64(unix.SYS_SOCKET, unix.AF_INET6), "allow", ""},
		{"socket tcp", amd64(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP), "allow", ""},
		{"socket mptcp", amd64(unix.SYS_SOCKET, unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_MPTCP), "allow", ""},
		{"socket sctp", amd64(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP), "EPROTONOSUPPORT", ""},
		{"socket smc behind inet6", amd64(unix.SYS_SOCKET, unix.AF_INET6, unix.SOCK_STREAM, 256), "EPROTONOSUPPORT", ""},
		{"setsockopt nodelay", amd64(unix.SYS_SETSOCKOPT, 3, unix.IPPROTO_TCP, unix.TCP_NODELAY), "allow", ""},
		{"setsockopt reuse", amd64(unix.SYS_SETSOCKOPT, 3, unix.SOL_SOCKET, unix.SO_REUSEADDR), "allow", ""},
		{"setsockopt tls on tcp", amd64(unix.SYS_SETSOCKOPT, 3, unix.IPPROTO_TCP, unix.TCP_ULP), "ENOPROTOOPT", ""},
		{"setsockopt ipsec in udp", amd64(unix.SYS_SETSOCKOPT, 3, unix.IPPROTO_UDP, 100), "ENOPROTOOPT", ""},
		{"ioctl line discipline", amd64(unix.SYS_IOCTL, 3, unix.TIOCSETD), "EPERM", ""},
		{"socket netlink route", amd64(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE), "allow", ""},
		{"socket netlink xfrm", amd64(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_XFRM), "EPROTONOSUPPORT", ""},
		{"socket netlink netfilter", amd64(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER), "EPROTONOSUPPORT", ""},
		{"socket netlink audit", amd64(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT), "EPROTONOSUPPORT", ""},
		{"socket alg", amd64(unix.SYS_SOCKET, unix.AF_ALG), "EAFNOSUPPORT", ""},
		{"socket alg behind high bits", amd64(unix.SYS_SOCKET, unix.AF_ALG|high), "EAFNOSUPPORT", ""},
		{"socket rxrpc", amd64(unix.SYS_SOCKET, unix.AF_RXRPC), "EAFNOSUPPORT", ""},
		{"socket key", amd64(unix.SYS_SOCKET, unix.AF_KEY), "EAFNOSUPPORT", ""},
		{"socket vsock", amd64(unix.SYS_SOCKET, unix.AF_VSOCK), "EAFNOSUPPORT", ""},
		{"socket packet", amd64(unix.SYS_SOCKET, unix.AF_PACKET), "EAFNOSUPPORT", ""},
		{"socket of a family to come", amd64(unix.SYS_SOCKET, 99), "EAFNOSUPPORT", ""},
		{"socketpair unix", amd64(unix.SYS_SOCKETPAIR, unix.AF_UNIX), "allow", ""},
		{"socketpair tipc", amd64(unix.SYS_SOCKETPAIR, unix.AF_TIPC), "EAFNOSUPPORT", ""},
		{"mknod fifo", amd64(unix.SYS_MKNOD, 0, unix.S_IFIFO|0o600), "allow", "EPERM"},
		{"mknod device", amd64(unix.SYS_MKNOD, 0, unix.S_IFCHR|0o600), "EPERM", ""},
		{"mknodat block device", amd64(unix.SYS_MKNODAT, 0, 0, unix.S_IFBLK|0o600), "EPERM", ""},
		{"mknodat socket", amd64(unix.SYS_MKNODAT, 0, 0, unix.S_IFSOCK|0o600), "allow", "EPERM"},
		{"ioctl window size", amd64(unix.SYS_IOCTL, 0, unix.TIOCGWINSZ), "allow", ""},
		{"ioctl typing into a terminal", amd64(unix.SYS_IOCTL, 0, unix.TIOCSTI), "EPERM", ""},
		{"a call to come", amd64(9999), "ENOSYS", ""},
		{"the last number of the ABI", amd64(0x3fffffff), "ENOSYS", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, _ := run(t, base, tt.call); got.String() != tt.base {
				t.Errorf("default: %v, want %s", got, tt.base)
			}
			want := tt.strict
			if want == "" {
				want = tt.base
			}
			if got, _ := run(t, strict, tt.call); got.String() != want {
				t.Errorf("strict: %v, want %s", got, want)
			}
		})
	}
}

// TestCompile_keepsEveryRule compares the program with the policy it came from, for every number.
func TestCompile_keepsEveryRule(t *testing.T) {
	p := basePolicy()
	prog := mustCompile(t, p)
	longest := 0
	for nr := range uint32(1024) {
		r, ok := p.rules[nr]
		if !ok {
			r = rule{otherwise: p.otherwise}
		}
		got, n := run(t, prog, amd64(nr, ^uint64(0), ^uint64(0), ^uint64(0)))
		want := r.otherwise
		for _, c := range r.tests {
			if c.mask == 0 && c.want == ^uint32(0) && c.also == nil {
				want = c.then
			}
		}
		if got != want {
			t.Errorf("call %d: %v, want %v", nr, got, want)
		}
		longest = max(longest, n)
	}
	// Seven levels of comparisons, the prologue and the longest list of tests, which is that of socket(2).
	if longest > 64 {
		t.Errorf("the longest way takes %d instructions", longest)
	}
	t.Logf("%d instructions, the longest way takes %d", len(prog), longest)
}

func TestTree_reachesBeyondShortJumps(t *testing.T) {
	p := policy{rules: make(map[uint32]rule), otherwise: fail(unix.ENOSYS)}
	for nr := range uint32(1000) {
		p.rules[nr*2] = rule{otherwise: fail(unix.Errno(nr%100 + 1))}
	}
	prog := mustCompile(t, p)
	for nr := range uint32(2000) {
		want := p.otherwise
		if nr%2 == 0 {
			want = fail(unix.Errno(nr/2%100 + 1))
		}
		if got, _ := run(t, prog, amd64(nr)); got != want {
			t.Fatalf("call %d: %v, want %v", nr, got, want)
		}
	}
}

func TestProgram_refusesUnknownProfiles(t *testing.T) {
	for _, name := range []string{"default", "strict"} {
		b, err := Program(name)
		if err != nil || len(b) == 0 || len(b)%8 != 0 {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	if _, err := Program("none"); err == nil {
		t.Error("an unknown profile has a program")
	}
}
