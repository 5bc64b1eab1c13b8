package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/boot"
	"github.com/soulbox-dev/soulbox/nomad-driver/procstat"
)

// RestoreConfig describes a sandbox to bring back. Of Config's Boot only Hostname and Profile count.
type RestoreConfig struct {
	Config
	Engine *checkpoint.Engine
	Dir    CheckpointDir
	Dump   checkpoint.Dump
	// Started is called with CRIU's process once it runs.
	Started func(*os.Process) error
	// Held is called when it will outlive this process: what is restored has to be killed before it then.
	Held func(*os.Process) error
	// Network sets up the network namespace that CRIU made, which is empty; nil brings loopback up.
	Network func(netns *os.File) error
	// Lazy, where it is set, has memory come after Restore, if there is that much of it.
	Lazy *Lazy
}

// Lazy says how memory comes after a restore.
type Lazy struct {
	Dir   string              // of the page server, below the folder of the checkpoint's; it must not be there
	Least int64               // bytes; 0: checkpoint.LazyLeast
	First *checkpoint.Touched // what comes first of it; nil: nothing in particular
	Watch bool                // see checkpoint.LazyOptions
}

// Directories that every kernel has, everybody may search, and CRIU does not look into: in a mount namespace of CRIU's own the root, and what else comes from
// outside, are mounted there. Processes that come back open both with the sandbox's ids, to which the node's directories, and perhaps the one of the init
// binary, are closed.
const (
	restoreRoot    = "/sys/bus"
	restoreOutside = "/sys/class"
)

// renewTimeout bounds how long a restored PID 1 may take to answer.
const renewTimeout = 30 * time.Second

// Restore brings a sandbox back whose writable layer is in place at StateDir/ID, with the id and the ids that it is given. It comes
// back frozen: nothing of it has run when Restore returns, and a daemon that is killed before it has taken note of the sandbox can
// kill it and restore it again. Call Wake then. On error nothing runs, and the writable layer is as it was; with checkpoint.ErrLazy it would have
// gone well without Lazy.
//
// Where memory comes later, Pages returns its server, and the checkpoint's images must stay until that has ended.
func Restore(ctx context.Context, c RestoreConfig) (*Sandbox, error) {
	var err error
	if c.Config, err = c.Config.withDefaults(); err != nil {
		return nil, fmt.Errorf("restore sandbox: %w", err)
	}
	if c.Given.Any() {
		return nil, fmt.Errorf("restore sandbox %s: it cannot be given devices", c.ID)
	}
	r := &restorer{c: c, b: &builder{c: c.Config, at: paths(c.RunDir, c.StateDir, c.ID), last: time.Now()}}
	s, err := r.restore(ctx)
	if err != nil {
		return nil, fmt.Errorf("restore sandbox %s: %w", c.ID, errors.Join(err, r.undo()))
	}
	return s, nil
}

// restorer is one Restore under way.
type restorer struct {
	c     RestoreConfig
	b     *builder
	pid   int
	pidfd *os.File
	pages *checkpoint.Pages // nil: all memory is there
	criu  *checkpoint.Restorer
	// wired gets what came of the group and the network, once; nil: it has not begun, or is over.
	wired <-chan error
}

