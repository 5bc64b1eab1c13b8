package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk/s3"
	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// Roots of a snapshot in the store.
const (
	rootImages = "images"
	rootLayer  = "layer"
)

const maxTenant = 128

// snapshotMeta is what a node keeps in a snapshot's manifest.
type snapshotMeta struct {
	Version  int               `json:"version"`
	Snapshot nodeapi.Snapshot  `json:"snapshot"`
	Dump     checkpoint.Dump   `json:"dump"`
	QoS      string            `json:"qos"`
	Hostname string            `json:"hostname"`
	User     string            `json:"user"`
	Cwd      string            `json:"cwd"`
	Env      map[string]string `json:"env"`
	// Bare tells that nothing ran but PID 1, and all that there was is in the writable layer.
	Bare bool `json:"bare,omitempty"`
}

const snapshotMetaVersion = 1

// openSnapshots opens the snapshot store.
func (n *Node) openSnapshots() error {
	back, err := n.snapshotBackend()
	if err != nil {
		return err
	}
	key, err := n.snapshotKey()
	if err != nil {
		return err
	}
	if n.snapshots, err = chunk.Open(back, key); err != nil {
		return err
	}
	n.closers = append(n.closers, n.snapshots.Close)
	n.images = &sharedImages{
		dir: n.path("checkpoints"), spawn: n.wg.Go, life: n.ctx, log: n.log,
		fetch: func(ctx context.Context, m *chunk.Manifest, dir string) error {
			return n.snapshots.Get(ctx, m, rootImages, dir, 0)
		},
	}
	n.storeID, err = n.snapshots.Identity(n.ctx)
	return err
}

// forgetSnapshot deletes a snapshot, and what is held of it here.
func (n *Node) forgetSnapshot(ctx context.Context, tenant, id string) error {
	err := n.snapshots.Delete(ctx, tenant, id)
	n.images.forgetSnapshot(tenant, id)
	return err
}

// snapshotKey is what the control service gives where the configuration says so, else a file.
func (n *Node) snapshotKey() (chunk.Sealer, error) {
	if n.cfg.SnapshotKeyGiven {
		n.givenKey = &chunk.GivenKey{}
		return n.givenKey, nil
	}
	return chunk.OpenLocalKey(n.cfg.SnapshotKey)
}

