package attack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// files are what both APIs offer for files: the node's own, and the public one over it.
type files struct {
	name    string
	read    func(path string) (string, error)
	write   func(path, text string) error
	remove  func(path string) error
	rename  func(path, target string) error
	unpack  func(path string, archive []byte) error
	archive func(path string) (string, error)
}

func (a *arena) files(t *testing.T, id api.SandboxID, user string) []files {
	ctx := t.Context()
	all := func(r io.ReadCloser, err error) (string, error) {
		if err != nil {
			return "", err
		}
		defer r.Close()
		b, err := io.ReadAll(io.LimitReader(r, 8<<20))
		return string(b), err
	}
	no, ao := nodeapi.FileOptions{User: user}, api.FileOptions{User: user}
	return []files{
		{
			"node",
			func(p string) (string, error) { r, _, err := a.node.ReadFile(ctx, id, p, no); return all(r, err) },
			func(p, s string) error { _, err := a.node.WriteFile(ctx, id, p, strings.NewReader(s), no); return err },
			func(p string) error { return a.node.Remove(ctx, id, p, no) },
			func(p, q string) error { return a.node.Rename(ctx, id, p, q, no) },
			func(p string, b []byte) error { return a.node.WriteArchive(ctx, id, p, bytes.NewReader(b), no) },
			func(p string) (string, error) { r, err := a.node.ReadArchive(ctx, id, p, no); return all(r, err) },
		},
		{
			"api",
			func(p string) (string, error) { r, _, err := a.api.ReadFile(ctx, id, p, ao); return all(r, err) },
			func(p, s string) error { return a.api.WriteFile(ctx, id, p, strings.NewReader(s), ao) },
			func(p string) error { return a.api.Remove(ctx, id, p, ao) },
			func(p, q string) error { return a.api.Rename(ctx, id, p, q, ao) },
			func(p string, b []byte) error { return a.api.WriteArchive(ctx, id, p, bytes.NewReader(b), ao) },
			func(p string) (string, error) { r, err := a.api.ReadArchive(ctx, id, p, ao); return all(r, err) },
		},
	}
}

// box makes a sandbox through the public API, so that both APIs know it.
func (a *arena) box(t *testing.T, c *api.Client, change ...func(*api.CreateRequest)) api.SandboxID {
	t.Helper()
	timeout := int64(600)
	r := api.CreateRequest{Template: "base", Timeout: &timeout}
	for _, f := range change {
		f(&r)
	}
	sb, err := c.CreateSandbox(t.Context(), r)
	must.NoError(t, err)
	return sb.ID
}