func (r *restorer) restore(ctx context.Context) (_ *Sandbox, err error) {
	b := r.b
	images := r.openImages() // while all else is made
	defer func() { err = errors.Join(err, images.close()) }()
	outside := r.outside()
	defer func() { err = errors.Join(err, outside.close()) }()
	limits, err := b.c.Limits.group(b.c.QoS, b.c.StateDir)
	if err != nil {
		return nil, err
	}
	if b.group, err = b.c.Cgroups.Create(string(b.c.ID), limits); err != nil {
		return nil, err
	}
	b.step("cgroup")
	spaces, err := r.namespaces(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, spaces.Close()) }()
	b.step("namespaces")
	if err := r.makeFiles(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.closeHandedOver()) }()
	listener, exit, err := r.handedOver()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, listener.Close(), exit.Close()) }()
	rules, err := boot.NewLandlockRules()
	if err != nil {
		return nil, err
	}
	place := checkpoint.RestorePlace{Cgroup: spaces.cgroup, Listener: listener, Exit: exit, Started: r.c.Started, Held: r.c.Held}
	if rules != nil {
		defer func() { err = errors.Join(err, rules.Close()) }()
		if !without.landlock {
			place.Rules = rules.File
		}
	}
	if r.criu, err = r.c.Engine.StartRestore(place); err != nil {
		return nil, err
	}
	defer func() {
		if r.criu != nil {
			err = errors.Join(err, r.criu.End())
		}
	}()
	b.step("start")
	// Not before: meanwhile nobody can fork. It is ready when there is a process to move.
	expected := make(chan struct{})
	defer func() { <-expected }()
	go func() { defer close(expected); b.c.Cgroups.ExpectJoin() }()
	root, err := r.mountRoot(spaces.user)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if err := outside.await(); err != nil {
		return nil, err
	}
	b.step("mounts")
	opened, err := images.await()
	if err != nil {
		return nil, err
	}
	b.step("images")
	criu := r.criu
	r.criu = nil
	defer criu.Await()
	r.pid, err = criu.Restore(ctx, checkpoint.RestoreOptions{
		Dump: r.c.Dump, Images: opened, Work: r.c.Dir.Work(), Outside: restoreOutside, Root: restoreRoot,
		Mounts: func() error {
			if err := attach(root, restoreRoot); err != nil {
				return err
			}
			return outside.attach()
		},
		Born: r.born, Ready: func() error { images.ask(); return r.ready() }, Processes: b.group.Processes, Complete: r.complete,
		Built: func(pid int) error { return r.allow(rules, root, pid) },
	})
	if err = errors.Join(err, r.ready()); err != nil { // CRIU may have ended before it was asked for
		return nil, err
	}
	b.step("criu")
	if lazy := opened.Lazy(); lazy != nil {
		if err := r.serve(ctx, lazy, images); err != nil {
			return nil, err
		}
		b.step("pages")
		failpoint.At("restore.paged")
	}
	return r.adopt()
}

// serve has the page server begin, once everything is frozen.
func (r *restorer) serve(ctx context.Context, lazy *checkpoint.Lazy, images *opening) error {
	ctx, cancel := context.WithTimeout(ctx, cleanupTime)
	defer cancel()
	images.ask()
	<-images.prepared
	if images.perr != nil {
		return images.perr
	}
	if err := r.b.group.Freeze(ctx); err != nil {
		return err
	}
	r.pages, images.pages = images.pages, nil
	return lazy.Serve(ctx, r.b.group, r.pages)
}

// mountRoot mounts the overlay on the writable layer.
func (r *restorer) mountRoot(userns *os.File) (*os.File, error) {
	b := r.b
	if err := ReturnNames(b.at.state, r.c.Dir.Images()); err != nil {
		return nil, err
	}
	// What an earlier mount has left there would make this one be refused: the layer is volatile.
	if err := removeTree(b.at.work); err != nil {
		return nil, err
	}
	if err := os.Mkdir(b.at.work, 0o755); err != nil {
		return nil, err
	}
	if err := os.Lchown(b.at.work, int(b.c.IDBase), int(b.c.IDBase)); err != nil {
		return nil, err
	}
	return b.mountRoot(userns)
}

// namespaces are what a restored sandbox needs before it has a process of its own.
type namespaces struct {
	user   *os.File // that has the sandbox's ids: for mounts
	cgroup *os.File // whose root is the sandbox's group
}

func (n *namespaces) Close() error { return errors.Join(n.user.Close(), n.cgroup.Close()) }

// namespaces makes them with a process that only stands for them, and has ended when this returns.
func (r *restorer) namespaces(ctx context.Context) (_ *namespaces, err error) {
	stand := &builder{c: r.b.c, group: r.b.group}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
		defer cancel()
		err = errors.Join(err, stand.closeHandedOver(), stand.undoFork(ctx))
	}()
	if err := stand.forkWith(nil); err != nil {
		return nil, err
	}
	user, err := stand.mapIDs()
	if err != nil {
		return nil, err
	}
	if err := stand.await(ctx, stand.child.awaitStand); err != nil {
		return nil, errors.Join(err, user.Close())
	}
	cgroup, err := os.Open(procPath(stand.child.pid, "ns/cgroup"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open control group namespace: %w", err), user.Close())
	}
	return &namespaces{user: user, cgroup: cgroup}, nil
}

