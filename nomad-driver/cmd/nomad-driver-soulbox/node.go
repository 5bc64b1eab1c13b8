package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2/hclsimple"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk/s3"
	"github.com/soulbox-dev/soulbox/nomad-driver/network"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/firewall"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/resolver"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/shape"
	"github.com/soulbox-dev/soulbox/nomad-driver/node"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// nodeFile is the HCL configuration file of the daemon. Every attribute is optional.
type nodeFile struct {
	StateDir      string        `hcl:"state_dir,optional"`
	RunDir        string        `hcl:"run_dir,optional"`
	Socket        string        `hcl:"socket,optional"`
	Address       string        `hcl:"address,optional"`
	InitPath      string        `hcl:"init_path,optional"`
	CRIUPath      string        `hcl:"criu_path,optional"`
	SnapshotDir   string        `hcl:"snapshot_dir,optional"`
	SnapshotKey   string        `hcl:"snapshot_key,optional"`
	SnapshotFrom  string        `hcl:"snapshot_key_from,optional"` // file, or control
	SnapshotS3    *s3Block      `hcl:"snapshot_s3,block"`
	CgroupParent  string        `hcl:"cgroup_parent,optional"`
	NodeID        string        `hcl:"node_id,optional"`
	NodeName      string        `hcl:"node_name,optional"`
	MaxSandboxes  int           `hcl:"max_sandboxes,optional"`
	IDRangeBase   int64         `hcl:"id_range_base,optional"`
	DiskReserve   int64         `hcl:"disk_reserve_bytes,optional"`
	DiskLimiter   string        `hcl:"disk_limiter,optional"`
	DiskPolicy    string        `hcl:"disk_limit_policy,optional"`
	DiskDefault   int64         `hcl:"disk_default_bytes,optional"` // the same as disk_bytes of defaults
	KeepStopped   string        `hcl:"keep_stopped,optional"`
	KeepCount     int           `hcl:"keep_count,optional"`
	DeadlineGrace string        `hcl:"deadline_grace,optional"`
	SampleEvery   string        `hcl:"sample_interval,optional"`
	SampleWindow  string        `hcl:"sample_window,optional"`
	Confine       string        `hcl:"confine,optional"` // auto or off
	LogLevel      string        `hcl:"log_level,optional"`
	LogJSON       bool          `hcl:"log_json,optional"`
	Defaults      *limitsBlock  `hcl:"defaults,block"`
	TLS           *tlsBlock     `hcl:"tls,block"`
	Network       *networkBlock `hcl:"network,block"`
	Consul        *consulBlock  `hcl:"consul,block"`
}

// limitsBlock is what a sandbox gets where its request does not say.
type limitsBlock struct {
	CPUMillis   int64 `hcl:"cpu_millis,optional"`
	CPUWeight   int64 `hcl:"cpu_weight,optional"`
	MemoryBytes int64 `hcl:"memory_bytes,optional"`
	PIDs        int64 `hcl:"pids,optional"`
	TmpBytes    int64 `hcl:"tmp_bytes,optional"`
	NoFile      int64 `hcl:"nofile,optional"`

	DiskBytes    int64 `hcl:"disk_bytes,optional"`
	DiskInodes   int64 `hcl:"disk_inodes,optional"`
	IOReadBytes  int64 `hcl:"io_read_bytes,optional"`
	IOWriteBytes int64 `hcl:"io_write_bytes,optional"`
	IOReadOps    int64 `hcl:"io_read_ops,optional"`
	IOWriteOps   int64 `hcl:"io_write_ops,optional"`
}

type tlsBlock struct {
	CAFile      string   `hcl:"ca_file"`
	CertFile    string   `hcl:"cert_file"`
	KeyFile     string   `hcl:"key_file"`
	ClientNames []string `hcl:"client_names,optional"`
}

// s3Block is the bucket of the snapshot store.
type s3Block struct {
	Endpoint      string `hcl:"endpoint"`
	Bucket        string `hcl:"bucket"`
	Prefix        string `hcl:"prefix,optional"`
	Region        string `hcl:"region,optional"`
	AccessKey     string `hcl:"access_key,optional"`
	SecretKeyFile string `hcl:"secret_key_file,optional"`
	CAFile        string `hcl:"ca_file,optional"`
}

