package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
)

// CheckpointDir is where Checkpoint and Restore find the parts of a checkpoint in one folder.
type CheckpointDir string

// Images is the folder of the processes' images.
func (d CheckpointDir) Images() string { return filepath.Join(string(d), "images") }

// Work is the folder of CRIU's logs.
func (d CheckpointDir) Work() string { return filepath.Join(string(d), "work") }

// Park ends the node's conversations with PID 1, so that a checkpoint finds none. Call it before Freeze; what speaks to the sandbox
// after that must not begin before Thaw.
func (s *Sandbox) Park(ctx context.Context) error { return s.guest.Park(ctx) }

// CopyAhead copies the memory of a running sandbox, for a checkpoint that follows at once. Nil: it does not pay, or cannot be done. The sandbox runs on, and
// stands still for moments only; where this process is killed meanwhile it may have to be thawed. On error nothing is left of the copy.
func (s *Sandbox) CopyAhead(ctx context.Context, e *checkpoint.Engine, dir CheckpointDir, least int64) (*checkpoint.Ahead, error) {
	pids, err := s.group.Processes()
	if err == nil {
		err = os.MkdirAll(string(dir), 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("copy memory of sandbox %s: %w", s.ref.ID, err)
	}
	a, err := e.CopyAhead(ctx, checkpoint.AheadOptions{
		PIDs: pids, Dir: filepath.Join(string(dir), "ahead"), Least: least,
		Freeze: s.Freeze,
		Thaw: func(ctx context.Context) error {
			err := s.group.Thaw(ctx)
			if err == nil {
				s.frozen.Store(false)
			}
			return err
		},
	})
	if err != nil {
		return nil, fmt.Errorf("copy memory of sandbox %s: %w", s.ref.ID, err)
	}
	return a, nil
}

// MakeRoom makes room for the memory of a running sandbox, for a checkpoint that follows at once. Nil: there is none to spare, or it would not be used.
func (s *Sandbox) MakeRoom(e *checkpoint.Engine) (*checkpoint.Room, error) {
	pids, err := s.group.Processes()
	if err != nil {
		return nil, fmt.Errorf("processes of sandbox %s: %w", s.ref.ID, err)
	}
	return e.MakeRoom(pids)
}

// Frozen reports whether Freeze has stopped it.
func (s *Sandbox) Frozen() bool { return s.frozen.Load() }

// CheckpointOptions say how a checkpoint is made.
type CheckpointOptions struct {
	// Ahead is memory that was copied before; nil: none was. The images lack it until its Merge. An error with checkpoint.ErrAhead says that it may go well without.
	Ahead *checkpoint.Ahead
	// Alone has CRIU copy all memory.
	Alone bool
	// Room is where memory is kept until Dump.Late, which has to be called when the processes go on, before the room is freed. Nil: there is nothing left to do.
	Room *checkpoint.Room
	// Sync has the images go to disk while they are made: SyncLayer is to follow.
	Sync bool
	// Copy, where the writable layer is copied for these images, is called where that copy has to be made at one moment of the dump: open files have names of their own
	// then, that a restore needs. Nil: these names are kept beside the layer itself, where Restore finds them.
	Copy func() error
}

// Checkpoint has a CRIU that was started for it write the processes of a frozen sandbox to a new folder. They stay frozen, whatever comes of it; so nothing changes
// between the images and the writable layer until Thaw. On error the folder may be half there.
func (s *Sandbox) Checkpoint(ctx context.Context, criu *checkpoint.Dumper, dir CheckpointDir, o CheckpointOptions) (checkpoint.Dump, error) {
	if !s.frozen.Load() {
		criu.End()
		return checkpoint.Dump{}, fmt.Errorf("checkpoint sandbox %s: it is not frozen", s.ref.ID)
	}
	for _, d := range []string{string(dir), dir.Images(), dir.Work()} {
		if err := os.Mkdir(d, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			criu.End()
			return checkpoint.Dump{}, fmt.Errorf("checkpoint sandbox %s: %w", s.ref.ID, err)
		}
	}
	named := s.keepNames
	if o.Copy != nil {
		named = func([]string) error { return o.Copy() }
	}
	pids, err := s.group.Processes()
	if err != nil {
		criu.End()
		return checkpoint.Dump{}, fmt.Errorf("checkpoint sandbox %s: %w", s.ref.ID, err)
	}
	beside := filepath.Join(string(dir), "beside")
	if o.Alone {
		beside = ""
	}
	d, err := criu.Dump(ctx, checkpoint.DumpOptions{
		PID: s.ref.PID, Images: dir.Images(), Work: dir.Work(), Group: s.group.FreezerDir(), Exit: s.at.exit, Ahead: o.Ahead,
		Beside: beside, Room: o.Room, Sync: o.Sync, Named: named,
		Processes: pids, Stopped: checkpoint.Stopped(pids),
		Thaw: func() error { return s.group.Thaw(ctx) }, Refreeze: func() error { return s.group.StartFreeze(context.WithoutCancel(ctx)) },
	})
	if err == nil { // where it was thawed meanwhile, some of them may be on their way to where they stop
		if err = s.group.Freeze(ctx); err != nil {
			err = errors.Join(err, d.Late.Drop())
			d.Late = nil
		}
	}
	if err != nil {
		return d, fmt.Errorf("checkpoint sandbox %s: %w", s.ref.ID, err)
	}
	return d, nil
}

// SyncLayer makes the writable layer durable, which otherwise it never is, and what is in these folders. Each file system is synced once: that waits for
// what everybody has written to it.
func (s *Sandbox) SyncLayer(also ...string) error {
	synced := map[uint64]bool{}
	for _, path := range append([]string{s.at.state}, also...) {
		if err := syncOnce(path, synced); err != nil {
			return fmt.Errorf("sync %s: %w", path, err)
		}
	}
	return nil
}

// syncOnce syncs the file system of a folder whose device is not in synced yet.
func syncOnce(path string, synced map[uint64]bool) error {
	dir, err := openDirForSync(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil || synced[st.Dev] {
		return err
	}
	synced[st.Dev] = true
	return unix.Syncfs(int(dir.Fd()))
}

func openDirForSync(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Uncheckpointable tells what in the sandbox no checkpoint can hold; nil: nothing that is known.
func (s *Sandbox) Uncheckpointable() ([]checkpoint.Obstacle, error) {
	pids, err := s.group.Processes()
	if err != nil {
		return nil, fmt.Errorf("processes of sandbox %s: %w", s.ref.ID, err)
	}
	return checkpoint.Obstacles(s.ref.PID, pids)
}

// OwnsNetwork reports whether the sandbox's network namespace belongs to its user namespace, as one that Config.Wire set up does.
// CRIU takes no other.
func (s *Sandbox) OwnsNetwork() (bool, error) {
	netns, err := os.Open(procPath(s.ref.PID, "ns/net"))
	if err != nil {
		return false, err
	}
	defer netns.Close()
	fd, err := unix.IoctlRetInt(int(netns.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return false, fmt.Errorf("owner of the network of sandbox %s: %w", s.ref.ID, err)
	}
	defer unix.Close(fd)
	var owner, own unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &owner), unix.Stat(procPath(s.ref.PID, "ns/user"), &own)); err != nil {
		return false, err
	}
	return owner.Ino == own.Ino && owner.Dev == own.Dev, nil
}

// End kills a checkpointed sandbox and gives back all that it has on the machine but its writable layer, from which Restore goes on.
// It may be repeated until it returns nil.
func (s *Sandbox) End(ctx context.Context) error {
	s.releasing.Lock()
	defer s.releasing.Unlock()
	if s.released {
		return nil
	}
	if err := s.Kill(ctx); err != nil {
		return err
	}
	if err := s.Detach(); err != nil {
		return err
	}
	at := s.at
	at.state = ""
	if err := scrub(ctx, at, s.group, nil); err != nil {
		return fmt.Errorf("end sandbox %s: %w", s.ref.ID, err)
	}
	s.released = true
	return nil
}

// CanDump reports whether this process may read the limits of a sandbox's processes, which a checkpoint does: with CAP_SYS_RESOURCE,
// which containers often lack. Without it Config.NodeOwned must be set.
func CanDump() bool { return hasCapability(unix.CAP_SYS_RESOURCE) }

// FreezeAgain freezes a sandbox that an earlier daemon had parked and frozen: PID 1 is asked nothing.
func (s *Sandbox) FreezeAgain(ctx context.Context) error {
	s.guest.Shut()
	return s.Freeze(ctx)
}
