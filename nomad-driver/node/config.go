package node

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk/s3"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Defaults of Config.
const (
	DefaultStateDir      = "/var/lib/soulbox/node"
	DefaultRunDir        = "/run/soulbox"
	DefaultAddress       = "127.0.0.1:7302"
	DefaultMaxSandboxes  = 1000
	DefaultIDRangeBase   = 1 << 20
	DefaultKeepStopped   = 24 * time.Hour
	DefaultKeepCount     = 1000
	DefaultDeadlineGrace = time.Second
	DefaultDiskReserve   = 512 << 20
	DefaultCgroupParent  = "soulbox"
	DefaultDiskPolicy    = DiskLimitRefuse

	DefaultSampleInterval = 5 * time.Second
	DefaultSampleWindow   = time.Hour
)

// Config describes a node. The zero value of every field except Version is a good one on a machine of its own.
type Config struct {
	StateDir string // records, templates, writable layers; survives a reboot
	RunDir   string // sockets, exit records, log offsets; need not survive a reboot
	Socket   string // unix socket of the API; RunDir/node.sock where empty
	Address  string // host:port of the API over TCP; empty: none
	TLS      TLS    // needed where Address is set

	SnapshotDir string     // of the snapshot store, which nodes may share; StateDir/snapshots where empty
	SnapshotS3  *s3.Config // the bucket of the snapshot store; nil: it is in SnapshotDir
	SnapshotKey string     // file with its key, the same for all that share it; made at StateDir/snapshot.key where empty
	// SnapshotKeyGiven says that the key comes from the control service instead, which keeps it for all nodes. SnapshotKey is empty then.
	SnapshotKeyGiven bool
	CRIUPath         string // of the CRIU for checkpoints; looked for on PATH where empty
	InitPath         string // soulbox-init; looked for beside the executable and in /usr/libexec/soulbox where empty
	CgroupParent     string // name of the control group that sandboxes' groups are in

	ID      api.NodeID // made at the first start and kept where empty
	Name    string     // host name where empty
	Version string     // SoulBox version of the daemon

	MaxSandboxes int            // running or starting at the same time
	IDRangeBase  uint32         // first host id that sandboxes may get
	Defaults     nodeapi.Limits // what a request's zero means
	DiskReserve  int64          // bytes free in StateDir below which no sandbox is made; negative: none
	// DiskLimiter names how disk limits are enforced (quota, image, tmpfs, none); empty is the best that works in StateDir:
	// quota, else image. The default of limits is in Defaults.
	DiskLimiter string
	// DiskLimitPolicy says what becomes of a create that asks for a disk limit where there is none: DiskLimitRefuse or
	// DiskLimitBestEffort.
	DiskLimitPolicy string

	KeepStopped   time.Duration // how long records of stopped sandboxes stay
	KeepCount     int           // how many of them stay
	DeadlineGrace time.Duration // from SIGTERM to SIGKILL at a deadline

	SampleInterval time.Duration // between two samples of what a sandbox uses
	SampleWindow   time.Duration // how far back they are kept while it runs

	// Confine says whether sandboxes that work much in the kernel near their memory limit are kept on as many cores as their processor limit is worth:
	// ConfineAuto or ConfineOff.
	Confine string

	Network Network

	Logger hclog.Logger // discards where nil

	runtime   runtime   // tests; package sandbox where nil
	templates templates // tests; package store where nil
}

// TLS names the files of the API over TCP. They are read again when they change.
type TLS struct {
	CAFile   string // of the certificates that clients must have
	CertFile string
	KeyFile  string
	// ClientNames are the DNS names of which a client's certificate must carry one; empty: every certificate of the CA
	// that is made for clients is good.
	ClientNames []string
}

// SocketPath returns the path of the API's unix socket.
func (c *Config) SocketPath() string {
	d := *c
	set(&d.RunDir, DefaultRunDir)
	set(&d.Socket, filepath.Join(d.RunDir, "node.sock"))
	return d.Socket
}

