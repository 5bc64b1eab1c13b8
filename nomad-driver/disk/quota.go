package disk

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ProjectQuota gives the folder a project id and the project a quota (xfs and ext4 with prjquota, Linux 5.14). It costs a
// few system calls and no space.
//
// Ids are derived from the folder's path: nothing has to be remembered, and a Release after a crash finds the same. They
// start at firstProject, above what an administrator's /etc/projects uses.
type ProjectQuota struct{}

const firstProject = 1 << 24

// Constants of quota.h and fs.h that x/sys lacks.
const (
	prjQuota    = 2
	qSetQuota   = 0x800008
	qGetQuota   = 0x800007
	qifBLimits  = 1
	qifILimits  = 4
	fsGetXattr  = 0x801c581f
	fsSetXattr  = 0x401c5820
	projInherit = 0x200
	blockBytes  = 1024 // unit of dqblk's block limits
)

// dqblk is struct if_dqblk.
type dqblk struct {
	BHard, BSoft, Space, IHard, ISoft, Inodes, BTime, ITime uint64
	Valid                                                   uint32
	_                                                       uint32
}

// fsxattr is struct fsxattr.
type fsxattr struct {
	XFlags, ExtSize, NExtents, ProjID, CowExtSize uint32
	_                                             [8]byte
}

// Name is Quota.
func (*ProjectQuota) Name() string { return Quota }

// Probe tells whether folders below root can have project quotas.
func (*ProjectQuota) Probe(root string) error {
	f, err := os.Open(root)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := getQuota(f, firstProject); err != nil && !errors.Is(err, unix.ENOENT) { // ENOENT: no limit yet; ESRCH: quotas are off
		return fmt.Errorf("project quotas on %s (xfs or ext4 mounted with prjquota): %w: %w", root, ErrUnsupported, err)
	}
	return nil
}

// projectID maps a folder to its project.
func projectID(dir string) (uint32, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return 0, err
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(abs)) // never fails
	return firstProject + h.Sum32()%(1<<31-firstProject), nil
}

// Prepare bounds dir and all that is made below it.
func (q *ProjectQuota) Prepare(dir string, l Limits) error {
	if err := l.validate(); err != nil {
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	id, err := projectID(dir)
	if err != nil {
		return err
	}
	attr, err := getXattr(f)
	if err != nil {
		return fmt.Errorf("project of %s: %w", dir, err)
	}
	if attr.ProjID != 0 {
		return fmt.Errorf("disk limit of %s: set already", dir)
	}
	// Two paths may have one id, one time in a billion. The second must not share the first one's limit.
	if used, err := getQuota(f, id); err == nil && (used.BHard != 0 || used.IHard != 0 || used.Inodes != 0) {
		return fmt.Errorf("disk limit of %s: project %d is in use", dir, id)
	}
	if err := setQuota(f, id, l); err != nil {
		return fmt.Errorf("disk limit of %s: %w", dir, err)
	}
	attr.ProjID = id
	attr.XFlags |= projInherit
	if err := setXattr(f, attr); err != nil {
		return errors.Join(fmt.Errorf("project of %s: %w", dir, err), setQuota(f, id, Limits{}))
	}
	return nil
}

// Resize sets other limits. A limit below what is used lets nothing more be written.
func (q *ProjectQuota) Resize(dir string, l Limits) error {
	if err := l.validate(); err != nil {
		return err
	}
	f, id, err := q.open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := setQuota(f, id, l); err != nil {
		return fmt.Errorf("disk limit of %s: %w", dir, err)
	}
	return nil
}

// Usage asks the quota.
func (q *ProjectQuota) Usage(dir string) (Usage, error) {
	f, id, err := q.open(dir)
	if err != nil {
		return Usage{}, err
	}
	defer f.Close()
	d, err := getQuota(f, id)
	if err != nil {
		return Usage{}, fmt.Errorf("disk usage of %s: %w", dir, err)
	}
	return Usage{
		Bytes: int64(d.Space), Inodes: int64(d.Inodes),
		Limits: Limits{Bytes: int64(d.BHard) * blockBytes, Inodes: int64(d.IHard)},
	}, nil
}

// Release frees the project. What is left in the folder keeps the project's number and no limit.
func (q *ProjectQuota) Release(dir string) error {
	f, id, err := q.open(dir)
	switch {
	case errors.Is(err, ErrNotPrepared):
		return nil
	case errors.Is(err, os.ErrNotExist):
		return q.releaseGone(dir)
	case err != nil:
		return err
	}
	defer f.Close()
	if err := endQuota(f, id); err != nil {
		return fmt.Errorf("end disk limit of %s: %w", dir, err)
	}
	attr, err := getXattr(f)
	if err == nil {
		attr.ProjID = 0
		attr.XFlags &^= projInherit
		err = setXattr(f, attr)
	}
	if err != nil {
		return fmt.Errorf("project of %s: %w", dir, err)
	}
	return nil
}

// releaseGone frees the project of a folder that was deleted before its limit was. Its parent is on the same file system;
// where that is gone too, there is nothing to ask.
func (*ProjectQuota) releaseGone(dir string) error {
	f, err := os.Open(filepath.Dir(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	id, err := projectID(dir)
	if err != nil {
		return err
	}
	if err := endQuota(f, id); err != nil {
		return fmt.Errorf("end disk limit of %s: %w", dir, err)
	}
	return nil
}

func endQuota(f *os.File, id uint32) error {
	err := setQuota(f, id, Limits{})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) { // no entry, or no quotas at all
		return nil
	}
	return err
}

// open returns a prepared folder and its project.
func (*ProjectQuota) open(dir string) (*os.File, uint32, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, 0, err
	}
	id, err := projectID(dir)
	if err == nil {
		var attr fsxattr
		attr, err = getXattr(f)
		// A file system without such attributes, as tmpfs on some kernels, has no projects.
		if err == nil && attr.ProjID != id || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
			err = fmt.Errorf("disk limit of %s: %w", dir, ErrNotPrepared)
		}
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, id, nil
}

func setQuota(f *os.File, id uint32, l Limits) error {
	d := dqblk{BHard: uint64(l.Bytes) / blockBytes, IHard: uint64(l.Inodes), Valid: qifBLimits | qifILimits}
	return quotactl(f, qSetQuota, id, &d)
}

func getQuota(f *os.File, id uint32) (dqblk, error) {
	var d dqblk
	err := quotactl(f, qGetQuota, id, &d)
	return d, err
}

// quotactl is quotactl_fd(2), which needs no path of a block device.
func quotactl(f *os.File, cmd int, id uint32, d *dqblk) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, f.Fd(), uintptr(cmd<<8|prjQuota), uintptr(id), uintptr(unsafe.Pointer(d)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func getXattr(f *os.File) (fsxattr, error) {
	var a fsxattr
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsGetXattr, uintptr(unsafe.Pointer(&a)))
	if errno != 0 {
		return a, errno
	}
	return a, nil
}

func setXattr(f *os.File, a fsxattr) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsSetXattr, uintptr(unsafe.Pointer(&a)))
	if errno != 0 {
		return errno
	}
	return nil
}
