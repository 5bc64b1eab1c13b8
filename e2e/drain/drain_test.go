package drain

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// program is what runs in each sandbox: a server that counts its requests in memory and in an open file, under a name that it made up
// at its start, with a child that it started. Whoever loses something of it cannot go on counting.
const program = `
import http.server, json, os, subprocess, zlib
name, count = os.urandom(8).hex(), 0
child = subprocess.Popen(["sleep", "100000"])
log = open("/home/user/log", "a")
ballast = os.urandom(2 << 20)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        count += 1
        log.write(f"{count}\n"); log.flush()
        body = json.dumps({"name": name, "count": count, "pid": os.getpid(), "child": child.pid, "alive": child.poll() is None, "ballast": zlib.crc32(ballast)}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
http.server.HTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
`

// answer is what the program says.
type answer struct {
	Name    string
	Count   int
	PID     int
	Child   int
	Alive   bool
	Ballast int64
}

// visitor asks one sandbox's server through the edge, one request after the other.
type visitor struct {
	c    *cluster
	id   api.SandboxID
	http *http.Client

	mu      sync.Mutex
	first   answer
	last    answer
	asked   int
	failed  []string // requests that were not answered as they should be
	longest time.Duration
}

// create makes a sandbox that traffic wakes, as a client of the contract does, and starts the program in it.
func (c *cluster) create(t *testing.T) *visitor {
	t.Helper()
	memory, cpu, timeout := int64(256), int64(500), int64(3600)
	body, err := json.Marshal(api.NewSandbox{
		TemplateID: "base", Timeout: &timeout, AutoPause: true, AutoResume: &api.AutoResume{Enabled: new(true)},
		SoulBox: &api.CreateOptions{MemoryMB: &memory, CPUMillis: &cpu},
	})
	must.NoError(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+c.address+"/v2/sandboxes", bytes.NewReader(body))
	must.NoError(t, err)
	req.Header.Set("X-API-Key", c.key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.Eq(t, http.StatusCreated, resp.StatusCode, must.Sprint(string(said)))
	var made api.SandboxAccess
	must.NoError(t, json.Unmarshal(said, &made))
	sb := made.SoulBox
	_, err = c.client.StartProcess(t.Context(), sb.ID, api.ExecRequest{Argv: []string{"python3", "-c", program}})
	must.NoError(t, err)
	v := &visitor{c: c, id: sb.ID, http: &http.Client{Transport: &http.Transport{}}}
	t.Cleanup(v.http.CloseIdleConnections)
	c.until("the server inside "+string(sb.ID), func() error {
		a, err := v.ask(t.Context())
		v.first, v.last = a, a
		return err
	})
	return v
}

func (v *visitor) ask(ctx context.Context) (answer, error) {
	var a answer
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+v.c.address+"/", nil)
	if err != nil {
		return a, err
	}
	req.Host = fmt.Sprintf("8000-%s.sandboxes.test", v.id)
	resp, err := v.http.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, err
	}
	if resp.StatusCode != http.StatusOK {
		return a, fmt.Errorf("%s: %s", resp.Status, b)
	}
	return a, json.Unmarshal(b, &a)
}

// visit asks until ctx ends.
func (v *visitor) visit(ctx context.Context) {
	for ctx.Err() == nil {
		begin := time.Now()
		a, err := v.ask(context.WithoutCancel(ctx))
		took := time.Since(begin)
		v.mu.Lock()
		v.asked++
		v.longest = max(v.longest, took)
		if err == nil {
			err = v.same(a)
		}
		if err != nil {
			v.failed = append(v.failed, fmt.Sprintf("after %s: %v", took.Round(time.Millisecond), err))
		}
		v.mu.Unlock()
		time.Sleep(5 * time.Millisecond) // a visitor, not a flood
	}
}

// same says what a server has lost of the one that was asked before. v.mu is held, or nobody else asks.
func (v *visitor) same(a answer) error {
	want := v.first
	want.Count = a.Count
	if a != want || !a.Alive {
		return fmt.Errorf("it is another: %+v, not %+v", a, want)
	}
	if a.Count <= v.last.Count {
		return fmt.Errorf("it went back from %d to %d", v.last.Count, a.Count)
	}
	v.last = a
	return nil
}

