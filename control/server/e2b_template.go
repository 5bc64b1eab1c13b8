package server

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/control/template"
)

// Every template that exists is a build that is ready.
const buildReady = api.BuildReady

// e2bTemplates is GET /templates: all of the caller's at once.
func (s *Server) e2bTemplates(w http.ResponseWriter, r *http.Request) error {
	list, err := s.e2bTemplateList(r)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

// e2bTemplatesV2 is GET /v2/templates: a page of them.
func (s *Server) e2bTemplatesV2(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	limit := int(q.integer("limit", maxE2BLimit, 1, maxE2BLimit))
	after := q.str("nextToken", maxTokenBytes)
	if q.err != nil {
		return q.err
	}
	list, err := s.e2bTemplateList(r)
	if err != nil {
		return err
	}
	if after != "" { // the template that the page before ended with; the list is in the order of names
		i, _ := slices.BinarySearchFunc(list, after, func(t api.E2BTemplate, name string) int { return strings.Compare(t.Names[0], name+"\x00") })
		list = list[i:]
	}
	if len(list) > limit {
		list = list[:limit]
		w.Header().Set("X-Next-Token", list[limit-1].Names[0])
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

func (s *Server) e2bTemplateList(r *http.Request) ([]api.E2BTemplate, error) {
	if err := s.needTemplates(); err != nil {
		return nil, err
	}
	all, err := s.listTemplates(r)
	if err != nil {
		return nil, err
	}
	spawned, err := s.spawns(tenant(r))
	if err != nil {
		return nil, err
	}
	out := make([]api.E2BTemplate, 0, len(all))
	for _, t := range all {
		if _, tag := template.Split(t.Name); tag == "" { // the others are its tags
			out = append(out, e2bTemplateView(t, spawned[t.Digest]))
		}
	}
	return out, nil
}

// spawn is how often, and when at last, sandboxes were made of a template, as far as they are kept.
type spawn struct {
	count int64
	last  time.Time
}

func (s *Server) spawns(tenant string) (map[string]spawn, error) {
	out := map[string]spawn{}
	if s.cfg.Watcher == nil {
		return out, nil
	}
	kept, _, _, err := s.cfg.Watcher.Watch(tenant)
	for _, sb := range kept {
		n := out[sb.Digest]
		n.count++
		if sb.CreatedAt.After(n.last) {
			n.last = sb.CreatedAt
		}
		out[sb.Digest] = n
	}
	return out, err
}

func e2bTemplateView(t state.Template, n spawn) api.E2BTemplate {
	v := api.E2BTemplate{
		TemplateID: template.ID(t), BuildID: template.BuildID(t), CPUCount: defaultCPUs, MemoryMB: defaultMemoryMB, Public: t.Public,
		DiskSizeMB: max(1, t.Bytes>>20), Names: []string{t.Name}, Aliases: []string{t.Name},
		CreatedAt: t.CreatedAt.UTC(), UpdatedAt: t.CreatedAt.UTC(),
		SpawnCount: n.count, BuildCount: 1, EnvdVersion: envdVersion, BuildStatus: buildReady,
	}
	if !t.UpdatedAt.IsZero() {
		v.UpdatedAt = t.UpdatedAt.UTC()
	}
	if t.CPUMillis > 0 {
		v.CPUCount = int((t.CPUMillis + 999) / 1000)
	}
	if t.MemoryMB > 0 {
		v.MemoryMB = t.MemoryMB
	}
	if t.SpawnCount > 0 { // of one that has a record; of another, what is kept of its sandboxes
		v.SpawnCount, n.last = t.SpawnCount, t.SpawnedAt
	}
	if !n.last.IsZero() {
		last := n.last.UTC()
		v.LastSpawnedAt = &last
	}
	return v
}

// What a sandbox gets where nobody says otherwise; the contract shows it as a property of the template.
const (
	defaultCPUs     = 1
	defaultMemoryMB = 512
)

// e2bTemplateOf finds the template that a path names: by its id, its name, or its name with the caller's namespace or tag.
func (s *Server) e2bTemplateOf(ctx context.Context, tenant, name string) (state.Template, error) {
	if err := firstOf(s.needTemplates(), checkText("template", name, state.MaxTemplateName)); err != nil {
		return state.Template{}, err
	}
	return s.cfg.Templates.Get(ctx, tenant, name)
}

// e2bTemplate is GET /templates/{tid}.
func (s *Server) e2bTemplate(w http.ResponseWriter, r *http.Request) error {
	t, err := s.e2bTemplateOf(r.Context(), tenant(r), r.PathValue("tid"))
	if err != nil {
		return err
	}
	spawned, err := s.spawns(tenant(r))
	if err != nil {
		return err
	}
	v := e2bTemplateView(t, spawned[t.Digest])
	finished := v.UpdatedAt
	builds := []api.TemplateBuild{{
		BuildID: v.BuildID, Status: buildReady, CreatedAt: v.UpdatedAt, UpdatedAt: v.UpdatedAt, FinishedAt: &finished,
		CPUCount: v.CPUCount, MemoryMB: v.MemoryMB, DiskSizeMB: v.DiskSizeMB, EnvdVersion: envdVersion,
	}}
	if s.cfg.Builds != nil && t.Tenant == tenant(r) {
		remembered, err := s.cfg.Builds.Builds(t.Tenant, v.TemplateID)
		if err != nil {
			return err
		}
		builds = append(buildViews(remembered, v, builds[0]), builds...)
	}
	writeJSON(w, http.StatusOK, api.TemplateWithBuilds{
		TemplateID: v.TemplateID, Public: v.Public, Aliases: v.Aliases, Names: v.Names, CreatedAt: v.CreatedAt, UpdatedAt: v.UpdatedAt,
		LastSpawnedAt: v.LastSpawnedAt, SpawnCount: v.SpawnCount,
		Builds: builds,
	})
	return nil
}

// buildViews shows the builds of a template but the current one.
func buildViews(all []state.Build, t api.E2BTemplate, current api.TemplateBuild) []api.TemplateBuild {
	var out []api.TemplateBuild
	for _, b := range all {
		if b.ID == current.BuildID {
			continue
		}
		v := api.TemplateBuild{
			BuildID: b.ID, Status: string(b.Status), CreatedAt: b.CreatedAt.UTC(), UpdatedAt: b.CreatedAt.UTC(),
			CPUCount: t.CPUCount, MemoryMB: t.MemoryMB, EnvdVersion: envdVersion,
		}
		if b.CPUMillis > 0 {
			v.CPUCount = int((b.CPUMillis + 999) / 1000)
		}
		if b.MemoryMB > 0 {
			v.MemoryMB = b.MemoryMB
		}
		if !b.StartedAt.IsZero() {
			v.UpdatedAt = b.StartedAt.UTC()
		}
		if b.Status.Ended() {
			at := b.EndedAt.UTC()
			v.UpdatedAt, v.FinishedAt = at, &at
		}
		out = append(out, v)
	}
	return out
}

// e2bDeleteTemplate is DELETE /templates/{tid}: of a template, or of a snapshot, which the contract takes for one.
func (s *Server) e2bDeleteTemplate(w http.ResponseWriter, r *http.Request) error {
	ref := r.PathValue("tid")
	if id, err := api.ParseSnapshotID(strings.TrimSuffix(ref, ":"+defaultTag)); err == nil {
		return noContent(w, s.cfg.Lifecycle.DeleteSnapshot(r.Context(), tenant(r), string(id), false))
	}
	t, err := s.e2bTemplateOf(r.Context(), tenant(r), ref)
	if api.IsNotFound(err) { // perhaps a snapshot's name
		if sn, snErr := s.cfg.Lifecycle.Snapshot(r.Context(), tenant(r), ref); snErr == nil {
			return noContent(w, s.cfg.Lifecycle.DeleteSnapshot(r.Context(), tenant(r), string(sn.ID), false))
		}
	}
	if err != nil {
		return err
	}
	return noContent(w, s.cfg.Templates.Delete(r.Context(), tenant(r), t.Name))
}

// e2bTemplatePart is GET /templates/aliases/{alias} and GET /templates/{tid}/tags, between which a pattern cannot choose.
func (s *Server) e2bTemplatePart(w http.ResponseWriter, r *http.Request) error {
	tid, what := r.PathValue("tid"), r.PathValue("what")
	name := tid
	switch {
	case tid == "aliases":
		name = what
	case what != "tags":
		return api.Errorf(http.StatusNotFound, codeNoRoute, "there is nothing at this path")
	}
	t, err := s.e2bTemplateOf(r.Context(), tenant(r), name)
	if err != nil {
		return err
	}
	if tid == "aliases" {
		writeJSON(w, http.StatusOK, api.TemplateAlias{TemplateID: template.ID(t), Public: t.Public})
		return nil
	}
	all, err := s.cfg.Templates.List(r.Context(), t.Tenant)
	if err != nil {
		return err
	}
	base, _ := template.Split(t.Name)
	out := []api.TemplateTag{}
	for _, one := range all {
		name, tag := template.Split(one.Name)
		if name != base {
			continue
		}
		if tag == "" {
			tag = defaultTag
		}
		at := one.UpdatedAt
		if at.IsZero() {
			at = one.CreatedAt
		}
		out = append(out, api.TemplateTag{Tag: tag, BuildID: template.BuildID(one), CreatedAt: at.UTC()})
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// templateAsBuild tells of a template as of a build: one that exists is ready.
func (s *Server) templateAsBuild(ctx context.Context, tenant, tid, bid string) (api.TemplateBuildInfo, error) {
	t, err := s.e2bTemplateOf(ctx, tenant, tid)
	if err != nil {
		return api.TemplateBuildInfo{}, err
	}
	if bid != template.BuildID(t) {
		return api.TemplateBuildInfo{}, api.Errorf(http.StatusNotFound, api.CodeNotFound, "template %s has no build %.80q", t.Name, bid)
	}
	return api.TemplateBuildInfo{
		TemplateID: template.ID(t), BuildID: bid, Status: buildReady, Logs: []string{}, LogEntries: []api.BuildLogEntry{},
	}, nil
}
