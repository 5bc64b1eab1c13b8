package template

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// maxTags bounds the tags of one template.
const maxTags = 100

var (
	tagForm  = regexp.MustCompile(`^[a-z0-9_.-]{1,128}$`)
	uuidForm = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
)

// CheckTag checks a tag: 1 to 128 of [a-z0-9_.-], and no UUID, which would be taken for a build's.
func CheckTag(tag string) error {
	if !tagForm.MatchString(tag) || uuidForm.MatchString(tag) {
		return api.Errorf(http.StatusBadRequest, api.CodeInvalid, "tag %.80q is not 1 to 128 of [a-z0-9_.-], or looks like a UUID", tag)
	}
	return nil
}

// Split returns the parts of a template's name, the tag empty where it has none.
func Split(name string) (base, tag string) {
	base, tag, _ = strings.Cut(name, ":")
	return base, tag
}

// Tag gives a template's content more tags. Each is a record of its own beside that of the name, which has the tag "default".
func (s *Service) Tag(ctx context.Context, tenant, target string, tags []string) (state.Template, error) {
	t, err := s.Resolve(ctx, tenant, target)
	if err != nil {
		return state.Template{}, err
	}
	if t.Tenant != tenant {
		return state.Template{}, api.Errorf(http.StatusNotFound, api.CodeUnknownTemplate, "template %.80q does not exist", target)
	}
	all, err := s.cfg.State.Templates(tenant)
	if err != nil {
		return state.Template{}, fmt.Errorf("list templates: %w", err)
	}
	base, _ := Split(t.Name)
	for _, tag := range tags {
		if err := CheckTag(tag); err != nil {
			return state.Template{}, err
		}
	}
	n := len(tags)
	for _, have := range all {
		if strings.HasPrefix(have.Name, base+":") {
			n++
		}
	}
	if n > maxTags {
		return state.Template{}, api.Errorf(http.StatusBadRequest, api.CodeInvalid, "template %s would have more than %d tags", base, maxTags)
	}
	for _, tag := range tags {
		one := t
		if one.Name = base; ":"+tag != defaultTag {
			one.Name = base + ":" + tag
		}
		one.TemplateID, one.UpdatedAt = ID(t), s.cfg.Now().UTC()
		if err := s.name(ctx, one); err != nil {
			return state.Template{}, err
		}
		if _, err := s.record(ctx, one); err != nil {
			return state.Template{}, err
		}
	}
	return t, nil
}

// name makes the nodes that have a template know it by its name, so that it stays when another content takes its other names.
func (s *Service) name(ctx context.Context, t state.Template) error {
	for _, n := range s.cfg.Fleet.Nodes() {
		if !n.Connected || !has(n, t) {
			continue
		}
		node, err := s.cfg.Fleet.Client(n.Self.ID)
		if err == nil {
			_, err = node.NameTemplate(ctx, t.Name, t.Digest)
		}
		if err != nil {
			return fmt.Errorf("name template %s on node %s: %w", t.Name, n.Self.ID, err)
		}
	}
	return nil
}

// Untag takes tags off a template. The tag of the name itself goes with the template.
func (s *Service) Untag(ctx context.Context, tenant, name string, tags []string) error {
	name, err := s.spelled(tenant, name)
	if err != nil {
		return err
	}
	base, _ := Split(name)
	all, err := s.cfg.State.Templates(tenant)
	if err != nil {
		return fmt.Errorf("list templates: %w", err)
	}
	for _, tag := range tags {
		switch {
		case ":"+tag == defaultTag:
			return api.Errorf(http.StatusBadRequest, api.CodeInvalid, "the tag default is that of the name itself: it goes when the template is deleted")
		case !slices.ContainsFunc(all, func(t state.Template) bool { return t.Name == base+":"+tag }):
			return api.Errorf(http.StatusNotFound, api.CodeUnknownTemplate, "template %.80q has no tag %.80q", base, tag)
		}
	}
	for _, tag := range tags {
		if err := s.delete(ctx, tenant, base+":"+tag); err != nil {
			return err
		}
	}
	return nil
}

