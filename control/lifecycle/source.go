package lifecycle

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// nameForm is the form of a snapshot's name, and of its tag.
var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,127}$`)

// source is what a sandbox is made from: a template, or a snapshot of another sandbox.
type source struct {
	template state.Template // zero where it is a snapshot
	snapshot state.Snapshot // its ID is empty where it is a template
	node     api.NodeID     // that it is to be had at; empty: any
}

// digest returns that of the template that is below everything.
func (f source) digest() string {
	if f.snapshot.ID != "" {
		return f.snapshot.Digest
	}
	return f.template.Digest
}

// network returns what sandboxes that are made from it may reach.
func (f source) network() state.NetworkPolicy {
	if f.snapshot.ID != "" {
		return f.snapshot.TemplateNetwork
	}
	return f.template.Network
}

// source finds what ref stands for: a snapshot by its id, a template, or a snapshot by its name.
func (s *Service) source(ctx context.Context, tenant, ref string) (source, error) {
	if _, err := api.ParseSnapshotID(plainRef(tenant, ref)); err == nil {
		sn, err := s.Snapshot(ctx, tenant, ref)
		if err != nil {
			return source{}, err
		}
		return s.fromSnapshot(sn)
	}
	t, err := s.cfg.Templates.Resolve(ctx, tenant, ref)
	if err == nil {
		return source{template: t}, nil
	}
	if api.IsNotFound(err) {
		if sn, snErr := s.Snapshot(ctx, tenant, ref); snErr == nil {
			return s.fromSnapshot(sn)
		}
	}
	return source{}, err
}

// withDevices says what does not go with devices: they are reserved for processes that begin, and stay with them.
func withDevices(p CreateParams, from source) error {
	devices := p.Where.Placement().Devices
	switch {
	case len(devices) == 0:
	case from.snapshot.ID != "":
		return invalid("placement.devices: a sandbox that is made from a snapshot can have none")
	case p.Lifecycle.OnTimeout == state.OnTimeoutPause && p.Lifecycle.FilesOnly:
		return invalid("placement.devices: %s does not go with a pause that keeps files alone", devices[0].Name)
	}
	return nil
}

// fromSnapshot takes the snapshot from the node that made it, or from another one with the same store.
func (s *Service) fromSnapshot(sn state.Snapshot) (source, error) {
	if sn.State != state.SnapshotReady {
		return source{}, api.Errorf(http.StatusConflict, api.CodeConflict, "snapshot %s is %s %s", sn.ID, sn.State, sn.Reason)
	}
	node, err := s.holder(sn.Node, sn.Store)
	if err != nil {
		return source{}, fmt.Errorf("snapshot %s of node %s: %w", sn.ID, sn.Node, err)
	}
	return source{snapshot: sn, node: node}, nil
}

// shown is what clients are told of where a sandbox comes from: an id that makes another one like it, and a name for people.
type shown struct{ id, alias string }

func (f source) shown(p CreateParams) shown {
	switch {
	case p.copyOf != nil:
		return shown{id: p.copyOf.TemplateID, alias: p.copyOf.Alias}
	case f.snapshot.ID != "":
		return shown{id: string(f.snapshot.ID), alias: f.snapshot.Name}
	}
	name, _, _ := strings.Cut(f.template.Name, ":")
	return shown{id: f.template.TemplateID, alias: name}
}

// inherit gives a copy of a sandbox the size of that sandbox where the create does not ask for another, and its environment.
func (f source) inherit(p *CreateParams, asked CreateParams) {
	sn := f.snapshot
	if sn.ID == "" {
		return
	}
	for _, v := range []struct {
		to    *int64
		asked int64
		has   int64
	}{
		{&p.CPUMillis, asked.CPUMillis, sn.CPUMillis}, {&p.MemoryMB, asked.MemoryMB, sn.MemoryMB}, {&p.DiskMB, asked.DiskMB, sn.DiskMB},
	} {
		if v.asked == 0 && v.has > 0 {
			*v.to = v.has
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
