package cli

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/transfer"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

const (
	testKey = "sb_0123456789abcdef_secret"
	boxOne  = api.SandboxID("iaaaaaaaaaaaaaaaaaaaa")
	boxTwo  = api.SandboxID("ibbbbbbbbbbbbbbbbbbbb")
	boxOld  = api.SandboxID("icccccccccccccccccccc")
)

// fake is a control service that answers from memory. The files of its sandboxes are those of one folder.
type fake struct {
	*httptest.Server
	t    *testing.T
	root string

	mu        sync.Mutex
	boxes     map[api.SandboxID]api.Sandbox
	templates []api.Template
	created   []api.NewSandbox
	limits    []api.LimitsRequest
	execs     []started
	uploads   map[string][]byte // of templates
	logs      string
	sizes     []frame.Size
	signals   []int

	started    []api.TerminalRequest
	attached   []string // the queries of attachments to terminals
	entries    []api.LogEntry
	logQueries []url.Values
	links      []api.LinkRequest
	secrets    []keptSecret
}

// started is what a process was started with.
type started struct {
	Argv            []string
	Env             map[string]string
	Cwd, User, Kill string
	Stdin           bool
}

func newFake(t *testing.T) *fake {
	f := &fake{t: t, root: t.TempDir(), uploads: map[string][]byte{}, boxes: map[api.SandboxID]api.Sandbox{}}
	made := time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)
	f.boxes[boxOne] = api.Sandbox{ID: boxOne, Template: "base", State: "running", CPUMillis: 1500, MemoryMB: 512, CreatedAt: made}
	f.boxes[boxTwo] = api.Sandbox{
		ID: boxTwo, Template: "python", State: "running", CPUMillis: 1000, MemoryMB: 256, CreatedAt: made.Add(time.Hour),
		Metadata: map[string]string{"project": "x\x1b[31m"},
	}
	f.boxes[boxOld] = api.Sandbox{
		ID: boxOld, Template: "base", State: "stopped", Reason: "deadline", CreatedAt: made.Add(-time.Hour), EndedAt: made,
		Exit: &api.SandboxExit{Reason: "main_exited", Code: 137, Signal: 9, OOM: true},
	}
	f.templates = []api.Template{{Name: "base", Digest: "sha256:" + strings.Repeat("ab", 32), Files: 9913, Bytes: 342023680, Source: "base.tar"}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/version", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, api.VersionInfo{Version: "0.1.0", Commit: "abc", APIVersion: 1, MinAPIVersion: 1, MinClient: "0.1.0-dev"})
	})
	mux.HandleFunc("POST /v2/sandboxes", f.create)
	mux.HandleFunc("GET /v2/sandboxes", f.list)
	mux.HandleFunc("GET /sandboxes/{id}", f.box(func(w http.ResponseWriter, _ *http.Request, s api.Sandbox) {
		reply(w, 200, api.SandboxDetail{ListedSandbox: api.ListedSandbox{SandboxID: s.ID, SoulBox: &s}})
	}))
	mux.HandleFunc("PUT /v1/sandboxes/{id}/limits", f.box(func(w http.ResponseWriter, r *http.Request, s api.Sandbox) {
		var req api.LimitsRequest
		must.NoError(f.t, json.NewDecoder(r.Body).Decode(&req))
		f.mu.Lock()
		defer f.mu.Unlock()
		f.limits = append(f.limits, req)
		if req.MemoryMB != nil {
			s.MemoryMB = *req.MemoryMB
		}
		reply(w, 200, s)
	}))
	mux.HandleFunc("DELETE /sandboxes/{id}", f.box(func(w http.ResponseWriter, _ *http.Request, s api.Sandbox) {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.boxes, s.ID)
		w.WriteHeader(204)
	}))
	mux.HandleFunc("GET /v1/sandboxes/{id}/stats", f.box(func(w http.ResponseWriter, _ *http.Request, _ api.Sandbox) {
		reply(w, 200, api.Stats{CPUNanos: 54_000_000, MemoryBytes: 3 << 20, Measured: []string{"cpu_nanos", "memory_bytes"}})
	}))
	mux.HandleFunc("GET /v1/sandboxes/{id}/health", f.box(func(w http.ResponseWriter, _ *http.Request, s api.Sandbox) {
		reply(w, 200, api.SandboxHealth{Status: api.HealthOK, SandboxID: s.ID})
	}))
	mux.HandleFunc("GET /v1/sandboxes/{id}/logs", f.box(f.getLogs))
	mux.HandleFunc("GET /v1/sandboxes/{id}/log", f.box(f.getLog))
	mux.HandleFunc("GET /v1/sandboxes/{id}/log/stream", f.box(f.followLog))
	f.terminals(mux)
	f.serveSecrets(mux)
	mux.HandleFunc("POST /v1/sandboxes/{id}/links", f.box(func(w http.ResponseWriter, r *http.Request, _ api.Sandbox) {
		var req api.LinkRequest
		_ = json.NewDecoder(r.Body).Decode(&req)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.links = append(f.links, req)
		reply(w, 201, api.Link{URL: "http://x/files?signature=v2.1.s", KeyVersion: 1})
	}))
	f.envd(mux)
	mux.HandleFunc("GET /v1/sandboxes/{id}/archive", f.box(f.readArchive))
	mux.HandleFunc("PUT /v1/sandboxes/{id}/archive", f.box(f.writeArchive))
	mux.HandleFunc("GET /v1/templates", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, f.templates) })
	mux.HandleFunc("PUT /v1/templates/{name}", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.uploads[r.PathValue("name")+" from "+r.URL.Query().Get("source")] = b
		reply(w, 201, api.Template{Name: r.PathValue("name"), Digest: "sha256:11", Files: 3, Bytes: 2048})
	})
	mux.HandleFunc("DELETE /v1/templates/{name}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("name") != "base" {
			refuse(w, 404, api.CodeUnknownTemplate, "template \"%s\" does not exist", r.PathValue("name"))
			return
		}
		w.WriteHeader(204)
	})
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-API-Key") != testKey && r.URL.Path != "/v1/version" {
			refuse(w, 401, api.CodeUnauthorized, "the API key is not valid")
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, status int, code, format string, args ...any) {
	reply(w, status, api.Errorf(status, code, format, args...))
}