// Find returns a template that a tenant sees, by its name, id or digest, whether or not a node has it now.
func (s *Service) Find(tenant, name string) (state.Template, error) {
	name, err := s.spelled(tenant, name)
	if err != nil {
		return state.Template{}, err
	}
	if owner, rest, other := strings.Cut(name, "/"); other {
		if t, err := s.published(owner, rest); err != nil || t.Name != "" {
			return t, err
		}
	}
	all, err := s.List(tenant)
	if err != nil {
		return state.Template{}, err
	}
	for _, t := range all {
		if t.Name == name || t.Digest == name {
			return t, nil
		}
	}
	return state.Template{}, api.Errorf(http.StatusNotFound, api.CodeUnknownTemplate, "template %.80q does not exist", name)
}

// Publish opens a template with all its tags to other tenants, or closes it.
func (s *Service) Publish(ctx context.Context, tenant, name string, public bool) (state.Template, error) {
	name, err := s.spelled(tenant, name)
	if err != nil {
		return state.Template{}, err
	}
	base, _ := Split(name)
	res, err := s.cfg.State.Apply(ctx, &state.TemplatePublish{Tenant: tenant, Name: base, Public: public})
	if errors.Is(err, state.ErrNotFound) {
		return state.Template{}, api.Errorf(http.StatusNotFound, api.CodeUnknownTemplate, "template %.80q does not exist, or was imported on a node", base)
	}
	if err != nil {
		return state.Template{}, fmt.Errorf("publish template %s: %w", base, err)
	}
	return res.Template, nil
}

// SetNetwork says what sandboxes of a template, with all its tags, may reach that are made from then on.
func (s *Service) SetNetwork(ctx context.Context, tenant, name string, p state.NetworkPolicy) (state.Template, error) {
	name, err := s.spelled(tenant, name)
	if err != nil {
		return state.Template{}, err
	}
	base, _ := Split(name)
	res, err := s.cfg.State.Apply(ctx, &state.TemplateNetwork{Tenant: tenant, Name: base, Network: p})
	if errors.Is(err, state.ErrNotFound) {
		return state.Template{}, api.Errorf(http.StatusNotFound, api.CodeUnknownTemplate, "template %.80q does not exist, or was imported on a node", base)
	}
	if err != nil {
		return state.Template{}, fmt.Errorf("network of template %s: %w", base, err)
	}
	return res.Template, nil
}

// published returns a template that another tenant lets everybody use; the zero value where there is none.
func (s *Service) published(owner, name string) (state.Template, error) {
	base, _ := Split(name)
	open, err := s.cfg.State.Template(owner, base)
	if errors.Is(err, state.ErrNotFound) || err == nil && !open.Public {
		return state.Template{}, nil
	}
	if err != nil {
		return state.Template{}, err
	}
	t, err := s.cfg.State.Template(owner, name)
	if errors.Is(err, state.ErrNotFound) {
		return state.Template{}, nil
	}
	return t, err
}

// Built is what a build adds to a template's record.
type Built struct {
	TemplateID string // of a template that is new
	BuildID    string
	BuildKey   string
	nodeapi.ProcessDefaults
	CPUMillis int64
	MemoryMB  int64
	StartCmd  string
	ReadyCmd  string
}

// Build is Import for a root file system that a build has made. name may have a tag.
func (s *Service) Build(ctx context.Context, tenant, name, source string, b Built, r io.Reader) (state.Template, error) {
	node, err := s.importer()
	if err != nil {
		return state.Template{}, err
	}
	made, err := node.BuildTemplate(ctx, name, b.ProcessDefaults, r)
	if err != nil {
		return state.Template{}, fmt.Errorf("import template %s: %w", name, err)
	}
	t := fromNode(tenant, made)
	t.Name, t.Source, t.UpdatedAt, t.TemplateID, t.BuildID = name, source, s.cfg.Now().UTC(), b.TemplateID, b.BuildID
	t.User, t.Cwd, t.Env = b.User, b.Cwd, b.Env
	t.CPUMillis, t.MemoryMB, t.StartCmd, t.ReadyCmd = b.CPUMillis, b.MemoryMB, b.StartCmd, b.ReadyCmd
	t.BuildKey = b.BuildKey
	return s.record(ctx, t)
}

