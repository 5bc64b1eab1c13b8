package sandbox

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/procstat"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs"
)

// cleanupTime bounds the removal of what a failed Create has made.
const cleanupTime = 30 * time.Second

// bootMillis is what a sandbox has of processor at least until its PID 1 serves: a few milliseconds of work, which a small quota
// would spread over many of the scheduler's periods. Nothing of the user's runs before but the start of Boot.Main.
const bootMillis = 1000

// Create makes a sandbox and returns when its PID 1 serves and Boot.Main, if any, runs. On error nothing is left behind.
// An error that PID 1 reported has a *frame.ErrorBody in its chain, whose Code is one of guest.Code* or boot.CodeBoot.
func Create(ctx context.Context, c Config) (*Sandbox, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("create sandbox: %w", err)
	}
	b := &builder{c: c, at: paths(c.RunDir, c.StateDir, c.ID), last: time.Now()}
	s, err := b.build(ctx)
	if err != nil {
		err = fmt.Errorf("create sandbox %s: %w", c.ID, errors.Join(err, b.undo()))
		return nil, err
	}
	return s, nil
}

// builder is one Create under way. What it made so far is what undo removes.
type builder struct {
	c     Config
	at    layout
	group *cgroup.Group
	child *child
	exit  int // descriptor of the exit file, or 0
	lis   int // descriptor of the listening socket, or 0
	init  *os.File
	given *given
	made  struct{ state, run bool }
	quota int64        // of processor, where it comes to hold only after the boot
	disk  disk.Limiter // of the writable layer, where one was asked to bound it
	steps []guest.Step
	last  time.Time
}

func (b *builder) step(name string) {
	now := time.Now()
	b.steps = append(b.steps, guest.Step{Name: name, Nanos: now.Sub(b.last).Nanoseconds()})
	b.last = now
}

