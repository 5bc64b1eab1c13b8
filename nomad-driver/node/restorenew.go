package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// origin is the snapshot that a sandbox is made from.
type origin struct {
	manifest *chunk.Manifest
	meta     snapshotMeta
}

// fromSnapshot completes a create request that asks for a restore with what its snapshot says.
func (n *Node) fromSnapshot(ctx context.Context, req *nodeapi.CreateRequest) (*origin, error) {
	r := req.Restore
	if err := checkSnapshot(r.Snapshot, r.Tenant); err != nil {
		return nil, err
	}
	if req.Main != nil || req.Logs != nil {
		return nil, invalid("restore: main and logs are the snapshot's")
	}
	m, err := n.snapshots.Manifest(ctx, r.Tenant, string(r.Snapshot))
	if err != nil {
		return nil, err
	}
	meta, err := metaOf(m)
	if err != nil {
		return nil, err
	}
	s := meta.Snapshot
	if req.Template != "" && req.Template != s.Template && req.Template != s.Digest {
		return nil, invalid("template: the snapshot's is %s", s.Digest)
	}
	if err := n.fits(s); err != nil {
		return nil, err
	}
	req.Template = s.Digest
	req.Profile, req.User, req.Cwd = s.Profile, meta.User, meta.Cwd
	set(&req.QoS, meta.QoS)
	if r.Same {
		set(&req.Hostname, meta.Hostname)
	}
	limits := s.Limits
	overrideLimits(&limits, req.Limits)
	req.Limits = limits
	env := map[string]string{}
	for k, v := range meta.Env {
		env[k] = v
	}
	for k, v := range req.Env {
		env[k] = v
	}
	req.Env = env
	return &origin{m, meta}, nil
}

// ofSnapshot makes the sandbox of a claimed box from a snapshot. One that is restored is frozen. On error nothing is left.
func (n *Node) ofSnapshot(ctx context.Context, b *box, req nodeapi.CreateRequest, from *origin) (_ instance, restored bool, err error) {
	state := filepath.Join(n.path("sandboxes"), string(b.id))
	if err := os.Mkdir(state, 0o700); err != nil {
		return nil, false, err
	}
	undo := func() error { return os.RemoveAll(state) }
	defer func() {
		if err != nil {
			err = errors.Join(err, undo())
		}
	}()
	if l := (disk.Limits{Bytes: req.Limits.DiskBytes, Inodes: req.Limits.DiskInodes}); l != (disk.Limits{}) && n.disk.limiter != nil {
		limiter := n.disk.limiter
		undo = func() error { return errors.Join(limiter.Release(state), os.RemoveAll(state)) }
		if err := limiter.Prepare(state, l); err != nil {
			return nil, false, err
		}
	}
	fetch := func() error { return n.fetchLayer(ctx, b, from.manifest, filepath.Join(state, "upper"), req) }
	if from.meta.Bare && !req.Restore.Same {
		if err := fetch(); err != nil {
			return nil, false, err
		}
		cfg := n.sandboxConfig(b, req)
		cfg.Kept = true
		inst, err := n.create(ctx, b, cfg, req.Network)
		return inst, false, err
	}
	inst, err := n.restoreNew(ctx, b, req, from, fetch)
	return inst, true, err
}

// fetchLayer brings the writable layer of a snapshot. A copy gets an identity of its own.
func (n *Node) fetchLayer(ctx context.Context, b *box, m *chunk.Manifest, upper string, req nodeapi.CreateRequest) error {
	begin := time.Now()
	if err := n.snapshots.Get(ctx, m, rootLayer, upper, b.rec.IDBase); err != nil {
		return err
	}
	if !req.Restore.Same {
		if err := ownIdentity(upper, b.rec.IDBase, req.Hostname); err != nil {
			return err
		}
	}
	b.fetched = append(b.fetched, guest.Step{Name: "files", Nanos: time.Since(begin).Nanoseconds()})
	failpoint.At("fork.files")
	return nil
}

// restoreNew restores the processes of a snapshot, frozen, to a writable layer that fetch brings. On error nothing is left but that.
func (n *Node) restoreNew(ctx context.Context, b *box, req nodeapi.CreateRequest, from *origin, fetch func() error) (_ instance, err error) {
	m, meta := from.manifest, from.meta
	rt, ok := n.runtime.(restorer)
	if !ok {
		return nil, api.Errorf(http.StatusNotImplemented, api.CodeUnsupported, "checkpoints: %v", n.noEngine)
	}
	home := n.checkpointDir(b.id)
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(home))
		}
	}()
	if err := os.MkdirAll(filepath.Join(home, "c", "work"), 0o700); err != nil {
		return nil, err
	}
	first := make(chan *checkpoint.Touched, 1)
	if !meta.Snapshot.Copy {
		b.snapshot = m.Head()
		n.wg.Go(func() { first <- n.touchedOf(ctx, m) }) // while the rest is fetched
	} else {
		first <- nil // it is restored once
	}
	if err := fetch(); err != nil {
		return nil, err
	}
	begin := time.Now()
	if err := n.images.copyTo(ctx, m, filepath.Join(home, "c", "images")); err != nil {
		return nil, err
	}
	b.fetched = append(b.fetched, guest.Step{Name: "images", Nanos: time.Since(begin).Nanoseconds()})
	failpoint.At("fork.fetched")
	return n.restored(ctx, rt, b, home, <-first, sandbox.RestoreConfig{
		Config: n.sandboxConfig(b, req), Dir: sandbox.CheckpointDir(filepath.Join(home, "c")), Dump: meta.Dump, Started: n.noteCRIU(home), Held: n.noteHeldCRIU(home),
		Network: n.adoptSlot(ctx, b, req.Network),
	})
}

