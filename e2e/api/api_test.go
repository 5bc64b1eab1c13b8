package api

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/shoenig/test/wait"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

func until(t *testing.T, f func() bool) {
	t.Helper()
	must.Wait(t, wait.InitialSuccess(wait.BoolFunc(f), wait.Timeout(20*time.Second), wait.Gap(10*time.Millisecond)))
}

func ptr[T any](v T) *T { return &v }

// sh runs a script in a sandbox and returns its stdout.
func (s *stack) sh(t *testing.T, id api.SandboxID, script string) string {
	t.Helper()
	var out, errs bytes.Buffer
	exit, err := s.client.Run(t.Context(), id, api.ExecRequest{Argv: []string{"bash", "-c", script}}, nil, &out, &errs)
	must.NoError(t, err)
	must.Eq(t, 0, exit.Code, must.Sprintf("%s\n%s", script, errs.String()))
	return out.String()
}

func TestTheWholeWay(t *testing.T) {
	s := newStack(t)
	c, ctx := s.client, t.Context()
	sb, err := c.CreateSandbox(ctx, api.CreateRequest{
		Template: "base", Timeout: ptr[int64](120), Env: map[string]string{"GREETING": "hello"}, Metadata: map[string]string{"a b": "c&d"},
		CreateOptions: api.CreateOptions{MemoryMB: ptr[int64](256), Hostname: "box"},
	})
	must.NoError(t, err)
	must.Eq(t, "running", sb.State)
	must.SliceNotEmpty(t, sb.Steps)
	for _, st := range sb.Steps {
		t.Logf("%-28s %s", st.Name, st.Nanos)
	}

	t.Run("exec", func(t *testing.T) {
		must.Eq(t, "hello box\n", s.sh(t, sb.ID, "echo $GREETING $(hostname)"))
		var out, errs bytes.Buffer
		exit, err := c.Run(ctx, sb.ID, api.ExecRequest{Argv: []string{"sh", "-c", "cat; echo err >&2; exit 7"}}, strings.NewReader("in"), &out, &errs)
		must.NoError(t, err)
		must.Eq(t, frame.ExitBody{Code: 7}, exit)
		must.Eq(t, "in", out.String())
		must.Eq(t, "err\n", errs.String())
		_, err = c.Exec(ctx, sb.ID, api.ExecRequest{Argv: []string{"/no/such/program"}})
		must.Eq(t, api.CodeCommand, api.AsError(err).ErrorCode, must.Sprint(err))
		_, err = c.Exec(ctx, sb.ID, api.ExecRequest{Argv: []string{"true"}, Cwd: "/no/such/folder"})
		must.Eq(t, api.CodeCwd, api.AsError(err).ErrorCode, must.Sprint(err))
	})
	t.Run("much output and much input", func(t *testing.T) {
		big := strings.Repeat("0123456789abcdef", 1<<17) // 2 MiB
		var out bytes.Buffer
		_, err := c.Run(ctx, sb.ID, api.ExecRequest{Argv: []string{"cat"}}, strings.NewReader(big), &out, nil)
		must.NoError(t, err)
		must.True(t, out.String() == big, must.Sprintf("%d of %d bytes came back", out.Len(), len(big)))
	})
	t.Run("terminal", func(t *testing.T) {
		st, err := c.Exec(ctx, sb.ID, api.ExecRequest{Argv: []string{"bash", "--norc"}, TTY: true, Stdin: true, Size: frame.Size{Cols: 40, Rows: 10}})
		must.NoError(t, err)
		defer st.Close()
		must.NoError(t, st.Resize(frame.Size{Cols: 91, Rows: 17}))
		_, err = io.WriteString(st, "shopt -s checkwinsize; (:); echo size $LINES $COLUMNS; exit 3\n")
		must.NoError(t, err)
		var out bytes.Buffer
		exit, err := st.Copy(&out, nil)
		must.NoError(t, err)
		must.Eq(t, 3, exit.Code)
		must.StrContains(t, out.String(), "size 17 91")
	})
	t.Run("signal", func(t *testing.T) {
		st, err := c.Exec(ctx, sb.ID, api.ExecRequest{Argv: []string{"sleep", "60"}})
		must.NoError(t, err)
		defer st.Close()
		must.NoError(t, c.Signal(ctx, sb.ID, st.PID, 15))
		exit, err := st.Copy(nil, nil)
		must.NoError(t, err)
		must.Eq(t, frame.ExitBody{Code: 143, Signal: 15}, exit)
	})
	t.Run("detached process, attach and list", func(t *testing.T) {
		pid, err := c.StartProcess(ctx, sb.ID, api.ExecRequest{Argv: []string{"sh", "-c", "echo one; read x; echo two"}, Stdin: true, Tag: "mine"})
		must.NoError(t, err)
		ps, err := c.Processes(ctx, sb.ID)
		must.NoError(t, err)
		i := slices.IndexFunc(ps, func(p api.Process) bool { return p.PID == pid })
		must.True(t, i >= 0 && ps[i].Tag == "mine", must.Sprint(ps))
		st, err := c.Attach(ctx, sb.ID, api.AttachRequest{PID: pid})
		must.NoError(t, err)
		defer st.Close()
		_, err = io.WriteString(st, "go on\n")
		must.NoError(t, err)
		var out bytes.Buffer
		_, err = st.Copy(&out, nil)
		must.NoError(t, err)
		must.Eq(t, "one\ntwo\n", out.String())
	})
	t.Run("a client that goes takes its process along", func(t *testing.T) {
		st, err := c.Exec(ctx, sb.ID, api.ExecRequest{Argv: []string{"sleep", "77"}, KillOnDetach: true})
		must.NoError(t, err)
		must.NoError(t, st.Close())
		until(t, func() bool {
			ps, err := c.Processes(ctx, sb.ID)
			must.NoError(t, err)
			return !slices.ContainsFunc(ps, func(p api.Process) bool { return p.PID == st.PID })
		})
	})
	t.Run("files", func(t *testing.T) {
		big := bytes.Repeat([]byte{1, 2, 3, 4}, 1<<20)
		must.NoError(t, c.WriteFile(ctx, sb.ID, "/tmp/a/b.bin", bytes.NewReader(big), api.FileOptions{Mode: 0o600}))
		st, err := c.Stat(ctx, sb.ID, "/tmp/a/b.bin", api.FileOptions{})
		must.NoError(t, err)
		must.Eq(t, int64(len(big)), st.Size)
		body, f, err := c.ReadFile(ctx, sb.ID, "/tmp/a/b.bin", api.FileOptions{})
		must.NoError(t, err)
		got, err := io.ReadAll(body)
		must.NoError(t, err)
		must.NoError(t, body.Close())
		must.True(t, bytes.Equal(big, got))
		must.Eq(t, api.File{Name: "b.bin", Path: "/tmp/a/b.bin", Type: "file", Size: int64(len(big)), Mode: 0o600, ModTime: st.ModTime.Truncate(time.Second)}, f)
		_, _, err = c.ReadFile(ctx, sb.ID, "/nowhere", api.FileOptions{})
		must.True(t, api.IsNotFound(err), must.Sprint(err))

		must.NoError(t, c.Rename(ctx, sb.ID, "/tmp/a/b.bin", "/tmp/a/c.bin", api.FileOptions{}))
		fs, err := c.ReadDir(ctx, sb.ID, "/tmp/a", api.FileOptions{})
		must.NoError(t, err)
		must.Len(t, 1, fs)
		must.Eq(t, "c.bin", fs[0].Name)

		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		must.NoError(t, tw.WriteHeader(&tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}))
		must.NoError(t, tw.WriteHeader(&tar.Header{Name: "d/hello", Typeflag: tar.TypeReg, Mode: 0o644, Size: 5}))
		_, _ = tw.Write([]byte("world"))
		must.NoError(t, tw.Close())
		must.NoError(t, c.WriteArchive(ctx, sb.ID, "/tmp/up", &b, api.FileOptions{}))
		must.Eq(t, "world", s.sh(t, sb.ID, "cat /tmp/up/d/hello"))
		r, err := c.ReadArchive(ctx, sb.ID, "/tmp/up", api.FileOptions{})
		must.NoError(t, err)
		defer r.Close()
		names := ""
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if err == io.EOF { //nolint:errorlint // as documented
				break
			}
			must.NoError(t, err)
			names += h.Name + " "
		}
		must.Eq(t, "up/ up/d/ up/d/hello ", names)
		must.NoError(t, c.Remove(ctx, sb.ID, "/tmp/up", api.FileOptions{}))
		_, err = c.Stat(ctx, sb.ID, "/tmp/up", api.FileOptions{})
		must.True(t, api.IsNotFound(err), must.Sprint(err))
	})
	t.Run("health and stats", func(t *testing.T) {
		h, err := c.SandboxHealth(ctx, sb.ID)
		must.NoError(t, err)
		must.True(t, h.OK(), must.Sprintf("%+v", h))
		must.Eq(t, sb.ID, h.SandboxID)
		must.NotEq(t, "", h.Version)
		st, err := c.Stats(ctx, sb.ID)
		must.NoError(t, err)
		must.SliceNotEmpty(t, st.Measured)
		ns, err := c.Nodes(ctx)
		must.NoError(t, err)
		must.Len(t, 1, ns)
		must.True(t, ns[0].Healthy, must.Sprint(ns[0].Reason))
		must.SliceNotEmpty(t, ns[0].Probes)
		must.Eq(t, version.Version, ns[0].Version)
	})
	t.Run("another key of another tenant", func(t *testing.T) {
		_, err := s.core.State.Apply(ctx, &state.TenantPut{Tenant: state.Tenant{ID: "other"}})
		must.NoError(t, err)
		secret, _, err := s.core.Auth.Create(ctx, "other", "other", "test")
		must.NoError(t, err)
		o, err := api.New(api.Config{Address: s.addr, APIKey: secret.Key()})
		must.NoError(t, err)
		defer o.Close()
		_, err = o.GetSandbox(ctx, sb.ID)
		must.True(t, api.IsNotFound(err), must.Sprint(err))
		_, err = o.Exec(ctx, sb.ID, api.ExecRequest{Argv: []string{"true"}})
		must.True(t, api.IsNotFound(err), must.Sprint(err))
		must.True(t, api.IsNotFound(o.DeleteSandbox(ctx, sb.ID)))
		l, err := o.ListSandboxes(ctx, api.ListOptions{})
		must.NoError(t, err)
		must.SliceEmpty(t, l.Sandboxes)
	})
	t.Run("list by metadata", func(t *testing.T) {
		l, err := c.ListSandboxes(ctx, api.ListOptions{Metadata: map[string]string{"a b": "c&d"}})
		must.NoError(t, err)
		must.Len(t, 1, l.Sandboxes)
		must.Eq(t, 1, l.TotalRunning)
		l, err = c.ListSandboxes(ctx, api.ListOptions{Metadata: map[string]string{"a b": "other"}})
		must.NoError(t, err)
		must.SliceEmpty(t, l.Sandboxes)
	})

	must.NoError(t, c.DeleteSandbox(ctx, sb.ID))
	got, err := c.GetSandbox(ctx, sb.ID)
	must.NoError(t, err)
	must.Eq(t, "stopped", got.State)
	h, err := c.SandboxHealth(ctx, sb.ID)
	must.NoError(t, err)
	must.False(t, h.OK())
}

