package server

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/edge"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// fakeNode speaks a node's API on a unix socket. Its exec plays what argv says:
//
//	echo a b    writes "a b\n" and exits 0
//	cat         copies stdin to stdout and exits 0
//	fail N      writes to stderr and exits N
//	hang        waits for the client to go away
//	break       closes the connection without an exit
//	nothing     is no program
type fakeNode struct {
	t        *testing.T
	mu       sync.Mutex
	seen     []string // method and path with query of each request
	body     map[string]string
	gone     chan struct{} // closed when a "hang" has lost its client
	exec     guest.Start   // of the last exec
	attached guest.Attach
	tag      string // of the one process; attached to, it plays cat
}

func newFakeNode(t *testing.T) (*fakeNode, *nodeapi.Client) {
	t.Helper()
	sock := filepath.Join(tempDir(t), "n.sock")
	l, err := net.Listen("unix", sock)
	must.NoError(t, err)
	f := &fakeNode{t: t, body: map[string]string{}, gone: make(chan struct{})}
	mux := http.NewServeMux()
	const base = "/v1/sandboxes/{id}/"
	mux.HandleFunc("POST "+base+"exec", f.upgrade)
	mux.HandleFunc("POST "+base+"attach", f.upgrade)
	mux.HandleFunc("POST "+base+"processes", func(w http.ResponseWriter, r *http.Request) {
		var s guest.Start
		_ = json.NewDecoder(r.Body).Decode(&s)
		writeJSON(w, 201, guest.ProcessInfo{PID: 7, Argv: s.Argv, StartedAt: testTime})
	})
	mux.HandleFunc("GET "+base+"processes", func(w http.ResponseWriter, _ *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		writeJSON(w, 200, []guest.ProcessInfo{{PID: 7, Argv: []string{"x"}, StartedAt: testTime, Exit: &frame.ExitBody{Code: 3}, Tag: f.tag}})
	})
	for _, op := range []string{"signal", "stdin", "resize"} {
		mux.HandleFunc("POST "+base+op, f.note)
	}
	mux.HandleFunc("PUT "+base+"archive", f.note)
	mux.HandleFunc(base+"envd/{rest...}", envd)
	mux.HandleFunc("GET "+base+"archive", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", nodeapi.ErrorTrailer)
		_, _ = io.WriteString(w, "tar bytes")
		if r.URL.Query().Get("path") == "/breaks" {
			w.Header().Set(nodeapi.ErrorTrailer, `{"code":507,"message":"the disk is full","error_code":"no_space"}`)
		}
	})
	mux.HandleFunc("GET "+base+"logs", func(w http.ResponseWriter, r *http.Request) {
		f.note(nil, r)
		w.Header().Set(nodeapi.OffsetHeader, "5")
		_, _ = io.WriteString(w, "log line\n")
		if r.URL.Query().Get("follow") == "true" {
			_ = http.NewResponseController(w).Flush()
			if r.URL.Query().Get("stream") == "stderr" {
				time.Sleep(300 * time.Millisecond)
				return
			}
			<-r.Context().Done()
		}
	})
	mux.HandleFunc("GET "+base+"logbook", func(w http.ResponseWriter, r *http.Request) {
		f.note(nil, r)
		e, _ := json.Marshal(api.LogEntry{Time: testTime, Level: "info", Source: "stdout", Message: "hello"})
		if r.URL.Query().Get("follow") == "" {
			_, _ = fmt.Fprintf(w, "[%s]", e)
			return
		}
		_, _ = fmt.Fprintf(w, "%s\n\n\n", e)
	})
	mux.HandleFunc("GET "+base+"stats", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, 200, nodeapi.Stats{Time: testTime, CPUNanos: 1, MemoryBytes: 2, Measured: []string{"cpu_nanos"}})
	})
	mux.HandleFunc("GET "+base+"metrics", func(w http.ResponseWriter, r *http.Request) {
		f.note(nil, r)
		writeJSON(w, 200, []nodeapi.Sample{testSample(), testSample()})
	})
	mux.HandleFunc("GET /v1/metrics/latest", func(w http.ResponseWriter, r *http.Request) {
		f.note(nil, r)
		writeJSON(w, 200, map[api.SandboxID]nodeapi.Sample{testID: testSample(), otherID: testSample()})
	})
	srv := &http.Server{Handler: mux}
	done := make(chan struct{})
	go func() { _ = srv.Serve(l); close(done) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	c := nodeapi.NewUnix(sock)
	t.Cleanup(c.Close)
	return f, c
}

