package cgroup

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// v2 is the one hierarchy of cgroup v2.
type v2 struct {
	root        string
	controllers []string // of the root

	low     lowMemory
	guard   string // by what devices are guarded
	noGuard error  // why they are not
}

// v2Controllers are what groups of sandboxes need; a limit whose controller is not there is an error.
var v2Controllers = []string{"cpu", "memory", "pids", "io"}

const v2Period = 100_000 // µs

func newV2(root string) (*v2, error) {
	b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return nil, fmt.Errorf("read controllers of cgroup v2: %w", err)
	}
	return &v2{root: root, controllers: strings.Fields(string(b))}, nil
}

func (h *v2) version() int    { return 2 }
func (h *v2) roots() []string { return []string{h.root} }

// prepareParent hands the controllers down, first to the parent and then to the groups in it.
func (h *v2) prepareParent(parent string) error {
	for _, dir := range []string{h.root, filepath.Join(h.root, parent)} {
		b, err := read(dir, "cgroup.subtree_control")
		if err != nil {
			return err
		}
		on := strings.Fields(string(b))
		for _, c := range v2Controllers {
			if !slices.Contains(h.controllers, c) || slices.Contains(on, c) {
				continue
			}
			if err := write(dir, "cgroup.subtree_control", "+"+c); err != nil {
				return fmt.Errorf("enable controller %s: %w", c, err)
			}
		}
	}
	// The second wall only: /dev holds nothing else. Attached to the parent, it costs a new group nothing.
	if h.noGuard = guardDevices(filepath.Join(h.root, parent), devices); h.noGuard == nil {
		h.guard = "bpf"
	}
	return nil
}

func (h *v2) dir(_, group string) (string, error) { return filepath.Join(h.root, group), nil }

// guardDevices gives a group with devices of its own a program of its own, in place of the parent's.
func (h *v2) guardDevices(group string, own []Device) error {
	if len(own) == 0 {
		return nil
	}
	if h.noGuard != nil {
		return h.noGuard
	}
	return guardDevices(filepath.Join(h.root, group), allowed(own))
}

func (h *v2) devices() (string, error) { return h.guard, h.noGuard }

func (h *v2) oomEvents(string) (*os.File, error) { return nil, nil }

func (h *v2) entry(group string) (*Entry, error) {
	f, err := os.Open(filepath.Join(h.root, group))
	if err != nil {
		return nil, err
	}
	return &Entry{Dir: f}, nil
}

func (h *v2) setLimits(group string, l Limits) error {
	dir := filepath.Join(h.root, group)
	if l.CPUMillis > 0 {
		if err := write(dir, "cpu.max", fmt.Sprintf("%d %d", max(l.CPUMillis*v2Period/1000, 1000), v2Period)); err != nil {
			return err
		}
	}
	if l.CPUWeight > 0 {
		if err := writeInt(dir, "cpu.weight", min(l.CPUWeight, 10_000)); err != nil {
			return err
		}
	}
	if l.MemoryBytes > 0 {
		if err := writeInt(dir, "memory.max", l.MemoryBytes); err != nil {
			return err
		}
		// A kernel without swap has no file for it.
		if err := writeInt(dir, "memory.swap.max", 0); err != nil && !errors.Is(err, ErrUnsupported) {
			return err
		}
		// Out of memory ends the sandbox as one, instead of leaving it with a hole where a process was.
		if err := writeInt(dir, "memory.oom.group", 1); err != nil && !errors.Is(err, ErrUnsupported) {
			return err
		}
	}
	if l.PIDs > 0 {
		if err := writeInt(dir, "pids.max", l.PIDs); err != nil {
			return err
		}
	}
	if l.MemoryLow != 0 {
		if err := h.low.set(h.root, group, max(l.MemoryLow, 0)); err != nil {
			return err
		}
	}
	return h.limitIO(dir, l.IO)
}

