package vm

import (
	"errors"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// suite is a test package that runs in the machine.
type suite struct {
	pkg  string // below the module's folder
	run  string // -test.run
	must []string
}

// suites are the test packages that run on the kernel of the field, each with the tests that must have passed there: those
// that a development kernel may have to leave out.
var suites = []suite{
	{"nomad-driver/disk", "Limiter", []string{
		"TestLimiter_conformance/quota/bytes", "TestLimiter_conformance/quota/inodes", "TestLimiter_conformance/quota/release",
	}},
	{"nomad-driver/cgroup", ".", []string{
		"TestGuardDevices_holdsBelowTheGuardedGroup", "TestGuardDevices_aGroupBelowHasItsOwn", "TestTree_aDeviceIsOneGroupsOwn", "TestTree_guardsDevicesOfItsGroups", "TestGroup_confines",
		"TestV2_protectionAddsUp", "TestGroup_limitsIO",
	}},
	{"nomad-driver/sandbox", ".", []string{
		"TestLimits_stopAForkBomb", "TestSetLimits_changesARunningSandbox", "TestOOM_endsTheSandboxAsOne", "TestQoS_ordersSandboxes",
		"TestDiskLimit_boundsWhatASandboxWrites/quota", "TestDiskLimit_isFoundAgain/quota", "TestLandlock_holdsWhereTheOtherWallsAreGone",
		"TestFilter_refusesDeviceNodes",
	}},
}

// networkSuites are those of the networks of sandboxes, on a kernel with all of traffic control.
var networkSuites = []suite{
	{"nomad-driver/network", "TestShape_links|TestSlots|TestPolicy_whoReachesWhom|TestSpoofed|TestPrivate_members", []string{
		"TestShape_linksAreAsLateAndAsUnreliableAsAskedFor", "TestPolicy_whoReachesWhom", "TestSpoofed_framesAndPacketsAreDropped",
		"TestPrivate_membersReachEachOtherAndNobodyElse",
	}},
}

// networkModules are what the networks of sandboxes need of a kernel that has them as modules.
var networkModules = []string{
	"veth", "sch_netem", "sch_tbf", "nf_tables", "nf_conntrack", "nf_conntrack_netlink", "nf_nat", "nft_chain_nat", "nft_nat", "nft_masq", "nft_ct", "nft_limit",
	"nft_connlimit", "nft_reject_inet", "nft_reject", "nft_redir",
}

// checkpointSuites need CRIU, which the machine gets from the stack.
var checkpointSuites = []suite{
	{"nomad-driver/checkpoint/pager", "TestRun", []string{"TestRun_servesWhatChanges"}},
	{"nomad-driver/sandbox", "TestRestore_isAsHardAsACreate|TestCheckpoint_memoryCopied|TestCheckpoint_withoutAFolder|TestCopyAhead", []string{
		"TestRestore_isAsHardAsACreate", "TestCheckpoint_memoryCopiedAheadIsThatOfTheDump", "TestCheckpoint_memoryCopiedBesideIsThatOfTheDump",
		"TestCheckpoint_withoutAFolderForTheCopy", "TestCopyAhead_mayBeKilled",
	}},
}

// criuDir is where the machine has CRIU, if it has it.
const criuDir = "/suites/criu"

// checkpointModules are what CRIU asks the kernel about sockets with, and what it tries.
var checkpointModules = []string{"loop", "veth", "tun", "unix_diag", "inet_diag", "tcp_diag", "udp_diag", "raw_diag", "af_packet_diag", "netlink_diag",
	"nf_tables", "nf_conntrack_netlink",
}

func TestSuites_passOnTheKernelOfTheField(t *testing.T) { pass(t, machine(t), suites, "loop", "veth") }

func TestNetworks_passOnTheKernelOfTheField(t *testing.T) {
	pass(t, machine(t), networkSuites, networkModules...)
}

// TestRestores_passOnTheKernelOfTheField takes sandboxes to disk and back on cgroup v2, where Landlock is an older one.
func TestRestores_passOnTheKernelOfTheField(t *testing.T) {
	criu, err := filepath.EvalSymlinks(sandboxtest.CRIU(t)) // beside it is all that it needs
	if err != nil {
		t.Fatal(err)
	}
	c := machine(t)
	c.Files[criuDir+"/criu"] = criu
	c.Files[criuDir+"/root/usr"] = filepath.Join(filepath.Dir(criu), "root/usr")
	pass(t, c, checkpointSuites, checkpointModules...)
}

// pass runs suites in a machine c with some kernel modules.
func pass(t *testing.T, c Config, suites []suite, modules ...string) {
	t.Helper()
	c.Modules = modules
	c.MemoryMB = 3072
	userland(t, &c)
	for _, s := range suites {
		name := path.Base(s.pkg)
		c.Files["/suites/"+name+".test"] = compileTests(t, c.WorkDir, name, s.pkg)
		c.Jobs = append(c.Jobs, Job{
			Name: name, Dir: "/data/tmp", Env: []string{"SOULBOX_BIN=/suites/bin", "SOULBOX_STACK=" + criuDir},
			Argv: []string{"/suites/" + name + ".test", "-test.v", "-test.timeout=10m", "-test.run=" + s.run},
		})
	}
	results, err := Run(t.Context(), c)
	if errors.Is(err, ErrPanic) {
		// Emulated processors get stuck in the kernel once in a great while, with the same tests that pass a hundred times. What comes of ours comes again.
		t.Log("once more: ", err)
		results, err = Run(t.Context(), c)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(results) != len(suites) {
		t.Fatalf("got %d results, want %d", len(results), len(suites))
	}
	for i, s := range suites {
		t.Run(path.Base(s.pkg), func(t *testing.T) {
			if results[i].Code != 0 {
				t.Errorf("ended with %d", results[i].Code)
			}
			for _, name := range s.must {
				if !strings.Contains(results[i].Output, "--- PASS: "+name+" ") {
					t.Errorf("%s did not pass", name)
				}
			}
		})
	}
}

// userland gives the machine what the tests of sandboxes make their root file systems of.
func userland(t *testing.T, c *Config) {
	t.Helper()
	lower := filepath.Join(c.WorkDir, "userland")
	if err := sandboxtest.MakeLower(lower); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ldd", "dirname", "tar", "gzip"} { // the tests', and CRIU's
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := sandboxtest.CopyFile(path, filepath.Join(lower, "bin", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(lower)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		switch e.Name() {
		case "proc", "dev", "tmp", "run": // the machine's own
		default:
			c.Files["/"+e.Name()] = filepath.Join(lower, e.Name())
		}
	}
	c.Files["/suites/bin/soulbox-init"] = build(t, c.WorkDir, "soulbox-init", "../../nomad-driver/cmd/soulbox-init")
}

// compileTests builds a package's static test binary.
func compileTests(t *testing.T, dir, name, pkg string) string {
	t.Helper()
	out := filepath.Join(dir, name+".test")
	cmd := exec.Command("go", "test", "-c", "-trimpath", "-o", out, "./"+pkg)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compile the tests of %s: %v: %s", pkg, err, b)
	}
	return out
}
