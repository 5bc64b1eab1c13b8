package attack

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/edge"
	"github.com/soulbox-dev/soulbox/control/server"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// What a sandbox meets at its limits, and what the control service says of it afterwards.
func TestLimits(t *testing.T) {
	a := newArena(t)
	t.Run("R05b", func(t *testing.T) {
		j := a.judge(t, "R05", "inodes of /tmp, with memory enough for all of them")
		defer j.end()
		sb := a.create(t, func(r *nodeapi.CreateRequest) { r.Limits.MemoryBytes, r.Limits.TmpBytes = 2<<30, 1<<30 })
		got := a.runFor(t, sb.ID, 5*time.Minute, "intruder", "inodes", "/tmp", "1000000")
		j.inside("default", "1000000 empty files in /tmp", got)
		count, _, _ := strings.Cut(got, " files, then ")
		made, err := strconv.Atoi(count)
		must.NoError(t, err, must.Sprint(got))
		must.StrContains(t, got, "ENOSPC")
		must.Between(t, 200_000, made, 262_144)
		free := strings.TrimSpace(a.ok(t, sb.ID, "root", "/bin/bash", "-c", "stat -f -c %d /tmp"))
		j.inside("default", "free inodes of /tmp", free)
		must.Eq(t, "0", free)
		s := a.stats(t, sb.ID)
		j.host(s.OOMKills == 0 && s.MemoryMax < 2<<30, "it was the cap of inodes that stopped it, not memory: %d MiB of 2048", s.MemoryMax>>20)
		out := a.run(t, sb.ID, "user", "/bin/bash", "-c", ": > /home/user/x && echo ok")
		j.inside("default", "then a file elsewhere", out.out+out.err)
		must.Eq(t, "ok\n", out.out)
		a.healthy(t, j, "inodes")
		a.ends(t, j, sb.ID)
	})
	t.Run("R08", func(t *testing.T) { a.writesToTheDisk(t) })
	t.Run("R17", func(t *testing.T) { a.saysWhatHappened(t) })
}

// writesToTheDisk is R08: what goes past the page cache, and what asks for the disk's own promise.
func (a *arena) writesToTheDisk(t *testing.T) {
	j := a.judge(t, "R08", "direct writes beyond a limit of io, and a storm of fsync")
	defer j.end()
	const rate, blocks = 4 << 20, 16
	sb, err := a.node.Create(t.Context(), a.request(func(r *nodeapi.CreateRequest) { r.Limits.IOWriteBytes = rate }))
	if api.StatusOf(err) >= 400 {
		j.inside("default", "a limit of io", errText(err)) // this machine has no controller for its disk: the create is refused with the reason
	} else {
		must.NoError(t, err)
		t.Cleanup(func() { a.destroy(t, sb.ID) })
		start := time.Now()
		out := a.run(t, sb.ID, "user", "/bin/bash", "-c", fmt.Sprintf("dd if=/dev/zero of=/home/user/big bs=1M count=%d oflag=direct 2>&1", blocks))
		took := time.Since(start)
		j.inside("default", fmt.Sprintf("%d MiB of direct writes", blocks), out.out)
		must.Eq(t, 0, out.exit.Code)
		// The first transfers of a group are let through before its account is empty.
		least := time.Duration(float64(blocks<<20) / rate * 0.75 * float64(time.Second))
		j.host(took >= least, "they took %s, at %d MiB a second no less than %s", short(took), rate>>20, short(least))
		a.ends(t, j, sb.ID)
	}
	storm := a.create(t)
	before := a.syncs(t)
	a.start(t, storm.ID, "user", "/bin/bash", "-c", "for i in 1 2 3 4; do (while :; do dd if=/dev/zero of=/home/user/$i bs=4k count=1 conv=fsync 2>/dev/null; done) & done; wait")
	until(t, "the storm", func() bool { return a.stats(t, storm.ID).PIDs > 6 })
	meanwhile := a.syncs(t)
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", a.pid(t, storm.ID)))
	must.NoError(t, err)
	volatile := false
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[4] == "/" {
			volatile = strings.Contains(line, "volatile")
		}
	}
	j.inside("default", "fsync of 4 KiB in four loops", "under way")
	j.host(volatile, "its writable layer is volatile: an fsync inside is none on the host")
	j.host(true, "the slowest of 20 fdatasync of the host took %s before, %s meanwhile", short(before), short(meanwhile))
	a.healthy(t, j, "fsync")
	a.ends(t, j, storm.ID)
}

