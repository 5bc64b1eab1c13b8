package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// v1 are the hierarchies of cgroup v1. Several controllers may share one.
type v1 struct {
	dirs map[string]string // controller → root of its hierarchy
	all  []string          // the roots, each once; that of the freezer first

	guarded atomic.Bool // the parent has the list of devices, which new groups take over
	// extra are devices on the parent's list that are some groups' own: a group can have no device that its parent lacks. All others are denied them.
	extra struct {
		sync.Mutex
		lines map[string]bool // of a list, with all access
	}
}

var v1Controllers = []string{"freezer", "cpu", "cpuacct", "memory", "pids", "devices", "blkio", "cpuset"}

const (
	v1Period = 100_000 // µs
	userHZ   = 100     // ticks a second of cpuacct.stat, the same on every Linux
)

func newV1(root string) (*v1, error) {
	h := &v1{dirs: make(map[string]string)}
	for _, c := range v1Controllers {
		dir, err := filepath.EvalSymlinks(filepath.Join(root, c)) // "cpu" may be a link to "cpu,cpuacct"
		if err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err != nil {
			continue
		}
		if c == "cpuset" && !usableCpuset(dir) {
			continue
		}
		h.dirs[c] = dir
		if !slices.Contains(h.all, dir) {
			h.all = append(h.all, dir)
		}
	}
	if h.dirs["freezer"] == "" {
		return nil, fmt.Errorf("no control groups in %s: neither cgroup.controllers (v2) nor freezer (v1) is there", root)
	}
	return h, nil
}

func (h *v1) version() int    { return 1 }
func (h *v1) roots() []string { return h.all }

func (h *v1) prepareParent(parent string) error {
	if err := errors.Join(h.guardParent(parent), h.prepareCpuset(parent)); err != nil {
		return err
	}
	if h.dirs["memory"] == "" {
		return nil
	}
	// The only mode of Linux 5.11 and later; before, a choice to make while there are no children.
	dir := filepath.Join(h.dirs["memory"], parent)
	if v, err := readUint(dir, "memory.use_hierarchy"); err != nil || v == 1 {
		return nil //nolint:nilerr // no such file: nothing to choose
	}
	return writeInt(dir, "memory.use_hierarchy", 1)
}

func (h *v1) entry(group string) (*Entry, error) {
	e := &Entry{}
	for _, root := range h.all {
		f, err := os.OpenFile(filepath.Join(root, group, "tasks"), os.O_WRONLY, 0)
		if err != nil {
			return nil, errors.Join(err, e.Close())
		}
		e.Tasks = append(e.Tasks, f)
	}
	return e, nil
}

func (h *v1) dir(controller, group string) (string, error) {
	root := h.dirs[controller]
	if root == "" {
		return "", fmt.Errorf("controller %s is not mounted: %w", controller, ErrUnsupported)
	}
	return filepath.Join(root, group), nil
}

func (h *v1) setLimits(group string, l Limits) error {
	if l.CPUMillis > 0 {
		dir, err := h.dir("cpu", group)
		if err != nil {
			return err
		}
		if err := writeInt(dir, "cpu.cfs_period_us", v1Period); err != nil {
			return err
		}
		if err := writeInt(dir, "cpu.cfs_quota_us", max(l.CPUMillis*v1Period/1000, 1000)); err != nil {
			return err
		}
	}
	if l.CPUWeight > 0 {
		dir, err := h.dir("cpu", group)
		if err != nil {
			return err
		}
		// The defaults of both versions, weight 100 and 1024 shares, mean the same.
		if err := writeInt(dir, "cpu.shares", min(max(l.CPUWeight*1024/100, 2), 262_144)); err != nil {
			return err
		}
	}
	if l.MemoryBytes > 0 {
		dir, err := h.dir("memory", group)
		if err != nil {
			return err
		}
		if err := v1Memory(dir, l.MemoryBytes); err != nil {
			return err
		}
	}
	if l.PIDs > 0 {
		dir, err := h.dir("pids", group)
		if err != nil {
			return err
		}
		if err := writeInt(dir, "pids.max", l.PIDs); err != nil {
			return err
		}
	}
	if l.MemorySoft != 0 {
		dir, err := h.dir("memory", group)
		if err != nil {
			return err
		}
		if err := writeInt(dir, "memory.soft_limit_in_bytes", l.MemorySoft); err != nil { // -1: none
			return err
		}
	}
	return h.limitIO(group, l.IO)
}