// networkBlock is the network of sandboxes.
type networkBlock struct {
	Mode           string   `hcl:"mode,optional"`
	Range          string   `hcl:"range,optional"`
	Ahead          int      `hcl:"ahead,optional"`
	Open           []string `hcl:"open,optional"`
	Connections    uint32   `hcl:"max_connections,optional"`
	NewConnections uint64   `hcl:"new_connections_per_second,optional"`
	Packets        uint64   `hcl:"packets_per_second,optional"`
	Resolvers      []string `hcl:"resolvers,optional"`
	NameQueries    int      `hcl:"name_queries_per_second,optional"`
	NameBytes      int      `hcl:"name_bytes_per_second,optional"`
	PublishPorts   string   `hcl:"publish_ports,optional"` // as 20000-29999; none: no ports are published through the API
	PublishAddress string   `hcl:"publish_address,optional"`

	Uplink *uplinkBlock `hcl:"uplink,block"`
}

// uplinkBlock is the link that sandboxes share out by their classes.
type uplinkBlock struct {
	Link string `hcl:"link,optional"`
	In   uint64 `hcl:"in_bytes_per_second,optional"`
	Out  uint64 `hcl:"out_bytes_per_second,optional"`
}

func (b *uplinkBlock) config() (network.Uplink, error) {
	u := network.Uplink{Link: b.Link, In: b.In, Out: b.Out}
	for _, d := range []struct {
		name string
		rate uint64
	}{{"in", u.In}, {"out", u.Out}} {
		if d.rate != 0 && (d.rate < shape.MinRate || d.rate > shape.MaxRate) {
			return u, fmt.Errorf("network uplink %s_bytes_per_second is %d, must be between %d and %d", d.name, d.rate, shape.MinRate, uint64(shape.MaxRate))
		}
	}
	if u.In == 0 && u.Out == 0 {
		return u, errors.New("network uplink: neither in_bytes_per_second nor out_bytes_per_second is set")
	}
	return u, nil
}

func (b *networkBlock) config() (node.Network, error) {
	n := node.Network{Mode: b.Mode, Ahead: b.Ahead, Limits: firewall.Limits{
		Connections: b.Connections, NewConnections: b.NewConnections, Packets: b.Packets,
	}}
	if b.NameQueries < 0 || b.NameBytes < 0 {
		return n, errors.New("network name_queries_per_second and name_bytes_per_second must not be negative")
	}
	n.Names = resolver.Limits{Queries: b.NameQueries, Bytes: b.NameBytes}
	for _, s := range b.Resolvers {
		p, err := netip.ParseAddrPort(s)
		if a, aerr := netip.ParseAddr(s); aerr == nil {
			p, err = netip.AddrPortFrom(a, 53), nil
		}
		if err != nil || p.Port() == 0 {
			return n, fmt.Errorf("network resolvers: %.80q is neither an address nor address:port", s)
		}
		n.Resolvers = append(n.Resolvers, p)
	}
	if b.PublishPorts != "" {
		if _, err := fmt.Sscanf(b.PublishPorts, "%d-%d", &n.Publish.From, &n.Publish.To); err != nil || n.Publish.From < 1 {
			return n, fmt.Errorf("network publish_ports: %.40q is no range such as 20000-29999", b.PublishPorts)
		}
	}
	if b.PublishAddress != "" {
		a, err := netip.ParseAddr(b.PublishAddress)
		if err != nil {
			return n, fmt.Errorf("network publish_address: %w", err)
		}
		n.Publish.Address = a
	}
	if b.Range != "" {
		p, err := policy.ParsePrefix(b.Range)
		if err != nil {
			return n, fmt.Errorf("network range: %w", err)
		}
		n.Range = p
	}
	if b.Uplink != nil {
		u, err := b.Uplink.config()
		if err != nil {
			return n, err
		}
		n.Uplink = u
	}
	for _, s := range b.Open {
		p, err := policy.ParsePrefix(s)
		if err != nil {
			return n, fmt.Errorf("network open: %w", err)
		}
		n.Open = append(n.Open, p)
	}
	return n, nil
}

// runNode is the subcommand "node". It returns the exit code.
func runNode(args []string) int {
	cfg, registry, err := nodeConfig(args)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "nomad-driver-soulbox node:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := serve(ctx, cfg, registry); err != nil {
		cfg.Logger.Error("the node ends", "error", err)
		return 1
	}
	return 0
}