// syncs is the slowest of 20 small synced writes of the host, beside the sandboxes' state.
func (a *arena) syncs(t *testing.T) (slowest time.Duration) {
	t.Helper()
	f, err := os.CreateTemp(a.dir, "sync")
	must.NoError(t, err)
	defer os.Remove(f.Name())
	defer f.Close()
	for range 20 {
		start := time.Now()
		_, err := f.WriteAt(make([]byte, 4096), 0)
		must.NoError(t, err)
		must.NoError(t, f.Sync())
		slowest = max(slowest, time.Since(start))
	}
	return slowest
}

func (a *arena) pid(t *testing.T, id api.SandboxID) int {
	t.Helper()
	sb, err := a.node.Get(t.Context(), id)
	must.NoError(t, err)
	return sb.PID
}

// saysWhatHappened is R17: a client of the control service learns by which limit its sandbox ended, or what it met.
func (a *arena) saysWhatHappened(t *testing.T) {
	j := a.judge(t, "R17", "the API says which limit was met")
	defer j.end()
	ended := func(change func(*api.CreateRequest)) *api.SandboxExit {
		t.Helper()
		id := a.box(t, a.api, change)
		var sb api.Sandbox
		until(t, "the end of "+string(id), func() bool {
			var err error
			sb, err = a.api.GetSandbox(t.Context(), id)
			must.NoError(t, err)
			return sb.State == "stopped"
		})
		must.NotNil(t, sb.Exit)
		must.Eq(t, "main_exited", strings.Replace(sb.Exit.Reason, "killed", "main_exited", 1))
		return sb.Exit
	}
	n := func(v int64) *int64 { return &v }
	oom := ended(func(r *api.CreateRequest) {
		r.MemoryMB, r.Command = n(64), []string{"intruder", "memory", "heap"}
	})
	j.inside("default", "memory bomb", fmt.Sprintf("%+v", *oom))
	j.host(oom.OOM && oom.Code == 137 && !oom.PIDs && !oom.Disk, "the API says: out of memory")
	pids := ended(func(r *api.CreateRequest) {
		r.PIDs, r.Command = n(64), []string{"/bin/bash", "-c", "for i in $(seq 200); do sleep 5 & done; exit 3"}
	})
	j.inside("default", "more processes than the limit", fmt.Sprintf("%+v", *pids))
	j.host(pids.PIDs && !pids.OOM && !pids.Disk, "the API says: limit of processes")

	full := func(r *api.CreateRequest) {
		r.DiskMB, r.Command = n(16), []string{"/bin/bash", "-c", "dd if=/dev/zero of=/home/user/big bs=64k; exit 4"}
	}
	if _, err := a.api.CreateSandbox(t.Context(), diskProbe(n(16))); api.StatusOf(err) == http.StatusNotImplemented {
		j.host(true, "this machine has no disk limits, and says so: %v", err)
		return
	}
	disk := ended(full)
	j.inside("default", "a file larger than the disk limit", fmt.Sprintf("%+v", *disk))
	j.host(disk.Disk && disk.Code == 4 && !disk.OOM && !disk.PIDs, "the API says: disk full")

	// And of one that goes on: a write through the API, and the counters.
	id := a.box(t, a.api, func(r *api.CreateRequest) { r.DiskMB = n(16) })
	err := a.api.WriteFile(t.Context(), id, "/big", io.LimitReader(zeros{}, 32<<20), api.FileOptions{User: "root"})
	j.inside("default", "an upload larger than the disk limit", errText(err))
	must.Eq(t, http.StatusInsufficientStorage, api.StatusOf(err))
	must.Eq(t, api.CodeNoSpace, api.AsError(err).ErrorCode)
	s, err := a.api.Stats(t.Context(), id)
	must.NoError(t, err)
	j.host(s.DiskLimit > 0 && s.DiskBytes <= s.DiskLimit, "it uses %d of %d bytes", s.DiskBytes, s.DiskLimit)
	must.NoError(t, a.api.DeleteSandbox(t.Context(), id))
}

func diskProbe(mb *int64) api.CreateRequest {
	timeout := int64(60)
	return api.CreateRequest{Template: "base", Timeout: &timeout, CreateOptions: api.CreateOptions{DiskMB: mb, Command: []string{"/bin/true"}}}
}