func (c *Config) setDefaults() error {
	set(&c.StateDir, DefaultStateDir)
	set(&c.RunDir, DefaultRunDir)
	set(&c.Socket, filepath.Join(c.RunDir, "node.sock"))
	set(&c.SnapshotDir, filepath.Join(c.StateDir, "snapshots"))
	if !c.SnapshotKeyGiven {
		set(&c.SnapshotKey, filepath.Join(c.StateDir, "snapshot.key"))
	}
	set(&c.CgroupParent, DefaultCgroupParent)
	set(&c.MaxSandboxes, DefaultMaxSandboxes)
	set(&c.IDRangeBase, DefaultIDRangeBase)
	set(&c.DiskReserve, DefaultDiskReserve)
	set(&c.KeepStopped, DefaultKeepStopped)
	set(&c.KeepCount, DefaultKeepCount)
	set(&c.DeadlineGrace, DefaultDeadlineGrace)
	set(&c.DiskLimitPolicy, DefaultDiskPolicy)
	set(&c.SampleInterval, DefaultSampleInterval)
	set(&c.SampleWindow, DefaultSampleWindow)
	set(&c.Network.Mode, NetworkAuto)
	set(&c.Confine, ConfineAuto)
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("host name: %w", err)
		}
		c.Name = name
	}
	return nil
}

func (c *Config) validate() error {
	for _, p := range []struct{ name, path string }{{"state_dir", c.StateDir}, {"run_dir", c.RunDir}, {"socket", c.Socket}} {
		if !filepath.IsAbs(p.path) {
			return fmt.Errorf("%s %q is not an absolute path", p.name, p.path)
		}
	}
	if len(c.Socket) > maxSocketPath {
		return fmt.Errorf("socket %q is longer than the %d bytes that the kernel allows", c.Socket, maxSocketPath)
	}
	if c.Address != "" && (c.TLS.CAFile == "" || c.TLS.CertFile == "" || c.TLS.KeyFile == "") {
		return fmt.Errorf("address %s needs tls ca_file, cert_file and key_file: the node does not serve TCP without mutual TLS", c.Address)
	}
	if c.IDRangeBase < minIDBase || c.IDRangeBase >= maxIDBase {
		return fmt.Errorf("id_range_base %d is not between %d and %d", c.IDRangeBase, uint32(minIDBase), uint32(maxIDBase))
	}
	if c.DiskLimitPolicy != DiskLimitRefuse && c.DiskLimitPolicy != DiskLimitBestEffort {
		return fmt.Errorf("disk_limit_policy %q is neither %s nor %s", c.DiskLimitPolicy, DiskLimitRefuse, DiskLimitBestEffort)
	}
	if _, err := disk.ByName(c.DiskLimiter); err != nil {
		return fmt.Errorf("disk_limiter: %w", err)
	}
	if c.Confine != ConfineAuto && c.Confine != ConfineOff {
		return fmt.Errorf("confine %.20q is neither %s nor %s", c.Confine, ConfineAuto, ConfineOff)
	}
	switch c.Network.Mode {
	case NetworkAuto, NetworkOn, NetworkOff:
	default:
		return fmt.Errorf("network mode %.20q is none of %s, %s, %s", c.Network.Mode, NetworkAuto, NetworkOn, NetworkOff)
	}
	if p := c.Network.Publish; p.From < 0 || p.To > 65535 || p.To < p.From || p.From == 0 && p.To > 0 {
		return fmt.Errorf("network publish_ports %d-%d is no range of ports", p.From, p.To)
	}
	if c.MaxSandboxes < 1 {
		return fmt.Errorf("max_sandboxes %d is less than 1", c.MaxSandboxes)
	}
	if c.KeepCount < 0 || c.KeepStopped < 0 || c.DeadlineGrace < 0 {
		return fmt.Errorf("keep_count, keep_stopped and deadline_grace must not be negative")
	}
	return nil
}

const maxSocketPath = 107

func set[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
