// Package sandbox is one sandbox on this machine: its namespaces, its root file system, its control group, its PID 1, and
// its end.
//
// It owns everything that a sandbox consists of on the host, from Create to Release: two directories, one control group,
// one process tree. Nothing of a sandbox is ever mounted in the host's mount namespace. It keeps no records: who wants a
// sandbox back after a restart stores its Ref. It knows nothing of the node's API, of templates' names or of deadlines.
// Package node is its user.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// IDRange is how many host user and group ids a sandbox has of its own, from Config.IDBase on.
const IDRange = 65536

// Config describes a sandbox to Create.
type Config struct {
	ID       api.SandboxID
	Lower    string // directory: the template's root, owned from id 0 on; never written
	StateDir string // directory for all sandboxes' writable layers; this one's is StateDir/ID
	RunDir   string // directory for all sandboxes' sockets and exit records; this one's is RunDir/ID
	IDBase   uint32 // first of the IDRange host ids that are this sandbox's alone; not below IDRange
	Limits   Limits
	QoS      QoS // Burstable where empty
	Cgroups  *cgroup.Tree
	Init     *InitBinary
	// NodeOwned makes the node's own user the owner of the sandbox's user namespace, in place of the sandbox's first id. A checkpoint
	// needs that where the node lacks CAP_SYS_RESOURCE: see CanDump. What the kernel counts for each owner is shared then.
	NodeOwned bool
	Disk      disk.Limiter // for Limits.DiskBytes and DiskInodes; not used where both are 0
	// Network is the network namespace that the sandbox lives in, with its loopback up. It stays the caller's. Where it is nil
	// the sandbox gets one of its own, with loopback only.
	Network *os.File
	// Wire, where Network is nil, sets up the network namespace that the sandbox is born with, which is empty. It belongs to the
	// sandbox's user namespace, as a checkpoint needs it. It may be called beside other work, and has returned when Create does.
	Wire func(netns *os.File) error
	// Given is what it has of the host besides. Without a way to keep other groups from its devices Create fails.
	Given Given
	// Kept tells that the writable layer is in place already, as End has left it. It stays where Create fails.
	Kept bool

	// Boot tells what PID 1 shall do. Only Hostname, User, Cwd, Env, Profile and Main count; Create fills in the rest from
	// the fields above and from the profile ("default" where it is empty).
	Boot guest.Boot
}

// Limits of one sandbox. Zero means no limit, or the default that is named. The fields are those of the node API's
// Limits, in the same order, so that one converts to the other.
type Limits struct {
	CPUMillis   int64 // hard limit in thousandths of a core, at least 10
	CPUWeight   int64 // 1..10000, as cgroup v2's cpu.weight
	MemoryBytes int64 // hard limit, at least MinMemoryBytes; no swap
	PIDs        int64 // processes and threads, up to 16 of PID 1's own included; at least MinPIDs
	TmpBytes    int64 // size of /tmp; 0: DefaultTmpBytes
	NoFile      int64 // RLIMIT_NOFILE of each process; 0: DefaultNoFile

	DiskBytes  int64 // of the writable layer; needs Config.Disk
	DiskInodes int64 // files of the writable layer; needs Config.Disk

	// Of the disk that the writable layer is on, per second; cgroup.Unlimited lifts a limit of a running sandbox. On cgroup
	// v1 only direct and synchronous transfers count.
	IOReadBytes  int64
	IOWriteBytes int64
	IOReadOps    int64
	IOWriteOps   int64
}

// Bounds and defaults of Limits.
const (
	MinCPUMillis    = 10
	MinMemoryBytes  = 8 << 20
	MinPIDs         = 32
	DefaultTmpBytes = 256 << 20
	DefaultNoFile   = 65536
	MinDiskBytes    = 4 << 20
	MinDiskInodes   = 256
	MinIOBytes      = 64 << 10
	MinIOOps        = 16
)

// DefaultHostname is the same for all, so that a template's /etc/hosts can know it: a create then writes no file.
const DefaultHostname = "soulbox"

// Ref is what it takes to find a sandbox again after a restart of the daemon. It is stable: it may be stored as JSON.
type Ref struct {
	Version   int           `json:"version"`
	ID        api.SandboxID `json:"id"`
	BootID    string        `json:"boot_id"`    // of the kernel that it runs on
	PID       int           `json:"pid"`        // of its PID 1, in the host's pid namespace
	StartTime uint64        `json:"start_time"` // of that process: field 22 of /proc/PID/stat, in clock ticks since boot
	StateDir  string        `json:"state_dir"`  // Config.StateDir
	RunDir    string        `json:"run_dir"`    // Config.RunDir
	IDBase    uint32        `json:"id_base"`
	QoS       QoS           `json:"qos,omitempty"`
	Disk      string        `json:"disk,omitempty"` // name of the limiter that bounds its writable layer
}

// RefVersion is the version of Ref that this code writes.
const RefVersion = 1

// Exit says how a sandbox ended.
type Exit struct {
	// Record is what PID 1 wrote before it exited; nil where it was killed before it could.
	Record *guest.ExitRecord
	// Waited tells that Code and Signal are PID 1's own wait status, known only to the process that created it.
	Waited bool
	Code   int
	Signal int
	// OOM tells that the kernel's out-of-memory killer ended a process of the sandbox at some time.
	OOM bool
	// PIDLimit tells that processes or threads were refused at Limits.PIDs at some time.
	PIDLimit bool
	// DiskFull tells that its disk limit, in bytes or inodes, was used up at its end.
	DiskFull bool
	// Rebooted tells that the machine restarted under the sandbox.
	Rebooted bool
}

