package posture

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

func TestProfile_everythingHasAReason(t *testing.T) {
	for _, name := range []string{"default", "strict"} {
		p, err := profile(name)
		must.NoError(t, err)
		for _, c := range p.Calls {
			if c.Group == "other" {
				t.Errorf("%s: %s %v has no reason", name, c.Answer, c.Names)
			}
		}
		for _, c := range p.Capabilities {
			must.StrNotContains(t, c.Why, "no reason")
		}
		must.Eq(t, "ENOSYS", p.Unknown)
	}
}

func TestProfile_saysWhatTheFilterDoes(t *testing.T) {
	for _, tc := range []struct {
		call              string
		inDefault, strict string
	}{
		{"read", Allowed, Allowed}, {"mount", "EPERM", "EPERM"}, {"clone3", "ENOSYS", "ENOSYS"}, {"socket", ByArgument, ByArgument},
		{"vmsplice", Allowed, "EPERM"}, {"ptrace", "EPERM", "EPERM"}, {"ioctl", ByArgument, ByArgument}, {"io_uring_setup", "ENOSYS", "ENOSYS"},
	} {
		for name, want := range map[string]string{"default": tc.inDefault, "strict": tc.strict} {
			p, err := profile(name)
			must.NoError(t, err)
			got := ""
			for _, c := range p.Calls {
				for _, n := range c.Names {
					if n == tc.call {
						got += c.Answer
					}
				}
			}
			must.Eq(t, want, got, must.Sprint(name, " ", tc.call))
		}
	}
}

func TestAsk_readsTheProgram(t *testing.T) {
	boot, err := sandbox.Policy("default")
	must.NoError(t, err)
	for _, tc := range []struct {
		nr   uint32
		args []uint32
		want string
	}{
		{unix.SYS_SOCKET, []uint32{unix.AF_INET, 1}, Allowed}, {unix.SYS_SOCKET, []uint32{unix.AF_ALG, 5}, "EAFNOSUPPORT"},
		{unix.SYS_CLONE, []uint32{uint32(unix.SIGCHLD)}, Allowed}, {unix.SYS_CLONE, []uint32{unix.CLONE_NEWUSER}, "EPERM"},
	} {
		got, err := ask(boot.Seccomp, tc.nr, tc.args...)
		must.NoError(t, err)
		must.Eq(t, tc.want, got)
	}
	_, err = ask([]byte{1, 2, 3}, 0)
	must.Error(t, err)
	_, err = ask(make([]byte, 8), 0) // a load of an immediate, which no program of ours has
	must.Error(t, err)
}

func TestUpstream(t *testing.T) {
	for _, tc := range []struct {
		release, line, signature, want string
		known                          bool
	}{
		{"6.18.44", "#1 SMP", "", "6.18.44", true},
		{"6.1.0-28-cloud-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 (2024-11-22)", "", "6.1.119", true},
		{"6.8.0-31-generic", "#31-Ubuntu SMP", "Ubuntu 6.8.0-31.31-generic 6.8.1", "6.8.1", false},
		{"5.14.0-427.13.1.el9_4.x86_64", "#1 SMP", "", "5.14.0", false},
		{"6.9", "", "", "6.9.0", true},
		{"mine", "", "", "0.0.0", false},
	} {
		v, known := upstream(tc.release, tc.line, tc.signature)
		must.Eq(t, tc.want, v.String())
		must.Eq(t, tc.known, known, must.Sprint(tc.release))
	}
}

func TestGates_byVersion(t *testing.T) {
	p, err := profile("strict")
	must.NoError(t, err)
	for _, tc := range []struct {
		id, release string
		want        State
	}{
		{"CVE-2022-0847", "5.7.19", Closed}, {"CVE-2022-0847", "5.15.24", Open}, {"CVE-2022-0847", "5.15.25", Closed},
		{"CVE-2022-0847", "5.13.1", Open}, {"CVE-2022-0847", "6.18.0", Closed},
		{"CVE-2024-1086", "6.1.75", Mitigated}, {"CVE-2024-1086", "6.1.76", Closed},
		{"CVE-2026-31431", "6.18.21", Mitigated}, {"CVE-2026-31431", "4.13.0", Closed}, {"CVE-2026-31431", "6.18.22", Closed},
		{"CVE-2026-31431", "6.17.13", Mitigated}, {"CVE-2026-31431", "7.0.0", Closed}, {"CVE-2026-43503", "6.18.32", Mitigated}, {"CVE-2026-43503", "7.0.10", Closed},
		{"CVE-2026-43284", "6.18.44", Mitigated}, {"CVE-2026-43500", "5.2.0", Closed}, {"CVE-2026-43500", "5.15.0", Mitigated},
	} {
		v, known := upstream(tc.release, "", "")
		for _, f := range weaknesses(v, known, hostFiles{root: t.TempDir()}, []Profile{p}) {
			if f.ID == tc.id {
				must.Eq(t, tc.want, f.State, must.Sprint(tc.id, " ", tc.release, " ", f.Detail))
			}
		}
	}
}

