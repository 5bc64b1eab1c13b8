package sandbox

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
)

// maxHostname is the kernel's limit in bytes.
const maxHostname = 64

// withDefaults checks c and fills in what may be left out. An error names the field and its limit.
func (c Config) withDefaults() (Config, error) {
	if id, err := api.ParseSandboxID(string(c.ID)); err != nil || id != c.ID {
		return c, fmt.Errorf("sandbox id %.40q is none", c.ID)
	}
	if c.Cgroups == nil || c.Init == nil {
		return c, errors.New("config without Cgroups or Init")
	}
	for _, p := range []struct{ name, path string }{{"lower", c.Lower}, {"state dir", c.StateDir}, {"run dir", c.RunDir}} {
		if !filepath.IsAbs(p.path) || filepath.Clean(p.path) != p.path {
			return c, fmt.Errorf("%s %q must be an absolute, clean path", p.name, p.path)
		}
	}
	// sun_path holds 107 bytes and a zero.
	if path := paths(c.RunDir, c.StateDir, c.ID).socket; len(path) > 107 {
		return c, fmt.Errorf("run dir %q: the socket path %s would have %d bytes, at most 107", c.RunDir, path, len(path))
	}
	if c.IDBase < IDRange || uint64(c.IDBase)+IDRange > math.MaxUint32 {
		return c, fmt.Errorf("id base %d must be at least %d and leave room for %d ids", c.IDBase, IDRange, IDRange)
	}
	if err := errors.Join(c.Limits.check(), c.Given.Check()); err != nil {
		return c, err
	}
	if c.QoS == "" {
		c.QoS = Burstable
	}
	if err := c.QoS.Check(); err != nil {
		return c, err
	}
	if c.Limits.disk() != (disk.Limits{}) && c.Disk == nil {
		return c, errors.New("limits disk_bytes and disk_inodes need a disk limiter")
	}
	if c.Limits.TmpBytes == 0 {
		c.Limits.TmpBytes = DefaultTmpBytes
	}
	if c.Limits.NoFile == 0 {
		c.Limits.NoFile = DefaultNoFile
	}
	if c.Boot.Profile == "" {
		c.Boot.Profile = ProfileDefault
	}
	if c.Boot.Profile != ProfileDefault && c.Boot.Profile != ProfileStrict {
		return c, fmt.Errorf("profile %.40q is neither %s nor %s", c.Boot.Profile, ProfileDefault, ProfileStrict)
	}
	if c.Boot.Hostname == "" {
		c.Boot.Hostname = DefaultHostname
	}
	return c, checkHostname(c.Boot.Hostname)
}

// check makes sure that every limit is 0 or within its bounds.
func (l Limits) check() error {
	for _, f := range []struct {
		name        string
		v, min, max int64
	}{
		{"cpu_millis", l.CPUMillis, MinCPUMillis, 4096_000},
		{"cpu_weight", l.CPUWeight, 1, 10_000},
		{"memory_bytes", l.MemoryBytes, MinMemoryBytes, 1 << 50},
		{"pids", l.PIDs, MinPIDs, 4 << 20},
		{"tmp_bytes", l.TmpBytes, 4096, 1 << 50},
		{"nofile", l.NoFile, 64, 1 << 20},
		{"disk_bytes", l.DiskBytes, MinDiskBytes, 1 << 50},
		{"disk_inodes", l.DiskInodes, MinDiskInodes, 1 << 32},
		{"io_read_bytes", l.IOReadBytes, MinIOBytes, 1 << 50},
		{"io_write_bytes", l.IOWriteBytes, MinIOBytes, 1 << 50},
		{"io_read_ops", l.IOReadOps, MinIOOps, 1 << 32},
		{"io_write_ops", l.IOWriteOps, MinIOOps, 1 << 32},
	} {
		if f.v == cgroup.Unlimited && strings.HasPrefix(f.name, "io_") {
			continue
		}
		if f.v != 0 && (f.v < f.min || f.v > f.max) {
			return fmt.Errorf("limit %s is %d, must be between %d and %d", f.name, f.v, f.min, f.max)
		}
	}
	return nil
}

// group returns what of l a control group enforces. stateDir is on the disk that io limits are about.
func (l Limits) group(q QoS, stateDir string) (cgroup.Limits, error) {
	g := cgroup.Limits{
		CPUMillis: l.CPUMillis, CPUWeight: l.CPUWeight, MemoryBytes: l.MemoryBytes, PIDs: l.PIDs,
		MemoryLow: q.memoryLow(l.MemoryBytes), MemorySoft: q.memorySoft(l.MemoryBytes),
		IO: cgroup.IOLimits{ReadBytes: l.IOReadBytes, WriteBytes: l.IOWriteBytes, ReadOps: l.IOReadOps, WriteOps: l.IOWriteOps},
	}
	if !g.IO.Any() {
		return g, nil
	}
	var err error
	if g.IO.Device, err = cgroup.Disk(stateDir); err != nil {
		err = fmt.Errorf("io limits: %w", err)
	}
	return g, err
}

func (l Limits) disk() disk.Limits { return disk.Limits{Bytes: l.DiskBytes, Inodes: l.DiskInodes} }

// checkHostname keeps names to what may stand in /etc/hosts and in prompts.
func checkHostname(name string) error {
	if len(name) > maxHostname {
		return fmt.Errorf("hostname %.80q has %d bytes, at most %d", name, len(name), maxHostname)
	}
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' || (i == 0 && (c == '-' || c == '.')) {
			return fmt.Errorf("hostname %.80q: only letters, digits, \"-\" and \".\" are allowed, the first a letter or digit", name)
		}
	}
	return nil
}

// layout is where a sandbox's things are on the host.
type layout struct {
	state  string // StateDir/ID
	upper  string
	work   string
	run    string // RunDir/ID; the root is attached there, in PID 1's mount namespace only
	socket string
	exit   string
}

func paths(runDir, stateDir string, id api.SandboxID) layout {
	state, run := filepath.Join(stateDir, string(id)), filepath.Join(runDir, string(id))
	return layout{
		state: state, upper: filepath.Join(state, "upper"), work: filepath.Join(state, "work"),
		run: run, socket: filepath.Join(run, "guest.sock"), exit: filepath.Join(run, "exit"),
	}
}
