package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
)

const (
	restoreLog = "restore.log"
	// firstFile is the first of CRIU's descriptors that a request hands over.
	firstFile = 3
)

// RestoreOptions say what to bring back, and into what.
type RestoreOptions struct {
	Dump   Dump
	Images string // folder of the images
	Work   string // folder for the log
	IDBase uint32 // the host id that is to be id 0
	// Outside is the folder of the mounts that come from outside, by the words of their sources.
	Outside string
	// Mounts puts the new root where Root is. It runs in a mount namespace that ends with CRIU.
	Mounts func() error
	Root   string
	// Cgroup is the control group namespace that the processes come back in.
	Cgroup *os.File
	// Ready is called when the root is still alone and has its mounts: what Born has begun must be there when it returns.
	Ready func() error
	// Rules is a descriptor of Landlock rules that the processes come back under; nil: none. Built is called after Ready, before they come to hold, with
	// the root's pid: the rules may be completed then.
	Rules    *os.File
	Built    func(pid int) error
	Listener *os.File // what PID 1 finds in place of its guest socket
	Exit     *os.File // what it finds in place of its exit file
	// Born is called with the root's pid when it is alone in its new namespaces: it is to be put into its control group, and its network to be set up.
	Born func(pid int) error
	// Processes lists what is in the control group.
	Processes func() ([]int, error)
	// Complete is called when every process is there and none has run yet. They are frozen here, so that nothing runs before
	// somebody has taken note of it. Should CRIU die before, they do not run either.
	Complete func(pid int) error
	Started  func(p *os.Process) error
	Lazy     *Lazy // what is left out; nil: nothing
}

// Restore brings a dump back. The root is a child of this process: where an error comes with a pid, that is to be killed and waited for.
func (e *Engine) Restore(ctx context.Context, o RestoreOptions) (pid int, err error) {
	if err := o.Dump.Check(); err != nil {
		return 0, err
	}
	if err := readable(o.Images); err != nil {
		return 0, err
	}
	if err := rebase(o.Images, o.IDBase); err != nil {
		return 0, err
	}
	images, err := o.open()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, images.Close()) }()
	work, err := openDir(o.Work)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, work.Close()) }()
	opts := &rpc.CriuOpts{
		ImagesDirFd:       proto.Int32(int32(images.Fd())),
		WorkDirFd:         proto.Int32(int32(work.Fd())),
		LogLevel:          proto.Int32(2),
		LogFile:           proto.String(restoreLog),
		Root:              proto.String(o.Root),
		RstSibling:        proto.Bool(true),
		ExtUnixSk:         proto.Bool(true),
		TcpClose:          proto.Bool(true),
		FileLocks:         proto.Bool(true),
		LinkRemap:         proto.Bool(true),
		OrphanPtsMaster:   proto.Bool(true),
		GhostLimit:        proto.Uint32(maxGhost),
		ManageCgroups:     proto.Bool(true),
		ManageCgroupsMode: rpc.CriuCgMode_IGNORE.Enum(),
		EmptyNs:           proto.Uint32(unix.CLONE_NEWNET),
		NetworkLock:       rpc.CriuNetworkLockMethod_SKIP.Enum(),
		InheritFd: []*rpc.InheritFd{
			{Key: proto.String(o.Dump.Listener), Fd: proto.Int32(firstFile)},
			{Key: proto.String(o.Dump.Exit), Fd: proto.Int32(firstFile + 1)},
		},
	}
	for _, m := range o.Dump.Mounts {
		path, err := m.path(o.Outside)
		if err != nil {
			return 0, err
		}
		opts.External = append(opts.External, fmt.Sprintf("mnt[%s]:%s", m.key(), path))
	}
	files := []*os.File{o.Listener, o.Exit}
	if o.Rules != nil {
		files = append(files, o.Rules)
	}
	dead, err := newDeadman()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, dead.Close()) }()
	rules := firstFile + len(files) - 1
	files = append(files, dead.write)
	criu := 0
	started := func(p *os.Process) error {
		criu = p.Pid
		if err := dead.handedOver(); err != nil {
			return err
		}
		if o.Started == nil {
			return nil
		}
		return o.Started(p)
	}
	notify := func(script string, p int) error {
		switch script {
		case "setup-namespaces":
			pid = p
			return o.Born(p)
		case "post-setup-namespaces":
			if err := o.Ready(); err != nil || o.Rules == nil {
				return err
			}
			if err := o.Built(pid); err != nil {
				return err
			}
			return restrict(criu, pid, rules)
		case "post-restore":
			pids, err := o.Processes()
			if err != nil {
				return err
			}
			return dead.arm(pids)
		case "pre-resume":
			return errors.Join(o.Complete(pid), dead.disarm())
		}
		return nil
	}
	resp, err := e.call(ctx, request{
		typ: rpc.CriuReqType_RESTORE, opts: opts, files: files, thread: o.worker, notify: notify, started: started,
	})
	if err != nil && pid == 0 && criu != 0 {
		err = errors.Join(err, endOrphans(criu))
	}
	if err != nil {
		return pid, withLog(err, filepath.Join(o.Work, restoreLog))
	}
	if got := int(resp.GetRestore().GetPid()); got != pid {
		return pid, fmt.Errorf("criu restored process %d and told of %d", got, pid)
	}
	return pid, nil
}