// putSnapshotKey takes the key of the snapshot store from the control service.
func (n *Node) putSnapshotKey(w http.ResponseWriter, r *http.Request) error {
	var req nodeapi.SnapshotKey
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	if n.givenKey == nil {
		return api.Errorf(http.StatusConflict, api.CodeConflict, "this node has the key of its snapshot store in a file")
	}
	versions := make(map[int][]byte, len(req.Versions))
	for _, v := range req.Versions {
		versions[v.Version] = v.Secret
	}
	changed, err := n.givenKey.Give(versions)
	if err != nil {
		return invalid("versions: %v", err)
	}
	if changed {
		n.log.Info("the control service gave the snapshot key", "versions", len(versions))
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// snapshotBackend is a bucket where the configuration names one, else a folder.
func (n *Node) snapshotBackend() (chunk.Backend, error) {
	if n.cfg.SnapshotS3 != nil {
		return s3.Open(*n.cfg.SnapshotS3)
	}
	return chunk.OpenFolder(n.cfg.SnapshotDir)
}

func checkSnapshot(id api.SnapshotID, tenant string) error {
	if _, err := api.ParseSnapshotID(string(id)); err != nil {
		return invalid("%v", err)
	}
	if len(tenant) > maxTenant {
		return invalid("tenant: %d bytes, at most %d", len(tenant), maxTenant)
	}
	return nil
}

// Snapshot stores a running or paused sandbox under an id, and returns when that is durable. A running one stands still only while its
// memory and its files are copied.
func (n *Node) Snapshot(ctx context.Context, id api.SandboxID, req nodeapi.SnapshotRequest) (nodeapi.Snapshot, error) {
	if err := checkSnapshot(req.ID, req.Tenant); err != nil {
		return nodeapi.Snapshot{}, err
	}
	b, err := n.box(id)
	if err != nil {
		return nodeapi.Snapshot{}, err
	}
	if m, err := n.snapshots.Manifest(ctx, req.Tenant, string(req.ID)); err == nil {
		return snapshotOf(m)
	} else if !errors.Is(err, chunk.ErrNotFound) {
		return nodeapi.Snapshot{}, err
	}
	b.turn.Lock()
	defer b.turn.Unlock()
	if err := holdsNothing(b.view()); err != nil {
		return nodeapi.Snapshot{}, err
	}
	return n.snapshot(ctx, b, req)
}

// storePaused puts a checkpointed sandbox into the store, and takes note of that. What fails leaves it paused on this node. b.turn is held.
func (n *Node) storePaused(ctx context.Context, b *box, req nodeapi.PauseRequest) error {
	if _, err := n.snapshot(ctx, b, nodeapi.SnapshotRequest{ID: req.Store, Tenant: req.Tenant, Copy: true}); err != nil && !errors.Is(err, chunk.ErrExists) {
		return fmt.Errorf("store checkpoint of %s: %w", b.id, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p, rec := *b.rec.Sandbox.Pause, *b.rec.Pause
	p.Snapshot, rec.Tenant = req.Store, req.Tenant
	b.rec.Sandbox.Pause, b.rec.Pause = &p, &rec
	failpoint.At("store.unrecorded")
	err := n.records.put(&b.rec)
	n.tell(b, nodeapi.EventPaused)
	failpoint.At("store.recorded")
	return err
}

// forgetStored removes the stored copy of a sandbox that runs again, and so is another one by now.
func (n *Node) forgetStored(tenant string, id api.SnapshotID) {
	if id == "" {
		return
	}
	n.wg.Go(func() {
		if err := n.forgetSnapshot(n.ctx, tenant, string(id)); err != nil && n.ctx.Err() == nil {
			n.log.Warn("stored copy of a sandbox that runs again stays", "snapshot", id, "error", err)
		}
	})
}

// snapshot stores a sandbox. b.turn is held.
func (n *Node) snapshot(ctx context.Context, b *box, req nodeapi.SnapshotRequest) (nodeapi.Snapshot, error) {
	id := b.id
	home, err := os.MkdirTemp(n.path("checkpoints"), ".snapshot-")
	if err != nil {
		return nodeapi.Snapshot{}, err
	}
	defer os.RemoveAll(home) //nolint:errcheck // swept by the next start
	images, layer := filepath.Join(home, "c", "images"), filepath.Join(home, rootLayer)
	var dump checkpoint.Dump
	var frozen time.Duration
	switch sb := b.view(); {
	case sb.State == nodeapi.StatePaused && sb.Pause.Depth == nodeapi.DepthCheckpointed:
		b.mu.Lock()
		dump = *b.rec.Pause.Dump
		b.mu.Unlock()
		state := filepath.Join(n.path("sandboxes"), string(id))
		images, layer = filepath.Join(n.checkpointDir(id), checkpointDone, "images"), filepath.Join(state, "upper")
		err = sandbox.ReturnNames(state, images)
	case sb.State == nodeapi.StateRunning || sb.State == nodeapi.StatePaused:
		if err := n.awaitPages(ctx, b); err != nil {
			return nodeapi.Snapshot{}, err
		}
		dump, frozen, err = n.copyFrozen(ctx, b, home, sb.State == nodeapi.StateRunning)
	default:
		err = notRunning(sb)
	}
	if err != nil {
		return nodeapi.Snapshot{}, err
	}
	failpoint.At("snapshot.thawed")
	meta := n.describe(b, req, dump, frozen)
	if meta.Bare, err = checkpoint.Bare(images); err != nil {
		return nodeapi.Snapshot{}, err
	}
	m, err := n.snapshots.Put(ctx, req.Tenant, string(req.ID), meta,
		chunk.Root{Name: rootImages, Dir: images}, chunk.Root{Name: rootLayer, Dir: layer, Base: b.rec.IDBase})
	if err != nil {
		return nodeapi.Snapshot{}, err
	}
	failpoint.At("snapshot.stored")
	b.mu.Lock()
	n.tell(b, nodeapi.EventSnapshotted)
	b.mu.Unlock()
	return snapshotOf(m)
}

// copyAhead copies memory of a sandbox that runs, so that it stands still for a shorter time. Nil: it does not. b.turn is held.
func (n *Node) copyAhead(ctx context.Context, b *box, inst pausable, dir sandbox.CheckpointDir) *checkpoint.Ahead {
	ahead, err := inst.CopyAhead(ctx, n.engine, dir, 0)
	if err != nil && ctx.Err() == nil {
		n.log.Warn("no memory is copied before the snapshot", "sandbox", b.id, "error", err)
	}
	if ahead != nil {
		n.log.Debug("memory is copied before the snapshot", "sandbox", b.id, "bytes", ahead.Bytes, "rounds", ahead.Rounds, "frozen", ahead.Frozen)
	}
	return ahead
}

// copyFrozen copies what a sandbox is while it stands still. b.turn is held.
func (n *Node) copyFrozen(ctx context.Context, b *box, home string, runs bool) (d checkpoint.Dump, frozen time.Duration, err error) {
	if err := n.checkpointable(b); err != nil {
		return d, 0, err
	}
	inst, err := b.pausable()
	if err != nil {
		return d, 0, err
	}
	dir := sandbox.CheckpointDir(filepath.Join(home, "c"))
	var ahead *checkpoint.Ahead
	var room *checkpoint.Room
	if runs {
		if ahead = n.copyAhead(ctx, b, inst, dir); ahead == nil {
			var rerr error
			if room, rerr = inst.MakeRoom(n.engine); rerr != nil {
				n.log.Warn("sandbox stands still for longer", "sandbox", b.id, "error", rerr)
			}
		}
		defer func() { // which comes after the thaw
			switch {
			case err != nil:
				err = errors.Join(err, ahead.Remove(), d.Late.Drop())
			case ahead != nil:
				d.Stats.Bytes, err = ahead.Merge(dir.Images())
			case d.Late != nil:
				d.Stats.Bytes, err = d.Late.Finish()
			}
			d.Late = nil
			err = errors.Join(err, room.Free())
		}()
	}
	criu, err := n.engine.StartDump(ctx, n.noteCRIU(home))
	if err != nil {
		return d, 0, err
	}
	defer func() {
		if criu != nil {
			criu.End()
		}
	}()
	if runs {
		// The record goes on to say that it runs: a daemon that comes after this one thaws it.
		pctx, cancel := context.WithTimeout(ctx, parkTimeout)
		err := inst.Park(pctx)
		cancel()
		fctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), freezeTimeout)
		defer cancel()
		begin := time.Now()
		if err == nil {
			err = inst.Freeze(fctx)
		}
		defer func() {
			tctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), freezeTimeout)
			defer cancel()
			err = errors.Join(err, inst.Thaw(tctx))
			frozen = time.Since(begin)
			n.logAgain(b, inst.Guest())
		}()
		if err != nil {
			return d, 0, fmt.Errorf("freeze sandbox %s: %w", b.id, err)
		}
		failpoint.At("snapshot.frozen")
	}
	ctx, cancel := context.WithTimeout(ctx, dumpTimeout)
	defer cancel()
	started := criu
	criu = nil
	d, err = n.copyMemoryAndFiles(ctx, b, inst, home, started, room, ahead)
	if errors.Is(err, checkpoint.ErrAhead) {
		n.log.Warn("sandbox stands still for longer", "sandbox", b.id, "error", err)
		if err = errors.Join(ahead.Remove(), os.RemoveAll(dir.Images()), os.RemoveAll(filepath.Join(home, rootLayer)), inst.Freeze(ctx)); err == nil {
			ahead = nil
			if started, err = n.engine.StartDump(ctx, n.noteCRIU(home)); err == nil {
				d, err = n.copyMemoryAndFiles(ctx, b, inst, home, started, room, nil)
			}
		}
	}
	return d, 0, err
}

