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

// internetProtocols are those of AF_INET and AF_INET6 that programs use. The others (SCTP, DCCP, UDP-Lite, L2TP, SMC, …) are
// modules that a socket call would load.
var internetProtocols = []uint32{
	unix.IPPROTO_IP, unix.IPPROTO_ICMP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6, unix.IPPROTO_RAW, unix.IPPROTO_MPTCP,
}

// udpEncap is UDP_ENCAP of linux/udp.h.
const udpEncap = 100

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
	families := []test{
		{arg: 0, want: unix.AF_UNIX, then: allow},
		{arg: 0, want: unix.AF_NETLINK, also: &test{arg: 2, want: unix.NETLINK_ROUTE}, then: allow},
		{arg: 0, want: unix.AF_NETLINK, then: fail(unix.EPROTONOSUPPORT)},
	}
	for _, family := range []uint32{unix.AF_INET, unix.AF_INET6} {
		for _, protocol := range internetProtocols {
			families = append(families, test{arg: 0, want: family, also: &test{arg: 2, want: protocol}, then: allow})
		}
		families = append(families, test{arg: 0, want: family, then: fail(unix.EPROTONOSUPPORT)})
	}
	p.rules[unix.SYS_SOCKET] = rule{tests: families, otherwise: fail(unix.EAFNOSUPPORT)}
	// Layers that the kernel loads on behalf of whoever names them: TLS and others on TCP, IPsec in UDP. Programs that ask do
	// without where they are not there.
	p.rules[unix.SYS_SETSOCKOPT] = rule{
		tests: []test{
			{arg: 1, want: unix.IPPROTO_TCP, also: &test{arg: 2, want: unix.TCP_ULP}, then: fail(unix.ENOPROTOOPT)},
			{arg: 1, want: unix.IPPROTO_UDP, also: &test{arg: 2, want: udpEncap}, then: fail(unix.ENOPROTOOPT)},
		},
		otherwise: allow,
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
	// Typing into a terminal on behalf of whoever reads it, and line disciplines: drivers for modems and radios, which the
	// kernel loads for whoever owns a terminal.
	p.rules[unix.SYS_IOCTL] = rule{
		tests: []test{
			{arg: 1, want: unix.TIOCSTI, then: fail(unix.EPERM)},
			{arg: 1, want: unix.TIOCLINUX, then: fail(unix.EPERM)},
			{arg: 1, want: unix.TIOCSETD, then: fail(unix.EPERM)},
		},
		otherwise: allow,
	}
	// FIFOs and sockets may be made. A device takes a capability of the host, but for 0:0, with which overlayfs marks what is deleted, and which
	// the Landlock of some kernels takes for a regular file.
	for n, mode := range map[uint32]int{unix.SYS_MKNOD: 1, unix.SYS_MKNODAT: 2} {
		p.rules[n] = rule{
			tests: []test{
				{arg: mode, mask: unix.S_IFMT, want: unix.S_IFCHR, then: fail(unix.EPERM)},
				{arg: mode, mask: unix.S_IFMT, want: unix.S_IFBLK, then: fail(unix.EPERM)},
			},
			otherwise: allow,
		}
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
