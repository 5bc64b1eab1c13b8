package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

const termOne = api.TerminalID(string(boxOne) + "-tttttttttttttttttttt")

// terminals serves the terminals of the fake: one, whose program starts anew with each attachment.
func (f *fake) terminals(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/terminals", func(w http.ResponseWriter, r *http.Request) {
		var req api.TerminalRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			refuse(w, 400, api.CodeInvalid, "%v", err)
			return
		}
		if req.Command[0] == "nosuch" {
			refuse(w, 400, api.CodeCommand, "command 'nosuch' not found")
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.started = append(f.started, req)
		reply(w, 201, api.Terminal{ID: termOne, SandboxID: req.SandboxID, Command: req.Command})
	})
	mux.HandleFunc("GET /v1/terminals", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, []api.Terminal{
			{ID: termOne, SandboxID: boxOne, Command: []string{"bash", "-l"}, User: "user", StartedAt: time.Now().Add(-time.Minute)},
			{ID: "x", Command: []string{"top"}, User: "root", Exit: &frame.ExitBody{Code: 137, Signal: 9}},
		})
	})
	mux.HandleFunc("DELETE /v1/terminals/{id}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("id") != string(termOne) {
			refuse(w, 404, api.CodeNotFound, "terminal %s does not exist", r.PathValue("id"))
			return
		}
		w.WriteHeader(204)
	})
	mux.HandleFunc("GET /v1/terminals/{id}/attach", f.attachTerminal)
}

func (f *fake) attachTerminal(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.attached = append(f.attached, r.URL.RawQuery)
	req := api.TerminalRequest{Command: []string{"shell"}}
	if len(f.started) > 0 {
		req = f.started[len(f.started)-1]
	}
	f.mu.Unlock()
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer c.CloseNow()
	near, far := net.Pipe()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer near.Close()
	wg.Go(func() {
		defer far.Close()
		f.play(far, frame.NewReader(far), req.Command[0])
	})
	wg.Go(func() {
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil {
				_ = near.Close()
				return
			}
			t := frame.Stdin
			if kind == websocket.MessageText {
				t = frame.Resize // has the same fields
			}
			if frame.Write(near, t, b) != nil {
				return
			}
		}
	})
	out := frame.NewReader(near)
	for {
		fr, err := out.Read()
		if err != nil {
			return
		}
		if fr.Type != frame.Exit {
			_ = c.Write(r.Context(), websocket.MessageBinary, fr.Payload)
			continue
		}
		var e frame.ExitBody
		_ = json.Unmarshal(fr.Payload, &e)
		b, _ := json.Marshal(api.TerminalControl{Type: api.TerminalExit, Code: e.Code, Signal: e.Signal, OOM: e.OOM})
		_ = c.Write(r.Context(), websocket.MessageText, b)
		_ = c.Close(websocket.StatusNormalClosure, "")
		return
	}
}

// getLog is a page of the fake's log.
func (f *fake) getLog(w http.ResponseWriter, r *http.Request, _ api.Sandbox) {
	q := r.URL.Query()
	f.mu.Lock()
	f.logQueries = append(f.logQueries, q)
	f.mu.Unlock()
	after, _ := time.Parse(time.RFC3339Nano, q.Get("after"))
	before, err := time.Parse(time.RFC3339Nano, q.Get("before"))
	if err != nil {
		before = logTime.AddDate(1, 0, 0)
	}
	out := []api.LogEntry{}
	for _, e := range f.entries {
		if e.Time.After(after) && e.Time.Before(before) && strings.Contains(e.Message, q.Get("search")) {
			out = append(out, e)
		}
	}
	limit := api.MaxLogEntries
	if v := q.Get("limit"); v != "" {
		_, _ = fmt.Sscan(v, &limit)
	}
	if q.Get("direction") == "backward" {
		slices.Reverse(out)
	}
	reply(w, 200, out[:min(limit, len(out))])
}

func (f *fake) followLog(w http.ResponseWriter, r *http.Request, s api.Sandbox) {
	if s.State != "running" {
		refuse(w, 409, api.CodeNotRunning, "sandbox %s is %s", s.ID, s.State)
		return
	}
	f.mu.Lock()
	f.logQueries = append(f.logQueries, r.URL.Query())
	f.mu.Unlock()
	b, _ := json.Marshal(api.LogEntry{Time: logTime.Add(time.Hour), Level: "info", Source: "stdout", Message: "more"})
	_, _ = fmt.Fprintf(w, "id: x\ndata: %s\n\n", b)
	_, _ = io.WriteString(w, "event: end\ndata: {}\n\n")
}

var logTime = time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)

// play plays a program at a terminal by its name.
func (f *fake) play(conn net.Conn, in *frame.Reader, name string) {
	exit := func(e frame.ExitBody) { _ = frame.WriteJSON(conn, frame.Exit, e) }
	if name != "shell" {
		exit(frame.ExitBody{})
		return
	}
	_ = frame.WriteOutput(conn, frame.PTY, 0, []byte("$ "))
	for {
		fr, err := in.Read()
		if err != nil {
			return
		}
		switch fr.Type {
		case frame.Stdin:
			_ = frame.WriteOutput(conn, frame.PTY, 0, fr.Payload)
			if bytes.IndexByte(fr.Payload, 4) >= 0 {
				exit(frame.ExitBody{Code: 9})
				return
			}
		case frame.Resize:
			var size frame.Size
			_ = json.Unmarshal(fr.Payload, &size)
			f.mu.Lock()
			f.sizes = append(f.sizes, size)
			f.mu.Unlock()
		}
	}
}