// makeFiles makes the guest socket, for the moment in this process's network namespace, and the exit file.
func (r *restorer) makeFiles() (err error) {
	b := r.b
	if err := removeTree(b.at.run); err != nil {
		return err
	}
	if err := mkdirNew(b.at.run); err != nil {
		return err
	}
	b.made.run = true
	if b.exit, err = makeExit(b.at.exit); err != nil {
		return err
	}
	// CRIU opens it again, as the sandbox's root. The way to it by name stays closed.
	if err := unix.Fchown(b.exit, int(b.c.IDBase), int(b.c.IDBase)); err != nil {
		return err
	}
	if b.lis, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return fmt.Errorf("make guest socket: %w", err)
	}
	return listenAt(b.lis, b.at.socket)
}

// handedOver returns copies of the two as files. PID 1 has them in non-blocking mode, or not, as the checkpoint says.
func (r *restorer) handedOver() (listener, exit *os.File, err error) {
	lis, err := unix.FcntlInt(uintptr(r.b.lis), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, nil, err
	}
	ex, err := unix.FcntlInt(uintptr(r.b.exit), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, nil, errors.Join(err, unix.Close(lis))
	}
	return os.NewFile(uintptr(lis), "guest socket"), os.NewFile(uintptr(ex), "exit record"), nil
}

// born begins to put the new root process, which is alone yet, into its group, and to set its network up.
func (r *restorer) born(pid int) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	r.pid, r.pidfd = pid, os.NewFile(uintptr(fd), "pidfd")
	netns, err := os.Open(procPath(pid, "ns/net"))
	if err != nil {
		return err
	}
	network := r.c.Network
	if network == nil {
		network = loopbackUp
	}
	wired := make(chan error, 1)
	r.wired = wired
	go func() { // while CRIU mounts
		joined := make(chan error, 1)
		go func() { joined <- r.b.group.Join(pid) }()
		err := errors.Join(network(netns), netns.Close())
		wired <- errors.Join(err, <-joined)
	}()
	return nil
}

// ready waits until the root is in its group and the network is there: processes come next, which are to be in that group, and sockets, which may have
// the network's addresses.
func (r *restorer) ready() error {
	if r.wired == nil {
		return nil
	}
	err := <-r.wired
	r.wired = nil
	return err
}

// allow completes the Landlock rules with the directories of a tree under restoration.
func (r *restorer) allow(rules *boot.LandlockRules, root *os.File, pid int) error {
	dev, err := checkpoint.OpenBuilt(pid, r.c.Dir.Images(), "/dev")
	if err != nil {
		return err
	}
	return errors.Join(rules.Allow(int(root.Fd()), int(dev.Fd())), dev.Close())
}

// complete freezes the tree, whose processes are stopped by CRIU now and would run next.
func (r *restorer) complete(int) error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	// The UTS namespace has the name of the checkpoint by now.
	if err := setHostname(r.pidfd, r.b.c.Boot.Hostname); err != nil {
		return err
	}
	// Who is traced stops for the freezer only once it is let go: here it is asked to, and adopt waits for it.
	return r.b.group.StartFreeze(ctx)
}

