package checkpoint

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
)

const (
	// maxGhost bounds an open file that has no name any more: it is kept with the images.
	maxGhost = 1 << 30
	dumpLog  = "dump.log"
	// stateTimeout bounds how long CRIU may take to stop the processes.
	stopTimeout = 30 // s
)

// DumpOptions say what to dump.
type DumpOptions struct {
	PID    int    // of the tree's root, on the host
	Images string // empty folder for the images
	Work   string // folder for the log, not part of the checkpoint
	Group  string // folder of the processes' frozen control group: of the freezer on cgroup v1
	// Exit is a file of the host that the root holds open. It is not visible inside, and comes from outside again at a restore.
	Exit string
	// Ahead is memory that was copied before; nil: none was. Its folder is beside that of the images, which are not whole before Merge.
	Ahead *Ahead
	// Beside is a new folder, beside that of the images, for memory that is copied while CRIU looks at all else; empty: CRIU copies it. It is not there any more when
	// the images are whole.
	Beside string
	// Room is where that memory is kept until Dump.Late, which has to be called then, before the room is freed. Nil: the images are whole at the end.
	Room *Room
	// Sync says that the images will be synced as soon as they are there: what is written of them goes to disk at once.
	Sync bool
	// Named is called at the end of a dump, while the files of Remaps have their names: whoever keeps the writable layer has to keep these. With Stopped it is called in any case,
	// since the layer was written to after the dump had begun.
	Named func(names []string) error
	// Processes are those of the group.
	Processes []int
	// Stopped says that some process was stopped by a signal before the group was frozen. It is frozen again when Named is called. Where that is not told it costs
	// seconds to find out.
	Stopped  bool
	Thaw     func() error // of the group
	Refreeze func() error // which waits for nobody who is traced
}

// Dump describes a finished dump: what a restore must bring along. It is part of the manifest.
type Dump struct {
	Version  int       `json:"version"`
	Listener string    `json:"listener"` // key of the root's guest socket
	Exit     string    `json:"exit"`     // key of the exit file
	Mounts   []Mount   `json:"mounts"`   // that come from outside
	CRIU     string    `json:"criu"`
	Time     time.Time `json:"time"`
	Stats    DumpStats `json:"stats"`
	IDBase   uint32    `json:"id_base"` // the host id of the namespace's id 0
	// Again says why a first try was of no use, which made the dump take longer; nil: there was none.
	Again error `json:"-"`
	// Late is what is left to do, once the processes may go on; nil: nothing.
	Late *Late `json:"-"`
}

// DumpVersion is the version of Dump that this code writes. Version 1 had every file system in memory in its images.
const DumpVersion = 2

// Mount is a mount inside that comes from outside.
type Mount struct {
	Point  string `json:"point"`  // where it is inside
	Source string `json:"source"` // one of the words that sources knows
	// Bytes is the size of a file system in memory; 0: it has no size of its own.
	Bytes int64 `json:"bytes,omitempty"`
}

// DumpStats are CRIU's own figures.
type DumpStats struct {
	Total time.Duration `json:"total"`
	Bytes int64         `json:"bytes"` // of all images
	// Beside is how many bytes of them were copied beside CRIU.
	Beside int64 `json:"beside,omitempty"`
}

// dumpPatience is how long a CRIU may go on whose dump nobody wants any more.
const dumpPatience = 2 * time.Minute

// Dumper is a CRIU that was started for one dump, and waits to be asked. Either Dump or End has to be called.
type Dumper struct {
	engine  *Engine
	worker  *worker
	started func(p *os.Process) error
}

// StartDump starts a CRIU, and returns when it is up: that takes milliseconds, in which nothing stands still yet. started is called with its process.
func (e *Engine) StartDump(ctx context.Context, started func(p *os.Process) error) (*Dumper, error) {
	w, err := e.start(place{started: started, kerndat: e.dumpKerndat})
	if err != nil {
		return nil, err
	}
	up(ctx, w.pid(), firstFile) // else Dump waits that much longer
	return &Dumper{engine: e, worker: w, started: started}, nil
}

// End ends one that is not to dump any more.
func (p *Dumper) End() { p.worker.end() }

// Dump writes the processes of a frozen group to disk. They are frozen then, or asked to be, whatever comes of it. When ctx ends CRIU is let finish all the
// same: it works inside the processes, and one that is killed there leaves its code in them in place of their own.
func (p *Dumper) Dump(ctx context.Context, o DumpOptions) (Dump, error) {
	var first error
	for {
		d, err := p.dump(ctx, o)
		d.Again = first
		switch {
		case ctx.Err() != nil:
			return d, err
		case errors.Is(err, errStopped) && !o.Stopped:
			o.Stopped = true
		case errors.Is(err, errBeside) && o.Beside != "":
			// Where CRIU has let them go, some may have run on for a moment before they were frozen again.
			o.Beside, o.Stopped = "", true
		default:
			return d, err
		}
		first = errors.Join(first, err)
		if rerr := errors.Join(o.Refreeze(), emptyDir(o.Images)); rerr != nil {
			return d, errors.Join(err, rerr)
		}
		again, serr := p.engine.StartDump(ctx, p.started)
		if serr != nil {
			return d, errors.Join(err, serr)
		}
		p = again
	}
}