func (b *builder) build(ctx context.Context) (_ *Sandbox, err error) {
	defer func() { err = errors.Join(err, b.closeHandedOver()) }()
	if b.given, err = b.c.Given.open(); err != nil {
		return nil, err
	}
	if b.c.Limits.disk() != (disk.Limits{}) {
		// Before the fork: a limiter may run a program, whose start then waits for every copy of a pipe to close, also for
		// that of a child which waits for us.
		if err := b.makeState(); err != nil {
			return nil, err
		}
		b.step("disk")
	}
	// The child needs its directories only once it is let go: they are made while it is forked, on disks that are slow at it.
	files := make(chan error, 1)
	go func() { files <- b.makeFiles() }()
	err = b.makeChild()
	if err = errors.Join(err, <-files); err != nil {
		return nil, err
	}
	wired := b.wire()
	defer func() { _ = wired() }() // its error counts below
	if err := b.makeSocket(); err != nil {
		return nil, err
	}
	b.step("files")
	userns, err := b.mapIDs()
	if err != nil {
		return nil, err
	}
	b.step("id_map")
	root, err := b.mountRoot(userns)
	if err = errors.Join(err, userns.Close()); err != nil {
		return nil, err
	}
	b.step("overlay")
	if b.c.Wire != nil {
		if err := wired(); err != nil {
			return nil, errors.Join(err, root.Close())
		}
		b.step("network")
	}
	err = b.awaitExec(ctx)
	b.step("exec")
	if err == nil {
		err = b.sendBoot(root)
	}
	if err = errors.Join(err, root.Close()); err != nil {
		return nil, b.whyDied(err)
	}
	b.step("send")
	reply, err := b.awaitReply(ctx)
	if err != nil {
		return nil, err
	}
	b.step("init")
	if b.quota > 0 {
		if err := b.group.SetLimits(cgroup.Limits{CPUMillis: b.quota}); err != nil {
			return nil, err
		}
		b.step("quota")
	}
	stat, err := procstat.Of(b.child.pid)
	if err != nil {
		return nil, fmt.Errorf("identify PID 1: %w", err)
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	ref := Ref{
		Version: RefVersion, ID: b.c.ID, BootID: boot, PID: b.child.pid, StartTime: stat.Start,
		StateDir: b.c.StateDir, RunDir: b.c.RunDir, IDBase: b.c.IDBase, QoS: b.c.QoS,
	}
	if b.disk != nil {
		ref.Disk = b.disk.Name()
	}
	if err := errors.Join(b.child.boot.Close(), b.child.status.Close()); err != nil {
		return nil, err
	}
	s := newSandbox(ref, b.group, b.disk)
	s.main, s.steps = reply.Main, append(b.steps, reply.Steps...)
	if s.oom, err = watchOOM(b.group); err != nil {
		return nil, err
	}
	s.watch(b.child.pidfd, true)
	return s, nil
}

// makeChild makes the group and forks.
func (b *builder) makeChild() (err error) {
	limits, err := b.c.Limits.group(b.c.QoS, b.c.StateDir)
	if err != nil {
		return err
	}
	if q := limits.CPUMillis; 0 < q && q < bootMillis {
		b.quota, limits.CPUMillis = q, bootMillis
	}
	if b.group, err = b.c.Cgroups.Create(string(b.c.ID), limits, b.given.own...); err != nil {
		return err
	}
	b.step("cgroup")
	if err := b.fork(); err != nil {
		return err
	}
	b.step("fork")
	return nil
}

// wire begins to set up the child's network, and returns what waits for the end of that.
func (b *builder) wire() func() error {
	if b.c.Wire == nil || b.c.Network != nil {
		return func() error { return nil }
	}
	done := make(chan error, 1)
	go func() {
		netns, err := os.Open(procPath(b.child.pid, "ns/net"))
		if err == nil {
			err = errors.Join(b.c.Wire(netns), netns.Close())
		}
		done <- err
	}()
	return sync.OnceValue(func() error { return <-done })
}

// makeFiles makes the directories and the files in them.
func (b *builder) makeFiles() error {
	if err := b.makeDirs(); err != nil {
		return err
	}
	var err error
	b.exit, err = makeExit(b.at.exit)
	return err
}

// makeState makes the directory of the writable layer, with its bound.
func (b *builder) makeState() error {
	if b.c.Kept {
		if b.c.Limits.disk() != (disk.Limits{}) {
			b.disk = b.c.Disk // it bounds the layer already
		}
		return nil
	}
	if err := mkdirNew(b.at.state); err != nil {
		return err
	}
	b.made.state = true
	l := b.c.Limits.disk()
	if l == (disk.Limits{}) {
		return nil
	}
	b.disk = b.c.Disk // also where that fails: then there may be something to release
	return b.disk.Prepare(b.at.state, l)
}

func (b *builder) makeDirs() error {
	owner := int(b.c.IDBase)
	if !b.made.state {
		if err := b.makeState(); err != nil {
			return err
		}
	}
	fresh := []string{b.at.upper, b.at.work}
	if b.c.Kept {
		// What an earlier mount has left there would make the next one be refused: the layer is volatile.
		if err := errors.Join(removeTree(b.at.work), removeTree(b.at.run)); err != nil {
			return err
		}
		fresh = fresh[1:]
	}
	for _, dir := range fresh {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := os.Lchown(dir, owner, owner); err != nil {
			return err
		}
	}
	if err := mkdirNew(b.at.run); err != nil {
		return err
	}
	b.made.run = true
	return nil
}

// mkdirNew makes a directory for the node alone, and its parent where that is missing.
func mkdirNew(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(dir), 0o711); err == nil {
			err = os.Mkdir(dir, 0o700)
		}
	}
	return err
}

// makeExit makes the file for the exit record.
func makeExit(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600) // O_EXCL follows no link; O_NOFOLLOW would stay, and CRIU opens it through one
	if err != nil {
		return 0, fmt.Errorf("make %s: %w", path, err)
	}
	return fd, nil
}

