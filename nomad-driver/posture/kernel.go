package posture

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// version of an upstream kernel.
type version struct{ major, minor, patch int }

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v.major, v.minor, v.patch) }

func (v version) before(w version) bool {
	if v.major != w.major {
		return v.major < w.major
	}
	if v.minor != w.minor {
		return v.minor < w.minor
	}
	return v.patch < w.patch
}

var (
	debianVersion = regexp.MustCompile(`Debian (\d+)\.(\d+)\.(\d+)`)
	anyVersion    = regexp.MustCompile(`^(\d+)\.(\d+)(?:\.(\d+))?`)
	backporting   = regexp.MustCompile(`\.(el\d|amzn\d|uek|fc\d\d)|-(?:default|azure|gcp|aws|generic|lowlatency)$`)
)

// upstream finds the upstream version of a kernel. Distributions that carry fixes back without changing the version are
// not told apart by it: known is false for them.
func upstream(release, line, signature string) (v version, known bool) {
	number := func(m []string) version {
		var n [3]int
		for i := range n {
			n[i], _ = strconv.Atoi(m[i+1])
		}
		return version{n[0], n[1], n[2]}
	}
	if m := debianVersion.FindStringSubmatch(line); m != nil {
		return number(m), true
	}
	if f := strings.Fields(signature); len(f) == 3 { // "Ubuntu 6.8.0-31.31-generic 6.8.1": fixes come back on top of it
		if m := anyVersion.FindStringSubmatch(f[2]); m != nil {
			return number(m), false
		}
	}
	m := anyVersion.FindStringSubmatch(release)
	if m == nil {
		return version{}, false
	}
	return number(m), !backporting.MatchString(release)
}

// gate is one known weakness of Linux.
type gate struct {
	id, title string
	since     version   // the first with it
	fixed     []version // by branch, the mainline release last; empty: not known here
	symbols   []string  // one of them is in a kernel that has the code
	modules   []string  // or one of these can be loaded
	wall      string    // what keeps a sandbox from it
	probes    []probe   // that prove the wall: each must be refused in every profile
	advice    string
	class     bool // a kind of fault rather than one: no release is known to be without
}

// probe is a call that a filter must refuse.
type probe struct {
	nr   uint32
	args []uint32
}

var (
	noUserNamespaces = []probe{{unix.SYS_UNSHARE, []uint32{unix.CLONE_NEWUSER}}, {unix.SYS_CLONE, []uint32{unix.CLONE_NEWUSER}}, {unix.SYS_CLONE3, nil}}
	noNetfilter      = append([]probe{{unix.SYS_SOCKET, []uint32{unix.AF_NETLINK, 3, unix.NETLINK_NETFILTER}}}, noUserNamespaces...)
)

const patch = "run the distribution's latest kernel"

// The releases with a fix are as known here; a public record was found for Dirty COW and, in one list of others' making, for Copy Fail and
// CVE-2026-43503, and none for the two halves of Dirty Frag. A branch that is not listed got no fix that is known here, and is reported so.