// emptyDir removes what a dump has left in a folder.
func emptyDir(path string) error {
	entries, err := os.ReadDir(path)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(path, e.Name())))
	}
	return err
}

// errStopped is in the chain of an error that says that CRIU could not trace a process.
var errStopped = errors.New("a process that was stopped by a signal cannot be traced while it is frozen")

func (p *Dumper) dump(ctx context.Context, o DumpOptions) (d Dump, err error) {
	asked := false
	defer func() {
		if !asked {
			p.End()
		}
		if err != nil {
			err = errors.Join(err, d.Late.Drop())
			d.Late = nil
		}
	}()
	begin := time.Now()
	d = Dump{Version: DumpVersion, CRIU: p.engine.Version(), Time: begin.UTC()}
	if d.IDBase, err = idBase(o.PID); err != nil {
		return d, err
	}
	if d.Mounts, err = outsideMounts(o.PID, d.IDBase); err != nil {
		return d, err
	}
	if d.Exit, err = fileKey(o.PID, o.Exit); err != nil {
		return d, err
	}
	if d.Listener, err = listenerKey(o.PID); err != nil {
		return d, err
	}
	if err := dropRemaps(o.PID, o.Processes); err != nil { // of an attempt before this one
		return d, err
	}
	paths, err := watched(o.PID, o.Processes)
	if err != nil {
		return d, err
	}
	images, err := openDir(o.Images)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, images.Close()) }()
	work, err := openDir(o.Work)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, work.Close()) }()
	opts := &rpc.CriuOpts{
		Pid:               proto.Int32(int32(o.PID)),
		ImagesDirFd:       proto.Int32(int32(images.Fd())),
		WorkDirFd:         proto.Int32(int32(work.Fd())),
		LogLevel:          proto.Int32(2),
		LogFile:           proto.String(dumpLog),
		LeaveRunning:      proto.Bool(true), // they stay frozen, and are ended by whoever has made the checkpoint durable
		FreezeCgroup:      proto.String(o.Group),
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
		IrmapScanPaths:    paths,
		Timeout:           proto.Uint32(stopTimeout),
	}
	for _, m := range d.Mounts {
		opts.External = append(opts.External, fmt.Sprintf("mnt[%s]:%s", m.Point, m.key()))
	}
	opts.External = append(opts.External, d.Exit)
	if o.Ahead != nil {
		rel, err := filepath.Rel(o.Images, o.Ahead.dir)
		if err != nil {
			return d, err
		}
		opts.ParentImg, opts.TrackMem = proto.String(rel), proto.Bool(true)
	}
	var memory *beside
	if o.Ahead == nil && o.Beside != "" && !o.Stopped && p.engine.beside == nil {
		if memory, err = p.engine.copyBeside(ctx, o.Processes, o.Beside, o.Room); err != nil {
			return d, fmt.Errorf("%w: %w", errBeside, err)
		}
	}
	if memory != nil {
		defer func() {
			if memory != nil {
				err = errors.Join(err, memory.giveUp())
			}
		}()
		rel, err := filepath.Rel(o.Images, o.Beside)
		if err != nil {
			return d, err
		}
		opts.ParentImg, opts.TrackMem = proto.String(rel), proto.Bool(true)
	}
	if err := ctx.Err(); err != nil {
		return d, err
	}
	patient, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(dumpPatience, end) })()
	asked = true
	if o.Sync || memory != nil && memory.Bytes >= writeOutAnyway {
		defer writeOut(o.Images, o.Beside)()
	}
	if o.Stopped {
		opts.FreezeCgroup = nil
	}
	notify := func(script string, _ int) error {
		switch script {
		case "pre-dump":
			if o.Stopped {
				if err := o.Thaw(); err != nil {
					return err
				}
				settle(o.Processes)
			}
		case "post-dump":
			if o.Stopped {
				if err := o.Refreeze(); err != nil {
					return err
				}
			}
			names, err := Remaps(o.Images)
			if err != nil || len(names) == 0 && !o.Stopped {
				return err
			}
			return o.Named(names)
		}
		return nil
	}
	stuck := whenStuck(p.worker.pid(), func() { _ = p.worker.cmd.Process.Kill() }) // it has begun with nobody yet
	_, err = p.worker.ask(patient, request{typ: rpc.CriuReqType_DUMP, opts: opts, notify: notify})
	if err != nil {
		err = errors.Join(err, dropRemaps(o.PID, o.Processes))
	}
	if stuck() && err != nil {
		return d, fmt.Errorf("%w: %w", errStopped, err)
	}
	if err != nil {
		err = withLog(err, filepath.Join(o.Work, dumpLog))
		if ce := (*Error)(nil); o.Ahead != nil && errors.As(err, &ce) && !ce.Ended && ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", ErrAhead, err)
		} else if memory != nil && errors.As(err, &ce) && !ce.Ended {
			err = fmt.Errorf("%w: %w", errBeside, err)
		}
		return d, err
	}
	if memory != nil {
		done := memory
		memory = nil
		if err := done.wait(o.Images); err != nil {
			return d, err
		}
		d.Stats.Beside = done.Bytes
		if o.Room != nil {
			d.Late = &Late{done, o.Images}
		} else if _, err := done.finish(o.Images); err != nil {
			return d, fmt.Errorf("%w: %w", errBeside, err)
		}
	}
	if err := ctx.Err(); err != nil {
		return d, err
	}
	d.Stats.Total = time.Since(begin)
	if d.Stats.Bytes, err = folderBytes(o.Images); err != nil {
		return d, err
	}
	return d, nil
}

