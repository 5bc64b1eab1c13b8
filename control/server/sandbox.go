package server

import (
	"cmp"
	"math"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// Limits of a create's numbers that hold whatever the service is configured to; its own are lower.
const (
	maxCores    = 4096
	maxMemoryMB = 64 << 20 // 64 TiB
	maxDiskMB   = 1 << 30  // 1 PiB
	maxPIDs     = 4 << 20  // what the kernel can number
)

// create is POST /v1/sandboxes.
func (s *Server) create(w http.ResponseWriter, r *http.Request) error {
	var req api.CreateRequest
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	p, err := createParams(req)
	if err != nil {
		return err
	}
	p.Caller = caller(r)
	sb, steps, err := s.cfg.Lifecycle.Create(r.Context(), p)
	if err != nil {
		return err
	}
	out := api.Created{Sandbox: sandboxView(sb), Steps: make([]api.Step, 0, len(steps))}
	for _, st := range steps {
		out.Steps = append(out.Steps, api.Step{Name: st.Name, Nanos: time.Duration(st.Nanos)})
	}
	w.Header().Set("Location", "/v1/sandboxes/"+string(sb.ID))
	writeJSON(w, http.StatusCreated, out)
	return nil
}

// createParams checks a create and translates it.
func createParams(req api.CreateRequest) (p lifecycle.CreateParams, err error) {
	if req.ID != "" {
		id, err := api.ParseSandboxID(string(req.ID))
		if err != nil || id != req.ID {
			return p, invalid("id %.40q is not \"i\" and 20 characters of [a-z0-9]", req.ID)
		}
	}
	if req.Template == "" {
		return p, invalid("template is missing")
	}
	p = lifecycle.CreateParams{
		ID: req.ID, Template: req.Template, Metadata: req.Metadata, EnvVars: req.Env,
		Hostname: req.Hostname, User: req.User, Cwd: req.Cwd, Profile: req.Profile, QoS: req.QoS,
		Lifecycle:           state.Lifecycle{OnTimeout: state.OnTimeoutKill},
		AllowInternetAccess: req.AllowInternetAccess,
	}
	if req.Timeout != nil { // else the service's own default
		if p.Timeout, err = e2bSeconds("timeout", req.Timeout, 0, 1, math.MaxInt32); err != nil {
			return p, err
		}
	}
	if p.CPUMillis, err = cpuMillis(req.CPU, req.CPUMillis); err != nil {
		return p, err
	}
	for _, n := range []struct {
		field string
		from  *int64
		to    *int64
		high  int64
	}{
		{"memory_mb", req.MemoryMB, &p.MemoryMB, maxMemoryMB},
		{"disk_mb", req.DiskMB, &p.DiskMB, maxDiskMB},
	} {
		if n.from == nil {
			continue
		}
		if *n.from < 1 || *n.from > n.high {
			return p, invalid("%s is %d, 1 to %d are allowed", n.field, *n.from, n.high)
		}
		*n.to = *n.from
	}
	if p.Limits, err = storageLimits(req.PIDs, req.DiskMB, req.StorageLimits, false); err != nil {
		return p, err
	}
	for _, t := range []struct {
		field, value string
		limit        int
	}{
		{"hostname", req.Hostname, 64}, {"user", req.User, maxUserBytes}, {"cwd", req.Cwd, maxPathBytes}, {"profile", req.Profile, 32},
		{"qos", req.QoS, 32},
	} {
		if err := checkText(t.field, t.value, t.limit); err != nil {
			return p, err
		}
	}
	if req.TTY && len(req.Command) == 0 {
		return p, invalid("tty goes with a command")
	}
	if req.Command != nil {
		if err := checkArgv("command", req.Command); err != nil {
			return p, err
		}
		p.Main = &guest.Start{Argv: req.Command, TTY: req.TTY}
	}
	return p, nil
}

// cpuMillis returns the thousandths of a core that a request asks for; 0 where it does not.
func cpuMillis(cores *float64, millis *int64) (int64, error) {
	switch {
	case cores != nil && millis != nil:
		return 0, invalid("cpu and cpu_millis are both given")
	case cores != nil:
		c := *cores
		if math.IsNaN(c) || c < 0.001 || c > maxCores {
			return 0, invalid("cpu is %g cores, 0.001 to %d are allowed", c, maxCores)
		}
		return int64(math.Round(c * 1000)), nil
	case millis != nil:
		if *millis < 1 || *millis > maxCores*1000 {
			return 0, invalid("cpu_millis is %d, 1 to %d are allowed", *millis, maxCores*1000)
		}
		return *millis, nil
	}
	return 0, nil
}

// checkText checks a short text.
func checkText(field, v string, limit int) error {
	if len(v) > limit {
		return invalid("%s is %d bytes, at most %d are allowed", field, len(v), limit)
	}
	if !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return invalid("%s has control characters", field)
	}
	return nil
}