// gates are the weaknesses by which containers were left, and those of 2026 that write into the page cache: a template's pages
// are shared between sandboxes, so that these reach a neighbour even without leaving.
var gates = []gate{
	{
		id: "CVE-2026-31431", title: "Copy Fail: AF_ALG writes into the page cache of files that one may read", since: version{4, 14, 0},
		fixed:   []version{{5, 10, 254}, {5, 15, 204}, {6, 1, 170}, {6, 6, 137}, {6, 12, 85}, {6, 18, 22}, {6, 19, 12}, {7, 0, 0}},
		symbols: []string{"aead_recvmsg", "algif_type_aead"}, modules: []string{"crypto/algif_aead.ko"},
		wall:   "sockets of family AF_ALG are refused",
		probes: []probe{{unix.SYS_SOCKET, []uint32{unix.AF_ALG, 5}}, {unix.SYS_SOCKETPAIR, []uint32{unix.AF_ALG, 5}}},
		advice: patch + "; where nothing needs it, forbid the module algif_aead",
	},
	{
		id: "CVE-2026-43284", title: "Dirty Frag: ESP decrypts in place what UDP took from the page cache", since: version{4, 11, 0},
		symbols: []string{"esp_input", "esp6_input"}, modules: []string{"net/ipv4/esp4.ko", "net/ipv6/esp6.ko"},
		wall: "no keys reach the kernel (AF_KEY and NETLINK_XFRM are refused, no CAP_NET_ADMIN, no new namespaces), and no UDP socket takes ESP",
		probes: append([]probe{
			{unix.SYS_SOCKET, []uint32{unix.AF_KEY, 3}}, {unix.SYS_SOCKET, []uint32{unix.AF_NETLINK, 3, unix.NETLINK_XFRM}},
			{unix.SYS_SETSOCKOPT, []uint32{3, unix.IPPROTO_UDP, 100}},
		}, noUserNamespaces...),
		advice: patch + "; where there is no IPsec, forbid the modules esp4 and esp6",
	},
	{
		id: "CVE-2026-43500", title: "Dirty Frag: RxRPC decrypts in place", since: version{5, 3, 0},
		symbols: []string{"rxrpc_recvmsg", "rxkad_verify_packet"}, modules: []string{"net/rxrpc/rxrpc.ko"},
		wall: "sockets of family AF_RXRPC are refused", probes: []probe{{unix.SYS_SOCKET, []uint32{33, 2}}},
		advice: patch + "; where there is no AFS, forbid the module rxrpc",
	},
	{
		id: "CVE-2026-43503", title: "Dirty Frag, the rest: packets lose the mark of shared pages on their way", since: version{3, 9, 0},
		fixed: []version{{5, 10, 257}, {5, 15, 208}, {6, 1, 174}, {6, 6, 141}, {6, 12, 91}, {6, 18, 33}, {7, 0, 10}, {7, 1, 0}},
		wall:  "what decrypts in place is out of reach: no keys of IPsec, no UDP socket that takes ESP, no RxRPC",
		probes: append([]probe{
			{unix.SYS_SOCKET, []uint32{unix.AF_KEY, 3}}, {unix.SYS_SOCKET, []uint32{unix.AF_NETLINK, 3, unix.NETLINK_XFRM}},
			{unix.SYS_SETSOCKOPT, []uint32{3, unix.IPPROTO_UDP, 100}}, {unix.SYS_SOCKET, []uint32{33, 2}},
		}, noUserNamespaces...),
		advice: patch,
	},
	{
		id: "CVE-2022-0847", title: "Dirty Pipe: writes into the page cache through a pipe", since: version{5, 8, 0},
		fixed: []version{{5, 10, 102}, {5, 15, 25}, {5, 16, 11}, {5, 17, 0}}, advice: patch,
	},
	{
		id: "CVE-2016-5195", title: "Dirty COW: writes into read-only mappings", since: version{2, 6, 22},
		fixed: []version{{4, 4, 26}, {4, 7, 9}, {4, 8, 3}, {4, 9, 0}}, advice: patch,
	},
	{
		id: "CVE-2024-1086", title: "nf_tables: use after free in verdicts", since: version{3, 15, 0},
		fixed:   []version{{5, 4, 269}, {5, 10, 210}, {5, 15, 149}, {6, 1, 76}, {6, 6, 15}, {6, 7, 3}, {6, 8, 0}},
		symbols: []string{"nf_tables_newrule"}, modules: []string{"net/netfilter/nf_tables.ko"},
		wall: "netlink of netfilter is refused, no CAP_NET_ADMIN, no new namespaces", probes: noNetfilter, advice: patch,
	},
	{
		id: "CVE-2023-32233", title: "nf_tables: use after free in batches", since: version{3, 13, 0},
		fixed:   []version{{5, 10, 180}, {5, 15, 111}, {6, 1, 28}, {6, 2, 15}, {6, 3, 2}, {6, 4, 0}},
		symbols: []string{"nf_tables_newrule"}, modules: []string{"net/netfilter/nf_tables.ko"},
		wall: "netlink of netfilter is refused, no CAP_NET_ADMIN, no new namespaces", probes: noNetfilter, advice: patch,
	},
	{
		id: "CVE-2023-0386", title: "overlayfs: setuid files of others are copied up", since: version{5, 11, 0},
		fixed:  []version{{5, 15, 91}, {6, 1, 9}, {6, 2, 0}},
		wall:   "no mounts and no new user namespaces",
		probes: append([]probe{{unix.SYS_MOUNT, nil}, {unix.SYS_FSOPEN, nil}}, noUserNamespaces...), advice: patch,
	},
	{
		id: "CVE-2022-0492", title: "cgroup v1: release_agent from a user namespace", since: version{2, 6, 24},
		fixed: []version{{4, 14, 266}, {4, 19, 229}, {5, 4, 177}, {5, 10, 97}, {5, 15, 20}, {5, 16, 6}, {5, 17, 0}},
		wall:  "no cgroup hierarchy is mounted, and none can be", probes: append([]probe{{unix.SYS_MOUNT, nil}, {unix.SYS_FSOPEN, nil}}, noUserNamespaces...),
		advice: patch,
	},
	{
		id: "CVE-2022-0185", title: "file system contexts: heap overflow in legacy parameters", since: version{5, 1, 0},
		fixed: []version{{5, 4, 173}, {5, 10, 93}, {5, 15, 16}, {5, 16, 2}, {5, 17, 0}},
		wall:  "fsopen and fsconfig are refused", probes: []probe{{unix.SYS_FSOPEN, nil}, {unix.SYS_FSCONFIG, nil}}, advice: patch,
	},
	{
		id: "CVE-2023-3269", title: "StackRot: use after free in the tree of mappings", since: version{6, 1, 0},
		fixed: []version{{6, 1, 37}, {6, 3, 11}, {6, 4, 1}, {6, 5, 0}}, advice: patch,
	},
	{
		id: "io_uring", class: true, title: "io_uring: a large share of the kernel's privilege escalations", since: version{5, 1, 0},
		symbols: []string{"__x64_sys_io_uring_setup"},
		wall:    "all its calls are refused", probes: []probe{{unix.SYS_IO_URING_SETUP, nil}, {unix.SYS_IO_URING_ENTER, nil}, {unix.SYS_IO_URING_REGISTER, nil}},
		advice: "kernel.io_uring_disabled=2 where nothing on the host needs it",
	},
	{
		id: "ebpf", class: true, title: "eBPF: faults of its verifier", since: version{3, 18, 0}, symbols: []string{"__x64_sys_bpf"},
		wall: "bpf is refused", probes: []probe{{unix.SYS_BPF, nil}}, advice: "kernel.unprivileged_bpf_disabled=1 or 2",
	},
	{
		id: "userfaultfd", class: true, title: "userfaultfd: stops the kernel in the middle of a copy, which many attacks need", since: version{4, 3, 0},
		symbols: []string{"__x64_sys_userfaultfd"}, wall: "userfaultfd is refused, and its device is not there", probes: []probe{{unix.SYS_USERFAULTFD, nil}},
	},
	{
		id: "ldisc", class: true, title: "line disciplines: drivers that any owner of a terminal loads (CVE-2023-6546 and others)", since: version{2, 6, 0},
		wall: "TIOCSETD is refused", probes: []probe{{unix.SYS_IOCTL, []uint32{3, unix.TIOCSETD}}}, advice: "dev.tty.ldisc_autoload=0",
	},
}

