package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/procstat"
)

// Open finds a sandbox again that another process created. It also works for one that has ended, or was there before a
// reboot: Done is closed then. Release it as one that was created.
func Open(ref Ref, cgroups *cgroup.Tree) (*Sandbox, error) {
	if ref.Version < 1 || ref.Version > RefVersion {
		return nil, fmt.Errorf("open sandbox %s: reference of version %d, this node reads up to %d", ref.ID, ref.Version, RefVersion)
	}
	if id, err := api.ParseSandboxID(string(ref.ID)); err != nil || id != ref.ID {
		return nil, fmt.Errorf("open sandbox: id %.40q is none", ref.ID)
	}
	group, err := cgroups.Open(string(ref.ID))
	if err != nil {
		return nil, fmt.Errorf("open sandbox %s: %w", ref.ID, err)
	}
	boot, err := bootID()
	if err != nil {
		return nil, fmt.Errorf("open sandbox %s: %w", ref.ID, err)
	}
	limiter, err := disk.ByName(ref.Disk)
	if err != nil {
		return nil, fmt.Errorf("open sandbox %s: %w", ref.ID, err)
	}
	s := newSandbox(ref, group, limiter)
	if boot != ref.BootID {
		s.exit.Rebooted = true
		close(s.watched)
		s.ended()
		return s, nil
	}
	pidfd, err := openProcess(ref)
	if err != nil {
		return nil, fmt.Errorf("open sandbox %s: %w", ref.ID, err)
	}
	if pidfd == nil {
		close(s.watched)
		s.ended()
		return s, nil
	}
	// It may have run out of memory while nobody looked.
	if s.oom, err = watchOOM(group); err != nil && !errors.Is(err, cgroup.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("open sandbox %s: %w", ref.ID, err), pidfd.Close())
	}
	s.watch(pidfd, false)
	return s, nil
}

// openProcess returns a pidfd of the process that ref means, or nil where it is gone. The pidfd comes before the look at
// the start time: once that agrees, the pidfd is of the right process whatever becomes of the number.
func openProcess(ref Ref) (*os.File, error) {
	fd, err := unix.PidfdOpen(ref.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) && ref.PID > 0 { // EINVAL: a thread has the number now
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", ref.PID, err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	stat, err := procstat.Of(ref.PID)
	if err == nil && stat.Start == ref.StartTime {
		return pidfd, nil
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("identify process %d: %w", ref.PID, err)
	}
	return nil, errors.Join(err, pidfd.Close())
}

// Sweep releases what a crash left behind: every directory of stateDir and runDir and every group whose name is a sandbox
// id that keep refuses. Processes in them are killed. It must not run while Create does, unless keep knows those ids. It
// goes on after an error and returns all of them.
func Sweep(ctx context.Context, stateDir, runDir string, cgroups *cgroup.Tree, keep func(api.SandboxID) bool) (removed []api.SandboxID, err error) {
	names, err := cgroups.List()
	if err != nil {
		return nil, fmt.Errorf("sweep: %w", err)
	}
	for _, dir := range []string{stateDir, runDir} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("sweep: %w", err)
		}
		for _, e := range entries {
			names = append(names, disk.FolderOf(e.Name()))
		}
	}
	slices.Sort(names)
	var errs []error
	for _, name := range slices.Compact(names) {
		id, err := api.ParseSandboxID(name)
		if err != nil || string(id) != name || keep(id) {
			continue
		}
		group, err := cgroups.Open(name)
		if err == nil {
			err = scrub(ctx, paths(runDir, stateDir, id), group, disk.Release)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep sandbox %s: %w", id, err))
			continue
		}
		removed = append(removed, id)
	}
	return removed, errors.Join(errs...)
}