func TestGates_aBranchWithoutAFixIsNotCalledOld(t *testing.T) {
	p, err := profile("default")
	must.NoError(t, err)
	for release, want := range map[string]string{"6.18.21": "older than its branch's fix", "6.17.13": "no release of Linux 6.17 with the fix is known here"} {
		v, known := upstream(release, "", "")
		for _, f := range weaknesses(v, known, hostFiles{root: t.TempDir()}, []Profile{p}) {
			if f.ID == "CVE-2026-31431" {
				must.StrContains(t, f.Detail, want)
			}
		}
	}
}

// A filter that lets a weakness's calls through is told, whatever the text says.
func TestGates_aHoleInTheFilterIsOpen(t *testing.T) {
	allow := []byte{unix.BPF_RET | unix.BPF_K, 0, 0, 0, 0, 0, 0xff, 0x7f}
	v, known := upstream("6.18.21", "", "")
	for _, f := range weaknesses(v, known, hostFiles{root: t.TempDir()}, []Profile{{Name: "leaky", program: allow}}) {
		if f.ID == "CVE-2026-31431" {
			must.Eq(t, Open, f.State)
			must.StrContains(t, f.Detail, "lets socket through")
		}
	}
}

func TestGates_codeThatIsNotThere(t *testing.T) {
	root := t.TempDir()
	write(t, root, "/proc/kallsyms", "ffffffff81000000 T _text\nffffffff81000001 t esp_input\n")
	v, known := upstream("6.18.21", "", "")
	p, err := profile("default")
	must.NoError(t, err)
	got := map[string]State{}
	for _, f := range weaknesses(v, known, hostFiles{root: root}, []Profile{p}) {
		got[f.ID] = f.State
	}
	must.Eq(t, Closed, got["CVE-2026-31431"])
	must.Eq(t, Mitigated, got["CVE-2026-43284"])
	write(t, root, "/lib/modules/6.18/kernel/crypto/algif_aead.ko.zst", "")
	for _, f := range weaknesses(v, known, hostFiles{root: root}, []Profile{p}) {
		if f.ID == "CVE-2026-31431" {
			must.Eq(t, Mitigated, f.State)
		}
	}
}

func TestSettings(t *testing.T) {
	root := t.TempDir()
	write(t, root, "/proc/sys/kernel/core_pattern", "|/usr/lib/systemd/systemd-coredump %P")
	write(t, root, "/proc/sys/kernel/pty/max", "4096")
	write(t, root, "/proc/sys/kernel/pty/reserve", "1024")
	write(t, root, "/proc/sys/kernel/kptr_restrict", "1")
	write(t, root, "/proc/net/tcp", "  sl  local_address rem_address   st\n   0: 00000000:1226 00000000:0000 0A 0\n   1: 0100007F:2008 00000000:0000 0A 0\n")
	write(t, root, "/sys/devices/system/cpu/vulnerabilities/mds", "Vulnerable: no microcode")
	write(t, root, "/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory")
	got := map[string]Finding{}
	for _, f := range settings(Options{MaxSandbox: 100}, hostFiles{root: root}) {
		got[f.ID] = f
	}
	for id, want := range map[string]State{
		"kernel.core_pattern": Open, "kernel.pty.max": Open, "kernel.kptr_restrict": Closed, "kernel.yama.ptrace_scope": Mitigated,
		"host_ports": Mitigated, "processor": Open, "node_socket": Closed, "cgroup.cpuset": Closed,
	} {
		must.Eq(t, want, got[id].State, must.Sprint(id))
	}
	must.Eq(t, Mitigated, confinement(hostFiles{root: t.TempDir()}).State)
	must.StrContains(t, got["host_ports"].Detail, "nomad http")
	must.StrNotContains(t, got["host_ports"].Detail, "vault")
}

func TestLook(t *testing.T) {
	r, err := Look(Options{Version: "1.2.3"})
	must.NoError(t, err)
	must.Len(t, 2, r.Profiles)
	var text bytes.Buffer
	must.NoError(t, r.WriteText(&text))
	for _, f := range r.Kernels {
		must.StrContains(t, text.String(), f.ID)
	}
	b, err := json.Marshal(r)
	must.NoError(t, err)
	must.StrContains(t, string(b), `"kernel_findings"`)
	must.False(t, strings.Contains(text.String(), "%!"))
}

func write(t *testing.T, root, path, text string) {
	t.Helper()
	must.NoError(t, os.MkdirAll(filepath.Dir(root+path), 0o755))
	must.NoError(t, os.WriteFile(root+path, []byte(text+"\n"), 0o644))
}