// instantiate makes the sandbox of a claimed box. One that is restored is frozen.
func (n *Node) instantiate(ctx context.Context, b *box, req nodeapi.CreateRequest, from *origin) (_ instance, restored bool, err error) {
	if from != nil {
		return n.ofSnapshot(ctx, b, req, from)
	}
	inst, err := n.create(ctx, b, n.sandboxConfig(b, req), req.Network)
	return inst, false, err
}

// create makes the sandbox of a box, with its network. Where the node makes checkpoints the network is wired to the namespace that
// the sandbox is born with, since CRIU holds no other; else it is one that waits.
func (n *Node) create(ctx context.Context, b *box, cfg sandbox.Config, want *nodeapi.Network) (instance, error) {
	if n.network != nil {
		n.outfit(&cfg.Boot, want)
	}
	if n.engine != nil {
		cfg.Wire = n.adoptSlot(ctx, b, want)
		return n.runtime.Create(ctx, cfg)
	}
	if err := n.takeSlot(ctx, b, want); err != nil {
		return nil, err
	}
	if b.slot != nil {
		cfg.Network = b.slot.Namespace()
	}
	return n.runtime.Create(ctx, cfg)
}

// wakeNew lets a restored copy run, with its own environment.
func (n *Node) wakeNew(ctx context.Context, b *box, inst instance, env map[string]string) {
	p, ok := inst.(pausable)
	if !ok {
		return
	}
	n.wake(ctx, b, p, environ(env))
}

func environ(env map[string]string) (list []string) {
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return list
}

// ownIdentity gives a copy a machine id and a host name of its own. No link in the layer leads out of it.
func ownIdentity(upper string, base uint32, hostname string) error {
	root, err := os.OpenRoot(upper)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Lstat("etc"); errors.Is(err, os.ErrNotExist) {
		if err := errors.Join(root.Mkdir("etc", 0o755), root.Lchown("etc", int(base), int(base))); err != nil {
			return err
		}
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	for name, text := range map[string]string{"etc/machine-id": hex.EncodeToString(id[:]) + "\n", "etc/hostname": hostname + "\n"} {
		// What is there may be a whiteout, a link, or another name of a file that shall not change.
		if err := root.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("identity: %w", err)
		}
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
		if err != nil {
			return fmt.Errorf("identity: %w", err)
		}
		_, err = f.WriteString(text)
		if err = errors.Join(err, f.Chmod(0o644), f.Chown(int(base), int(base)), f.Close()); err != nil {
			return fmt.Errorf("identity: %w", err)
		}
	}
	return nil
}

func (n *Node) postSnapshot(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	var req nodeapi.SnapshotRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	s, err := n.Snapshot(r.Context(), id, req)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, s)
	return nil
}

func (n *Node) getSnapshots(w http.ResponseWriter, r *http.Request) error {
	list, err := n.snapshots.List(r.Context(), r.URL.Query().Get("tenant"))
	if err != nil {
		return err
	}
	out := []nodeapi.Snapshot{}
	for _, m := range list {
		s, err := snapshotOf(m)
		if err != nil {
			return err
		}
		out = append(out, s)
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// snapshotRequest reads which snapshot a request is about.
func snapshotRequest(r *http.Request) (tenant string, id api.SnapshotID, err error) {
	tenant, id = r.URL.Query().Get("tenant"), api.SnapshotID(r.PathValue("id"))
	return tenant, id, checkSnapshot(id, tenant)
}

func (n *Node) getSnapshot(w http.ResponseWriter, r *http.Request) error {
	tenant, id, err := snapshotRequest(r)
	if err != nil {
		return err
	}
	m, err := n.snapshots.Manifest(r.Context(), tenant, string(id))
	if err != nil {
		return err
	}
	s, err := snapshotOf(m)
	if err != nil {
		return err
	}
	if err := n.fits(s); err != nil {
		s.Unfit = err.Error()
	}
	writeJSON(w, http.StatusOK, s)
	return nil
}

func (n *Node) deleteSnapshot(w http.ResponseWriter, r *http.Request) error {
	tenant, id, err := snapshotRequest(r)
	if err != nil {
		return err
	}
	if err := n.forgetSnapshot(r.Context(), tenant, string(id)); err != nil {
		return err
	}
	n.wg.Go(func() {
		if _, err := n.snapshots.Sweep(n.ctx, tenant); err != nil && n.ctx.Err() == nil {
			n.log.Error("snapshot store cannot be swept", "error", err)
		}
	})
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// storeError maps the store's errors.
func storeError(err error) *api.Error {
	switch {
	case errors.Is(err, chunk.ErrNotFound):
		return api.Errorf(http.StatusNotFound, api.CodeNotFound, "%v", err)
	case errors.Is(err, chunk.ErrBad):
		return api.Errorf(http.StatusUnprocessableEntity, nodeapi.CodeBadSnapshot, "%v", err)
	case errors.Is(err, chunk.ErrUnavailable):
		return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "%v", err)
	case errors.Is(err, chunk.ErrExists):
		return api.Errorf(http.StatusConflict, api.CodeConflict, "%v", err)
	}
	return nil
}