// Sandbox is one sandbox, running or ended. Its methods may be called from any goroutine.
type Sandbox struct {
	ref   Ref
	at    layout
	group *cgroup.Group
	guest *guest.Client
	steps []guest.Step
	main  guest.ProcessID
	pidfd *os.File // nil where it had ended already when it was opened

	done    chan struct{}
	exit    Exit          // set before done is closed
	watched chan struct{} // closed when the watching goroutine has ended
	frozen  atomic.Bool
	disk    disk.Limiter // nil where none bounds the writable layer
	oom     *oomWatch    // nil where the kernel ends all of it by itself
	meter   meter
	pages   *checkpoint.Pages // see Pages

	releasing sync.Mutex
	released  bool
}

func newSandbox(ref Ref, group *cgroup.Group, limiter disk.Limiter) *Sandbox {
	at := paths(ref.RunDir, ref.StateDir, ref.ID)
	return &Sandbox{
		ref: ref, at: at, group: group, guest: guest.NewClient(at.socket), disk: limiter,
		done: make(chan struct{}), watched: make(chan struct{}),
	}
}

// Ref returns what Open needs.
func (s *Sandbox) Ref() Ref { return s.ref }

// Guest returns the client of its PID 1.
func (s *Sandbox) Guest() *guest.Client { return s.guest }

// Steps returns how long each step of Create took, those of PID 1 included ("boot.…"; the step "init" is the time that
// Create waited for them); nil after Open.
func (s *Sandbox) Steps() []guest.Step { return s.steps }

// Main returns the pid, inside, of Boot.Main; 0 where there is none or after Open (ask Guest().Info).
func (s *Sandbox) Main() guest.ProcessID { return s.main }

// Done is closed when PID 1 is gone and with it every process of the sandbox.
func (s *Sandbox) Done() <-chan struct{} { return s.done }

// Exit says how it ended. Call it after Done; before, it is the zero Exit.
func (s *Sandbox) Exit() Exit {
	select {
	case <-s.done:
		return s.exit
	default:
		return Exit{}
	}
}

// Stats reads the counters of its group, and those of its disk where a limiter bounds it.
func (s *Sandbox) Stats() (cgroup.Stats, error) {
	st, err := s.group.Stats()
	if err != nil {
		return st, err
	}
	u, err := s.diskCounted()
	if err != nil || u == nil {
		return st, err
	}
	st.DiskBytes, st.DiskLimit = uint64(u.Bytes), uint64(u.Limits.Bytes)
	st.DiskInodes, st.DiskInodeLimit = uint64(u.Inodes), uint64(u.Limits.Inodes)
	st.Measured = append(st.Measured, "disk_bytes", "disk_limit_bytes", "disk_inodes", "disk_inode_limit")
	return st, nil
}

// SetLimits changes limits of a running sandbox. Zero values leave what is set. TmpBytes and NoFile are errors: they do not
// change in a running sandbox. Those that may be refused come first; after an error those before it have changed.
//
// In the chain of its errors are cgroup.ErrBelowUse, cgroup.ErrUnsupported, disk.ErrCannotShrink, disk.ErrUnsupported.
func (s *Sandbox) SetLimits(l Limits) error {
	if err := l.check(); err != nil {
		return err
	}
	if l.TmpBytes != 0 || l.NoFile != 0 {
		return errors.New("tmp_bytes and nofile do not change in a running sandbox")
	}
	if l.DiskBytes != 0 || l.DiskInodes != 0 {
		if err := s.resizeDisk(disk.Limits{Bytes: l.DiskBytes, Inodes: l.DiskInodes}); err != nil {
			return err
		}
	}
	g, err := l.group(s.ref.QoS, s.ref.StateDir)
	if err != nil {
		return err
	}
	if err := s.group.SetLimits(cgroup.Limits{IO: g.IO}); err != nil {
		return err
	}
	g.IO = cgroup.IOLimits{}
	return s.group.SetLimits(g)
}

func (s *Sandbox) resizeDisk(l disk.Limits) error {
	if s.disk == nil {
		return fmt.Errorf("the sandbox was made without a disk limit, and one cannot be set on what is there already: %w", disk.ErrUnsupported)
	}
	now, err := s.disk.Usage(s.at.state)
	if err != nil {
		return err
	}
	if l.Bytes == 0 {
		l.Bytes = now.Limits.Bytes
	}
	if l.Inodes == 0 {
		l.Inodes = now.Limits.Inodes
	}
	return s.disk.Resize(s.at.state, l)
}

// Freeze stops every process of it until Thaw, Kill or Release, and returns once all have stopped.
func (s *Sandbox) Freeze(ctx context.Context) error {
	s.frozen.Store(true)
	return s.group.Freeze(ctx)
}

// Thaw lets a frozen sandbox go on.
func (s *Sandbox) Thaw(ctx context.Context) error {
	if err := s.group.Thaw(ctx); err != nil {
		return err
	}
	s.frozen.Store(false)
	s.guest.Unpark()
	return nil
}