func (h *v2) limitIO(dir string, l IOLimits) error {
	if !l.Any() {
		return nil
	}
	line := l.Device
	for _, f := range []struct {
		key string
		v   int64
	}{
		{"rbps", l.ReadBytes}, {"wbps", l.WriteBytes}, {"riops", l.ReadOps}, {"wiops", l.WriteOps},
	} {
		switch {
		case f.v > 0:
			line += fmt.Sprintf(" %s=%d", f.key, f.v)
		case f.v < 0:
			line += " " + f.key + "=max"
		}
	}
	return write(dir, "io.max", line)
}

func (h *v2) removed(group string) error { return h.low.forget(h.root, group) }

func (h *v2) forksDenied(group string) (uint64, error) {
	t, err := readTable(filepath.Join(h.root, group), "pids.events")
	return t["max"], err
}

func (h *v2) setFrozen(group string, frozen bool) (bool, error) {
	dir := filepath.Join(h.root, group)
	want := uint64(0)
	if frozen {
		want = 1
	}
	if err := writeInt(dir, "cgroup.freeze", int64(want)); err != nil {
		return false, err
	}
	t, err := readTable(dir, "cgroup.events")
	return t["frozen"] == want, err
}

func (h *v2) kill(group string) error {
	dir := filepath.Join(h.root, group)
	err := writeInt(dir, "cgroup.kill", 1)
	if errors.Is(err, ErrNotExist) {
		return nil
	}
	return err
}

func (h *v2) oomKills(group string) (uint64, error) {
	t, err := readTable(filepath.Join(h.root, group), "memory.events")
	return t["oom_kill"], err
}

func (h *v2) stats(group string) (Stats, error) {
	var s Stats
	r := reader{s: &s}
	dir := filepath.Join(h.root, group)
	if t := r.table(dir, "cpu.stat"); t != nil {
		r.field(&s.CPUNanos, "cpu_nanos", t, "usage_usec", 1000)
		r.field(&s.UserNanos, "user_nanos", t, "user_usec", 1000)
		r.field(&s.SystemNanos, "system_nanos", t, "system_usec", 1000)
		r.field(&s.Throttled, "throttled_periods", t, "nr_throttled", 1)
		r.field(&s.ThrottledNs, "throttled_nanos", t, "throttled_usec", 1000)
	}
	r.number(&s.MemoryBytes, "memory_bytes", dir, "memory.current", 1)
	if t := r.table(dir, "memory.stat"); t != nil {
		r.field(&s.MemoryCache, "memory_cache_bytes", t, "file", 1)
		s.MemoryBytes -= min(s.MemoryBytes, t["inactive_file"])
	}
	r.number(&s.MemoryMax, "memory_max_bytes", dir, "memory.peak", 1)
	r.number(&s.MemoryLimit, "memory_limit_bytes", dir, "memory.max", 1)
	if s.MemoryLimit == math.MaxUint64 {
		s.MemoryLimit = 0
	}
	if t := r.table(dir, "memory.events"); t != nil {
		r.field(&s.OOMKills, "oom_kills", t, "oom_kill", 1)
	}
	r.number(&s.PIDs, "pids", dir, "pids.current", 1)
	if t := r.table(dir, "pids.events"); t != nil {
		r.field(&s.ForksDenied, "forks_denied", t, "max", 1)
	}
	return s, r.err
}

// reader fills Stats from files that may be missing: what the kernel does not have is not measured, and only a group
// that is gone is an error.
type reader struct {
	s   *Stats
	err error
}

func (r *reader) failed(err error) bool {
	if err == nil {
		return false
	}
	if !errors.Is(err, os.ErrNotExist) && r.err == nil {
		r.err = err
	}
	return true
}

func (r *reader) number(to *uint64, name, dir, file string, factor uint64) {
	v, err := readUint(dir, file)
	if r.failed(err) {
		return
	}
	if v == math.MaxUint64 {
		factor = 1
	}
	*to = v * factor
	r.s.Measured = append(r.s.Measured, name)
}

func (r *reader) table(dir, file string) map[string]uint64 {
	t, err := readTable(dir, file)
	if r.failed(err) {
		return nil
	}
	return t
}

func (r *reader) field(to *uint64, name string, t map[string]uint64, key string, factor uint64) {
	v, ok := t[key]
	if !ok {
		return
	}
	*to = v * factor
	r.s.Measured = append(r.s.Measured, name)
}
