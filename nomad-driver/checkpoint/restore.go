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

// RestorePlace is where a CRIU is started that is to restore, and what it hands over.
type RestorePlace struct {
	// Cgroup is the control group namespace that the processes come back in.
	Cgroup   *os.File
	Listener *os.File // what PID 1 finds in place of its guest socket
	Exit     *os.File // what it finds in place of its exit file
	Rules    *os.File // a descriptor of Landlock rules that the processes come back under; nil: none
	Started  func(p *os.Process) error
	// Held is called when that process is about to be one that waits for its next order, whatever becomes of this process: what it has restored has to be
	// killed before it.
	Held func(p *os.Process) error
}

// Restorer is a CRIU that was started for one restore. While it comes up, which takes milliseconds, all else can be made ready. Either Restore or End
// has to be called.
type Restorer struct {
	worker *worker
	dead   *deadman
	rules  int // CRIU's descriptor of them; 0: there are none
	watch  int // CRIU's descriptor of its end of dead
	held   func(*os.Process) error
	ended  chan struct{} // closed when one that has answered has ended; nil: there was none
}

// StartRestore starts a CRIU.
func (e *Engine) StartRestore(at RestorePlace) (*Restorer, error) {
	dead, err := newDeadman()
	if err != nil {
		return nil, err
	}
	r := &Restorer{dead: dead, held: at.Held}
	files := []*os.File{at.Listener, at.Exit}
	if at.Rules != nil {
		r.rules = firstFile + len(files)
		files = append(files, at.Rules)
	}
	r.watch = firstFile + len(files)
	files = append(files, dead.write)
	defer e.spare.standByAgain()
	if r.worker = e.takeSpare(at.Cgroup, files); r.worker != nil {
		r.worker.note(at.Started)
	} else if r.worker, err = e.start(place{files: files, thread: func() error {
		// What CRIU restores takes its control group namespace and its keyring from the thread that starts it.
		if err := unix.Setns(int(at.Cgroup.Fd()), unix.CLONE_NEWCGROUP); err != nil {
			return fmt.Errorf("enter the control group namespace: %w", err)
		}
		return joinKeyring()
	}, started: at.Started}); err != nil {
		return nil, errors.Join(err, dead.Close())
	}
	if err := dead.handedOver(); err != nil {
		return nil, errors.Join(err, r.End())
	}
	return r, nil
}

// joinKeyring gives this thread an anonymous session keyring instead of the node's. A kernel without keys has nothing to leave.
func joinKeyring() error {
	if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("join keyring: %w", err)
	}
	return nil
}

// End ends one that is not to restore any more.
func (r *Restorer) End() error {
	r.worker.end()
	return r.dead.Close()
}

// RestoreOptions say what to bring back, and into what.
type RestoreOptions struct {
	Dump   Dump
	Images *Images
	Work   string // folder for the log
	// Outside is the folder of the mounts that come from outside, by the words of their sources.
	Outside string
	// Mounts puts the new root where Root is, and makes Outside. It runs in a mount namespace that ends with CRIU.
	Mounts func() error
	Root   string
	// Ready is called when the root is still alone and has its mounts: what Born has begun must be there when it returns.
	Ready func() error
	// Built is called after Ready, before the rules come to hold, with the root's pid: they may be completed then.
	Built func(pid int) error
	// Born is called with the root's pid when it is alone in its new namespaces: it is to be put into its control group, and its network to be set up.
	Born func(pid int) error
	// Processes lists what is in the control group.
	Processes func() ([]int, error)
	// Complete is called when every process is there and none has run yet. They are frozen here, so that nothing runs before
	// somebody has taken note of it. Should CRIU die before, they do not run either.
	Complete func(pid int) error
}

// hold has CRIU outlive this process from now on, without going on.
func (r *Restorer) hold() error {
	if r.held != nil {
		if err := r.held(r.worker.cmd.Process); err != nil {
			return err
		}
	}
	return r.worker.hold(r.watch)
}

// Await returns when a CRIU that has restored has ended: of what it has made it needs nothing any more, but it has to take its own things down. Restore has been called.
func (r *Restorer) Await() {
	if r.ended != nil {
		<-r.ended
	}
}