// open opens the folder of the images that are restored.
func (o *RestoreOptions) open() (*os.File, error) {
	if o.Lazy == nil {
		return openDir(o.Images)
	}
	images, err := o.Lazy.thin.open(o.Images)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLazy, err)
	}
	return images, nil
}

// worker readies the thread that CRIU is started from: what CRIU restores takes its control group namespace and its keyring from there.
func (o *RestoreOptions) worker() error {
	if err := o.Mounts(); err != nil {
		return err
	}
	if err := unix.Setns(int(o.Cgroup.Fd()), unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("enter the control group namespace: %w", err)
	}
	// An anonymous session keyring instead of the node's. A kernel without keys has nothing to leave.
	if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("join keyring: %w", err)
	}
	return nil
}

// readable lets everybody read the images who reaches them: processes under restoration read theirs, with the sandbox's ids. They
// have the folder as a descriptor; who else may go there is a matter of the folders above.
func readable(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			return fmt.Errorf("image %s is no regular file", filepath.Join(dir, e.Name()))
		}
		if err := os.Chmod(filepath.Join(dir, e.Name()), 0o644); err != nil {
			return err
		}
	}
	return os.Chmod(dir, 0o755)
}

// Check refuses what no dump of a sandbox has.
func (d Dump) Check() error {
	if d.Version < 1 || d.Version > DumpVersion {
		return fmt.Errorf("dump has version %d, this node reads up to %d", d.Version, DumpVersion)
	}
	if len(d.Mounts) > maxMounts {
		return fmt.Errorf("dump has %d outside mounts, at most %d", len(d.Mounts), maxMounts)
	}
	for _, m := range d.Mounts {
		if _, err := m.path(""); err != nil {
			return fmt.Errorf("dump: %w", err)
		}
		if m.Bytes < 0 || m.Bytes > maxMemory {
			return fmt.Errorf("dump: mount %.100q has %d bytes, at most %d", m.Point, m.Bytes, int64(maxMemory))
		}
		if m.Point == "" || m.Point != filepath.Clean(m.Point) || m.Point[0] != '/' || len(m.Point) > 4096 {
			return fmt.Errorf("dump: mount point %.100q is no absolute, clean path", m.Point)
		}
	}
	var a, b uint64
	if _, err := fmt.Sscanf(d.Exit, "file[%x:%x]", &a, &b); err != nil || d.Exit != fmt.Sprintf("file[%x:%x]", a, b) {
		return fmt.Errorf("dump: exit file %.60q is none", d.Exit)
	}
	if _, err := fmt.Sscanf(d.Listener, "socket:[%d]", &a); err != nil || d.Listener != fmt.Sprintf("socket:[%d]", a) {
		return fmt.Errorf("dump: guest socket %.60q is none", d.Listener)
	}
	return nil
}
