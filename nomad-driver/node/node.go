// Package node is the daemon of one machine: its sandboxes, their records, deadlines and events, the API over a unix
// socket and mutual TLS, recovery after a crash, and the sweeping of what was left behind.
//
// It owns Config.StateDir and Config.RunDir and everything in them. How one sandbox is made is package sandbox; what runs
// inside is package guest; who shall have a sandbox, and why, is the control service's. See DESIGN.md for what is stored
// and in which order things happen.
package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-metrics"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk"
	prommetrics "github.com/soulbox-dev/soulbox/nomad-driver/metrics"
	"github.com/soulbox-dev/soulbox/nomad-driver/network"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/proxy"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/resolver"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/logbook"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/osthread"
	"github.com/soulbox-dev/soulbox/nomad-driver/probe"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/store"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// Node is the daemon. Make it with New and serve with Run.
type Node struct {
	cfg       Config
	log       hclog.Logger
	id        api.NodeID
	bootID    string
	startedAt time.Time
	defaults  nodeapi.Limits
	bounds    limitBounds
	disk      diskLimits

	runtime   runtime
	templates templates
	probes    *probe.Set
	records   *records
	sync      *syncer
	ids       *idRanges
	hub       *hub
	deadlines *deadlines
	metrics   *metrics.Metrics
	sink      *prommetrics.Sink
	sampler   *prommetrics.Sampler
	disks     diskLooks
	books     *logbook.Books
	network   *network.Pool    // nil where sandboxes have their loopback only
	resolver  *resolver.Server // with network, as proxy
	proxy     *proxy.Server
	authority *proxy.Authority
	noNetwork string         // why
	closers   []func() error // in the order of opening
	clock     *clock
	cgroups   *cgroup.Tree       // nil: a test's runtime has none
	engine    *checkpoint.Engine // nil: no checkpoints; noEngine says why
	noEngine  error
	// initProgram is where the init binary is, which page servers run from too.
	initProgram string
	snapshots   *chunk.Store
	images      *sharedImages   // of snapshots
	storeID     string          // of snapshots
	givenKey    *chunk.GivenKey // of snapshots; nil: it is in a file

	noting sync.Mutex // held over a change of a snapshot's note

	// ctx ends with Run. wg is everything that runs until then.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	removed atomic.Uint64 // checkpoints of the past, to name them by
	// sessions are the connections that left the HTTP server.
	sessions sync.WaitGroup

	mu    sync.RWMutex
	boxes map[api.SandboxID]*box
	live  int // boxes that are not stopped

	sweepMu  sync.Mutex
	unswept  atomic.Bool // something of no sandbox may be left on the machine
	orphaned []uint32    // id ranges to give back after the next good sweep

	started atomic.Bool
}

// New opens the node's state, finds the sandboxes of an earlier daemon again and removes what belongs to none. It fails
// where another daemon has the state, or the machine lacks what every sandbox needs to be made at all. Call Run, or Close.
func New(cfg Config) (*Node, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	n := &Node{cfg: cfg, log: cfg.Logger, startedAt: time.Now().UTC(), boxes: map[api.SandboxID]*box{}}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	err := n.open()
	if err == nil {
		err = n.recover()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("node: %w", err), n.Close())
	}
	return n, nil
}

// open prepares everything that recovery needs.
func (n *Node) open() error {
	if err := n.makeDirs(); err != nil {
		return err
	}
	if err := n.lock(); err != nil {
		return err
	}
	var err error
	if n.books, err = logbook.Open(n.path("logs"), 0); err != nil {
		return err
	}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("boot id: %w", err)
	}
	n.bootID = strings.TrimSpace(string(bootID))
	if n.id, err = n.identity(); err != nil {
		return err
	}
	n.clock = newClock()
	n.bounds = machineBounds()
	n.defaults = defaultLimits(n.bounds)
	overrideLimits(&n.defaults, n.cfg.Defaults)
	if n.disk, err = chooseDisk(n.path("sandboxes"), &n.cfg); err != nil {
		return err
	}
	probed := nodeapi.Limits{}
	if err := n.checkLimits(&probed, sandbox.Burstable); err != nil {
		return fmt.Errorf("defaults: %w", err)
	}
	spans, err := subordinateIDs("/etc/subuid", "/etc/subgid")
	if err != nil {
		return err
	}
	n.ids = newIDRanges(n.cfg.IDRangeBase, spans)
	n.sync = newSyncer(n.log)
	n.records = &records{dir: n.path("records"), sync: n.sync}
	var epoch [8]byte
	_, _ = rand.Read(epoch[:]) // never fails
	n.hub = newHub(hex.EncodeToString(epoch[:]), n.List)
	n.deadlines = newDeadlines(n.expire)
	if n.sink, n.metrics, err = newMetrics(); err != nil {
		return err
	}
	n.sampler, err = prommetrics.New(prommetrics.Config{Interval: n.cfg.SampleInterval, Window: n.cfg.SampleWindow, Targets: n.targets})
	if err != nil {
		return err
	}
	return n.openParts()
}