func weaknesses(v version, known bool, host hostFiles, profiles []Profile) []Finding {
	symbols := host.read("/proc/kallsyms")
	var out []Finding
	for _, g := range gates {
		f := Finding{ID: g.id, Title: g.title, Advice: g.advice}
		f.State, f.Detail = g.judge(v, known, host, symbols, profiles)
		if f.State == Closed {
			f.Advice = ""
		}
		out = append(out, f)
	}
	return out
}

func (g gate) judge(v version, known bool, host hostFiles, symbols string, profiles []Profile) (State, string) {
	if v != (version{}) && v.before(g.since) {
		return Closed, fmt.Sprintf("came with Linux %s", g.since)
	}
	found := "new faults of the kind are found every year"
	if !g.class {
		found = "cannot tell by version: which releases have the fix is not known here"
	}
	if len(g.fixed) > 0 {
		if by, ok := g.fixedBy(v); ok {
			return Closed, fmt.Sprintf("fixed in Linux %s", by)
		}
		switch {
		case !known:
			found = "cannot tell by version: this distribution carries fixes back"
		case slices.ContainsFunc(g.fixed, func(f version) bool { return f.major == v.major && f.minor == v.minor }):
			found = fmt.Sprintf("Linux %s is older than its branch's fix", v)
		default:
			found = fmt.Sprintf("no release of Linux %d.%d with the fix is known here", v.major, v.minor)
		}
	}
	if absent(g, host, symbols) {
		return Closed, "the code is not in this kernel, nor in a module of it"
	}
	if len(g.probes) == 0 {
		return Open, found + "; nothing but the kernel's own fix stands in front of it"
	}
	for _, p := range profiles {
		for _, call := range g.probes {
			if got, err := ask(p.program, call.nr, call.args...); err != nil || got == Allowed {
				return Open, fmt.Sprintf("%s; the filter of profile %s lets %s through", found, p.Name, callNames[call.nr])
			}
		}
	}
	return Mitigated, found + "; in a sandbox " + g.wall
}

// fixedBy returns the release with the fix that v is not older than.
func (g gate) fixedBy(v version) (version, bool) {
	last := g.fixed[len(g.fixed)-1]
	if !v.before(last) {
		return last, true
	}
	for _, f := range g.fixed {
		if f.major == v.major && f.minor == v.minor && !v.before(f) {
			return f, true
		}
	}
	return version{}, false
}

// absent reports whether the kernel surely lacks the code: its symbols are readable and none is there, and no module either.
func absent(g gate, host hostFiles, symbols string) bool {
	if len(g.symbols) == 0 || !strings.Contains(symbols, " T ") {
		return false
	}
	for _, s := range g.symbols {
		if strings.Contains(symbols, " "+s+"\n") || strings.Contains(symbols, " "+s+"\t") {
			return false
		}
	}
	for _, m := range g.modules {
		found, err := filepath.Glob(host.root + "/lib/modules/*/kernel/" + m + "*")
		if err != nil || len(found) > 0 {
			return false
		}
	}
	return true
}