// adopt makes a Sandbox of the restored tree.
func (r *restorer) adopt() (*Sandbox, error) {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	if err := r.b.group.Freeze(ctx); err != nil {
		return nil, err
	}
	stat, err := procstat.Of(r.pid)
	if err != nil {
		return nil, fmt.Errorf("identify PID 1: %w", err)
	}
	booted, err := bootID()
	if err != nil {
		return nil, err
	}
	ref := Ref{
		Version: RefVersion, ID: r.b.c.ID, BootID: booted, PID: r.pid, StartTime: stat.Start,
		StateDir: r.b.c.StateDir, RunDir: r.b.c.RunDir, IDBase: r.b.c.IDBase, QoS: r.b.c.QoS,
	}
	if r.b.c.Disk != nil && r.b.c.Limits.disk() != (Limits{}).disk() {
		ref.Disk = r.b.c.Disk.Name()
		r.b.disk = r.b.c.Disk
	}
	s := newSandbox(ref, r.b.group, r.b.disk)
	s.steps, s.pages = r.b.steps, r.pages
	s.frozen.Store(true)
	if s.oom, err = watchOOM(r.b.group); err != nil {
		return nil, err
	}
	s.watch(r.pidfd, true)
	return s, nil
}

// undo ends what was restored. The writable layer stays.
func (r *restorer) undo() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	at := r.b.at
	at.state = ""
	if !r.b.made.run {
		at.run = ""
	}
	var errs []error
	if r.b.group != nil {
		errs = append(errs, r.b.group.Kill(ctx))
	}
	if r.pidfd != nil {
		errs = append(errs, reap(ctx, &child{pid: r.pid, pidfd: r.pidfd}))
	}
	if r.pages != nil {
		errs = append(errs, r.pages.End(), r.pages.Close())
	}
	return errors.Join(append(errs, scrub(ctx, at, r.b.group, nil))...)
}

// Pages returns the server of what a restored sandbox still gets of its memory; nil: it has had all from the beginning.
func (s *Sandbox) Pages() *checkpoint.Pages { return s.pages }

// Wake lets a restored sandbox run and tells its PID 1 who it is now.
func (s *Sandbox) Wake(ctx context.Context, env []string) error {
	if err := s.Thaw(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	next := filepath.Join(s.at.run, "guest.new")
	named := false // the next one has the name
	err := s.guest.Renew(ctx, guest.Renew{SandboxID: string(s.ref.ID), Env: env}, func(f *os.File) error {
		if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := listenAt(int(f.Fd()), next); err != nil {
			return err
		}
		if err := exchange(next, s.at.socket); err != nil {
			return err
		}
		named = true
		failpoint.At("restore.named")
		return nil
	})
	if err == nil {
		if err = os.Remove(next); errors.Is(err, os.ErrNotExist) { // the one before
			err = nil
		}
		return err
	}
	if named && refused(s.at.socket) { // PID 1 had given up before it could be found there
		err = errors.Join(err, exchange(next, s.at.socket))
	}
	return fmt.Errorf("renew sandbox %s: %w", s.ref.ID, err)
}

// refused reports whether nobody listens at a socket.
func refused(path string) bool {
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
}

// exchange has two files take each other's name, or, in a file system that cannot do that at once, the first one the second one's.
func exchange(a, b string) error {
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) {
		err = os.Rename(a, b)
	}
	if err != nil {
		return fmt.Errorf("exchange the names %s and %s: %w", a, b, err)
	}
	return nil
}

// loopbackUp brings the loopback interface of a network namespace up.
func loopbackUp(netns *os.File) error {
	return inNetwork(netns, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		defer unix.Close(fd)
		req, err := unix.NewIfreq("lo")
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_UP)
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
			return fmt.Errorf("bring lo up: %w", err)
		}
		return nil
	})
}

// setHostname sets the host name in a process's UTS namespace.
func setHostname(process *os.File, name string) error {
	home, err := os.Open("/proc/self/ns/uts")
	if err != nil {
		return err
	}
	defer home.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(process.Fd()), unix.CLONE_NEWUTS); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter the UTS namespace: %w", err)
			return
		}
		err := unix.Sethostname([]byte(name))
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWUTS) == nil {
			runtime.UnlockOSThread() // else the thread ends with this goroutine
		}
		done <- os.NewSyscallError("sethostname", err)
	}()
	return <-done
}

// inNetwork runs f on a thread in a network namespace.
func inNetwork(netns *os.File, f func() error) error {
	home, err := hostNet()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter the network namespace: %w", err)
			return
		}
		err := f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // else the thread ends with this goroutine
		}
		done <- err
	}()
	return <-done
}