// openParts opens the runtime and the template store, where the configuration does not bring its own.
func (n *Node) openParts() error {
	n.runtime, n.templates = n.cfg.runtime, n.cfg.templates
	n.probes = probe.New(probe.Options{Dir: n.cfg.StateDir})
	if n.templates == nil {
		s, err := store.Open(store.Config{Dir: n.path("templates")})
		if err != nil {
			return err
		}
		n.templates = templateStore{s}
	}
	n.closers = append(n.closers, n.templates.Close)
	if err := n.openSnapshots(); err != nil {
		return err
	}
	if n.runtime != nil {
		return nil
	}
	cgroups, err := cgroup.Detect("/sys/fs/cgroup", n.cfg.CgroupParent)
	if err != nil {
		return err
	}
	path, err := findInit(n.cfg.InitPath)
	if err != nil {
		return err
	}
	bin, err := sandbox.OpenInit(path)
	if err != nil {
		return err
	}
	n.cgroups, n.initProgram = cgroups, bin.Program()
	n.closers = append(n.closers, bin.Close, cgroups.Close)
	if err := n.openNetwork(); err != nil {
		return err
	}
	n.openEngine()
	n.runtime = &sandboxes{
		engine: n.engine, nodeOwned: n.engine != nil && !sandbox.CanDump(),
		stateDir: n.path("sandboxes"), runDir: filepath.Join(n.cfg.RunDir, "sandboxes"), cgroups: cgroups, init: bin, disk: n.disk.limiter,
	}
	return nil
}

func (n *Node) path(name string) string { return filepath.Join(n.cfg.StateDir, name) }

func (n *Node) makeDirs() error {
	for _, d := range []string{
		n.cfg.StateDir, n.path("records"), n.path("sandboxes"), n.path("checkpoints"),
		n.cfg.RunDir, filepath.Join(n.cfg.RunDir, "sandboxes"), n.offsetsDir(),
	} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	for _, d := range []string{n.path("sandboxes"), n.path("checkpoints"), filepath.Join(n.cfg.RunDir, "sandboxes")} {
		spread(d)
	}
	return nil
}

// lock makes sure that one daemon at a time has the state.
func (n *Node) lock() error {
	f, err := os.OpenFile(n.path("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	n.closers = append(n.closers, f.Close)
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%s: another daemon has this state directory: %w", n.cfg.StateDir, err)
	}
	return nil
}

// identity is node.json: what the node keeps of itself.
type identity struct {
	Version int        `json:"version"`
	ID      api.NodeID `json:"id"`
}

func (n *Node) identity() (api.NodeID, error) {
	if n.cfg.ID != "" {
		return n.cfg.ID, nil
	}
	path := n.path("node.json")
	b, err := os.ReadFile(path)
	if err == nil {
		var i identity
		if err := json.Unmarshal(b, &i); err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		if i.Version != 1 || i.ID == "" {
			return "", fmt.Errorf("%s: version %d, this daemon reads 1", path, i.Version)
		}
		return i.ID, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	i := identity{Version: 1, ID: newNodeID()}
	if b, err = json.Marshal(i); err != nil {
		return "", err
	}
	return i.ID, writeFileSync(path, append(b, '\n'), 0o600)
}

// newNodeID returns a random UUID.
func newNodeID() api.NodeID {
	var u [16]byte
	_, _ = rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return api.NodeID(fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]))
}

