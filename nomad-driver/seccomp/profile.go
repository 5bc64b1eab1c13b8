package seccomp

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Program returns the compiled filter of a profile, "default" or "strict": sock_filter records, native endian. It must not
// be changed: all callers get the same bytes.
func Program(profile string) ([]byte, error) {
	switch profile {
	case "default":
		return defaultProgram()
	case "strict":
		return strictProgram()
	}
	return nil, fmt.Errorf("seccomp profile %q is neither default nor strict", profile)
}

var (
	defaultProgram = sync.OnceValues(func() ([]byte, error) { return program(basePolicy()) })
	strictProgram  = sync.OnceValues(func() ([]byte, error) { return program(strictPolicy()) })
)

func program(p policy) ([]byte, error) {
	prog, err := p.compile()
	if err != nil {
		return nil, err
	}
	return encode(prog), nil
}

// Flags of clone(2) and unshare(2) that make namespaces. In clone's flags the bit of CLONE_NEWTIME belongs to the signal.
const (
	cloneNamespaces   = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET
	unshareNamespaces = cloneNamespaces | unix.CLONE_NEWTIME
)

// basePolicy is an allow-list. What is refused on purpose gets EPERM, what the list does not know ENOSYS: a libc that
// probes for a new call then takes the old one.
func basePolicy() policy {
	p := policy{rules: make(map[uint32]rule), otherwise: fail(unix.ENOSYS)}
	for _, n := range allowed {
		p.rules[uint32(n)] = rule{otherwise: allow}
	}
	for _, n := range refused {
		p.rules[uint32(n)] = rule{otherwise: fail(unix.EPERM)}
	}
	for _, n := range absent {
		p.rules[uint32(n)] = rule{otherwise: fail(unix.ENOSYS)}
	}
	p.rules[unix.SYS_CLONE] = rule{
		tests:     []test{{arg: 0, mask: cloneNamespaces, want: 0, then: allow}},
		otherwise: fail(unix.EPERM),
	}
	p.rules[unix.SYS_UNSHARE] = rule{
		tests:     []test{{arg: 0, mask: unshareNamespaces, want: 0, then: allow}},
		otherwise: fail(unix.EPERM),
	}
	// Families by allow-list: AF_ALG, AF_RXRPC, AF_KEY, AF_VSOCK, AF_PACKET, AF_XDP and all that are yet to come are not
	// there. The errors are those of a kernel without them, which libraries (PAM's audit, for one) take well.
	p.rules[unix.SYS_SOCKET] = rule{
		tests: []test{
			{arg: 0, want: unix.AF_UNIX, then: allow},
			{arg: 0, want: unix.AF_INET, then: allow},
			{arg: 0, want: unix.AF_INET6, then: allow},
			{arg: 0, want: unix.AF_NETLINK, also: &test{arg: 2, want: unix.NETLINK_ROUTE}, then: allow},
			{arg: 0, want: unix.AF_NETLINK, then: fail(unix.EPROTONOSUPPORT)},
		},
		otherwise: fail(unix.EAFNOSUPPORT),
	}
	p.rules[unix.SYS_SOCKETPAIR] = rule{
		tests:     []test{{arg: 0, want: unix.AF_UNIX, then: allow}},
		otherwise: fail(unix.EAFNOSUPPORT),
	}
	const uname26 = 0x20000
	p.rules[unix.SYS_PERSONALITY] = rule{
		tests: []test{
			{arg: 0, want: 0, then: allow},       // PER_LINUX
			{arg: 0, want: 8, then: allow},       // PER_LINUX32
			{arg: 0, want: uname26, then: allow}, // with the old version number
			{arg: 0, want: uname26 | 8, then: allow},
			{arg: 0, want: 0xffffffff, then: allow}, // only asks
		},
		otherwise: fail(unix.EPERM),
	}
	// Typing into a terminal on behalf of whoever reads it.
	p.rules[unix.SYS_IOCTL] = rule{
		tests: []test{
			{arg: 1, want: unix.TIOCSTI, then: fail(unix.EPERM)},
			{arg: 1, want: unix.TIOCLINUX, then: fail(unix.EPERM)},
		},
		otherwise: allow,
	}
	return p
}

func strictPolicy() policy {
	p := basePolicy()
	for _, n := range []uint32{unix.SYS_VMSPLICE, unix.SYS_CHROOT, unix.SYS_MKNOD, unix.SYS_MKNODAT} {
		p.rules[n] = rule{otherwise: fail(unix.EPERM)}
	}
	return p
}