// A template can be used as soon as its import has returned.
func TestImport_thenCreateAtOnce(t *testing.T) {
	s := newStack(t)
	var b bytes.Buffer
	tar := exec.Command("tar", "-C", sandboxtest.Lower(t), "--numeric-owner", "-cf", "-", ".")
	tar.Stdout = &b
	must.NoError(t, tar.Run())
	for i := range 10 {
		name := fmt.Sprintf("template-%d", i)
		_, err := s.client.ImportTemplate(t.Context(), name, bytes.NewReader(b.Bytes()), api.ImportOptions{})
		must.NoError(t, err)
		sb, err := s.client.CreateSandbox(t.Context(), api.CreateRequest{Template: name})
		must.NoError(t, err)
		must.NoError(t, s.client.DeleteSandbox(t.Context(), sb.ID))
		must.NoError(t, s.client.DeleteTemplate(t.Context(), name))
		_, err = s.client.CreateSandbox(t.Context(), api.CreateRequest{Template: name})
		must.True(t, api.IsNotFound(err), must.Sprint(err))
	}
}

type answer struct {
	status int
	header http.Header
	body   string
}

// do makes a request as an SDK does: with the key's E2B spelling and a chunked body.
func (s *stack) do(t *testing.T, method, path, body string) answer {
	t.Helper()
	var r io.Reader
	if body != "" {
		r = struct{ io.Reader }{strings.NewReader(body)}
	}
	req, err := http.NewRequestWithContext(t.Context(), method, s.addr+path, r)
	must.NoError(t, err)
	req.Header.Set("x-api-key", s.key)
	resp, err := http.DefaultClient.Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	return answer{resp.StatusCode, resp.Header, string(b)}
}