// The host's side of files, archives and requests: what comes over the APIs.
func TestAPIs(t *testing.T) {
	a := newArena(t)
	t.Run("A01", func(t *testing.T) {
		j := a.judge(t, "A01", "paths that climb, through both APIs")
		defer j.end()
		id := a.box(t, a.api)
		for _, f := range a.files(t, id, "root") {
			for _, path := range []string{
				"../../../../../../.." + a.dir + "/canaries/open/x", a.dir + "/canaries/open/x", "/home/user/../../../.." + a.dir + "/canaries/open/x",
				"a/../../../../../../../../etc/cron.d/soulbox-attack", "/proc/self/root" + a.dir + "/canaries/open/x", "/proc/1/root" + a.dir + "/canaries/open/x",
				"/proc/self/cwd/../x", "/proc/self/fd/3/../x", "", "\x00", strings.Repeat("a/", 5000), "~root/../..//x", "/dev/null/x", "/proc/sys/kernel/core_pattern",
			} {
				err := f.write(path, "owned")
				j.inside(f.name, fmt.Sprintf("write %.60q", path), errText(err))
			}
			for _, path := range []string{a.dir + "/canaries/readable", "../../../../.." + a.dir + "/canaries/secret", "/proc/1/root" + a.dir + "/canaries/readable", "/proc/1/environ", "/proc/1/mem", "/proc/kcore", "/dev/zero", "/dev/tty"} {
				got, err := f.read(path)
				j.inside(f.name, fmt.Sprintf("read %.60q", path), errText(err)+" "+fmt.Sprint(len(got))+" bytes")
				must.StrNotContains(t, got, "canary")
				must.Eq(t, "", got)
			}
			j.inside(f.name, "rename up and out", errText(f.rename("/etc/marker", "../../../.."+a.dir+"/canaries/open/x")))
			j.inside(f.name, "remove /proc/1/root", errText(f.remove("/proc/1/root"+a.dir+"/canaries/writable")))
		}
	})
	t.Run("A02", func(t *testing.T) {
		j := a.judge(t, "A02", "links of the sandbox, also while they change")
		defer j.end()
		id := a.box(t, a.api)
		a.ok(t, id, "root", "/bin/bash", "-c", "ln -s / /home/user/link; ln -s /proc/self/root /home/user/magic; ln -s /proc/1/root /home/user/one; ln -s loop /home/user/loop; ln -s /proc/self/fd /home/user/fds")
		for _, f := range a.files(t, id, "user") {
			for _, dir := range []string{"link", "magic", "one", "loop", "fds/3", "fds/9"} {
				got, err := f.read("/home/user/" + dir + a.dir + "/canaries/readable")
				j.inside(f.name, "read through "+dir, errText(err))
				must.Error(t, err)
				must.Eq(t, "", got)
				j.inside(f.name, "write through "+dir, errText(f.write("/home/user/"+dir+a.dir+"/canaries/open/x", "owned")))
			}
		}
		done := make(chan result, 1)
		go func() { done <- a.run(t, id, "user", "intruder", "flip", "/home/user/flip", "4s", a.dir+"/canaries") }()
		tries := 0
		for end := time.Now().Add(4 * time.Second); time.Now().Before(end); tries++ {
			for _, f := range a.files(t, id, "user") {
				_ = f.write("/home/user/flip/open/x", "owned")
				got, _ := f.read("/home/user/flip/readable")
				must.Eq(t, "", got)
				_ = f.unpack("/home/user/flip/open", oneFile("y"))
			}
		}
		flips := <-done
		j.inside("both", "a name flips between a directory and a link to the host's path", fmt.Sprintf("%d rounds while it flipped %s times", tries, flips.out))
	})
	t.Run("A06", func(t *testing.T) {
		j := a.judge(t, "A06", "hostile archives")
		defer j.end()
		id := a.box(t, a.api)
		for _, f := range a.files(t, id, "user") {
			for _, h := range hostileArchives(a.dir) {
				j.inside(f.name, h.name, errText(f.unpack("/home/user/in", h.archive)))
			}
		}
		found := a.ok(t, id, "root", "/bin/bash", "-c", "find / -xdev \\( -type b -o -type p -o -name x -o -name soulbox-attack \\) -not -path '/proc/*' 2>/dev/null; cat /home/user/in/secret 2>/dev/null; true")
		for line := range strings.Lines(found) {
			must.True(t, strings.HasPrefix(line, "/home/user/in/"), must.Sprint(found))
		}
		must.StrNotContains(t, found, "canary")
		j.inside("inside", "devices, FIFOs and strays afterwards", fmt.Sprintf("%q", found))
	})
	t.Run("F19", func(t *testing.T) {
		j := a.judge(t, "F19", "setuid bits and owners in an uploaded archive")
		defer j.end()
		id := a.box(t, a.api)
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		must.NoError(t, w.WriteHeader(&tar.Header{Name: "su", Mode: 0o6755, Size: 1, Uid: 0, Gid: 0, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\xff\xff\xff\xff\x00\x00\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00"}}))
		_, err := w.Write([]byte("x"))
		must.NoError(t, err)
		must.NoError(t, w.Close())
		for _, f := range a.files(t, id, "user") {
			err := f.unpack("/home/user/"+f.name, b.Bytes())
			got := a.ok(t, id, "root", "stat", "-c", "%a %u %g", "/home/user/"+f.name+"/su")
			j.inside(f.name, "a setuid-root file with capabilities", errText(err)+" → "+got)
			must.Eq(t, "755 1000 1000\n", got)
			path := filepath.Join(a.upper(t, id), "home/user", f.name, "su")
			j.host(fileFact(path) != "" && !strings.HasPrefix(fileFact(path), "10675"), "%s: neither setuid nor setgid on the host", f.name)
		}
	})
	t.Run("A07", func(t *testing.T) {
		j := a.judge(t, "A07", "bombs: what is compressed, deep, or has too many names")
		defer j.end()
		id := a.box(t, a.api)
		var bomb bytes.Buffer
		z := gzip.NewWriter(&bomb)
		_, err := io.CopyN(z, zeros{}, 256<<20)
		must.NoError(t, err)
		must.NoError(t, z.Close())
		before := heap()
		for _, f := range a.files(t, id, "user") {
			j.inside(f.name, "256 MiB of zeros as gzip, as an archive", errText(f.unpack("/home/user/bomb", bomb.Bytes())))
			deep := archiveOf(strings.Repeat("d/", 2000) + "f")
			j.inside(f.name, "2000 directories deep", errText(f.unpack("/home/user/deep", deep)))
		}
		_, err = a.api.ImportTemplate(t.Context(), "bomb", bytes.NewReader(bomb.Bytes()), api.ImportOptions{Source: "test"})
		j.inside("import", "256 MiB of zeros as gzip, as a template", errText(err))
		must.Error(t, err)
		grown := int64(heap()) - int64(before)
		j.host(grown < 128<<20, "the services' memory grew by %d KiB", grown>>10)
	})
	t.Run("A08", func(t *testing.T) {
		j := a.judge(t, "A08", "an upload that never ends, and one that breaks off")
		defer j.end()
		id := a.box(t, a.api)
		for _, f := range a.files(t, id, "user") {
			r, w := io.Pipe()
			done := make(chan error, 1)
			go func() {
				if f.name == "node" {
					_, err := a.node.WriteFile(t.Context(), id, "/home/user/slow", r, nodeapi.FileOptions{User: "user"})
					done <- err
				} else {
					done <- a.api.WriteFile(t.Context(), id, "/home/user/slow", r, api.FileOptions{User: "user"})
				}
			}()
			_, err := w.Write([]byte("half"))
			must.NoError(t, err)
			must.NoError(t, w.CloseWithError(io.ErrUnexpectedEOF))
			j.inside(f.name, "breaks off after four bytes", errText(<-done))
		}
		until(t, "the temporary files to go", func() bool {
			return a.ok(t, id, "root", "/bin/bash", "-c", "ls -A /home/user") == ""
		})
		j.inside("inside", "what is left of them", "nothing")
	})
	t.Run("A14", func(t *testing.T) {
		j := a.judge(t, "A14", "a file that changes its size while it is read")
		defer j.end()
		id := a.box(t, a.api)
		a.start(t, id, "user", "/bin/bash", "-c", "while :; do head -c 4000000 /dev/zero | tr '\\0' x > /home/user/f; : > /home/user/f; done")
		short, whole := 0, 0
		for range 60 {
			for _, f := range a.files(t, id, "user") {
				got, err := f.read("/home/user/f")
				must.Eq(t, "", strings.Trim(got, "x"))
				if err != nil {
					short++
				} else {
					whole++
				}
			}
		}
		j.inside("both", "120 reads", fmt.Sprintf("%d complete, %d broken off or refused, none with other bytes", whole, short))
	})
	t.Run("C01", func(t *testing.T) {
		j := a.judge(t, "C01", "another tenant's sandbox and template, on every path")
		defer j.end()
		id := a.box(t, a.api)
		_, err := a.core.State.Apply(t.Context(), &state.TenantPut{Tenant: state.Tenant{ID: "mallory"}})
		must.NoError(t, err)
		secret, _, err := a.core.Auth.Create(t.Context(), "mallory", "mallory's", "")
		must.NoError(t, err)
		base, err := a.api.Template(t.Context(), "base")
		must.NoError(t, err)
		statuses := map[int]int{}
		for _, route := range routes {
			method, path, _ := strings.Cut(route, " ")
			var answers []string
			for _, target := range []api.SandboxID{id, api.NewSandboxID()} {
				p := strings.NewReplacer("{id}", string(target), "{name}", "base").Replace(path)
				status, body := a.raw(t, method, p, secret.E2BKey(), `{}`, nil)
				answers = append(answers, fmt.Sprint(status, " ", strings.ReplaceAll(body, string(target), "ID")))
				statuses[status]++
				if status < 400 && status != 204 && strings.Contains(path, "{") {
					t.Errorf("%s answered %d: %s", route, status, body)
				}
				must.StrNotContains(t, body, base.Digest, must.Sprint(route))
			}
			if strings.Contains(path, "{id}") && answers[0] != answers[1] {
				t.Errorf("%s tells an id of another tenant from one that does not exist:\n%s\n%s", route, answers[0], answers[1])
			}
		}
		j.inside("api", fmt.Sprintf("%d routes as another tenant", len(routes)), fmt.Sprint(statuses))
		_, err = a.api.ImportTemplate(t.Context(), "victim", bytes.NewReader(archiveOf("f")), api.ImportOptions{Source: "test"})
		must.NoError(t, err)
		status, body := a.raw(t, "DELETE", "/v1/templates/victim", secret.E2BKey(), "", nil)
		j.inside("api", "delete another tenant's unused template", fmt.Sprint(status, " ", body))
		must.Eq(t, http.StatusNotFound, status)
		_, err = a.api.Template(t.Context(), "victim")
		j.host(err == nil, "the template is still there: %v", err)
		must.NoError(t, a.api.DeleteTemplate(t.Context(), "victim"))
		sb, err := a.api.GetSandbox(t.Context(), id)
		must.NoError(t, err)
		j.host(sb.State == "running", "the sandbox still runs, and each answer is that of an id that does not exist")
	})
	t.Run("C04", func(t *testing.T) {
		j := a.judge(t, "C04", "secrets of the platform, and variables that steer programs")
		defer j.end()
		t.Setenv("NOMAD_TOKEN", "must-not-be-seen")
		t.Setenv("VAULT_TOKEN", "must-not-be-seen")
		id := a.box(t, a.api, func(r *api.CreateRequest) {
			r.Env = map[string]string{"LD_PRELOAD": "/home/user/evil.so", "LD_AUDIT": "/home/user/evil.so", "GODEBUG": "x", "BASH_ENV": "/home/user/evil"}
		})
		out := a.ok(t, id, "root", "/bin/bash", "-c", "cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n' | sort -u; grep -r must-not-be-seen /etc /run /home /tmp /dev/shm 2>/dev/null; true")
		j.inside("api", "every environment and file inside", out)
		must.StrNotContains(t, out, "must-not-be-seen")
		must.StrNotContains(t, out, a.core.Bootstrap.E2BKey())
	})
	t.Run("C05", func(t *testing.T) {
		j := a.judge(t, "C05", "numbers and words that are none")
		defer j.end()
		for _, body := range []string{
			`{"templateID":"base","soulbox":{"cpu":-1}}`, `{"templateID":"base","soulbox":{"cpu":1e308}}`, `{"templateID":"base","soulbox":{"cpu":NaN}}`, `{"templateID":"base","soulbox":{"cpu_millis":9223372036854775807}}`,
			`{"templateID":"base","soulbox":{"memory_mb":-1}}`, `{"templateID":"base","soulbox":{"memory_mb":9223372036854775807}}`, `{"templateID":"base","soulbox":{"memory_mb":1e30}}`,
			`{"templateID":"base","soulbox":{"pids":-5}}`, `{"templateID":"base","timeout":-1}`, `{"templateID":"base","timeout":9223372036854775807}`, `{"templateID":"base","soulbox":{"profile":"none"}}`,
			`{"templateID":"../base"}`, `{"templateID":"base\u0000"}`, `{"templateID":"base","soulbox":{"hostname":"a b"}}`, `{"templateID":"base","soulbox":{"hostname":"${attr.x}\n"}}`,
			`{"templateID":"base","soulbox":{"id":"../../x"}}`, `{"templateID":"base","soulbox":{"user":"root\u0000"}}`, `{"templateID":"base","envVars":{"A=B":"c"}}`, `{"templateID":"base","envVars":{"A":"\u0000"}}`,
			`{"templateID":"base","soulbox":{"command":[]}` + strings.Repeat(" ", 10), `[]`, `null`, `"x"`, `{"templateID":1}`, `{"templateID":"base","templateID":"base"}{}`,
		} {
			status, got := a.raw(t, "POST", "/v2/sandboxes", a.core.Bootstrap.E2BKey(), body, nil)
			j.inside("api", fmt.Sprintf("%.60s", body), fmt.Sprint(status, " ", got))
			must.Between(t, 400, status, 499, must.Sprint(body))
		}
	})
	t.Run("C10", func(t *testing.T) {
		j := a.judge(t, "C10", "requests that are too large, too deep, or a bomb")
		defer j.end()
		key := a.core.Bootstrap.E2BKey()
		before := heap()
		var bomb bytes.Buffer
		z := gzip.NewWriter(&bomb)
		_, err := io.CopyN(z, zeros{}, 64<<20)
		must.NoError(t, err)
		must.NoError(t, z.Close())
		for _, tc := range []struct {
			name, body string
			headers    map[string]string
		}{
			{"64 MiB of JSON", `{"templateID":"` + strings.Repeat("x", 64<<20) + `"}`, nil},
			{"100000 levels", strings.Repeat(`{"metadata":`, 100_000), nil},
			{"a million keys", `{"metadata":{` + strings.TrimSuffix(strings.Repeat(`"k":"v",`, 1_000_000), ",") + `}}`, nil},
			{"a gzip bomb", bomb.String(), map[string]string{"Content-Encoding": "gzip"}},
			{"2 MiB of headers", `{}`, map[string]string{"X-Much": strings.Repeat("x", 2<<20)}},
			{"metadata beyond its limit", `{"templateID":"base","metadata":{"a":"` + strings.Repeat("x", 1<<20) + `"}}`, nil},
		} {
			status, got := a.raw(t, "POST", "/v2/sandboxes", key, tc.body, tc.headers)
			j.inside("api", tc.name, fmt.Sprint(status, " ", got))
			must.True(t, status == 0 || status >= 400 && status < 500, must.Sprint(tc.name, status, got))
		}
		grown := int64(heap()) - int64(before)
		j.host(grown < 64<<20, "the service's memory grew by %d KiB", grown>>10)
	})
	t.Run("P07", func(t *testing.T) {
		j := a.judge(t, "P07", "line breaks and JSON in names, labels, arguments and headers")
		defer j.end()
		const forged = "2026-01-01T00:00:00.000Z [ERROR] forged: owned"
		evil := "x\n" + forged + "\r\n{\"@level\":\"error\"}\x1b[31m"
		key := a.core.Bootstrap.E2BKey()
		id := a.box(t, a.api, func(r *api.CreateRequest) {
			r.Metadata = map[string]string{"label": evil, "${attr.unique}": "${NOMAD_TOKEN}"}
		})
		q := url.Values{"path": {"/home/user/" + evil}, "user": {evil}}.Encode()
		for _, r := range [][3]string{
			{"GET", "/sandboxes/" + url.PathEscape(evil), ""}, {"GET", "/v1/sandboxes/" + string(id) + "/envd/files?" + q, ""},
			{"POST", "/v2/sandboxes", mustJSON(map[string]any{"templateID": evil, "soulbox": map[string]any{"hostname": evil}})}, {"GET", "/" + url.PathEscape(evil), ""},
			{"POST", "/v1/sandboxes/" + string(id) + "/envd/process.Process/SendSignal", mustJSON(map[string]any{"process": map[string]any{"tag": evil}, "signal": "SIGNAL_SIGKILL"})},
		} {
			status, got := a.raw(t, r[0], r[1], key, r[2], map[string]string{"User-Agent": "x y", "X-Request-Id": "a b"})
			j.inside("api", fmt.Sprintf("%s %.50s", r[0], r[1]), fmt.Sprint(status, " ", got))
			must.StrNotContains(t, got, "\n"+forged)
		}
		_, _ = a.node.Start(t.Context(), id, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{evil}, Tag: evil}})
		for line := range strings.Lines(a.log.String()) {
			must.False(t, strings.HasPrefix(line, "2026-01-01T00:00:00.000Z"), must.Sprint(line))
			must.StrNotContains(t, line, "\x1b[31m")
		}
		j.host(true, "no line of the services' logs is forged, and none has a control character of the attack")
		sb, err := a.api.GetSandbox(t.Context(), id)
		must.NoError(t, err)
		j.host(sb.Metadata["label"] == evil && sb.Metadata["${attr.unique}"] == "${NOMAD_TOKEN}", "labels come back as they were sent: nothing is put in for ${…}")
	})
	t.Run("S01", func(t *testing.T) {
		j := a.judge(t, "S01", "the host's sockets and ports")
		defer j.end()
		_, port, _ := strings.Cut(strings.TrimPrefix(a.addr, "http://"), ":")
		for _, p := range profiles {
			sb := a.create(t, profile(p))
			out := a.run(t, sb.ID, "root", "/bin/bash", "-c", "for p in "+port+" 4646 8200 8500 7302; do (echo > /dev/tcp/127.0.0.1/$p) 2>&1 && echo reached $p; done; cat /proc/net/unix 2>/dev/null; ls -d "+a.dir+" /run/soulbox /var/run/docker.sock 2>&1")
			j.inside(p, "connect to the API, Nomad, Vault, Consul, the node", out.out)
			must.StrNotContains(t, out.out, "reached")
			must.StrNotContains(t, out.out, "node.sock")
			a.destroy(t, sb.ID)
		}
		fi, err := os.Stat(a.socket)
		must.NoError(t, err)
		j.host(fi.Mode().Perm() == 0o600, "the node's socket is %s", fi.Mode())
	})
}

// routes of the public API that take an id or a name, or list.
var routes = []string{
	"GET /sandboxes/{id}", "DELETE /sandboxes/{id}", "POST /sandboxes/{id}/timeout", "POST /sandboxes/{id}/refreshes", "POST /sandboxes/{id}/connect",
	"POST /v2/sandboxes/{id}/connect", "GET /sandboxes/{id}?soulbox=true", "GET /v1/sandboxes/{id}/health",
	"GET /v1/sandboxes/{id}/stats", "GET /v1/sandboxes/{id}/logs",
	"POST /v1/sandboxes/{id}/envd/process.Process/List", "POST /v1/sandboxes/{id}/envd/process.Process/Start", "POST /v1/sandboxes/{id}/envd/process.Process/Connect",
	"POST /v1/sandboxes/{id}/envd/process.Process/SendSignal", "POST /v1/sandboxes/{id}/envd/process.Process/SendInput",
	"POST /v1/sandboxes/{id}/envd/process.Process/StreamInput", "POST /v1/sandboxes/{id}/envd/process.Process/CloseStdin",
	"POST /v1/sandboxes/{id}/envd/process.Process/Update", "GET /v1/sandboxes/{id}/envd/files?path=/etc/marker",
	"POST /v1/sandboxes/{id}/envd/files?path=/tmp/x", "POST /v1/sandboxes/{id}/envd/filesystem.Filesystem/Stat",
	"POST /v1/sandboxes/{id}/envd/filesystem.Filesystem/ListDir", "POST /v1/sandboxes/{id}/envd/filesystem.Filesystem/MakeDir",
	"POST /v1/sandboxes/{id}/envd/filesystem.Filesystem/Move", "POST /v1/sandboxes/{id}/envd/filesystem.Filesystem/Remove",
	"POST /v1/sandboxes/{id}/envd/filesystem.Filesystem/WatchDir", "GET /v1/sandboxes/{id}/archive?path=/etc",
	"PUT /v1/sandboxes/{id}/archive?path=/tmp", "GET /v1/templates/{name}", "DELETE /v1/templates/{name}", "GET /sandboxes", "GET /v2/sandboxes",
	"GET /v2/sandboxes?soulbox=true", "GET /v1/templates",
}

// raw makes a request as it is. Status 0 is a connection that was closed.
func (a *arena) raw(t *testing.T, method, path, key, body string, headers map[string]string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, a.addr+path, strings.NewReader(body))
	must.NoError(t, err)
	req.Header.Set("X-API-Key", key)
	req.Header.Set("Content-Type", "application/json")
	for k, v := range headers {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "closed"
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return 0, "closed"
	}
	return resp.StatusCode, strings.TrimSpace(string(b))
}

// zeros is an endless file.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func oneFile(name string) []byte { return archiveOf(name) }

func archiveOf(name string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: 5}); err != nil {
		panic(err)
	}
	_, _ = w.Write([]byte("owned"))
	_ = w.Close()
	return b.Bytes()
}
