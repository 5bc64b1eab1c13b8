package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs"
)

// Probe is the outcome of one kernel feature probe.
type Probe struct {
	Name   string // snake_case
	Needs  string // what the feature takes: a minimum kernel, or a configuration
	Needed bool   // without it no sandbox can start
	Err    error  // nil: the kernel has it
}

// probeGroup is no sandbox id, so that nothing takes it for one.
const probeGroup = "probe"

// Probes tries on this machine what Create needs: it makes each thing and removes it again. stateDir is Config.StateDir,
// whose file system counts. It must not run twice at a time with the same directories and groups.
func Probes(ctx context.Context, stateDir string, init *InitBinary, cgroups *cgroup.Tree) []Probe {
	p := &prober{ctx: ctx}
	p.add("seccomp_filter", "Linux 4.14 with CONFIG_SECCOMP_FILTER", true, probeSeccomp())
	for _, l := range []struct {
		name   string
		limits cgroup.Limits
	}{
		{"cgroup_freezer", cgroup.Limits{}},
		{"cgroup_cpu", cgroup.Limits{CPUMillis: 1000, CPUWeight: 100}},
		{"cgroup_memory", cgroup.Limits{MemoryBytes: 64 << 20}},
		{"cgroup_pids", cgroup.Limits{PIDs: 64}},
	} {
		p.add(l.name, fmt.Sprintf("that controller in cgroup v%d", cgroups.Version()), true, probeLimits(ctx, cgroups, l.limits))
	}
	if err := p.namespaces(stateDir, init); err != nil {
		p.add("probes", "a state directory that can be written", true, err)
	}
	return p.out
}

type prober struct {
	ctx context.Context
	out []Probe
}

func (p *prober) add(name, needs string, needed bool, err error) {
	p.out = append(p.out, Probe{Name: name, Needs: needs, Needed: needed, Err: err})
}

func probeSeccomp() error {
	action := uint32(unix.SECCOMP_RET_KILL_PROCESS)
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action))); e != 0 {
		return e
	}
	return nil
}

func probeLimits(ctx context.Context, cgroups *cgroup.Tree, l cgroup.Limits) error {
	g, err := cgroups.Create(probeGroup, l)
	if err != nil {
		return err
	}
	return g.Remove(ctx)
}

// namespaces forks a child that waits in all its namespaces, and tries on it what Create does with one.
func (p *prober) namespaces(stateDir string, init *InitBinary) (err error) {
	if err := os.MkdirAll(stateDir, 0o711); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(stateDir, "probe-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeTree(dir)) }()
	b := &builder{c: Config{IDBase: 2 * IDRange, Lower: dir, Init: init}, at: layout{run: dir, upper: filepath.Join(dir, "upper"), work: filepath.Join(dir, "work")}}
	for _, d := range []string{b.at.upper, b.at.work} {
		if err := errors.Join(os.Mkdir(d, 0o755), os.Lchown(d, int(b.c.IDBase), int(b.c.IDBase))); err != nil {
			return err
		}
	}
	b.c.Boot.Profile, b.c.QoS = ProfileDefault, Burstable
	binary, err := init.mount()
	p.add("detached_mounts", "Linux 5.12 (open_tree, mount_setattr)", true, err)
	if err != nil {
		return nil //nolint:nilerr // said above; the rest needs it
	}
	defer func() { err = errors.Join(err, binary.Close()) }()
	b.child, err = forkInit(binary, b.c.IDBase, nil, -1, nil, Capabilities)
	p.add("namespaces", "Linux 5.9 (clone3, close_range) with user, pid, mount, network, uts, ipc and cgroup namespaces", true, err)
	if err != nil {
		return nil //nolint:nilerr // said above
	}
	defer func() {
		err = errors.Join(err, reap(p.ctx, b.child), closeQuietly(b.child.boot), closeQuietly(b.child.status))
	}()
	userns, err := b.mapIDs()
	p.add("user_namespace_map", "the right to map other users' ids", true, err)
	if err != nil {
		return nil //nolint:nilerr // said above
	}
	defer func() { err = errors.Join(err, userns.Close()) }()
	lower, err := rootfs.Idmap(dir, int(userns.Fd()))
	p.add("idmapped_mounts", "Linux "+rootfs.MinKernelIdmap+" and a file system that has them, such as ext4, xfs or btrfs", true, err)
	if err != nil {
		return nil //nolint:nilerr // said above
	}
	if err := lower.Close(); err != nil {
		return err
	}
	root, err := b.mountRoot(userns)
	p.add("overlay", "Linux "+rootfs.MinKernelIdmap+" with CONFIG_OVERLAY_FS, on a file system that can hold a writable layer", true, err)
	if err != nil {
		return nil //nolint:nilerr // said above
	}
	return root.Close()
}