// Restore brings a dump back. The root is a child of this process: where an error comes with a pid, that is to be killed and waited for. CRIU may still be ending then: see Await.
func (r *Restorer) Restore(ctx context.Context, o RestoreOptions) (pid int, err error) {
	asked := false
	defer func() {
		if !asked {
			r.worker.end()
		}
		err = errors.Join(err, r.dead.Close())
	}()
	work, err := openDir(o.Work)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, work.Close()) }()
	images := o.Images.dir
	if err := r.worker.inside(func() (err error) {
		// One that stood ready has followed the machine's mounts until here.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		if err := o.Mounts(); err != nil || o.Images.lazy == nil {
			return err
		}
		images, err = o.Images.lay(o.Outside)
		return err
	}); err != nil {
		return 0, err
	}
	if o.Images.lazy != nil {
		defer func() { err = errors.Join(err, images.Close()) }()
	}
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
	notify := func(script string, p int) error {
		switch script {
		case "setup-namespaces":
			pid = p
			return o.Born(p)
		case "post-setup-namespaces":
			if err := o.Ready(); err != nil {
				return err
			}
			if r.rules != 0 {
				if err := o.Built(pid); err != nil {
					return err
				}
				if err := restrict(r.worker.pid(), pid, r.rules); err != nil {
					return err
				}
			}
			return r.hold()
		case "post-restore":
			pids, err := o.Processes()
			if err != nil {
				return err
			}
			if err := r.dead.arm(pids); err != nil {
				return err
			}
			return r.worker.guard(r.dead.armed)
		case "pre-resume":
			return errors.Join(o.Complete(pid), r.dead.disarm())
		}
		return nil
	}
	asked = true
	resp, err := r.worker.hear(ctx, request{typ: rpc.CriuReqType_RESTORE, opts: opts, notify: notify})
	if err != nil {
		r.worker.end()
		if pid == 0 {
			err = errors.Join(err, endOrphans(r.worker.pid()))
		}
		return pid, withLog(err, filepath.Join(o.Work, restoreLog))
	}
	r.ended = make(chan struct{})
	go func() { // until Await
		defer close(r.ended)
		r.worker.letEnd()
	}()
	if got := int(resp.GetRestore().GetPid()); got != pid {
		return pid, fmt.Errorf("criu restored process %d and told of %d", got, pid)
	}
	return pid, nil
}

// Images are those of a dump, as CRIU is to read them.
type Images struct {
	dir  *os.File // their folder; where lazy is set, a mount of it that is mounted nowhere
	lazy *Lazy    // what they lack; nil: nothing
	over *os.File // a mount of the images that are thin, where lazy is set
}

// OpenImages readies the images in a folder for a restore where base is the host id that is to be id 0. With lazy they lack what can come later, if that pays; an
// error with ErrLazy says that it may go well without.
func (e *Engine) OpenImages(d Dump, dir string, base uint32, lazy *LazyOptions) (*Images, error) {
	if err := d.Check(); err != nil {
		return nil, err
	}
	if err := readable(dir); err != nil {
		return nil, err
	}
	if err := rebase(dir, base); err != nil {
		return nil, err
	}
	if lazy != nil && e.lazy == nil {
		t, err := planThin(dir, lazy.Least)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrLazy, err)
		}
		if t != nil {
			over, err := t.open(dir)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", ErrLazy, err)
			}
			fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("%w: mount %s: %w", ErrLazy, dir, err), over.Close())
			}
			whole := os.NewFile(uintptr(fd), dir)
			// Where the machine shares its mounts this one is shared with it: what is laid over images there would be laid over the machine's own.
			if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
				return nil, errors.Join(fmt.Errorf("%w: part the mount of %s from the machine's: %w", ErrLazy, dir, err), whole.Close(), over.Close())
			}
			return &Images{dir: whole, over: over, lazy: &Lazy{o: *lazy, images: dir, thin: t}}, nil
		}
	}
	f, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	return &Images{dir: f}, nil
}

// Lazy returns what the images lack; nil: nothing.
func (i *Images) Lazy() *Lazy { return i.lazy }

// Close lets go of them.
func (i *Images) Close() error {
	if i.over != nil {
		return errors.Join(i.dir.Close(), i.over.Close())
	}
	return i.dir.Close()
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
