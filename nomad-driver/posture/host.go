package posture

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// hostFiles reads the host's files below a root.
type hostFiles struct{ root string }

// read returns a file's text without the space around it; "" where there is none.
func (h hostFiles) read(path string) string {
	b, err := os.ReadFile(h.root + path)
	if err != nil {
		return ""
	}
	if strings.HasSuffix(path, "kallsyms") {
		return string(b)
	}
	return strings.TrimSpace(string(b))
}

func (h hostFiles) sysctl(name string) string {
	return h.read("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
}

// terminalsPerSandbox is the bound of a sandbox's own devpts.
const terminalsPerSandbox = 256

// settings looks at the host.
func settings(o Options, host hostFiles) []Finding {
	var out []Finding
	// What is wanted of a setting, and what keeps a sandbox from what it guards where it is not so.
	for _, s := range []struct {
		name, title, wall, advice string
		good                      []string
	}{
		{"kernel.unprivileged_bpf_disabled", "eBPF for everybody", "bpf is refused inside", "set it to 1 or 2", []string{"1", "2"}},
		{"kernel.perf_event_paranoid", "perf for everybody", "perf_event_open is refused inside", "set it to 2 or more", []string{"2", "3", "4"}},
		{"kernel.kptr_restrict", "addresses of the kernel in /proc", "kallsyms is masked, and nobody inside has CAP_SYSLOG", "set it to 1 or 2", []string{"1", "2"}},
		{"kernel.dmesg_restrict", "the kernel's log for everybody", "syslog is refused, /proc/kmsg masked and /dev/kmsg not there", "set it to 1", []string{"1"}},
		{"kernel.yama.ptrace_scope", "debugging of one's other processes", "ptrace is refused inside", "set it to 1 or more, with the Yama module", []string{"1", "2", "3"}},
		{"kernel.io_uring_disabled", "io_uring", "its calls are refused inside", "set it to 2 where nothing on the host needs it", []string{"2"}},
		{"vm.unprivileged_userfaultfd", "userfaultfd for everybody", "it is refused inside", "set it to 0", []string{"0"}},
		{"dev.tty.ldisc_autoload", "line disciplines as modules", "TIOCSETD is refused inside", "set it to 0", []string{"0"}},
		{"user.max_user_namespaces", "user namespaces for everybody", "no call that makes a namespace is allowed inside; the node needs them itself", "leave it; where only the node makes them, kernel.unprivileged_userns_clone=0", nil},
	} {
		f := Finding{ID: s.name, Title: s.title, State: Mitigated, Advice: s.advice}
		v := host.sysctl(s.name)
		switch {
		case slices.Contains(s.good, v):
			f.State, f.Detail, f.Advice = Closed, "is "+v, ""
		case v == "":
			f.Detail = "this kernel does not have it; " + s.wall
		default:
			f.Detail = fmt.Sprintf("is %s; %s", v, s.wall)
		}
		out = append(out, f)
	}
	return append(out, corePattern(host), terminals(o, host), confinement(host), processor(host), nodeSocket(o, host), listeners(host))
}

// corePattern: a program that the kernel runs, as the host's root, with what crashed in a sandbox. The limit on core files
// does not stop it.
func corePattern(host hostFiles) Finding {
	f := Finding{ID: "kernel.core_pattern", Title: "crashes start a program on the host"}
	v := host.sysctl("kernel.core_pattern")
	if strings.HasPrefix(v, "|") || strings.HasPrefix(v, "@") {
		f.State, f.Detail = Open, fmt.Sprintf("is %.100q: it runs outside with data of the sandbox", v)
		f.Advice = "set it to core; no sandbox writes core files"
		return f
	}
	f.State, f.Detail = Closed, fmt.Sprintf("is %.100q, and the limit on core files is 0 inside", v)
	return f
}

// confinement: a quota of the processor does not stop who works in the kernel. The node keeps such a sandbox on few cores, where it can.
func confinement(host hostFiles) Finding {
	f := Finding{ID: "cgroup.cpuset", Title: "work in the kernel on all cores at once"}
	switch {
	case host.read("/sys/fs/cgroup/cpuset/cpuset.cpus") != "", slices.Contains(strings.Fields(host.read("/sys/fs/cgroup/cgroup.controllers")), "cpuset"):
		f.State, f.Detail = Closed, "a sandbox that works much in the kernel near its memory limit is kept on the cores that its processor limit is worth, unless the node's setting confine is off"
	default:
		f.State, f.Detail = Mitigated, "there is no cpuset controller: weights and quotas hold, but a quota only once a process leaves the kernel"
		f.Advice = "mount the controller cpuset, or leave it to cgroup v2"
	}
	return f
}

func terminals(o Options, host hostFiles) Finding {
	f := Finding{ID: "kernel.pty.max", Title: "terminals of the machine"}
	most, _ := strconv.Atoi(host.sysctl("kernel.pty.max"))
	reserve, _ := strconv.Atoi(host.sysctl("kernel.pty.reserve"))
	need := o.MaxSandbox*terminalsPerSandbox + reserve
	f.Detail = fmt.Sprintf("%d, of which sandboxes may take %d: %d each, and the node may run %d sandboxes", most, most-reserve, terminalsPerSandbox, o.MaxSandbox)
	f.State = Closed
	if most < need {
		f.State, f.Advice = Open, fmt.Sprintf("set it to %d, or some sandboxes can keep the others from having terminals", need)
	}
	return f
}

// processor is what the kernel says of the processor's own leaks.
func processor(host hostFiles) Finding {
	f := Finding{ID: "processor", Title: "side channels of the processor", State: Closed}
	files, _ := filepath.Glob(host.root + "/sys/devices/system/cpu/vulnerabilities/*")
	var bad []string
	for _, file := range files {
		if v := host.read(strings.TrimPrefix(file, host.root)); strings.Contains(strings.ToLower(v), "vulnerable") {
			bad = append(bad, fmt.Sprintf("%s: %s", filepath.Base(file), v))
		}
	}
	switch {
	case len(files) == 0:
		f.State, f.Detail = Open, "the kernel says nothing of it"
	case len(bad) > 0:
		f.State, f.Detail = Open, strings.Join(bad, "; ")
	default:
		f.Detail = fmt.Sprintf("the kernel knows of %d leaks, and has an answer to each", len(files))
	}
	if host.read("/sys/devices/system/cpu/smt/active") == "1" {
		f.Detail += "; two threads share a core, and sandboxes may be on both"
	}
	if f.State == Open {
		f.Advice = "microcode and kernel of the distribution, mitigations=auto,nosmt; hostile tenants on machines of their own"
	}
	return f
}

func nodeSocket(o Options, host hostFiles) Finding {
	f := Finding{ID: "node_socket", Title: "the node's own socket", State: Closed, Detail: "not looked at"}
	if o.Socket == "" {
		return f
	}
	fi, err := os.Lstat(host.root + o.Socket)
	switch {
	case err != nil:
		f.Detail = "no node serves at " + o.Socket
	case fi.Mode().Perm()&0o077 != 0 || fi.Mode()&os.ModeSocket == 0:
		f.State, f.Detail, f.Advice = Open, fmt.Sprintf("%s has mode %s", o.Socket, fi.Mode()), "chmod 600"
	default:
		f.Detail = o.Socket + " is root's alone; in a sandbox it does not exist"
	}
	return f
}

// listeners are services of the stack that listen for everybody.
func listeners(host hostFiles) Finding {
	f := Finding{ID: "host_ports", Title: "ports of the stack", State: Closed, Detail: "none of them listens on every address"}
	names := map[int]string{
		2375: "docker", 4646: "nomad http", 4647: "nomad rpc", 4648: "nomad serf", 7300: "soulbox server", 7302: "soulbox node", 8200: "vault", 8201: "vault cluster",
		8300: "consul rpc", 8500: "consul http",
	}
	var found []string
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		for line := range strings.Lines(host.read(file)) {
			c := strings.Fields(line)
			if len(c) < 4 || c[3] != "0A" { // TCP_LISTEN
				continue
			}
			addr, port, _ := strings.Cut(c[1], ":")
			b, err := hex.DecodeString(port)
			if err != nil || len(b) != 2 || strings.Trim(addr, "0") != "" {
				continue
			}
			if name, ok := names[int(b[0])<<8|int(b[1])]; ok && !slices.Contains(found, name) {
				found = append(found, name)
			}
		}
	}
	if len(found) > 0 {
		f.State, f.Detail = Mitigated, strings.Join(found, ", ")+" on every address; a sandbox has no interface but its own loopback"
		f.Advice = "bind them to the addresses that need them"
	}
	return f
}