// whole checks that every request was answered, and that the sandbox has all that it had.
func (v *visitor) whole(t *testing.T) {
	t.Helper()
	must.SliceEmpty(t, v.failed, must.Sprintf("of %d requests: %q", v.asked, v.failed))
	a, err := v.ask(t.Context())
	must.NoError(t, err)
	must.NoError(t, v.same(a))
	r, _, err := v.c.client.ReadFile(t.Context(), v.id, "/home/user/log", api.FileOptions{})
	must.NoError(t, err)
	defer r.Close()
	log, err := io.ReadAll(r)
	must.NoError(t, err)
	var want strings.Builder
	for i := 1; i <= a.Count; i++ {
		fmt.Fprintln(&want, i)
	}
	must.Eq(t, want.String(), string(log), must.Sprint("every request is in the file, once"))
	processes, err := v.c.client.Processes(t.Context(), v.id)
	must.NoError(t, err)
	must.SliceNotEmpty(t, processes)
	var out bytes.Buffer
	exit, err := v.c.client.Run(t.Context(), v.id, api.ExecRequest{Argv: []string{"cat", fmt.Sprintf("/proc/%d/comm", a.Child)}}, nil, &out, nil)
	must.NoError(t, err)
	must.Eq(t, 0, exit.Code)
	must.Eq(t, "sleep\n", out.String())
}

// visits has all visitors ask while f runs, and returns what they saw.
func visits(t *testing.T, all []*visitor, f func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, v := range all {
		wg.Go(func() { v.visit(ctx) })
	}
	f()
}

// TestDrain_movesWhatRuns drains one of two Nomad clients while every sandbox on it is asked all the time.
func TestDrain_movesWhatRuns(t *testing.T) { drain(t, start(t, ""), 3) }

// TestDrain_movesThroughABucket has the nodes share a bucket of S3 in place of a folder, and the control service's key in place of a file.
func TestDrain_movesThroughABucket(t *testing.T) {
	back := s3mem.New()
	must.NoError(t, back.CreateBucket("snapshots"))
	srv := httptest.NewServer(gofakes3.New(back).Server())
	t.Cleanup(srv.Close)
	secret := filepath.Join(t.TempDir(), "secret")
	must.NoError(t, os.WriteFile(secret, []byte("of nobody\n"), 0o600))
	c := start(t, fmt.Sprintf("snapshot_s3 {\n  endpoint = %q\n  bucket = \"snapshots\"\n  region = \"us-east-1\"\n  access_key = \"nobody\"\n  secret_key_file = %q\n}\nsnapshot_key_from = \"control\"", srv.URL, secret))
	drain(t, c, 1)
	left, err := back.ListBucket("snapshots", &gofakes3.Prefix{}, gofakes3.ListBucketPage{})
	must.NoError(t, err)
	must.SliceNotEmpty(t, left.Contents, must.Sprint("it went that way"))
	for _, o := range left.Contents {
		must.StrNotContains(t, o.Key, "/manifests/", must.Sprint("the copy went with the resume"))
	}
}

// drain moves so many sandboxes from the first node to the second.
func drain(t *testing.T, c *cluster, sandboxes int) {
	t.Helper()
	from, to := c.nodes[0], c.nodes[1]
	c.only(from)
	var all []*visitor
	for range sandboxes {
		all = append(all, c.create(t))
	}
	before := map[api.SandboxID]api.Sandbox{}
	for _, v := range all {
		before[v.id] = c.get(v.id)
		must.Eq(t, from.id, before[v.id].Node)
	}
	c.only(nil)
	var took time.Duration
	visits(t, all, func() {
		begin := time.Now()
		c.run("node", "drain", "-enable", "-yes", "-detach", "-deadline", "5m", string(from.id))
		c.until("the drain", func() error {
			for _, v := range all {
				if sb := c.get(v.id); sb.Node != to.id || sb.State != "running" {
					return fmt.Errorf("%s is %s on %s", v.id, sb.State, sb.Node)
				}
			}
			return nil
		})
		took = time.Since(begin)
		time.Sleep(time.Second) // they are asked where they are now
	})
	for _, v := range all {
		t.Logf("%s: %d requests, the longest took %s, failed: %q", v.id, v.asked, v.longest.Round(time.Millisecond), v.failed)
		v.whole(t)
		now := c.get(v.id)
		must.Eq(t, before[v.id].EndAt, now.EndAt, must.Sprint("its deadline is its deadline"))
		on, err := to.client.Get(t.Context(), v.id)
		must.NoError(t, err)
		must.Eq(t, nodeapi.StateRunning, on.State)
	}
	t.Logf("%d moved %s after the drain was ordered", sandboxes, took.Round(time.Millisecond))
	log, err := os.ReadFile(filepath.Join(c.dir, "server.log"))
	must.NoError(t, err)
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "sandbox moved") {
			t.Log(strings.TrimSpace(line))
		}
	}
	c.until("Nomad to have nothing on the drained client", func() error {
		if n := c.allocs(from); n != 0 {
			return fmt.Errorf("%d allocations", n)
		}
		return nil
	})
	c.until("the drained node to have nothing", func() error {
		list, err := from.client.List(t.Context())
		if err == nil && len(list) != 0 {
			err = fmt.Errorf("%+v", list)
		}
		return err
	})
	must.Eq(t, sandboxes, c.allocs(to))
	must.StrContains(t, c.run("node", "status", string(from.id)), "ineligible")
}
