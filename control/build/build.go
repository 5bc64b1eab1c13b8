// Package build makes templates from the instructions of E2B's contract: a sandbox of the base template, in which the steps run one
// after the other, and whose files then become the new template.
//
// It owns the builds that run on this server and the files that clients upload for them. What a build is and how it went is in the state,
// with its log, for every server to tell; only the leader runs builds, and one that ends with its server is recorded as failed by the
// next. What it has made is the template service's. It never runs anything outside of a sandbox.
package build

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
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
	maxRunning = 4                // at once; others wait
	maxSteps   = 500              // of one build
	maxTime    = time.Hour        // of one build
	readyTime  = 10 * time.Minute // until a start command serves
	readyGap   = 500 * time.Millisecond
	forgetTime = 24 * time.Hour // after its end
	sweepEvery = 2 * time.Second
)

// Sandboxes is what a build needs of the sandboxes; lifecycle.Service has it.
type Sandboxes interface {
	Create(ctx context.Context, p lifecycle.CreateParams) (state.Sandbox, []guest.Step, error)
	Delete(ctx context.Context, tenant string, id api.SandboxID) error
	NodeFor(ctx context.Context, tenant string, id api.SandboxID) (*nodeapi.Client, error)
}

// State is what a build needs of the state; state.Store has it.
type State interface {
	Build(id string) (state.Build, error)
	Builds(tenant string) ([]state.Build, error) // of all tenants where tenant is empty
	BuildLog(id string) ([]state.BuildLogEntry, error)
	Apply(ctx context.Context, c state.Command) (state.Result, error)
	Leads() bool
}

// Config of a Service. State, Sandboxes, Templates and Dir are required.
type Config struct {
	State     State
	Sandboxes Sandboxes
	Templates *template.Service
	Dir       string // for uploads; made where it is missing
	// Registries are the hosts, with their ports, of registries that images may be pulled from although their addresses are this
	// network's own. Others have to be public: a tenant must not reach through this server what it cannot reach by itself.
	Registries []string
	Logger     hclog.Logger
	Now        func() time.Time
}

// Service is safe for concurrent use. Close ends its builds.
type Service struct {
	cfg     Config
	run     string // of this service, which its builds carry
	uploads *uploads
	images  *images

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	places chan struct{} // one for each build that runs

	mu   sync.Mutex
	here map[string]*build // those that run here
}