// limitIO sets limits of a disk. v1 cannot tell whose a write is that comes from the page cache: only direct and
// synchronous writes count.
func (h *v1) limitIO(group string, l IOLimits) error {
	if !l.Any() {
		return nil
	}
	dir, err := h.dir("blkio", group)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		file string
		v    int64
	}{
		{"read_bps", l.ReadBytes}, {"write_bps", l.WriteBytes}, {"read_iops", l.ReadOps}, {"write_iops", l.WriteOps},
	} {
		if f.v == 0 {
			continue
		}
		// 0 is the kernel's word for no limit.
		if err := write(dir, "blkio.throttle."+f.file+"_device", fmt.Sprintf("%s %d", l.Device, max(f.v, 0))); err != nil {
			return err
		}
	}
	return nil
}

// v1Memory sets the limit of memory and that of memory and swap together to the same. The second must never be below the
// first, so the order depends on the direction.
func v1Memory(dir string, limit int64) error {
	swap := func() error {
		err := writeInt(dir, "memory.memsw.limit_in_bytes", limit)
		if errors.Is(err, ErrUnsupported) {
			return writeInt(dir, "memory.swappiness", 0)
		}
		return err
	}
	err := writeInt(dir, "memory.limit_in_bytes", limit)
	switch {
	case errors.Is(err, unix.EINVAL):
		if err = swap(); err == nil {
			err = writeInt(dir, "memory.limit_in_bytes", limit)
		}
	case err == nil:
		err = swap()
	}
	if errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("%w: %w", ErrBelowUse, err)
	}
	return err
}

// guardParent gives the parent the list of devices: a new group begins with that of its parent, and pays nothing. A parent that
// has groups already, of a version that guarded each by itself, takes no list any more; then that goes on.
func (h *v1) guardParent(parent string) error {
	dir, err := h.dir("devices", parent)
	if err != nil {
		return nil //nolint:nilerr // the second wall only: /dev holds nothing else
	}
	list, err := read(dir, "devices.list")
	if err != nil {
		return err
	}
	extra, ok := beyondDevices(string(list))
	if !ok {
		extra = nil
		if err := write(dir, "devices.deny", "a"); errors.Is(err, unix.EINVAL) {
			return nil
		} else if err != nil {
			return err
		}
		if err := allowDevices(dir, devices); err != nil {
			return err
		}
	}
	h.extra.Lock()
	defer h.extra.Unlock()
	h.extra.lines = map[string]bool{}
	for _, line := range extra {
		h.extra.lines[line] = true
	}
	h.guarded.Store(true)
	return nil
}

// beyondDevices returns the lines of a list, all access, that are beyond those of every sandbox. It is no such list where one of these is
// missing, or where one is of more than single devices.
func beyondDevices(list string) (extra []string, ok bool) {
	lines := strings.Split(strings.TrimSpace(list), "\n")
	for _, d := range devices {
		i := slices.Index(lines, d.line())
		if i < 0 {
			return nil, false
		}
		lines = slices.Delete(lines, i, i+1)
	}
	for _, line := range lines {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "c" || strings.Contains(f[1], "*") {
			return nil, false
		}
		extra = append(extra, allAccess(f[1]))
	}
	return extra, true
}

// allAccess is a device, as "major:minor", with all that can be wanted of it.
func allAccess(number string) string { return "c " + number + " rwm" }

// guardDevices is for new groups: in between its writes there are no devices at all, or those of every sandbox.
func (h *v1) guardDevices(group string, own []Device) error {
	dir, err := h.dir("devices", group)
	if err != nil {
		if len(own) > 0 {
			return err // others could open them, too
		}
		return nil // see guardParent
	}
	if len(own) > 0 {
		if err := h.extend(group, own); err != nil {
			return err
		}
	} else if h.guarded.Load() {
		return h.denyExtra(dir)
	}
	if err := write(dir, "devices.deny", "a"); err != nil {
		return err
	}
	return allowDevices(dir, allowed(own))
}

// extend puts a group's own devices on its parent's list. That is told to those who make other groups before it holds: a group that is made
// meanwhile may have taken the list over already.
func (h *v1) extend(group string, own []Device) error {
	h.extra.Lock()
	defer h.extra.Unlock()
	if h.extra.lines == nil {
		h.extra.lines = map[string]bool{}
	}
	for _, d := range own {
		line := allAccess(fmt.Sprintf("%d:%d", d.Major, d.Minor))
		if h.extra.lines[line] {
			continue
		}
		h.extra.lines[line] = true
		if err := write(filepath.Join(h.dirs["devices"], filepath.Dir(group)), "devices.allow", strings.TrimSuffix(line, "m")); err != nil {
			delete(h.extra.lines, line)
			return err
		}
	}
	return nil
}

// denyExtra takes from a new group what it has taken over from its parent and is others' own.
func (h *v1) denyExtra(dir string) error {
	h.extra.Lock()
	lines := slices.Collect(maps.Keys(h.extra.lines))
	h.extra.Unlock()
	for _, line := range lines {
		if err := write(dir, "devices.deny", line); err != nil {
			return err
		}
	}
	return nil
}