// BuiltBefore returns a template of the tenant that was built from the same and by the same, and is there; the zero value where there is
// none.
func (s *Service) BuiltBefore(tenant, key string) (state.Template, error) {
	all, err := s.cfg.State.Templates(tenant)
	if err != nil {
		return state.Template{}, fmt.Errorf("list templates: %w", err)
	}
	for _, t := range all {
		if t.BuildKey != key || key == "" {
			continue
		}
		if _, _, err := s.resolve(tenant, t.Digest); err == nil {
			return t, nil
		}
	}
	return state.Template{}, nil
}

// BuildAgain is Build with the content of a template that there is.
func (s *Service) BuildAgain(ctx context.Context, t state.Template, name string, b Built) (state.Template, error) {
	t.Name, t.UpdatedAt, t.TemplateID, t.BuildID = name, s.cfg.Now().UTC(), b.TemplateID, b.BuildID
	t.CreatedAt, t.Public, t.SpawnCount, t.SpawnedAt = t.UpdatedAt, false, 0, time.Time{}
	t.CPUMillis, t.MemoryMB = b.CPUMillis, b.MemoryMB
	if err := s.name(ctx, t); err != nil {
		return state.Template{}, err
	}
	return s.record(ctx, t)
}

// Temporary stores the archive r on a node without a record, under a name that nothing else has, for a sandbox that is made of it next.
// clean takes the name away; what the sandbox needs of it stays as long as the sandbox.
func (s *Service) Temporary(ctx context.Context, tenant, name string, r io.Reader) (_ state.Template, clean func(), _ error) {
	node, err := s.importer()
	if err != nil {
		return state.Template{}, nil, err
	}
	made, err := node.ImportTemplate(ctx, name, r)
	if err != nil {
		return state.Template{}, nil, err
	}
	t := fromNode(tenant, made)
	s.awaitReported(ctx, t)
	return t, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportTime*10)
		defer cancel()
		if err := node.RemoveTemplate(ctx, name); err != nil && !api.IsNotFound(err) {
			s.cfg.Logger.Warn("template of a build not removed", "template", name, "error", err)
		}
	}, nil
}

// awaitReported returns once a connected node reports a template that has no record, or after a while: a sandbox of it can be made.
func (s *Service) awaitReported(ctx context.Context, t state.Template) {
	late := time.After(10 * reportTime) // it is large, and the node busy
	for !slices.ContainsFunc(s.cfg.Fleet.Nodes(), func(n fleet.Node) bool { return n.Connected && has(n, t) }) {
		select {
		case <-ctx.Done():
			return
		case <-late:
			return
		case <-time.After(reportGap):
		}
	}
}

// SetPlacement says where sandboxes of a template, with all its tags, may run that are made from then on.
func (s *Service) SetPlacement(ctx context.Context, tenant, name string, where placement.Rules) (state.Template, error) {
	name, err := s.spelled(tenant, name)
	if err != nil {
		return state.Template{}, err
	}
	base, _ := Split(name)
	res, err := s.cfg.State.Apply(ctx, &state.TemplatePlacement{Tenant: tenant, Name: base, Where: string(where)})
	if errors.Is(err, state.ErrNotFound) {
		return state.Template{}, api.Errorf(http.StatusNotFound, api.CodeUnknownTemplate, "template %.80q does not exist, or was imported on a node", base)
	}
	if err != nil {
		return state.Template{}, fmt.Errorf("placement of template %s: %w", base, err)
	}
	return res.Template, nil
}