func folderBytes(dir string) (int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			return 0, err
		}
		sum += fi.Size()
	}
	return sum, nil
}

// fileKey returns CRIU's name for a file of the host that a process holds open: file[mount:inode], in hexadecimal.
func fileKey(pid int, path string) (string, error) {
	var want unix.Stat_t
	if err := unix.Stat(path, &want); err != nil {
		return "", fmt.Errorf("stat %s: %w", path, err)
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(dir, e.Name()), &st) != nil || st.Ino != want.Ino || st.Dev != want.Dev {
			continue
		}
		mount, err := fdInfo(pid, e.Name(), "mnt_id:")
		if err != nil {
			return "", err
		}
		var id int
		if _, err := fmt.Sscan(mount, &id); err != nil {
			return "", fmt.Errorf("mount id of %s: %w", path, err)
		}
		return fmt.Sprintf("file[%x:%x]", id, st.Ino), nil
	}
	return "", fmt.Errorf("process %d does not hold %s open", pid, path)
}

func fdInfo(pid int, fd, key string) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, key); ok {
			return strings.TrimSpace(v), nil
		}
	}
	return "", fmt.Errorf("descriptor %s of process %d has no %s", fd, pid, key)
}

// listenerKey returns CRIU's name for the one listening unix socket that a sandbox's PID 1 has.
func listenerKey(pid int) (string, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return "", fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name()))
		if err != nil || !strings.HasPrefix(target, "socket:") {
			continue
		}
		listens, err := socketOption(pidfd, e.Name(), unix.SO_ACCEPTCONN)
		if err != nil {
			return "", err
		}
		if listens == 1 {
			return target, nil
		}
	}
	return "", fmt.Errorf("process %d has no listening socket", pid)
}

// socketOption asks another process's socket.
func socketOption(pidfd int, fd string, option int) (int, error) {
	var n int
	if _, err := fmt.Sscan(fd, &n); err != nil {
		return 0, err
	}
	mine, err := unix.PidfdGetfd(pidfd, n, 0)
	if err != nil {
		return 0, fmt.Errorf("take descriptor %d: %w", n, err)
	}
	defer unix.Close(mine)
	return unix.GetsockoptInt(mine, unix.SOL_SOCKET, option)
}

// idBase returns the host id that is 0 in a process's user namespace.
func idBase(pid int) (uint32, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", pid))
	if err != nil {
		return 0, err
	}
	var inside, outside, count uint32
	if _, err := fmt.Sscan(string(b), &inside, &outside, &count); err != nil || inside != 0 || len(strings.Fields(string(b))) != 3 {
		return 0, fmt.Errorf("process %d has the id map %q, which no sandbox has", pid, b)
	}
	return outside, nil
}

// withLog adds what the log says went wrong to an error of CRIU's.
func withLog(err error, path string) error {
	var ce *Error
	if !errors.As(err, &ce) {
		return err
	}
	f, ferr := os.Open(path)
	if ferr != nil {
		return err
	}
	defer f.Close()
	var lines []string
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if _, text, ok := strings.Cut(sc.Text(), "Error "); ok {
			lines = append(lines, strings.TrimSpace(text))
		}
	}
	if n := len(lines); n > 3 {
		lines = lines[:3]
	}
	ce.Log = strings.ToValidUTF8(strings.Join(lines, "; "), "?")
	return err
}