func allowDevices(dir string, list []device) error {
	for _, d := range list {
		if err := write(dir, "devices.allow", d.line()); err != nil {
			return err
		}
	}
	return nil
}

func (h *v1) devices() (string, error) {
	if h.dirs["devices"] == "" {
		return "", fmt.Errorf("controller devices is not mounted: %w", ErrUnsupported)
	}
	return "devices controller", nil
}

func (h *v1) removed(string) error { return nil }

// oomEvents is how v1 tells of a group that is out of memory: by an eventfd.
func (h *v1) oomEvents(group string) (*os.File, error) {
	dir, err := h.dir("memory", group)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make eventfd: %w", err)
	}
	events := os.NewFile(uintptr(fd), "out of memory events")
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err == nil {
		// The kernel keeps what it needs of both: the control file may be closed.
		err = errors.Join(write(dir, "cgroup.event_control", fmt.Sprintf("%d %d", fd, control.Fd())), control.Close())
	}
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrNotExist, err)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ask for out of memory events: %w", err), events.Close())
	}
	return events, nil
}

func (h *v1) forksDenied(group string) (uint64, error) {
	dir, err := h.dir("pids", group)
	if err != nil {
		return 0, err
	}
	t, err := readTable(dir, "pids.events")
	return t["max"], err
}

func (h *v1) setFrozen(group string, frozen bool) (bool, error) {
	state := "THAWED"
	if frozen {
		state = "FROZEN"
	}
	dir := filepath.Join(h.dirs["freezer"], group)
	// Written each time: a process forked while the group was freezing is caught by the next write.
	if err := write(dir, "freezer.state", state); err != nil {
		return false, err
	}
	b, err := read(dir, "freezer.state")
	return string(b) == state+"\n", err
}

// kill stops the group, so that nothing forks away, signals everything and lets it go, to die.
func (h *v1) kill(group string) error {
	dir := filepath.Join(h.dirs["freezer"], group)
	if err := write(dir, "freezer.state", "FROZEN"); err != nil && !errors.Is(err, ErrNotExist) {
		return err
	}
	var errs []error
	for _, root := range h.all {
		pids, err := readPIDs(filepath.Join(root, group, "cgroup.procs"))
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, err)
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("kill %d: %w", pid, err))
			}
		}
	}
	if err := write(dir, "freezer.state", "THAWED"); err != nil && !errors.Is(err, ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (h *v1) oomKills(group string) (uint64, error) {
	dir, err := h.dir("memory", group)
	if err != nil {
		return 0, err
	}
	t, err := readTable(dir, "memory.oom_control")
	return t["oom_kill"], err
}

func (h *v1) stats(group string) (Stats, error) {
	var s Stats
	r := reader{s: &s}
	if dir, err := h.dir("cpuacct", group); err == nil {
		r.number(&s.CPUNanos, "cpu_nanos", dir, "cpuacct.usage", 1)
		if t := r.table(dir, "cpuacct.stat"); t != nil {
			r.field(&s.UserNanos, "user_nanos", t, "user", 1e9/userHZ)
			r.field(&s.SystemNanos, "system_nanos", t, "system", 1e9/userHZ)
		}
	}
	if dir, err := h.dir("cpu", group); err == nil {
		if t := r.table(dir, "cpu.stat"); t != nil {
			r.field(&s.Throttled, "throttled_periods", t, "nr_throttled", 1)
			r.field(&s.ThrottledNs, "throttled_nanos", t, "throttled_time", 1)
		}
	}
	if dir, err := h.dir("memory", group); err == nil {
		r.number(&s.MemoryBytes, "memory_bytes", dir, "memory.usage_in_bytes", 1)
		if t := r.table(dir, "memory.stat"); t != nil {
			r.field(&s.MemoryCache, "memory_cache_bytes", t, "total_cache", 1)
			s.MemoryBytes -= min(s.MemoryBytes, t["total_inactive_file"])
		}
		r.number(&s.MemoryMax, "memory_max_bytes", dir, "memory.max_usage_in_bytes", 1)
		r.number(&s.MemoryLimit, "memory_limit_bytes", dir, "memory.limit_in_bytes", 1)
		if s.MemoryLimit >= 1<<62 { // no limit: the largest page count in bytes
			s.MemoryLimit = 0
		}
		if t := r.table(dir, "memory.oom_control"); t != nil {
			r.field(&s.OOMKills, "oom_kills", t, "oom_kill", 1)
		}
	}
	if dir, err := h.dir("pids", group); err == nil {
		r.number(&s.PIDs, "pids", dir, "pids.current", 1)
		if t := r.table(dir, "pids.events"); t != nil {
			r.field(&s.ForksDenied, "forks_denied", t, "max", 1)
		}
	}
	return s, r.err
}