// serve runs the node, and its registration as long.
func serve(ctx context.Context, cfg node.Config, registry *consulBlock) error {
	n, err := node.New(cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	registered, err := announce(ctx, registry, cfg, n)
	if err != nil {
		return errors.Join(err, n.Close())
	}
	err = n.Run(ctx)
	cancel()
	registered()
	return err
}

// nodeConfig reads the flags and the file that they name, and where the node is to register itself. Flags win.
func nodeConfig(args []string) (node.Config, *consulBlock, error) {
	fs := flag.NewFlagSet("nomad-driver-soulbox node", flag.ContinueOnError)
	path := fs.String("config", "", "HCL configuration `file`")
	var f nodeFile
	var tls tlsBlock
	fs.StringVar(&f.StateDir, "state-dir", "", "`directory` for records, templates and layers (default "+node.DefaultStateDir+")")
	fs.StringVar(&f.RunDir, "run-dir", "", "`directory` for sockets (default "+node.DefaultRunDir+")")
	fs.StringVar(&f.Socket, "socket", "", "`path` of the API's unix socket (default node.sock in the run directory)")
	fs.StringVar(&f.Address, "address", "", "`host:port` of the API over TCP, which needs the tls flags (default none)")
	fs.StringVar(&tls.CAFile, "tls-ca", "", "`file` with the CA of the certificates that clients must have")
	fs.StringVar(&tls.CertFile, "tls-cert", "", "`file` with the node's certificate")
	fs.StringVar(&tls.KeyFile, "tls-key", "", "`file` with the node's key")
	fs.StringVar(&f.InitPath, "init", "", "`path` of soulbox-init (default beside this program, then /usr/libexec/soulbox)")
	fs.StringVar(&f.SnapshotDir, "snapshot-dir", "", "`directory` of the snapshot store, which nodes may share (default snapshots in the state directory)")
	fs.StringVar(&f.SnapshotKey, "snapshot-key", "", "`file` with the snapshot store's key, the same for all that share it (default snapshot.key in the state directory)")
	fs.StringVar(&f.SnapshotFrom, "snapshot-key-from", "", "where the snapshot store's key comes from: `file`, or control for the key that the control service keeps for all nodes (default file)")
	fs.StringVar(&f.CRIUPath, "criu", "", "`path` of the CRIU for checkpoints (default criu on PATH)")
	fs.StringVar(&f.CgroupParent, "cgroup-parent", "", "`name` of the control group for sandboxes (default "+node.DefaultCgroupParent+")")
	fs.StringVar(&f.NodeID, "node-id", "", "`id` of the node (default: made at the first start)")
	fs.StringVar(&f.NodeName, "node-name", "", "`name` of the node (default: the host's)")
	fs.IntVar(&f.MaxSandboxes, "max-sandboxes", 0, fmt.Sprintf("how many may run at the same time (default %d)", node.DefaultMaxSandboxes))
	fs.Int64Var(&f.IDRangeBase, "id-range-base", 0, fmt.Sprintf("first host `id` that sandboxes get (default %d)", node.DefaultIDRangeBase))
	networkMode := fs.String("network", "", "networks of sandboxes: auto (where the machine can), on (or do not start) or off (default "+node.NetworkAuto+")")
	fs.StringVar(&f.LogLevel, "log-level", "", "trace, debug, info, warn or error (default info)")
	fs.BoolVar(&f.LogJSON, "log-json", false, "write the log as JSON")
	if err := fs.Parse(args); err != nil {
		return node.Config{}, nil, err
	}
	if fs.NArg() > 0 {
		return node.Config{}, nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if *path != "" {
		file := nodeFile{}
		if err := hclsimple.DecodeFile(*path, nil, &file); err != nil {
			return node.Config{}, nil, err
		}
		f = f.over(file)
	}
	if f.Network == nil {
		f.Network = &networkBlock{}
	}
	if *networkMode != "" {
		f.Network.Mode = *networkMode
	}
	if tls.CAFile != "" || tls.CertFile != "" || tls.KeyFile != "" {
		f.TLS = &tls
	}
	cfg, err := f.config()
	return cfg, f.Consul, err
}

// over returns f, with file's values where f has none.
func (f nodeFile) over(file nodeFile) nodeFile {
	for _, s := range []struct{ to, from *string }{
		{&file.StateDir, &f.StateDir}, {&file.RunDir, &f.RunDir}, {&file.Socket, &f.Socket}, {&file.Address, &f.Address},
		{&file.InitPath, &f.InitPath}, {&file.CgroupParent, &f.CgroupParent}, {&file.NodeID, &f.NodeID},
		{&file.NodeName, &f.NodeName}, {&file.LogLevel, &f.LogLevel},
		{&file.SnapshotDir, &f.SnapshotDir}, {&file.SnapshotKey, &f.SnapshotKey}, {&file.SnapshotFrom, &f.SnapshotFrom}, {&file.CRIUPath, &f.CRIUPath},
	} {
		if *s.from != "" {
			*s.to = *s.from
		}
	}
	if f.MaxSandboxes != 0 {
		file.MaxSandboxes = f.MaxSandboxes
	}
	if f.IDRangeBase != 0 {
		file.IDRangeBase = f.IDRangeBase
	}
	file.LogJSON = file.LogJSON || f.LogJSON
	return file
}

func (f nodeFile) config() (node.Config, error) {
	level := hclog.Info
	if f.LogLevel != "" {
		if level = hclog.LevelFromString(f.LogLevel); level == hclog.NoLevel {
			return node.Config{}, fmt.Errorf("log_level %q is none of trace, debug, info, warn, error", f.LogLevel)
		}
	}
	if f.IDRangeBase < 0 || f.IDRangeBase > 1<<32-1 {
		return node.Config{}, fmt.Errorf("id_range_base %d is no user id", f.IDRangeBase)
	}
	cfg := node.Config{
		StateDir: f.StateDir, RunDir: f.RunDir, Socket: f.Socket, Address: f.Address, InitPath: f.InitPath, CRIUPath: f.CRIUPath,
		SnapshotDir: f.SnapshotDir, SnapshotKey: f.SnapshotKey,
		CgroupParent: f.CgroupParent, ID: api.NodeID(f.NodeID), Name: f.NodeName, Version: version.Version,
		DiskLimiter: f.DiskLimiter, DiskLimitPolicy: f.DiskPolicy, Confine: f.Confine,
		MaxSandboxes: f.MaxSandboxes, IDRangeBase: uint32(f.IDRangeBase), DiskReserve: f.DiskReserve, KeepCount: f.KeepCount,
		Logger: hclog.New(&hclog.LoggerOptions{Name: "soulbox-node", Level: level, JSONFormat: f.LogJSON, Output: os.Stderr}),
	}
	for _, d := range []struct {
		name, s string
		to      *time.Duration
	}{
		{"keep_stopped", f.KeepStopped, &cfg.KeepStopped}, {"deadline_grace", f.DeadlineGrace, &cfg.DeadlineGrace},
		{"sample_interval", f.SampleEvery, &cfg.SampleInterval}, {"sample_window", f.SampleWindow, &cfg.SampleWindow},
	} {
		if d.s == "" {
			continue
		}
		v, err := time.ParseDuration(d.s)
		if err != nil {
			return node.Config{}, fmt.Errorf("%s %q is no duration", d.name, d.s)
		}
		*d.to = v
	}
	if f.Defaults != nil {
		cfg.Defaults = nodeapi.Limits(*f.Defaults)
	}
	if f.DiskDefault != 0 {
		if d := cfg.Defaults.DiskBytes; d != 0 && d != f.DiskDefault {
			return node.Config{}, fmt.Errorf("disk_default_bytes %d contradicts disk_bytes %d of defaults", f.DiskDefault, d)
		}
		cfg.Defaults.DiskBytes = f.DiskDefault
	}
	if f.Network != nil {
		n, err := f.Network.config()
		if err != nil {
			return node.Config{}, err
		}
		cfg.Network = n
	}
	if f.TLS != nil {
		cfg.TLS = node.TLS(*f.TLS)
	}
	switch {
	case f.SnapshotFrom == "" || f.SnapshotFrom == "file":
	case f.SnapshotFrom != "control":
		return node.Config{}, fmt.Errorf("snapshot_key_from %q is neither file nor control", f.SnapshotFrom)
	case f.SnapshotKey != "":
		return node.Config{}, errors.New(`snapshot_key is a file, and snapshot_key_from = "control" has none`)
	default:
		cfg.SnapshotKeyGiven = true
	}
	if f.SnapshotS3 != nil {
		if f.SnapshotDir != "" {
			return node.Config{}, errors.New("snapshot_dir and snapshot_s3 exclude each other")
		}
		c := s3.Config(*f.SnapshotS3)
		cfg.SnapshotS3 = &c
	}
	return cfg, nil
}
