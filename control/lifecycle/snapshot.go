package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// defaultTag is the tag of a snapshot's name that has none.
const defaultTag = "default"

// SnapshotParams ask for a snapshot of a sandbox.
type SnapshotParams struct {
	Caller      auth.Identity
	Sandbox     api.SandboxID
	Name        string // "name" or "name:tag"; empty: none
	Description string
	Labels      map[string]string

	passing bool // a fork's
}

// TakeSnapshot implements API. The record comes first, so that no snapshot is on a node that nobody knows of.
func (s *Service) TakeSnapshot(ctx context.Context, p SnapshotParams) (state.Snapshot, error) {
	name, tag, err := splitName(p.Name)
	if err != nil {
		return state.Snapshot{}, err
	}
	sb, err := s.live(p.Caller.Tenant, p.Sandbox)
	if err != nil {
		return state.Snapshot{}, err
	}
	if sb.State != state.Running && sb.State != state.Paused {
		return state.Snapshot{}, notRunning(sb)
	}
	node, err := s.cfg.Fleet.Client(sb.Node)
	if err != nil {
		return state.Snapshot{}, err
	}
	sn := state.Snapshot{
		ID: api.NewSnapshotID(), Tenant: sb.Tenant, Name: name, Tag: tag, Description: p.Description, Labels: p.Labels,
		Sandbox: sb.ID, Parent: sb.Origin, Node: sb.Node, Store: s.storeOf(sb.Node), Memory: true, State: state.SnapshotMaking,
		Template: sb.Template, Digest: sb.Digest, CPUMillis: sb.CPUMillis, MemoryMB: sb.MemoryMB, DiskMB: sb.DiskMB, EnvVars: sb.EnvVars,
		TemplateNetwork: sb.TemplateNetwork,
		CreatedAt:       s.cfg.Now().UTC(), CreatedBy: p.Caller.KeyID, Creator: s.cfg.Run, Passing: p.passing,
	}
	if _, err := s.cfg.State.Apply(ctx, &state.SnapshotPut{Snapshot: sn}); err != nil {
		return state.Snapshot{}, stateError(sb.ID, err)
	}
	failpoint.At("snapshot.intended")
	made, err := node.Snapshot(ctx, sb.ID, nodeapi.SnapshotRequest{
		ID: sn.ID, Tenant: sn.Tenant, Parent: sn.Parent, Metadata: map[string]string{"sandbox": string(sb.ID)},
	})
	if err != nil {
		return state.Snapshot{}, s.dropSnapshot(ctx, sn, node, fmt.Errorf("snapshot of sandbox %s: %w", sb.ID, err))
	}
	failpoint.At("snapshot.unrecorded")
	r, err := s.cfg.State.Apply(context.WithoutCancel(ctx), &state.SnapshotEnd{
		ID: sn.ID, State: state.SnapshotReady, At: s.cfg.Now().UTC(), Bytes: made.Bytes, Stored: made.StoredBytes,
	})
	failpoint.At("snapshot.recorded")
	return r.Snapshot, snapshotError(sn.ID, err)
}

// dropSnapshot forgets a snapshot that could not be made, and returns err.
func (s *Service) dropSnapshot(ctx context.Context, sn state.Snapshot, node *nodeapi.Client, err error) error {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.CleanTimeout)
	defer cancel()
	if delErr := node.DeleteSnapshot(clean, sn.Tenant, sn.ID); delErr != nil && !api.IsNotFound(delErr) {
		// It may be there yet: the record stays, and says so, until somebody deletes it.
		s.cfg.Logger.Warn("what a failed snapshot left is not removed yet", "snapshot", sn.ID, "error", delErr)
		_, endErr := s.cfg.State.Apply(clean, &state.SnapshotEnd{ID: sn.ID, State: state.SnapshotFailed, Reason: err.Error(), At: s.cfg.Now().UTC()})
		return errors.Join(err, endErr)
	}
	if _, delErr := s.cfg.State.Apply(clean, &state.SnapshotDelete{Tenant: sn.Tenant, ID: sn.ID, Force: true}); delErr != nil {
		s.cfg.Logger.Warn("failed snapshot is recorded yet", "snapshot", sn.ID, "error", delErr)
	}
	return err
}

