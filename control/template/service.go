// Package template keeps the names of templates: it imports them through nodes, records them, finds what a name stands
// for, and copies them to nodes that lack them.
//
// It owns the records. The root file systems are on the nodes, under their digests; no byte of one is stored here.
package template

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// State is the part of the state that the service needs.
type State interface {
	Template(tenant, name string) (state.Template, error)
	Templates(tenant string) ([]state.Template, error)
	Tenant(id string) (state.Tenant, error)
	Apply(ctx context.Context, c state.Command) (state.Result, error)
}

// Fleet is the part of the fleet that the service needs.
type Fleet interface {
	Nodes() []fleet.Node
	Client(id api.NodeID) (*nodeapi.Client, error)
}

// Config holds the service's seams.
type Config struct {
	State  State // required
	Fleet  Fleet // required
	Logger hclog.Logger
	Now    func() time.Time
}

// Service is safe for concurrent use.
type Service struct {
	cfg Config

	mu     sync.Mutex
	failed map[copyKey]time.Time // copies that failed, and when
}

// New returns a service.
func New(cfg Config) (*Service, error) {
	if cfg.State == nil || cfg.Fleet == nil {
		return nil, errors.New("template: state and fleet are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg: cfg, failed: map[copyKey]time.Time{}}, nil
}

const (
	digestPrefix = "sha256:"
	// defaultTag is the tag that a name without one means.
	defaultTag = ":default"
)

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,127}$`)

// reportTime is how long a connected node may take to report a template that was recorded a moment ago, and reportGap how
// often that is looked at.
const (
	reportTime = time.Second
	reportGap  = 2 * time.Millisecond
)

// Resolve returns the template that name, or digest, stands for, with its id. It exists, and a connected node has it: else the error
// is template_not_found, or unavailable where a node that is away may have it. A template that was just imported is found,
// although its node reports it after the import has returned.
func (s *Service) Resolve(ctx context.Context, tenant, name string) (state.Template, error) {
	name, err := s.spelled(tenant, name)
	if err != nil {
		return state.Template{}, err
	}
	var late <-chan time.Time
	for {
		t, unreported, err := s.resolve(tenant, name)
		if err == nil {
			t.TemplateID = ID(t)
			return t, nil
		}
		if !unreported {
			return t, err
		}
		if late == nil {
			late = time.After(reportTime)
		}
		select {
		case <-ctx.Done():
			return state.Template{}, ctx.Err()
		case <-late:
			return t, err
		case <-time.After(reportGap):
		}
	}
}

// resolve is one look of Resolve. unreported is true for a template that is recorded, and that no connected node reports.
func (s *Service) resolve(tenant, name string) (_ state.Template, unreported bool, _ error) {
	t, known, err := s.lookup(tenant, name)
	if err != nil {
		return state.Template{}, false, err
	}
	others, err := s.others(tenant)
	if err != nil {
		return state.Template{}, false, err
	}
	connected, away := 0, 0
	var onNode *nodeapi.Template
	for _, n := range s.cfg.Fleet.Nodes() {
		if !n.Connected {
			away++
			continue
		}
		connected++
		for _, have := range n.Self.Templates {
			if known && have.Digest == t.Digest {
				return t, false, nil
			}
			if !known && !others[have.Digest] && (have.Name == name || have.Digest == name) && (onNode == nil || have.CreatedAt.After(onNode.CreatedAt)) {
				onNode = &have
			}
		}
	}
	switch {
	case onNode != nil: // imported on the node itself
		return fromNode(tenant, *onNode), false, nil
	case connected == 0:
		return state.Template{}, false, api.Errorf(http.StatusServiceUnavailable, api.CodeCapacity, "no node is connected at the moment")
	case known || away > 0:
		return state.Template{}, known, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable,
			"no connected node has template %q at the moment; %d nodes are away", name, away)
	}
	return state.Template{}, false, api.Errorf(http.StatusNotFound, api.CodeUnknownTemplate,
		"template %q does not exist: import it with `soulbox template import`", name)
}

// lookup finds the record of a name or digest.
func (s *Service) lookup(tenant, name string) (state.Template, bool, error) {
	if strings.HasPrefix(name, digestPrefix) {
		all, err := s.cfg.State.Templates(tenant)
		if err != nil {
			return state.Template{}, false, err
		}
		i := slices.IndexFunc(all, func(t state.Template) bool { return t.Digest == name })
		if i < 0 {
			return state.Template{}, false, nil
		}
		return all[i], true, nil
	}
	if owner, rest, other := strings.Cut(name, "/"); other {
		t, err := s.published(owner, rest)
		return t, err == nil && t.Name != "", err
	}
	t, err := s.cfg.State.Template(tenant, name)
	if errors.Is(err, state.ErrNotFound) {
		return state.Template{}, false, nil
	}
	return t, err == nil, err
}

// others are the digests that only other tenants have a record of: what a node has of these is theirs, not the operator's.
func (s *Service) others(tenant string) (map[string]bool, error) {
	all, err := s.cfg.State.Templates("")
	if err != nil {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	out := map[string]bool{}
	for _, t := range all {
		out[t.Digest] = true
	}
	for _, t := range all {
		if t.Tenant == tenant {
			delete(out, t.Digest)
		}
	}
	return out, nil
}

func fromNode(tenant string, t nodeapi.Template) state.Template {
	return state.Template{
		Tenant: tenant, Name: t.Name, Digest: t.Digest, Bytes: t.Bytes, Files: t.Files, User: t.User, Cwd: t.Cwd, Env: t.Env,
		CreatedAt: t.CreatedAt.UTC(), UpdatedAt: t.CreatedAt.UTC(),
	}
}

// List returns a tenant's templates by name: the recorded ones, and those that were imported on a node itself.
func (s *Service) List(tenant string) ([]state.Template, error) {
	list, err := s.cfg.State.Templates(tenant)
	if err != nil {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	others, err := s.others(tenant)
	if err != nil {
		return nil, err
	}
	for _, n := range s.cfg.Fleet.Nodes() {
		for _, have := range n.Self.Templates {
			// One without a name was replaced, and lives on for the sandboxes that were made of it.
			if have.Name != "" && !others[have.Digest] && !slices.ContainsFunc(list, func(t state.Template) bool { return t.Name == have.Name }) {
				list = append(list, fromNode(tenant, have))
			}
		}
	}
	slices.SortFunc(list, func(a, b state.Template) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// Import stores the root file system in the tar stream r under name, through a node, and records it. source says where it
// came from, for people. Other nodes get it in the background (see Spread).
func (s *Service) Import(ctx context.Context, tenant, name, source string, r io.Reader) (state.Template, error) {
	if !nameForm.MatchString(name) {
		return state.Template{}, api.Errorf(http.StatusBadRequest, api.CodeInvalid,
			"name %.80q is not 1 to 128 of [a-z0-9_.-], beginning with a letter or digit", name)
	}
	node, err := s.importer()
	if err != nil {
		return state.Template{}, err
	}
	made, err := node.ImportTemplate(ctx, name, r)
	if err != nil {
		return state.Template{}, fmt.Errorf("import template %s: %w", name, err)
	}
	t := fromNode(tenant, made)
	t.Name, t.Source, t.UpdatedAt, t.TemplateID = name, source, s.cfg.Now().UTC(), NewID()
	return s.record(ctx, t)
}

func (s *Service) record(ctx context.Context, t state.Template) (state.Template, error) {
	res, err := s.cfg.State.Apply(ctx, &state.TemplatePut{Template: t})
	if err != nil {
		return state.Template{}, fmt.Errorf("record template %s: %w", t.Name, err)
	}
	return res.Template, nil
}

// importer returns the connected node with the most room.
func (s *Service) importer() (*nodeapi.Client, error) {
	var best *fleet.Node
	for _, n := range s.cfg.Fleet.Nodes() {
		if n.Connected && (best == nil || n.Self.DiskFree > best.Self.DiskFree) {
			best = &n
		}
	}
	if best == nil {
		return nil, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "no node is connected at the moment")
	}
	return s.cfg.Fleet.Client(best.Self.ID)
}

// Delete forgets a name and its tags, and removes them from the nodes that are connected. Sandboxes that run keep their files.
func (s *Service) Delete(ctx context.Context, tenant, name string) error {
	if !strings.Contains(name, ":") {
		all, err := s.cfg.State.Templates(tenant)
		if err != nil {
			return fmt.Errorf("list templates: %w", err)
		}
		for _, t := range all {
			if strings.HasPrefix(t.Name, name+":") {
				if err := s.delete(ctx, tenant, t.Name); err != nil {
					return err
				}
			}
		}
	}
	return s.delete(ctx, tenant, name)
}

func (s *Service) delete(ctx context.Context, tenant, name string) error {
	_, err := s.cfg.State.Apply(ctx, &state.TemplateDelete{Tenant: tenant, Name: name})
	known := !errors.Is(err, state.ErrNotFound)
	if err != nil && known {
		return fmt.Errorf("delete template %s: %w", name, err)
	}
	others, err := s.others(tenant)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range s.cfg.Fleet.Nodes() {
		if !n.Connected || !slices.ContainsFunc(n.Self.Templates, func(t nodeapi.Template) bool { return t.Name == name && !others[t.Digest] }) {
			continue
		}
		known = true
		node, err := s.cfg.Fleet.Client(n.Self.ID)
		if err == nil {
			err = node.RemoveTemplate(ctx, name)
		}
		if err != nil && !api.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove template %s from node %s: %w", name, n.Self.ID, err))
		}
	}
	if !known {
		return api.Errorf(http.StatusNotFound, api.CodeUnknownTemplate, "template %.80q does not exist", name)
	}
	if len(errs) == 0 {
		s.awaitGone(ctx, name)
	}
	return errors.Join(errs...)
}

// awaitGone returns once no connected node reports the name any more, or after reportTime: what was deleted must not be
// found, though its nodes say so a moment later.
func (s *Service) awaitGone(ctx context.Context, name string) {
	late := time.After(reportTime)
	for slices.ContainsFunc(s.cfg.Fleet.Nodes(), func(n fleet.Node) bool {
		return n.Connected && slices.ContainsFunc(n.Self.Templates, func(t nodeapi.Template) bool { return t.Name == name })
	}) {
		select {
		case <-ctx.Done():
			return
		case <-late:
			return
		case <-time.After(reportGap):
		}
	}
}
