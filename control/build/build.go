// Package build makes templates from the instructions of E2B's contract: a sandbox of the base template, in which the steps run one
// after the other, and whose files then become the new template.
//
// It owns the builds that run on this server, their logs and the files that clients upload for them. A build belongs to the server
// that was asked for it and ends with it; what it has made is the template service's. It never runs anything outside of a sandbox.
package build

import (
	"context"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/control/template"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Limits of builds.
const (
	maxBuilds  = 1000             // that are remembered
	maxRunning = 4                // at once; others wait
	maxSteps   = 500              // of one build
	maxTime    = time.Hour        // of one build
	readyTime  = 10 * time.Minute // until a start command serves
	readyGap   = 500 * time.Millisecond
	forgetTime = 24 * time.Hour // after its end
)

// Sandboxes is what a build needs of the sandboxes; lifecycle.Service has it.
type Sandboxes interface {
	Create(ctx context.Context, p lifecycle.CreateParams) (state.Sandbox, []guest.Step, error)
	Delete(ctx context.Context, tenant string, id api.SandboxID) error
	NodeFor(ctx context.Context, tenant string, id api.SandboxID) (*nodeapi.Client, error)
}

// Config of a Service. Sandboxes, Templates and Dir are required.
type Config struct {
	Sandboxes Sandboxes
	Templates *template.Service
	Dir       string // for uploads; made where it is missing
	Logger    hclog.Logger
	Now       func() time.Time
}

// Service is safe for concurrent use. Close ends its builds.
type Service struct {
	cfg     Config
	uploads *uploads

	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	running chan struct{} // a place for each build that runs

	mu     sync.Mutex
	builds map[string]*build
}

// New returns a service. Uploads of a service before it are kept.
func New(cfg Config) (*Service, error) {
	if cfg.Sandboxes == nil || cfg.Templates == nil || cfg.Dir == "" {
		return nil, errors.New("build: sandboxes, templates and a folder are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	up, err := openUploads(cfg.Dir, cfg.Now)
	if err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, uploads: up, running: make(chan struct{}, maxRunning), builds: map[string]*build{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Close ends the builds that run and returns once their sandboxes are asked to end.
func (s *Service) Close() {
	s.cancel()
	s.wg.Wait()
}

// build is one build. The fields of the first group never change.
type build struct {
	id, templateID string
	caller         auth.Identity
	name           string // without a tag
	tags           []string
	public         bool
	cpuMillis      int64
	memoryMB       int64
	createdAt      time.Time

	mu      sync.Mutex
	status  string
	reason  *api.BuildReason
	log     []api.BuildLogEntry
	endedAt time.Time
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,127}$`)

// Request notes a build that shall be: POST /v3/templates. It waits for its instructions.
func (s *Service) Request(caller auth.Identity, req api.BuildRequest) (api.RequestedBuild, error) {
	b, err := s.check(caller, req)
	if err != nil {
		return api.RequestedBuild{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	for id, old := range s.builds {
		if old.forgotten(now) {
			delete(s.builds, id)
		}
	}
	if len(s.builds) >= maxBuilds {
		return api.RequestedBuild{}, api.Errorf(http.StatusTooManyRequests, api.CodeCapacity, "more than %d builds are remembered", maxBuilds)
	}
	for _, other := range s.builds { // a second build of a name that is new is one of the same template
		if other.caller.Tenant == caller.Tenant && other.name == b.name && b.templateID == "" {
			b.templateID = other.templateID
		}
	}
	if b.templateID == "" {
		b.templateID = template.NewID()
	}
	s.builds[b.id] = b
	return api.RequestedBuild{
		TemplateID: b.templateID, BuildID: b.id, Public: b.public, Names: []string{b.name}, Aliases: []string{b.name}, Tags: b.tags,
	}, nil
}

func (s *Service) check(caller auth.Identity, req api.BuildRequest) (*build, error) {
	name := req.Name
	if name == "" {
		name = req.Alias
	}
	base, tag := template.Split(name)
	if !nameForm.MatchString(base) {
		return nil, invalid("name %.140q is not 1 to 128 of [a-z0-9_-], beginning with a letter or digit", base)
	}
	b := &build{
		id: template.NewBuildID(), caller: caller, name: base, tags: slices.Clone(req.Tags), status: api.BuildWaiting, createdAt: s.cfg.Now().UTC(),
	}
	if tag != "" && !slices.Contains(b.tags, tag) {
		b.tags = append(b.tags, tag)
	}
	if len(b.tags) == 0 {
		b.tags = []string{"default"}
	}
	if len(b.tags) > 100 {
		return nil, invalid("tags has %d elements, at most 100 are allowed", len(b.tags))
	}
	for _, t := range b.tags {
		if err := template.CheckTag(t); err != nil {
			return nil, err
		}
	}
	if n := req.CPUCount; n != nil {
		if *n < 1 || *n > 4096 {
			return nil, invalid("cpuCount is %d, 1 to 4096 are allowed", *n)
		}
		b.cpuMillis = *n * 1000
	}
	if n := req.MemoryMB; n != nil {
		if *n < 128 || *n > 64<<20 {
			return nil, invalid("memoryMB is %d, %d to %d are allowed", *n, 128, 64<<20)
		}
		b.memoryMB = *n
	}
	old, err := s.cfg.Templates.Find(caller.Tenant, base)
	switch {
	case err == nil:
		b.templateID, b.public = template.ID(old), old.Public
	case !api.IsNotFound(err):
		return nil, err
	}
	return b, nil
}

// find returns a build of a tenant's template.
func (s *Service) find(tenant, templateID, id string) (*build, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.builds[id]
	if b == nil || b.caller.Tenant != tenant || b.templateID != templateID && b.name != templateID {
		return nil, api.Errorf(http.StatusNotFound, api.CodeNotFound, "template %.80q has no build %.80q", templateID, id)
	}
	return b, nil
}

// Builds reports whether a template is being built, or was, here: its files may be uploaded before it exists.
func (s *Service) Builds(tenant, templateID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.builds {
		if b.caller.Tenant == tenant && (b.templateID == templateID || b.name == templateID) {
			return true
		}
	}
	return false
}

// Start begins a build with its instructions: POST /v2/templates/{tid}/builds/{bid}.
func (s *Service) Start(tenant, templateID, id string, in api.BuildInstructions) error {
	b, err := s.find(tenant, templateID, id)
	if err == nil {
		err = checkInstructions(in)
	}
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.status != api.BuildWaiting {
		return api.Errorf(http.StatusConflict, api.CodeConflict, "build %s was started before", id)
	}
	if s.ctx.Err() != nil {
		return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "the service stops")
	}
	b.status = api.BuildBuilding
	s.wg.Go(func() { s.run(b, in) })
	return nil
}

// Status tells how a build goes, with the entries of its log from offset on.
func (s *Service) Status(tenant, templateID, id string, offset, limit int, level string) (api.TemplateBuildInfo, error) {
	b, err := s.find(tenant, templateID, id)
	if err != nil {
		return api.TemplateBuildInfo{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	out := api.TemplateBuildInfo{
		TemplateID: b.templateID, BuildID: b.id, Status: b.status, Reason: b.reason, Logs: []string{}, LogEntries: []api.BuildLogEntry{},
	}
	seen := 0
	for _, e := range b.log {
		if weight(e.Level) < weight(level) {
			continue
		}
		if seen++; seen > offset && len(out.LogEntries) < limit {
			out.LogEntries = append(out.LogEntries, e)
		}
	}
	return out, nil
}

func weight(level string) int { return slices.Index([]string{"debug", "info", "warn", "error"}, level) }

func (b *build) forgotten(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.status == api.BuildWaiting {
		return now.Sub(b.createdAt) > maxTime
	}
	return !b.endedAt.IsZero() && now.Sub(b.endedAt) > forgetTime
}

func invalid(format string, args ...any) error {
	return api.Errorf(http.StatusBadRequest, api.CodeInvalid, format, args...)
}