// Snapshot implements API.
func (s *Service) Snapshot(_ context.Context, tenant, ref string) (state.Snapshot, error) {
	ref = plainRef(tenant, ref)
	if id, err := api.ParseSnapshotID(ref); err == nil {
		sn, err := s.cfg.State.SnapshotByID(id)
		if err == nil && sn.Tenant == tenant {
			return sn, nil
		}
		if err != nil && !errors.Is(err, state.ErrNotFound) {
			return state.Snapshot{}, err
		}
		return state.Snapshot{}, noSnapshot(ref)
	}
	name, tag, err := splitName(ref)
	if err != nil {
		return state.Snapshot{}, noSnapshot(ref)
	}
	sn, err := s.cfg.State.SnapshotNamed(tenant, name, tag)
	if err != nil {
		if errors.Is(err, state.ErrNotFound) {
			err = noSnapshot(ref)
		}
		return state.Snapshot{}, err
	}
	return sn, nil
}

// Snapshots implements API.
func (s *Service) Snapshots(_ context.Context, tenant string) ([]state.Snapshot, error) {
	return s.cfg.State.Snapshots(tenant)
}

// DeleteSnapshot implements API. The node removes it first: a record without data is found again, data without a record is not.
func (s *Service) DeleteSnapshot(ctx context.Context, tenant, ref string, force bool) error {
	sn, err := s.Snapshot(ctx, tenant, ref)
	if err != nil {
		return err
	}
	if !force {
		if err := s.unneeded(sn); err != nil {
			return err
		}
	}
	at, err := s.holder(sn.Node, sn.Store)
	if err != nil {
		return fmt.Errorf("delete snapshot %s of node %s: %w", sn.ID, sn.Node, err)
	}
	node, err := s.cfg.Fleet.Client(at)
	if err != nil {
		return err
	}
	if err := node.DeleteSnapshot(ctx, tenant, sn.ID); err != nil && !api.IsNotFound(err) {
		return fmt.Errorf("delete snapshot %s: %w", sn.ID, err)
	}
	_, err = s.cfg.State.Apply(context.WithoutCancel(ctx), &state.SnapshotDelete{Tenant: tenant, ID: sn.ID, Force: true})
	return snapshotError(sn.ID, err)
}

// unneeded refuses a snapshot that sandboxes are being made from. Those that run have all that they need.
func (s *Service) unneeded(sn state.Snapshot) error {
	l, err := s.cfg.State.List(state.Filter{Tenant: sn.Tenant, Origin: sn.ID, States: []state.SandboxState{state.Starting}}, state.Descending, state.Page{Limit: 1})
	if err != nil {
		return err
	}
	if len(l.Sandboxes) > 0 {
		return api.Errorf(http.StatusConflict, api.CodeConflict, "snapshot %s is in use: sandbox %s is being made from it", sn.ID, l.Sandboxes[0].ID)
	}
	return nil
}

// plainRef returns what a reference stands for without what clients of the contract are told beside it: the tenant before a name, and the
// tag that an id is shown with.
func plainRef(tenant, ref string) string {
	if id, found := strings.CutSuffix(ref, ":"+defaultTag); found {
		if _, err := api.ParseSnapshotID(id); err == nil {
			return id
		}
	}
	return strings.TrimPrefix(ref, tenant+"/")
}

// splitName takes "name:tag" apart.
func splitName(s string) (name, tag string, err error) {
	if s == "" {
		return "", "", nil
	}
	name, tag, tagged := strings.Cut(s, ":")
	if !tagged {
		tag = defaultTag
	}
	if !nameForm.MatchString(name) || !nameForm.MatchString(tag) {
		return "", "", invalid("name %.80q is not \"name\" or \"name:tag\" of at most 128 characters [a-z0-9_.-], the first a letter or digit", s)
	}
	return name, tag, nil
}

func noSnapshot(ref string) error {
	return api.Errorf(http.StatusNotFound, api.CodeNotFound, "snapshot %.80q does not exist", ref)
}

func snapshotError(id api.SnapshotID, err error) error {
	switch {
	case errors.Is(err, state.ErrNotFound):
		return noSnapshot(string(id))
	case errors.Is(err, state.ErrState):
		return api.Errorf(http.StatusConflict, api.CodeConflict, "%s", err.Error())
	}
	return stateError("", err)
}