// copyMemoryAndFiles copies the two side by side, of a sandbox that is frozen; with room, part of it when that goes on: checkpoint.Dump.Late.
func (n *Node) copyMemoryAndFiles(ctx context.Context, b *box, inst pausable, home string, criu *checkpoint.Dumper, room *checkpoint.Room, ahead *checkpoint.Ahead) (checkpoint.Dump, error) {
	files, cancel := context.WithCancel(ctx)
	defer cancel()
	upper, layer := filepath.Join(n.path("sandboxes"), string(b.id), "upper"), filepath.Join(home, rootLayer)
	copied := make(chan error, 1)
	go func() { copied <- copyFiles(files, upper, layer) }()
	again := func() error { // from the beginning: which of it was copied before is not known
		cancel()
		<-copied
		err := os.RemoveAll(layer)
		if err == nil {
			err = copyFiles(ctx, upper, layer)
		}
		copied <- err
		return err
	}
	d, err := inst.Checkpoint(ctx, criu, sandbox.CheckpointDir(filepath.Join(home, "c")), sandbox.CheckpointOptions{Ahead: ahead, Room: room, Copy: again})
	if err == nil && d.Again != nil {
		n.log.Warn("sandbox stands still for longer", "sandbox", b.id, "error", d.Again)
	}
	if err != nil {
		cancel()
		<-copied
		return d, err
	}
	failpoint.At("snapshot.dumped")
	if err := <-copied; err != nil {
		return d, fmt.Errorf("copy files of sandbox %s: %w", b.id, err)
	}
	failpoint.At("snapshot.copied")
	return d, nil
}