// The file API of a sandbox and of the node, by hand: requests that no client of ours makes.
func TestFileAPI(t *testing.T) {
	a := newArena(t)
	t.Run("A10", func(t *testing.T) {
		j := a.judge(t, "A10", "ranges: ten thousand, negative, beyond every number")
		defer j.end()
		id := a.box(t, a.api)
		const text = "0123456789"
		err := a.api.WriteFile(t.Context(), id, "/home/user/f", strings.NewReader(text), api.FileOptions{User: "user"})
		must.NoError(t, err)
		many := "bytes=" + strings.Repeat("0-0,", 10_000) + "0-0"
		for name, value := range map[string]string{
			"ten thousand ranges": many, "two hundred ranges": "bytes=" + strings.Repeat("0-9,", 200) + "0-9", "negative": "bytes=-5--1",
			"suffix": "bytes=-18446744073709551616", "overflow": "bytes=9223372036854775807-9223372036854775808", "backwards": "bytes=9-0",
			"beyond its end": "bytes=100-200", "another unit": "lines=1-2", "no number": "bytes=a-b", "empty": "bytes=",
		} {
			for where, get := range map[string]func() (int, string){
				"api":  func() (int, string) { return a.get(t, http.DefaultTransport, a.addr, id, "/envd/files", value) },
				"node": func() (int, string) { return a.get(t, a.unix(), "http://node", id, "/files", value) },
			} {
				status, body := get()
				j.inside(where, name, fmt.Sprintf("%d, %d bytes", status, len(body)))
				switch status {
				case http.StatusPartialContent:
					must.StrContains(t, text, body)
				case http.StatusOK: // ranges are not served here: the file as it is, once
					must.Eq(t, text, body)
				case http.StatusBadRequest, http.StatusRequestedRangeNotSatisfiable, http.StatusRequestHeaderFieldsTooLarge:
				default:
					t.Errorf("%s: %s: status %d: %.100s", where, name, status, body)
				}
			}
		}
		must.NoError(t, a.api.DeleteSandbox(t.Context(), id))
	})
	t.Run("A08", func(t *testing.T) {
		j := a.judge(t, "A08", "an upload of which one byte comes, and then nothing")
		defer j.end()
		// A server of its own, which is less patient: what is tried is that it gives up, not how long it waits.
		front := edge.New(edge.Config{Sandboxes: a.core.Reach()})
		defer front.Close()
		srv, err := server.New(server.Config{
			Lifecycle: a.core.Sandboxes, Auth: auth.NewChain(a.core.Auth), Access: a.core.Access, Tenants: a.core.State, Policy: a.core.State, Templates: templates{a.core.Templates}, Fleet: a.core.Fleet, Watcher: a.core.State,
			BodyTimeout: 300 * time.Millisecond, Edge: front,
		})
		must.NoError(t, err)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must.NoError(t, err)
		inBackground(t, func(ctx context.Context) error { return srv.Run(ctx, l) })
		id := a.box(t, a.api)
		left := func() []string {
			names, err := filepath.Glob(filepath.Join(a.upper(t, id), "home/user", "*"))
			must.NoError(t, err)
			hidden, err := filepath.Glob(filepath.Join(a.upper(t, id), "home/user", ".*"))
			must.NoError(t, err)
			return append(names, hidden...)
		}
		before := left()
		c, err := net.Dial("tcp", l.Addr().String())
		must.NoError(t, err)
		defer c.Close()
		_, err = fmt.Fprintf(c, "POST /v1/sandboxes/%s/envd/files?path=/home/user/slow HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Type: application/octet-stream\r\nContent-Length: 1000000\r\n\r\nx",
			id, a.core.Bootstrap.E2BKey())
		must.NoError(t, err)
		must.NoError(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
		answer, err := io.ReadAll(io.LimitReader(c, 4096))
		must.NoError(t, err, must.Sprint("the server goes on waiting"))
		line, _, _ := strings.Cut(string(answer), "\r\n")
		j.inside("api", "one byte of a million", line)
		must.StrContains(t, line, " 4")
		until(t, "the temporary file to be gone", func() bool { return len(left()) == len(before) })
		j.host(true, "nothing of it is left in the sandbox")

		// The node's own end of it: a client that goes away in the middle.
		n, err := net.Dial("unix", a.socket)
		must.NoError(t, err)
		_, err = fmt.Fprintf(n, "PUT /v1/sandboxes/%s/files?path=/home/user/slow&user=user HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx", id)
		must.NoError(t, err)
		until(t, "its temporary file", func() bool { return len(left()) > len(before) })
		must.NoError(t, n.Close())
		until(t, "that to be gone as well", func() bool { return len(left()) == len(before) })
		j.host(true, "nor after a client of the node that left in the middle")
		must.NoError(t, a.api.DeleteSandbox(t.Context(), id))
	})
}

func (a *arena) unix() http.RoundTripper {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", a.socket)
	}}
}

// get reads /home/user/f with a range.
func (a *arena) get(t *testing.T, over http.RoundTripper, addr string, id api.SandboxID, path, ranges string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, addr+"/v1/sandboxes/"+string(id)+path+"?path="+url.QueryEscape("/home/user/f"), nil)
	must.NoError(t, err)
	req.Header.Set("X-API-Key", a.core.Bootstrap.E2BKey())
	req.Header.Set("Range", ranges)
	resp, err := over.RoundTrip(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	must.NoError(t, err)
	return resp.StatusCode, string(b)
}