func (f *fake) box(h func(http.ResponseWriter, *http.Request, api.Sandbox)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		s, ok := f.boxes[api.SandboxID(r.PathValue("id"))]
		f.mu.Unlock()
		if !ok {
			refuse(w, 404, api.CodeNotFound, "sandbox %s does not exist", r.PathValue("id"))
			return
		}
		h(w, r, s)
	}
}

func (f *fake) create(w http.ResponseWriter, r *http.Request) {
	var req api.NewSandbox
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		refuse(w, 400, api.CodeInvalid, "%v", err)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.created = append(f.created, req)
	if req.TemplateID == "nosuch" {
		refuse(w, 404, api.CodeUnknownTemplate, "template \"nosuch\" does not exist")
		return
	}
	s := api.Sandbox{ID: boxOne, Template: req.TemplateID, State: "running", CPUMillis: 1000, MemoryMB: 512, Metadata: req.Metadata}
	reply(w, 201, api.SandboxAccess{SandboxID: boxOne, SoulBox: &api.Created{
		Sandbox: s, Steps: []api.Step{{Name: "place", Nanos: 7 * time.Millisecond}, {Name: "commit", Nanos: 300 * time.Microsecond}},
	}})
}

// list gives one sandbox a page, so that paging is seen.
func (f *fake) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []api.Sandbox
	for _, s := range f.boxes {
		if st := q.Get("state"); st == "" && s.State == "stopped" || st != "" && !slices.Contains(strings.Split(st, ","), s.State) {
			continue
		}
		if t := q.Get("template"); t != "" && t != s.Template {
			continue
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b api.Sandbox) int { return strings.Compare(string(a.ID), string(b.ID)) })
	at, _ := strconv.Atoi(q.Get("nextToken"))
	list := []api.ListedSandbox{}
	if at < len(out) {
		list = append(list, api.ListedSandbox{SandboxID: out[at].ID, SoulBox: &out[at]})
	}
	if at+1 < len(out) {
		w.Header().Set("X-Next-Token", strconv.Itoa(at+1))
	}
	w.Header().Set("X-Total-Running", strconv.Itoa(len(out)))
	reply(w, 200, list)
}

func (f *fake) getLogs(w http.ResponseWriter, r *http.Request, _ api.Sandbox) {
	q := r.URL.Query()
	data := f.logs
	if q.Get("stream") == "stderr" {
		data = "an error\n"
	}
	offset, _ := strconv.Atoi(q.Get("offset"))
	w.Header().Set(api.OffsetHeader, strconv.Itoa(offset))
	_, _ = io.WriteString(w, data[min(offset, len(data)):])
	if q.Get("follow") == "true" {
		_ = http.NewResponseController(w).Flush()
		_, _ = io.WriteString(w, "more\n")
	}
}

func (f *fake) readArchive(w http.ResponseWriter, r *http.Request, _ api.Sandbox) {
	p := f.path(r)
	var buf bytes.Buffer
	_, err := transfer.Pack(r.Context(), filepath.Join(f.root, p), &buf)
	must.NoError(f.t, err)
	tr, tw := tar.NewReader(&buf), tar.NewWriter(w)
	for {
		h, err := tr.Next()
		if err != nil {
			break
		}
		h.Name = filepath.Base(p) + "/" + strings.TrimPrefix(strings.TrimPrefix(h.Name, "."), "/")
		must.NoError(f.t, tw.WriteHeader(h))
		_, err = io.Copy(tw, tr)
		must.NoError(f.t, err)
	}
	_ = tw.WriteHeader(&tar.Header{Name: "out/../../evil", Typeflag: tar.TypeReg, Mode: 0o644})
	_ = tw.Close()
}

func (f *fake) writeArchive(w http.ResponseWriter, r *http.Request, _ api.Sandbox) {
	p := filepath.Join(f.root, f.path(r))
	must.NoError(f.t, os.MkdirAll(p, 0o755))
	if _, err := transfer.Unpack(r.Context(), p, r.Body, 0); err != nil {
		refuse(w, 400, api.CodeInvalid, "%v", err)
		return
	}
	w.WriteHeader(204)
}

// signalled returns the signals that came so far.
func (f *fake) signalled() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.signals)
}

// call is one call of the program.
type call struct {
	*fake
	env    map[string]string
	stdin  string
	dir    string
	stdout string
	stderr string
}

func (f *fake) call(t *testing.T) *call {
	return &call{fake: f, dir: t.TempDir(), env: map[string]string{"SOULBOX_ADDR": f.URL, "SOULBOX_API_KEY": testKey, "HOME": t.TempDir()}}
}

// run runs the program and returns its exit code.
func (c *call) run(t *testing.T, args ...string) int {
	t.Helper()
	r, w, err := os.Pipe()
	must.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.WriteString(w, c.stdin) // not all programs read it
		_ = w.Close()
	})
	var stdout, stderr bytes.Buffer
	env := maps.Clone(c.env)
	code := Run(&Env{Stdin: r, Stdout: &stdout, Stderr: &stderr, Getenv: func(k string) string { return env[k] }, Dir: c.dir}, args)
	_ = r.Close()
	wg.Wait()
	c.stdout, c.stderr = stdout.String(), stderr.String()
	return code
}