// copyFiles copies a writable layer of which nothing changes. cp keeps owners, attributes, hard links, holes and whiteouts, and shares blocks where the file system can.
func copyFiles(ctx context.Context, upper, to string) error {
	if out, err := exec.CommandContext(ctx, "cp", "-a", "--reflink=auto", upper, to).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %.300s", err, out)
	}
	return nil
}

func (n *Node) describe(b *box, req nodeapi.SnapshotRequest, d checkpoint.Dump, frozen time.Duration) snapshotMeta {
	b.mu.Lock()
	defer b.mu.Unlock()
	sb := b.rec.Sandbox
	return snapshotMeta{
		Version: snapshotMetaVersion, Dump: d, QoS: sb.QoS, Hostname: sb.Hostname, User: sb.User, Cwd: b.rec.Cwd, Env: b.rec.Env,
		Snapshot: nodeapi.Snapshot{
			ID: req.ID, Tenant: req.Tenant, Parent: req.Parent, Sandbox: b.id, Node: n.id, CreatedAt: time.Now().UTC().Round(0), Metadata: req.Metadata, Copy: req.Copy,
			Template: sb.Template, Digest: sb.Digest, Limits: sb.Limits, Profile: sb.Profile, Frozen: frozen,
			Needs: nodeapi.Needs{Arch: goruntime.GOARCH, Kernel: kernelRelease(), CRIU: d.CRIU, CPU: cpuFeatures()},
		},
	}
}

// snapshotOf reads a manifest's meta.
func snapshotOf(m *chunk.Manifest) (nodeapi.Snapshot, error) {
	meta, err := metaOf(m)
	return meta.Snapshot, err
}

func metaOf(m *chunk.Manifest) (snapshotMeta, error) {
	var meta snapshotMeta
	if err := json.Unmarshal(m.Meta, &meta); err != nil {
		return meta, fmt.Errorf("snapshot %s: %w: %w", m.ID, chunk.ErrBad, err)
	}
	if meta.Version < 1 || meta.Version > snapshotMetaVersion {
		return meta, api.Errorf(http.StatusConflict, nodeapi.CodeIncompatible, "snapshot %s: version %d, this node reads up to %d", m.ID, meta.Version, snapshotMetaVersion)
	}
	meta.Snapshot.Bytes, meta.Snapshot.StoredBytes = m.Bytes, m.Stored
	return meta, nil
}

// fits says why this node cannot restore a snapshot, if so.
func (n *Node) fits(s nodeapi.Snapshot) error {
	no := func(format string, args ...any) error {
		return api.Errorf(http.StatusConflict, nodeapi.CodeIncompatible, "snapshot %s cannot be restored here: "+format, append([]any{s.ID}, args...)...)
	}
	if n.engine == nil {
		return api.Errorf(http.StatusNotImplemented, api.CodeUnsupported, "checkpoints: %v", n.noEngine)
	}
	if s.Needs.Arch != goruntime.GOARCH {
		return no("it is of %s, this machine is %s", s.Needs.Arch, goruntime.GOARCH)
	}
	if older(kernelRelease(), s.Needs.Kernel) {
		return no("it was made on Linux %s, this is %s", s.Needs.Kernel, kernelRelease())
	}
	if older(n.engine.Version(), s.Needs.CRIU) {
		return no("it was made by CRIU %s, this is %s", s.Needs.CRIU, n.engine.Version())
	}
	have := cpuFeatures()
	for _, f := range s.Needs.CPU {
		if !slices.Contains(have, f) {
			return no("the processor lacks %s", f)
		}
	}
	if _, err := n.templates.Lookup(s.Digest); err != nil {
		return no("this node lacks the template %s", s.Digest)
	}
	return nil
}

// older compares the leading numbers of two versions.
func older(a, b string) bool {
	num := func(s string) (out [3]int) {
		for i, f := range strings.SplitN(s, ".", 3) {
			_, _ = fmt.Sscanf(f, "%d", &out[i]) // what is no number is 0
		}
		return out
	}
	x, y := num(a), num(b)
	return slices.Compare(x[:], y[:]) < 0
}

// cpuFeatures are those of the processor that programs choose their code by. They stay as they are.
var cpuFeatures = sync.OnceValue(func() []string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "flags" {
			var out []string
			for _, f := range strings.Fields(v) {
				for _, p := range []string{"sse", "ssse", "avx", "bmi", "fma", "aes", "sha_", "popcnt", "movbe", "f16c", "lzcnt", "abm", "xsave", "erms", "fsrm", "adx", "vaes", "gfni"} {
					if strings.HasPrefix(f, p) {
						out = append(out, f)
						break
					}
				}
			}
			return out
		}
	}
	return nil
})