// makeSocket makes the guest socket in the child's network namespace: a checkpoint could not hold one of another.
func (b *builder) makeSocket() error {
	in := b.child.pidfd
	if b.c.Network != nil { // which the child enters only later
		in = b.c.Network
	}
	fd, err := socketIn(in, unix.AF_UNIX, unix.SOCK_STREAM)
	if err != nil {
		return fmt.Errorf("make guest socket: %w", err)
	}
	b.lis = fd
	return listenAt(b.lis, b.at.socket)
}

// listenAt binds a socket to path and lets it listen.
func listenAt(fd int, path string) error {
	// The directory is the node's alone, so there is no moment in which others could connect.
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return fmt.Errorf("bind %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	if err := unix.Listen(fd, 1024); err != nil {
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	return nil
}

func (b *builder) fork() (err error) {
	if b.init, err = b.c.Init.mount(); err != nil {
		return err
	}
	return b.forkWith(b.init)
}

// forkWith forks a child that executes init, or only stands where that is nil.
func (b *builder) forkWith(init *os.File) error {
	entry, err := b.group.Entry()
	if err != nil {
		return fmt.Errorf("open control group: %w", err)
	}
	dir := -1
	if entry.Dir != nil {
		dir = int(entry.Dir.Fd())
	}
	owner := b.c.IDBase
	if b.c.NodeOwned {
		owner = 0
	}
	b.child, err = forkInit(init, owner, entry.Tasks, dir, b.c.Network, keptCapabilities())
	return errors.Join(err, entry.Close())
}

// mapIDs maps the ids of the child, lets it go on to its exec, and returns its user namespace.
func (b *builder) mapIDs() (*os.File, error) {
	line := fmt.Sprintf("0 %d %d\n", b.c.IDBase, IDRange)
	for _, name := range []string{"uid_map", "gid_map"} {
		if err := writeProc(procPath(b.child.pid, name), line); err != nil {
			return nil, b.whyDied(fmt.Errorf("map ids: %w", err))
		}
	}
	fd, err := unix.Open(procPath(b.child.pid, "ns/user"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, b.whyDied(fmt.Errorf("open user namespace: %w", err))
	}
	userns := os.NewFile(uintptr(fd), "user namespace")
	if _, err := b.child.boot.Write([]byte{0}); err != nil {
		return nil, b.whyDied(errors.Join(fmt.Errorf("release child: %w", err), userns.Close()))
	}
	return userns, nil
}

func writeProc(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	_, err = unix.Write(fd, []byte(value))
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func (b *builder) mountRoot(userns *os.File) (root *os.File, err error) {
	lower, err := rootfs.Idmap(b.c.Lower, int(userns.Fd()))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lower.Close()) }()
	upper, err := openDir(b.at.upper)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, upper.Close()) }()
	work, err := openDir(b.at.work)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, work.Close()) }()
	return rootfs.NewOverlay(rootfs.Overlay{
		Lower: lower, Upper: upper, Work: work, NoSUID: b.c.Boot.Profile == ProfileStrict, Attach: b.at.run,
	})
}

func openDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// awaitExec waits until PID 1 has a memory of its own, and gives it its place in the order of who ends when memory is short: earlier, the
// kernel would give the same place to all that share that memory, the node among them.
func (b *builder) awaitExec(ctx context.Context) error {
	if err := b.await(ctx, b.child.awaitExec); err != nil {
		return err
	}
	if err := writeProc(procPath(b.child.pid, "oom_score_adj"), b.c.QoS.oomScoreAdj()); err != nil {
		return fmt.Errorf("set out of memory order: %w", err)
	}
	return nil
}

