package attack

import (
	"fmt"
	"math/bits"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/posture"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// The kernel's surface: each case acts as root of the sandbox, who may more than others.
func TestKernel(t *testing.T) {
	a := newArena(t)
	hidden := answers{"default": "EACCES", "strict": "ENOENT"}
	set := fmt.Sprintf("%016x", sandbox.Capabilities)
	a.attempts(t, "K01", "crypto sockets (the way of Copy Fail)", "root", answers{"": "EAFNOSUPPORT"}, nil)
	a.attempts(t, "K02", "socket families beyond Unix and Internet", "root", answers{"": "EAFNOSUPPORT"}, nil)
	a.attempts(t, "K03", "netlink beyond routes, and what routes let one change", "root", answers{"": "EPROTONOSUPPORT"}, map[string]answers{
		"make a network interface":            {"": "EPERM"},
		"make a veth to the host's namespace": {"": "EPERM"},
		"raw socket":                          {"": "EPERM"},
		"raw socket, IPv6":                    {"": "EPERM"},
	})
	a.attempts(t, "K04", "rare protocols of the Internet families", "root", answers{"": "EPROTONOSUPPORT"}, nil)
	a.attempts(t, "K05", "io_uring", "root", answers{"": "ENOSYS"}, nil)
	a.attempts(t, "K06", "bpf, perf, userfaultfd", "root", nil, map[string]answers{"open /dev/userfaultfd": {"": "ENOENT"}})
	a.attempts(t, "K07", "keys of others", "root", nil, map[string]answers{
		"read /proc/keys":      {"default": "empty", "strict": "ENOENT"},
		"read /proc/key-users": {"default": "empty", "strict": "ENOENT"},
	})
	namespaces := map[string]answers{}
	for _, ns := range []string{"USER", "NS", "NET", "PID", "IPC", "UTS", "CGROUP", "TIME"} {
		namespaces["clone3(CLONE_NEW"+ns+")"] = answers{"": "ENOSYS"}
	}
	a.attempts(t, "K08", "new namespaces", "root", nil, namespaces)
	a.attempts(t, "K09", "mounts", "root", nil, map[string]answers{
		"statmount": {"": "ENOSYS"}, "listmount": {"": "ENOSYS"}, "open_tree_attr": {"": "ENOSYS"},
	})
	a.attempts(t, "K10", "files by handle (the shocker)", "root", nil, nil)
	a.attempts(t, "K11", "modules, kexec, swap, clocks, ports, and what root of a machine does", "root", nil, map[string]answers{
		"setpriority(-20)": {"": "EACCES"},
		"lookup_dcookie":   {"": "EPERM|ENOSYS"},
	})
	// Where the kernel has no such door the instruction faults, which Go tells in its own words.
	a.attempts(t, "K12", "foreign doors into the kernel: i386, x32", "root", answers{"": "killed SIGSYS|killed SIGSEGV|died unexpected fault address 0x0"}, map[string]answers{
		"a 32-bit program": {"": "killed SIGSYS|ENOEXEC"},
	})
	a.attempts(t, "K13", "personalities, typing into terminals, line disciplines, layers on sockets", "root", nil, map[string]answers{
		"layer TLS on TCP": {"": "ENOPROTOOPT"}, "layer IPsec in UDP": {"": "ENOPROTOOPT"},
	})
	a.attempts(t, "K14", "the supervisor: its memory, descriptors, root, and its death", "root", nil, map[string]answers{
		"open /proc/1/mem":     hidden,
		"open /proc/1/maps":    hidden,
		"open /proc/1/environ": hidden,
		// The numbers may be seen, not what is behind them.
		"list /proc/1/fd":              {"default": "ok", "strict": "ENOENT"},
		"read the links of /proc/1/fd": hidden, "open /proc/1/exe for writing": hidden,
		"list /proc/1/root":      hidden,
		"list /proc/1/cwd":       hidden,
		"list /proc/1/map_files": hidden,
		// Who makes PID 1 the first to be killed ends the own sandbox.
		"raise oom_score_adj of 1":         {"default": "ok", "strict": "ENOENT"},
		"lower oom_score_adj of 1":         {"default": "EACCES", "strict": "ENOENT"},
		"write -1000 to own oom_score_adj": {"": "EACCES"},
		// Landlock refuses it where it can scope signals (ABI 6); else the kernel drops it, as for every init.
		"ready to be killed: kill(1, SIGKILL) and go on": {"": "EPERM|still here"},
	})
	a.attempts(t, "K18", "more privileges than given", "root", nil, map[string]answers{
		"prctl(PR_SET_NO_NEW_PRIVS, 0)": {"": "EINVAL"},
		"bounding and effective set":    {"": set + " " + set + " 0000000000000000"},
		"seccomp mode":                  {"": "2"},
		"no_new_privs":                  {"default": "0", "strict": "1"},
	})
	a.attempts(t, "K19", "namespaces of others, by descriptor", "root", nil, func() map[string]answers {
		own := map[string]answers{}
		for _, ns := range []string{"mnt", "user", "pid", "net", "ipc", "uts", "cgroup", "time"} {
			own["setns(/proc/1/ns/"+ns+")"] = answers{"default": "open: EACCES", "strict": "open: ENOENT"}
		}
		return own
	}())

	a.each(t, "K18b", "a setuid program: root of the sandbox at most, under strict not even that", func(t *testing.T, j *judgement, p string, id api.SandboxID) {
		out := a.ok(t, id, "user", "setuid-id", "-u")
		j.inside(p, "run a setuid-root program as uid 1000", "euid "+out)
		must.Eq(t, map[string]string{"default": "0", "strict": "1000"}[p], strings.TrimSpace(out))
	})
	a.each(t, "K19b", "every namespace link that /proc shows is the sandbox's own", func(t *testing.T, j *judgement, p string, id api.SandboxID) {
		out := a.ok(t, id, "root", "intruder", "namespaces")
		shown := strings.Fields(out)
		j.inside(p, "read every link /proc/*/ns/*", fmt.Sprintf("%d links", len(shown)))
		hosts := 0
		for _, ns := range []string{"mnt", "user", "pid", "net", "ipc", "uts", "cgroup"} {
			link, err := os.Readlink("/proc/self/ns/" + ns)
			must.NoError(t, err)
			for _, s := range shown {
				if s == link {
					hosts++
				}
			}
		}
		j.host(hosts == 0, "%s: none of the links is a namespace of the host", p)
	})
	a.each(t, "K16", "every system call from 0 to 500 with harmless arguments", func(t *testing.T, j *judgement, p string, id api.SandboxID) {
		sweep(t, j, p, a.ok(t, id, "user", "intruder", "sweep", "0", "500"))
	})
	t.Run("K17", func(t *testing.T) {
		j := a.judge(t, "K17", "bytes of the shared template changed through the page cache")
		defer j.end()
		for _, p := range profiles {
			sb := a.create(t, profile(p))
			for line := range strings.Lines(a.ok(t, sb.ID, "user", "intruder", "pagecache", "/bin/setuid-id")) {
				what, got, _ := strings.Cut(strings.TrimSpace(line), "\t")
				j.inside(p, what, got)
				must.NotEq(t, "CHANGED", got)
			}
			second, err := a.node.Create(t.Context(), a.request(profile(p)))
			must.NoError(t, err)
			same := a.ok(t, second.ID, "user", "intruder", "sums", "/bin/setuid-id") == firstLine(a.sums)
			j.host(same, "%s: a sandbox made after it reads the original setuid program", p)
			a.destroy(t, second.ID)
		}
	})
	t.Run("K20", func(t *testing.T) {
		j := a.judge(t, "K20", "descriptors, environment and mounts that the host may have left in")
		defer j.end()
		t.Setenv("VAULT_TOKEN", "hvs.must-not-be-seen")
		for _, p := range profiles {
			sb := a.create(t, profile(p), func(r *nodeapi.CreateRequest) {
				r.Env = map[string]string{"LD_PRELOAD": "/tmp/evil.so", "NOMAD_TOKEN": "mine"}
				r.Main = &guest.Start{Argv: []string{"sleep", "600"}}
			})
			for _, what := range []string{"descriptors", "mounts", "environment"} {
				out := a.ok(t, sb.ID, "root", "intruder", "leaks", what)
				j.inside(p, what, out)
				must.StrNotContains(t, out, a.dir)
				must.StrNotContains(t, out, "hvs.")
				must.StrNotContains(t, out, "deleted")
			}
			fds := openFiles(t, sb.PID)
			for _, link := range fds {
				if strings.HasPrefix(link, "/") && !strings.HasSuffix(link, "/exit") && link != "/dev/null" && !strings.HasPrefix(link, "/dev/") {
					j.host(false, "PID 1 of %s has %s open", p, link)
				}
			}
			env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", sb.PID))
			must.NoError(t, err)
			j.host(string(env) == "GOMAXPROCS=1\x00GOTRACEBACK=none\x00", "%s: the environment of PID 1 is its own two settings (LD_PRELOAD and NOMAD_TOKEN reach the user's processes alone)", p)
			j.host(true, "%s: PID 1 has %d descriptors, the only file of the host among them is its exit record", p, len(fds))
		}
	})
}

// What the posture report says of a sandbox is what is found in one.
func TestPosture_isTrue(t *testing.T) {
	a := newArena(t)
	r, err := posture.Look(posture.Options{})
	must.NoError(t, err)
	j := a.judge(t, "P00", "the posture report against a sandbox of each profile")
	defer j.end()
	for _, p := range r.Profiles {
		sb := a.create(t, profile(p.Name))
		want := map[string]string{}
		for _, m := range p.Mounts {
			want[m.Path] = m.Type + " " + m.Flags
		}
		masked := append(slices.Clone(p.Masked), p.ReadOnly...)
		for line := range strings.Lines(a.ok(t, sb.ID, "root", "/bin/cat", "/proc/self/mountinfo")) {
			f := strings.Fields(line)
			path, flags := f[4], strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(f[5], "rw,"), ",relatime"), "relatime")
			device := strings.HasPrefix(path, "/dev/") && slices.Contains(p.Devices, strings.TrimPrefix(path, "/dev/"))
			if path == "/.soulbox/init" || device || slices.Contains(masked, path) {
				continue
			}
			kind := f[slices.Index(f, "-")+1]
			must.Eq(t, want[path], kind+" "+flags, must.Sprint(path))
			delete(want, path)
		}
		must.MapEmpty(t, want)
		j.inside(p.Name, "mounts", "as reported")
		var caps uint64
		_, err := fmt.Sscanf(a.ok(t, sb.ID, "root", "/bin/grep", "CapBnd", "/proc/self/status"), "CapBnd: %x", &caps)
		must.NoError(t, err)
		must.Eq(t, len(p.Capabilities), bits.OnesCount64(caps))
		j.inside(p.Name, "capabilities", fmt.Sprint(bits.OnesCount64(caps), ", as reported"))
		golden, err := os.ReadFile("testdata/syscalls." + p.Name + ".golden")
		must.NoError(t, err)
		swept := parseSweep(t, string(golden))
		refused := 0
		for _, c := range p.Calls {
			for _, name := range c.Names {
				nr, ok := r.Number(name)
				must.True(t, ok, must.Sprint(name))
				got := swept[fmt.Sprint(nr)]
				if c.Answer != posture.Allowed && c.Answer != posture.ByArgument {
					must.Eq(t, c.Answer, got, must.Sprint(name))
					refused++
				}
			}
		}
		j.inside(p.Name, "refused system calls", fmt.Sprint(refused, ", each as in the sweep"))
		a.destroy(t, sb.ID)
	}
}

func openFiles(t *testing.T, pid int) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	must.NoError(t, err)
	var out []string
	for _, e := range entries {
		if link, err := os.Readlink(dir + "/" + e.Name()); err == nil {
			out = append(out, link)
		}
	}
	return out
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line + "\n"
}