func TestTheContractsWay(t *testing.T) {
	s := newStack(t)
	var made [3]api.SandboxAccess
	for i := range made {
		a := s.do(t, "POST", "/v2/sandboxes", `{"templateID":"base","metadata":{"a b":"c&d"}}`)
		must.Eq(t, 201, a.status, must.Sprint(a.body))
		must.NoError(t, json.Unmarshal([]byte(a.body), &made[i]))
	}
	var page []api.ListedSandbox
	seen := map[api.SandboxID]bool{}
	token := ""
	for n := 0; ; n++ {
		must.Less(t, 3, n, must.Sprint("too many pages"))
		a := s.do(t, "GET", "/v2/sandboxes?limit=2&metadata=a%252520b%3Dc%252526d&nextToken="+token, "")
		must.Eq(t, 200, a.status, must.Sprint(a.body))
		must.Eq(t, "3", a.header.Get("X-Total-Running"))
		must.NoError(t, json.Unmarshal([]byte(a.body), &page))
		for _, sb := range page {
			seen[sb.SandboxID] = true
		}
		if token = a.header.Get("X-Next-Token"); token == "" {
			break
		}
	}
	must.MapLen(t, 3, seen)

	id := string(made[0].SandboxID)
	var before, after api.SandboxDetail
	must.NoError(t, json.Unmarshal([]byte(s.do(t, "GET", "/sandboxes/"+id, "").body), &before))
	must.Between(t, 4*time.Minute, before.EndAt.Sub(before.StartedAt), 6*time.Minute)
	must.Eq(t, 204, s.do(t, "POST", "/sandboxes/"+id+"/timeout", `{"timeout":3600}`).status)
	must.Eq(t, 200, s.do(t, "POST", "/v2/sandboxes/"+id+"/connect", ``).status)
	must.NoError(t, json.Unmarshal([]byte(s.do(t, "GET", "/sandboxes/"+id+"-oldclient", "").body), &after))
	must.Greater(t, 50*time.Minute, after.EndAt.Sub(before.StartedAt), must.Sprint("connect must not shorten"))
	must.Eq(t, 204, s.do(t, "POST", "/sandboxes/"+id+"/refreshes", `{"duration":60}`).status)
	must.Eq(t, 400, s.do(t, "POST", "/sandboxes/"+id+"/timeout", `{"timeout":999999999}`).status)

	must.Eq(t, 204, s.do(t, "DELETE", "/sandboxes/"+id, "").status)
	must.Eq(t, 404, s.do(t, "DELETE", "/sandboxes/"+id, "").status)
	must.Eq(t, 404, s.do(t, "GET", "/sandboxes/"+id, "").status)
	must.Eq(t, 404, s.do(t, "POST", "/sandboxes", `{"templateID":"nothing-like-it"}`).status)
	must.Eq(t, 400, s.do(t, "POST", "/sandboxes", `{"templateID":"base","timeout":999999999}`).status)

	t.Run("the deadline ends it", func(t *testing.T) {
		id := string(made[1].SandboxID)
		a := s.do(t, "POST", "/sandboxes/"+id+"/timeout", `{"timeout":0}`)
		must.Eq(t, 204, a.status, must.Sprint(a.body))
		until(t, func() bool { return s.do(t, "GET", "/sandboxes/"+id, "").status == 404 })
	})
	t.Run("its own command ends it", func(t *testing.T) {
		events, err := s.client.Events(t.Context())
		must.NoError(t, err)
		defer events.Close()
		first, err := events.Next()
		must.NoError(t, err)
		must.Eq(t, api.EventSync, first.Type)
		sb, err := s.client.CreateSandbox(t.Context(), api.CreateRequest{Template: "base", CreateOptions: api.CreateOptions{Command: []string{"sh", "-c", "echo out; read x; exit 4"}, TTY: true}})
		must.NoError(t, err)
		body, _, err := s.client.Logs(t.Context(), sb.ID, api.LogOptions{Follow: true})
		must.NoError(t, err)
		defer body.Close()
		buf := make([]byte, 3)
		_, err = io.ReadFull(body, buf)
		must.NoError(t, err)
		must.Eq(t, "out", string(buf))
		ps, err := s.client.Processes(t.Context(), sb.ID)
		must.NoError(t, err)
		must.Len(t, 1, ps, must.Sprint("the sandbox's own command"))
		must.NoError(t, s.client.Signal(t.Context(), sb.ID, ps[0].PID, 9))
		for {
			ev, err := events.Next()
			must.NoError(t, err)
			if ev.Sandbox != nil && ev.Sandbox.ID == sb.ID && ev.Sandbox.State == "stopped" {
				must.NotNil(t, ev.Sandbox.Exit)
				must.Eq(t, 137, ev.Sandbox.Exit.Code)
				break
			}
		}
	})
}