// await waits for what the child says by its status pipe.
func (b *builder) await(ctx context.Context, word func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = b.child.status.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := word(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	return nil
}

// sendBoot sends the boot message with its descriptors.
func (b *builder) sendBoot(root *os.File) error {
	msg, err := bootMessage(b.c)
	if err != nil {
		return err
	}
	msg.Given = b.given.boot
	payload, err := json.Marshal(msg)
	if err != nil {
		return fmt.Errorf("encode boot message: %w", err)
	}
	if len(payload) > frame.MaxPayload {
		return fmt.Errorf("boot message of %d bytes, at most %d: environment or arguments are too long", len(payload), frame.MaxPayload)
	}
	fds := make([]int, guest.BootFDCount)
	fds[guest.BootFDRoot], fds[guest.BootFDListener] = int(root.Fd()), b.lis
	fds[guest.BootFDExit], fds[guest.BootFDInit] = b.exit, int(b.init.Fd())
	for _, f := range b.given.mounts {
		fds = append(fds, int(f.Fd()))
	}
	header := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	header = append(header, byte(frame.Request))
	conn, err := b.child.boot.SyscallConn()
	if err != nil {
		return err
	}
	data, sent := append(header, payload...), 0
	var serr error
	if err := conn.Write(func(fd uintptr) bool {
		sent, serr = unix.SendmsgN(int(fd), data, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
		return !errors.Is(serr, unix.EAGAIN)
	}); err != nil {
		return fmt.Errorf("send boot message: %w", err)
	}
	if serr != nil {
		return fmt.Errorf("send boot message: %w", serr)
	}
	if sent < len(data) {
		if _, err := b.child.boot.Write(data[sent:]); err != nil {
			return fmt.Errorf("send boot message: %w", err)
		}
	}
	return nil
}

// awaitReply waits until PID 1 serves. When ctx ends first, it is ctx's error that counts.
func (b *builder) awaitReply(ctx context.Context) (guest.BootReply, error) {
	stop := context.AfterFunc(ctx, func() { _ = b.child.boot.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var reply guest.BootReply
	err := frame.NewReader(b.child.boot).ReadJSON(frame.Response, &reply)
	var body *frame.ErrorBody
	switch {
	case err == nil:
		return reply, nil
	case errors.As(err, &body):
		return reply, fmt.Errorf("init: %w", body)
	case ctx.Err() != nil:
		return reply, context.Cause(ctx)
	}
	return reply, b.whyDied(fmt.Errorf("init: %w", err))
}

// whyDied adds to err, which came from talking to the child, what the child itself left of its end.
func (b *builder) whyDied(err error) error {
	if derr := b.child.status.SetReadDeadline(time.Now().Add(time.Second)); derr != nil {
		return errors.Join(err, derr)
	}
	if cerr := b.child.awaitExec(); cerr != nil && !errors.Is(cerr, os.ErrDeadlineExceeded) {
		return cerr
	}
	if b.group != nil {
		if oom, oerr := b.group.OOMKills(); oerr == nil && oom > 0 {
			return fmt.Errorf("init was killed: the memory limit of %d bytes is too small to start: %w", b.c.Limits.MemoryBytes, err)
		}
	}
	return err
}

// closeHandedOver closes what PID 1 has now.
func (b *builder) closeHandedOver() error {
	var errs []error
	for _, fd := range []*int{&b.exit, &b.lis} {
		if *fd > 0 {
			errs = append(errs, unix.Close(*fd))
		}
		*fd = 0
	}
	if b.init != nil {
		errs = append(errs, b.init.Close())
		b.init = nil
	}
	if b.given != nil {
		errs = append(errs, b.given.close())
	}
	return errors.Join(errs...)
}

// undo removes what was made.
func (b *builder) undo() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	errs := []error{b.undoFork(ctx)}
	at := b.at
	if !b.made.run {
		at.run = ""
	}
	if !b.made.state {
		at.state = ""
	}
	return errors.Join(append(errs, scrub(ctx, at, b.group, unbind(b.disk)))...)
}

// undoFork ends the child, if there is one.
func (b *builder) undoFork(ctx context.Context) error {
	if b.child == nil {
		return nil
	}
	return errors.Join(closeQuietly(b.child.boot), closeQuietly(b.child.status), reap(ctx, b.child))
}

func closeQuietly(c io.Closer) error {
	if err := c.Close(); err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