// checkArgv checks a command and its arguments.
func checkArgv(field string, argv []string) error {
	if len(argv) == 0 || argv[0] == "" {
		return invalid("%s names no program", field)
	}
	if len(argv) > guest.MaxArgs {
		return invalid("%s has %d elements, at most %d are allowed", field, len(argv), guest.MaxArgs)
	}
	n := 0
	for i, a := range argv {
		if strings.ContainsRune(a, 0) {
			return invalid("%s: element %d has a NUL byte", field, i)
		}
		n += len(a) + 1
	}
	if n > guest.MaxArgBytes {
		return invalid("%s is %d bytes, at most %d are allowed", field, n, guest.MaxArgBytes)
	}
	return nil
}

// list is GET /v1/sandboxes.
func (s *Server) list(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	f := state.Filter{
		Tenant: tenant(r),
		States: q.states("state", state.Starting, state.Running, state.Paused, state.Stopping, state.Stopped,
			state.Failed, state.Lost),
		Template: q.str("template", state.MaxTemplateName), StartedAfter: q.time("started_after"),
	}
	order := q.order("order")
	p := state.Page{
		Limit: int(q.integer("limit", state.DefaultPage, 1, state.MaxPage)),
		Token: q.str("next_token", maxTokenBytes),
	}
	// Each parameter is one or more pairs, encoded as a query string of its own.
	f.Metadata, err = metadataFilter(strings.Join(q.values["metadata"], "&"))
	if err != nil || q.err != nil {
		return firstOf(q.err, err)
	}
	l, err := s.cfg.Lifecycle.List(r.Context(), f, order, p)
	if err != nil {
		return err
	}
	out := api.SandboxList{Sandboxes: make([]api.Sandbox, 0, len(l.Sandboxes)), NextToken: l.NextToken, TotalRunning: l.TotalRunning}
	for _, sb := range l.Sandboxes {
		out.Sandboxes = append(out.Sandboxes, sandboxView(sb))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// get is GET /v1/sandboxes/{id}.
func (s *Server) get(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	sb, err := s.cfg.Lifecycle.Get(r.Context(), tenant(r), id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, sandboxView(sb))
	return nil
}

// delete is DELETE /v1/sandboxes/{id}.
func (s *Server) delete(w http.ResponseWriter, r *http.Request) error { return s.e2bDelete(w, r) }

// sandboxView is a sandbox as /v1 shows it. Its environment is not in it: people put secrets there.
func sandboxView(sb state.Sandbox) api.Sandbox {
	out := api.Sandbox{
		ID: sb.ID, Template: sb.Template, Digest: sb.Digest, Node: sb.Node, State: string(sb.State), Reason: redact(sb.Reason),
		CreatedAt: sb.CreatedAt.UTC(), StartedAt: utc(sb.StartedAt), EndAt: utc(sb.EndAt), MaxEndAt: utc(sb.MaxEndAt), EndedAt: utc(sb.EndedAt),
		CPUMillis: sb.CPUMillis, MemoryMB: sb.MemoryMB, DiskMB: sb.Limits.DiskBytes >> 20,
		QoS: cmp.Or(sb.QoS, api.QoSBurstable), PIDs: sb.Limits.PIDs, DiskInodes: sb.Limits.DiskInodes,
		IOReadBytes: sb.Limits.IOReadBytes, IOWriteBytes: sb.Limits.IOWriteBytes, IOReadOps: sb.Limits.IOReadOps, IOWriteOps: sb.Limits.IOWriteOps,
		Metadata: sb.Metadata, KeyID: sb.KeyID, OnTimeout: string(sb.Lifecycle.OnTimeout), AutoResume: sb.Lifecycle.AutoResume,
		AllowInternetAccess: sb.AllowInternetAccess,
	}
	if out.OnTimeout == "" {
		out.OnTimeout = string(state.OnTimeoutKill)
	}
	if x := sb.Exit; x != nil {
		out.Exit = &api.SandboxExit{Reason: x.Reason, Code: x.Code, Signal: x.Signal, OOM: x.OOM, PIDs: x.PIDs, Message: x.Message}
	}
	return out
}

// utc keeps the zero time, which JSON leaves out.
func utc(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC()
}