// findInit returns the path of soulbox-init.
func findInit(path string) (string, error) {
	if path != "" {
		return path, nil
	}
	const name = "soulbox-init"
	var tried []string
	if exe, err := os.Executable(); err == nil {
		tried = append(tried, filepath.Join(filepath.Dir(exe), name))
	}
	tried = append(tried, filepath.Join("/usr/libexec/soulbox", name))
	for _, p := range tried {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is at none of %s: name it with init_path", name, strings.Join(tried, ", "))
}

func overrideLimits(l *nodeapi.Limits, by nodeapi.Limits) {
	to, from := limitFields(l), limitFields(&by)
	for i := range to {
		if *from[i] != 0 {
			*to[i] = *from[i]
		}
	}
}

// Run serves until ctx ends or a listener breaks. Sandboxes go on without it.
func (n *Node) Run(ctx context.Context) error {
	if n.started.Swap(true) {
		return errors.New("node: run twice")
	}
	stop := context.AfterFunc(ctx, n.cancel)
	defer stop()
	if err := osthread.ShortTurns(); err != nil { // PID 1 of each sandbox has them from here, too
		n.log.Warn("answers take longer beside a load", "error", err)
	}
	n.wg.Go(func() { n.sync.run(n.ctx) })
	n.wg.Go(func() { n.deadlines.run(n.ctx) })
	n.wg.Go(func() { n.keepHouse(n.ctx) })
	n.wg.Go(func() { n.watchQuotas(n.ctx) })
	n.wg.Go(func() { n.sampler.Run(n.ctx) })
	n.wg.Go(func() { n.watchStrain(n.ctx) })
	err := n.serve(n.ctx)
	if cerr := n.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	return nil
}

// Close ends a node that Run has not been called on. Sandboxes go on without it.
func (n *Node) Close() error {
	n.cancel()
	n.wg.Wait()
	if n.sync != nil {
		n.sync.flush()
	}
	var errs []error
	for _, b := range n.boxes {
		select {
		case <-b.released:
		default:
			if b.inst != nil {
				errs = append(errs, b.inst.Detach())
			}
		}
	}
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i]())
	}
	n.closers = nil
	if n.metrics != nil {
		n.metrics.Shutdown()
	}
	return errors.Join(errs...)
}

// admits says whether the node may make one more sandbox, as far as the machine goes.
func (n *Node) admits() error {
	if err := n.ready(); err != nil {
		return err
	}
	if _, free, err := diskSpace(n.cfg.StateDir); err == nil && free < n.cfg.DiskReserve {
		return n.lowDisk(free)
	}
	return nil
}

func (n *Node) lowDisk(free int64) error {
	return api.Errorf(http.StatusInsufficientStorage, api.CodeNoSpace, "%d bytes are free on the node's disk, less than its reserve of %d", free, n.cfg.DiskReserve)
}

// ready says whether the daemon and its kernel can make a sandbox.
func (n *Node) ready() error {
	if n.ctx.Err() != nil {
		return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "the node is shutting down")
	}
	if n.unswept.Load() {
		return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "the node is still removing what a crash left behind")
	}
	if p := n.probes.Missing(); p != nil {
		return api.Errorf(http.StatusNotImplemented, api.CodeUnsupported, "this machine lacks %s: %s", p.Name, p.Reason)
	}
	return nil
}

func diskSpace(path string) (size, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("statfs %s: %w", path, err)
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}

// Info is what the node says of itself.
func (n *Node) Info() nodeapi.Node {
	info := nodeapi.Node{
		ID: n.id, Name: n.cfg.Name, Version: n.cfg.Version, APIVersion: nodeapi.Version, BootID: n.bootID, Epoch: n.hub.epoch,
		Kernel: kernelRelease(), Healthy: true, CPUs: int(n.bounds.cpus / 1000), MemoryBytes: n.bounds.memory,
		Running: n.running(), MaxSandbox: n.cfg.MaxSandboxes, StartedAt: n.startedAt, Templates: n.templates.List(),
		OwnTemplates: n.templates.Owned(),
		PID:          os.Getpid(), Address: n.cfg.Address,
	}
	if n.engine != nil {
		info.SnapshotStore, info.TakesSnapshotKey = n.storeID, n.givenKey != nil
	}
	for _, p := range n.probes.All() {
		info.Probes = append(info.Probes, nodeapi.Probe(p))
	}
	info.Probes = append(info.Probes, n.networkProbe())
	var err error
	if info.DiskBytes, info.DiskFree, err = diskSpace(n.cfg.StateDir); err == nil {
		err = n.admits()
	}
	if err != nil {
		info.Healthy, info.Reason = false, err.Error()
	}
	info.Checks = n.checks()
	return info
}

// health is the part of Info that changes by itself: what the stream of events tells again and again.
func (n *Node) health() nodeapi.Health {
	h := nodeapi.Health{Healthy: true, Running: n.running(), Checks: n.checks()}
	var err error
	if _, h.DiskFree, err = diskSpace(n.cfg.StateDir); err == nil {
		err = n.admits()
	}
	if err != nil {
		h.Healthy, h.Reason = false, err.Error()
	}
	return h
}

// running returns how many sandboxes start, run or stop.
func (n *Node) running() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.live
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