func testSample() nodeapi.Sample {
	return nodeapi.Sample{
		Time: testTime.Add(500 * time.Millisecond), CPUPercent: 30, CPUNanos: 1, CPUMillis: 1500, MemoryBytes: 2, MemoryCache: 3, MemoryTotal: 4,
		DiskRead: 5, DiskWritten: 6, DiskUsed: 7, DiskTotal: 8, NetIn: 9, NetOut: 10, Processes: 11,
	}
}

// note keeps what was asked, and answers 204 where w is set.
func (f *fakeNode) note(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	f.seen = append(f.seen, r.Method+" "+r.URL.String())
	f.body[r.Method+" "+r.URL.Path] = string(b)
	f.mu.Unlock()
	if w != nil {
		w.WriteHeader(http.StatusNoContent)
	}
}

func (f *fakeNode) upgrade(w http.ResponseWriter, r *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", nodeapi.UpgradeProtocol)
	in := frame.NewReader(rw.Reader)
	if r.URL.Path[len(r.URL.Path)-6:] == "attach" {
		var at guest.Attach
		if in.ReadJSON(frame.Request, &at) != nil {
			return
		}
		if at.PID != 7 {
			_ = frame.WriteJSON(conn, frame.Error, frame.ErrorBody{Code: guest.CodeNoProcess, Message: "no process 8"})
			return
		}
		argv := []string{"echo", fmt.Sprint("from ", at.Stdout)}
		f.mu.Lock()
		if f.tag != "" {
			argv = []string{"cat"}
		}
		f.attached = at
		f.mu.Unlock()
		f.play(conn, in, guest.Start{Argv: argv})
		return
	}
	var start guest.Start
	if in.ReadJSON(frame.Request, &start) != nil {
		return
	}
	f.mu.Lock()
	f.exec = start
	f.mu.Unlock()
	f.play(conn, in, start)
}

func (f *fakeNode) play(conn net.Conn, in *frame.Reader, start guest.Start) {
	if start.Argv[0] == "nothing" {
		_ = frame.WriteJSON(conn, frame.Error, frame.ErrorBody{Code: guest.CodeBadCommand, Message: "no program nothing"})
		return
	}
	_ = frame.WriteJSON(conn, frame.Response, guest.Response{Version: 1, Process: &guest.ProcessInfo{PID: 7, Argv: start.Argv, StartedAt: testTime}})
	exit := frame.ExitBody{}
	switch start.Argv[0] {
	case "echo":
		_ = frame.WriteOutput(conn, frame.Stdout, 0, []byte(start.Argv[1]+"\n"))
	case "fail":
		_ = frame.WriteOutput(conn, frame.Stderr, 0, []byte("oops"))
		_ = frame.WriteJSON(conn, frame.Dropped, frame.DroppedBody{Stream: frame.Stdout, Bytes: 9, Offset: 9})
		exit.Code = 3
	case "cat":
		off := uint64(0)
		for {
			fr, err := in.Read()
			if err != nil || fr.Type == frame.StdinClose {
				break
			}
			if fr.Type == frame.Stdin {
				_ = frame.WriteOutput(conn, frame.Stdout, off, fr.Payload)
				off += uint64(len(fr.Payload))
			}
			if fr.Type == frame.Signal {
				exit = frame.ExitBody{Code: 143, Signal: 15}
				break
			}
		}
	case "hang":
		_, _ = in.Read()
		close(f.gone)
		return
	case "break":
		return
	}
	_ = frame.WriteJSON(conn, frame.Exit, exit)
}

// withNode returns a harness with a running sandbox of tenant a on a fake node.
func withNode(t *testing.T, change ...func(*Config)) (*harness, *fakeNode) {
	t.Helper()
	r := &reach{}
	h := newHarness(t, append([]func(*Config){func(c *Config) { c.Edge = edge.New(edge.Config{Sandboxes: r}) }}, change...)...)
	f, c := newFakeNode(t)
	r.life, h.life.node = h.life, c
	h.life.sandboxes[testID] = sandbox(testID)
	return h, f
}

// tempDir returns a folder with a short path, for sockets.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sbx")
	must.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
