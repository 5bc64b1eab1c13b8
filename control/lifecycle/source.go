package lifecycle

import (
	"context"
	"net/http"
	"regexp"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// nameForm is the form of a snapshot's name, and of its tag.
var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,127}$`)

// source is what a sandbox is made from: a template, or a snapshot of another sandbox.
type source struct {
	digest   string         // of the template, in both cases
	snapshot state.Snapshot // its ID is empty where it is a template
	node     api.NodeID     // the only one that has it; empty: any
}

// source finds what ref stands for: a snapshot by its id, a template, or a snapshot by its name.
func (s *Service) source(ctx context.Context, tenant, ref string) (source, error) {
	if _, err := api.ParseSnapshotID(ref); err == nil {
		sn, err := s.Snapshot(ctx, tenant, ref)
		if err != nil {
			return source{}, err
		}
		return fromSnapshot(sn)
	}
	t, err := s.cfg.Templates.Resolve(ctx, tenant, ref)
	if err == nil {
		return source{digest: t.Digest}, nil
	}
	if api.IsNotFound(err) {
		if sn, snErr := s.Snapshot(ctx, tenant, ref); snErr == nil {
			return fromSnapshot(sn)
		}
	}
	return source{}, err
}

func fromSnapshot(sn state.Snapshot) (source, error) {
	if sn.State != state.SnapshotReady {
		return source{}, api.Errorf(http.StatusConflict, api.CodeConflict, "snapshot %s is %s %s", sn.ID, sn.State, sn.Reason)
	}
	return source{digest: sn.Digest, snapshot: sn, node: sn.Node}, nil
}

// inherit gives a copy of a sandbox the size of that sandbox where the create does not ask for another, and its environment.
func (s *Service) inherit(p *CreateParams, from source) {
	sn := from.snapshot
	if sn.ID == "" {
		return
	}
	for _, f := range []struct {
		has  *int64
		def  int64
		from int64
	}{
		{&p.CPUMillis, s.cfg.DefaultCPUMillis, sn.CPUMillis},
		{&p.MemoryMB, s.cfg.DefaultMemoryMB, sn.MemoryMB},
		{&p.DiskMB, s.cfg.DefaultDiskMB, sn.DiskMB},
	} {
		if *f.has == f.def && f.from != 0 {
			*f.has = f.from
		}
	}
	if len(p.EnvVars) == 0 {
		p.EnvVars = sn.EnvVars
	}
}

// request completes what the node is asked for.
func (f source) request(r nodeapi.CreateRequest) nodeapi.CreateRequest {
	if f.snapshot.ID == "" {
		return r
	}
	r.Restore = &nodeapi.Restore{Snapshot: f.snapshot.ID, Tenant: f.snapshot.Tenant}
	return r
}