// New returns a service. Uploads of a service before it are kept; builds that it left are ended.
func New(cfg Config) (*Service, error) {
	if cfg.State == nil || cfg.Sandboxes == nil || cfg.Templates == nil || cfg.Dir == "" {
		return nil, errors.New("build: state, sandboxes, templates and a folder are required")
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
	var run [8]byte
	_, _ = rand.Read(run[:]) // never fails on Linux
	s := &Service{
		cfg: cfg, run: hex.EncodeToString(run[:]), uploads: up, images: newImages(cfg.Registries), places: make(chan struct{}, maxRunning),
		here: map[string]*build{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(s.sweep)
	return s, nil
}

// Close ends the builds that run and returns once their sandboxes are asked to end.
func (s *Service) Close() {
	s.cancel()
	s.wg.Wait()
	s.images.close()
}

// sweep ends the builds that a server has left, again and again: it may have been another one, which leads no more.
func (s *Service) sweep() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if s.cfg.State.Leads() {
			s.endAbandoned()
		}
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Service) endAbandoned() {
	all, err := s.cfg.State.Builds("")
	if err != nil {
		s.cfg.Logger.Warn("builds not looked at", "error", err)
		return
	}
	for _, b := range all {
		if b.Status != state.BuildBuilding || b.Creator == s.run {
			continue
		}
		const why = "the server that ran the build has ended, or leads no more: build it again"
		now := s.cfg.Now().UTC()
		_, err := s.cfg.State.Apply(s.ctx, &state.BuildEnd{
			ID: b.ID, Status: state.BuildError, Reason: why, At: now, Unless: s.run,
			Entries: []state.BuildLogEntry{{At: now, Level: "error", Message: why}},
		})
		if err == nil && b.Sandbox != "" {
			if err = s.cfg.Sandboxes.Delete(s.ctx, b.Tenant, b.Sandbox); api.IsNotFound(err) {
				err = nil
			}
		}
		if err != nil && s.ctx.Err() == nil {
			s.cfg.Logger.Warn("abandoned build not ended", "build", b.ID, "error", err)
		}
	}
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,127}$`)

// Request notes a build that shall be: POST /v3/templates. It waits for its instructions.
func (s *Service) Request(ctx context.Context, caller auth.Identity, req api.BuildRequest) (api.RequestedBuild, error) {
	put, err := s.check(caller, req)
	if err != nil {
		return api.RequestedBuild{}, err
	}
	res, err := s.cfg.State.Apply(ctx, put)
	if errors.Is(err, state.ErrState) {
		return api.RequestedBuild{}, api.Errorf(http.StatusTooManyRequests, api.CodeCapacity, "%s", err)
	}
	if err != nil {
		return api.RequestedBuild{}, fmt.Errorf("record the build: %w", err)
	}
	b := res.Build
	return api.RequestedBuild{
		TemplateID: b.TemplateID, BuildID: b.ID, Public: b.Public, Names: []string{b.Name}, Aliases: []string{b.Name}, Tags: b.Tags,
	}, nil
}

func (s *Service) check(caller auth.Identity, req api.BuildRequest) (*state.BuildPut, error) {
	name := req.Name
	if name == "" {
		name = req.Alias
	}
	base, tag := template.Split(name)
	if !nameForm.MatchString(base) {
		return nil, invalid("name %.140q is not 1 to 128 of [a-z0-9_-], beginning with a letter or digit", base)
	}
	now := s.cfg.Now().UTC()
	b := state.Build{
		ID: template.NewBuildID(), TemplateID: template.NewID(), Tenant: caller.Tenant, Name: base, Tags: slices.Clone(req.Tags),
		Status: state.BuildWaiting, CreatedAt: now, CreatedBy: caller.Name,
	}
	if tag != "" && !slices.Contains(b.Tags, tag) {
		b.Tags = append(b.Tags, tag)
	}
	if len(b.Tags) == 0 {
		b.Tags = []string{"default"}
	}
	if len(b.Tags) > 100 {
		return nil, invalid("tags has %d elements, at most 100 are allowed", len(b.Tags))
	}
	for _, t := range b.Tags {
		if err := template.CheckTag(t); err != nil {
			return nil, err
		}
	}
	if n := req.CPUCount; n != nil {
		if *n < 1 || *n > 4096 {
			return nil, invalid("cpuCount is %d, 1 to 4096 are allowed", *n)
		}
		b.CPUMillis = *n * 1000
	}
	if n := req.MemoryMB; n != nil {
		if *n < 128 || *n > 64<<20 {
			return nil, invalid("memoryMB is %d, %d to %d are allowed", *n, 128, 64<<20)
		}
		b.MemoryMB = *n
	}
	put := &state.BuildPut{Fresh: true, WaitingBefore: now.Add(-maxTime), EndedBefore: now.Add(-forgetTime)}
	old, err := s.cfg.Templates.Find(caller.Tenant, base)
	switch {
	case err == nil:
		b.TemplateID, b.Public, put.Fresh = template.ID(old), old.Public, false
	case !api.IsNotFound(err):
		return nil, err
	}
	put.Build = b
	return put, nil
}

// find returns a build of a tenant's template.
func (s *Service) find(tenant, templateID, id string) (state.Build, error) {
	b, err := s.cfg.State.Build(id)
	if err != nil && !errors.Is(err, state.ErrNotFound) {
		return state.Build{}, err
	}
	if err != nil || b.Tenant != tenant || b.TemplateID != templateID && b.Name != templateID {
		return state.Build{}, api.Errorf(http.StatusNotFound, api.CodeNotFound, "template %.80q has no build %.80q", templateID, id)
	}
	return b, nil
}

// Builds returns a template's builds, the newest first, by its id or name.
func (s *Service) Builds(tenant, templateID string) ([]state.Build, error) {
	all, err := s.cfg.State.Builds(tenant)
	return slices.DeleteFunc(all, func(b state.Build) bool { return b.TemplateID != templateID && b.Name != templateID }), err
}

// Start begins a build with its instructions: POST /v2/templates/{tid}/builds/{bid}.
func (s *Service) Start(ctx context.Context, caller auth.Identity, templateID, id string, in api.BuildInstructions) error {
	record, err := s.find(caller.Tenant, templateID, id)
	if err == nil {
		err = checkInstructions(in)
	}
	if err != nil {
		return err
	}
	res, err := s.cfg.State.Apply(ctx, &state.BuildStart{ID: record.ID, Creator: s.run, At: s.cfg.Now().UTC()})
	if errors.Is(err, state.ErrState) {
		return api.Errorf(http.StatusConflict, api.CodeConflict, "build %s was started before", id)
	}
	if err != nil {
		return fmt.Errorf("start the build: %w", err)
	}
	b := &build{Build: res.Build, caller: caller, s: s}
	b.ctx, b.stop = context.WithCancelCause(s.ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.here[b.ID] = b
	s.wg.Go(func() { s.do(b, in) })
	return nil
}

// Cancel ends all builds of a tenant that have not ended, and returns how many it did and did not.
func (s *Service) Cancel(ctx context.Context, tenant string) (cancelled, failed int, err error) {
	all, err := s.cfg.State.Builds(tenant)
	if err != nil {
		return 0, 0, err
	}
	for _, b := range all {
		if b.Status.Ended() {
			continue
		}
		now := s.cfg.Now().UTC()
		_, err := s.cfg.State.Apply(ctx, &state.BuildEnd{
			ID: b.ID, Status: state.BuildError, Reason: errCancelled.Error(), At: now,
			Entries: []state.BuildLogEntry{{At: now, Level: "error", Message: errCancelled.Error()}},
		})
		if err != nil {
			s.cfg.Logger.Warn("build not cancelled", "build", b.ID, "error", err)
			failed++
			continue
		}
		cancelled++
		s.mu.Lock()
		if own := s.here[b.ID]; own != nil {
			own.stop(errCancelled)
		}
		s.mu.Unlock()
	}
	return cancelled, failed, nil
}

var errCancelled = errors.New("the build was cancelled")

// Status tells how a build goes, with the entries of its log from offset on.
func (s *Service) Status(tenant, templateID, id string, offset, limit int, level string) (api.TemplateBuildInfo, error) {
	b, err := s.find(tenant, templateID, id)
	if err != nil {
		return api.TemplateBuildInfo{}, err
	}
	log, err := s.cfg.State.BuildLog(b.ID)
	if err != nil {
		return api.TemplateBuildInfo{}, err
	}
	out := api.TemplateBuildInfo{
		TemplateID: b.TemplateID, BuildID: b.ID, Status: string(b.Status), Logs: []string{}, LogEntries: []api.BuildLogEntry{},
	}
	if b.Status == state.BuildError {
		out.Reason = &api.BuildReason{Message: b.Reason, Step: b.Step, LogEntries: []api.BuildLogEntry{}}
	}
	seen := 0
	for _, e := range log {
		if weight(e.Level) < weight(level) {
			continue
		}
		if seen++; seen > offset && len(out.LogEntries) < limit {
			out.LogEntries = append(out.LogEntries, api.BuildLogEntry{Timestamp: e.At, Level: e.Level, Message: e.Message, Step: e.Step})
		}
	}
	return out, nil
}

func weight(level string) int { return slices.Index([]string{"debug", "info", "warn", "error"}, level) }

func invalid(format string, args ...any) error {
	return api.Errorf(http.StatusBadRequest, api.CodeInvalid, format, args...)
}
