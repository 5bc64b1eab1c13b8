package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/filesystem"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/filesystem/filesystemconnect"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process/processconnect"
)

// envd plays that of all sandboxes: below /v1/sandboxes/{id}/envd.
func (f *fake) envd(mux *http.ServeMux) {
	const prefix = "/v1/sandboxes/{id}/envd"
	mux.HandleFunc("GET "+prefix+"/files", f.box(f.readFile))
	mux.HandleFunc("POST "+prefix+"/files", f.box(f.writeFile))
	inner := http.NewServeMux()
	inner.Handle(processconnect.NewProcessHandler(&fakeProcess{f: f}))
	inner.Handle(filesystemconnect.NewFilesystemHandler(fakeFiles{f: f}))
	mux.HandleFunc("POST "+prefix+"/{service}/{method}", f.box(func(w http.ResponseWriter, r *http.Request, s api.Sandbox) {
		if s.State != "running" {
			refuse(w, 409, api.CodeNotRunning, "sandbox %s is %s", s.ID, s.State)
			return
		}
		r.URL.Path = "/" + r.PathValue("service") + "/" + r.PathValue("method")
		inner.ServeHTTP(w, r)
	}))
}

// fakeProcess plays programs by the name of the command. There is one at a time.
type fakeProcess struct {
	processconnect.UnimplementedProcessHandler
	f *fake

	mu     sync.Mutex
	events chan *process.ProcessEvent // of the one that reads
}

func (p *fakeProcess) Start(ctx context.Context, req *connect.Request[process.StartRequest], out *connect.ServerStream[process.StartResponse]) error {
	send := func(e *process.ProcessEvent) error { return out.Send(&process.StartResponse{Event: e}) }
	cfg := req.Msg.GetProcess()
	p.f.mu.Lock()
	p.f.execs = append(p.f.execs, started{
		Argv: append([]string{cfg.GetCmd()}, cfg.GetArgs()...), Env: cfg.GetEnvs(), Cwd: cfg.GetCwd(), User: req.Header().Get(api.UserHeader),
		Stdin: req.Msg.GetStdin(), Kill: req.Header().Get("Soulbox-Kill-On-Disconnect"),
	})
	p.f.mu.Unlock()
	if cfg.GetCmd() == "nosuch" || cfg.GetCwd() == "/nosuch" {
		word, text := api.CodeCommand, "command 'nosuch' not found"
		if cfg.GetCwd() != "" {
			word, text = api.CodeCwd, "cwd '/nosuch' does not exist"
		}
		e := connect.NewError(connect.CodeInvalidArgument, errors.New(text))
		e.Meta().Set("Soulbox-Error", word)
		return e
	}
	events := make(chan *process.ProcessEvent, 64)
	p.mu.Lock()
	p.events = events
	p.mu.Unlock()
	if err := send(&process.ProcessEvent{Event: &process.ProcessEvent_Start{Start: &process.ProcessEvent_StartEvent{Pid: 7}}}); err != nil {
		return err
	}
	exit := func(code int) error { return send(ended7(code)) }
	switch cfg.GetCmd() {
	case "echo":
		if err := errors.Join(send(stdout([]byte(strings.Join(cfg.GetArgs(), " ")+"\n"))), send(stderr("warned\n"))); err != nil {
			return err
		}
		return exit(0)
	case "exit":
		code, _ := strconv.Atoi(cfg.GetArgs()[0])
		return exit(code)
	case "die":
		out.ResponseTrailer().Set("Soulbox-Signal", "9")
		out.ResponseTrailer().Set("Soulbox-Oom", "true")
		return exit(-1)
	case "vanish":
		panic(http.ErrAbortHandler)
	case "wait":
		if err := send(stdout([]byte("ready\n"))); err != nil {
			return err
		}
	}
	for { // cat and wait: until they are ended
		select {
		case e := <-events:
			if sig := e.GetEnd().GetExitCode(); sig < 0 {
				out.ResponseTrailer().Set("Soulbox-Signal", strconv.Itoa(int(-sig)))
			}
			if err := send(e); err != nil || e.GetEnd() != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *fakeProcess) now() chan *process.ProcessEvent {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.events
}

func (p *fakeProcess) StreamInput(_ context.Context, in *connect.ClientStream[process.StreamInputRequest]) (*connect.Response[process.StreamInputResponse], error) {
	for in.Receive() {
		if data := in.Msg().GetData(); data != nil {
			p.now() <- stdout(bytes.Clone(data.GetInput().GetStdin()))
		}
	}
	return connect.NewResponse(&process.StreamInputResponse{}), in.Err()
}

func (p *fakeProcess) CloseStdin(context.Context, *connect.Request[process.CloseStdinRequest]) (*connect.Response[process.CloseStdinResponse], error) {
	p.now() <- ended7(0)
	return connect.NewResponse(&process.CloseStdinResponse{}), nil
}

func (p *fakeProcess) SendSignal(_ context.Context, req *connect.Request[process.SendSignalRequest]) (*connect.Response[process.SendSignalResponse], error) {
	p.f.mu.Lock()
	p.f.signals = append(p.f.signals, int(req.Msg.GetSignal()))
	p.f.mu.Unlock()
	p.now() <- ended7(-int(req.Msg.GetSignal()))
	return connect.NewResponse(&process.SendSignalResponse{}), nil
}

func ended7(code int) *process.ProcessEvent {
	return &process.ProcessEvent{Event: &process.ProcessEvent_End{End: &process.ProcessEvent_EndEvent{ExitCode: int32(code), Exited: code >= 0}}}
}

func stdout(b []byte) *process.ProcessEvent {
	return &process.ProcessEvent{Event: &process.ProcessEvent_Data{Data: &process.ProcessEvent_DataEvent{Output: &process.ProcessEvent_DataEvent_Stdout{Stdout: b}}}}
}

func stderr(s string) *process.ProcessEvent {
	return &process.ProcessEvent{Event: &process.ProcessEvent_Data{Data: &process.ProcessEvent_DataEvent{Output: &process.ProcessEvent_DataEvent_Stderr{Stderr: []byte(s)}}}}
}

// fakeFiles shows a folder of the test.
type fakeFiles struct {
	filesystemconnect.UnimplementedFilesystemHandler
	f *fake
}

func (s fakeFiles) Stat(_ context.Context, req *connect.Request[filesystem.StatRequest]) (*connect.Response[filesystem.StatResponse], error) {
	p := s.f.inside(req.Msg.GetPath())
	real, err := filepath.EvalSymlinks(filepath.Join(s.f.root, p))
	var st fs.FileInfo
	if err == nil {
		st, err = os.Stat(real)
	}
	if err != nil {
		e := connect.NewError(connect.CodeNotFound, errors.New("path '"+p+"' does not exist"))
		e.Meta().Set("Soulbox-Error", api.CodeNotFound)
		return nil, e
	}
	info := &filesystem.EntryInfo{
		Name: filepath.Base(p), Path: p, Type: filesystem.FileType_FILE_TYPE_FILE, Size: st.Size(), Mode: uint32(st.Mode().Perm()), ModifiedTime: timestamppb.New(st.ModTime()),
	}
	if st.IsDir() {
		info.Type = filesystem.FileType_FILE_TYPE_DIRECTORY
	}
	if target := "/" + strings.TrimPrefix(strings.TrimPrefix(real, s.f.root), "/"); target != p {
		info.SymlinkTarget = &target
	}
	return connect.NewResponse(&filesystem.StatResponse{Entry: info}), nil
}

// inside returns a path as the sandbox takes it.
func (f *fake) inside(p string) string {
	if !filepath.IsAbs(p) {
		p = "/home/user/" + p
	}
	return filepath.Clean(p)
}

func (f *fake) path(r *http.Request) string { return f.inside(r.URL.Query().Get("path")) }

func (f *fake) readFile(w http.ResponseWriter, r *http.Request, _ api.Sandbox) {
	p := f.path(r)
	st, err := os.Stat(filepath.Join(f.root, p))
	switch {
	case err != nil:
		w.Header().Set("Soulbox-Error", api.CodeNotFound)
		refuse(w, 404, "", "path '%s' does not exist", p)
		return
	case st.IsDir():
		w.Header().Set("Soulbox-Error", "is_a_directory")
		refuse(w, 400, "", "path '%s' is a directory", p)
		return
	}
	mode := uint64(st.Mode().Perm())
	if strings.HasSuffix(p, "setuid") {
		mode |= 0o6000
	}
	data, err := os.ReadFile(filepath.Join(f.root, p))
	must.NoError(f.t, err)
	w.Header().Set("Soulbox-Mode", strconv.FormatUint(mode, 8))
	w.Header().Set("Last-Modified", st.ModTime().UTC().Format(http.TimeFormat))
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	if strings.HasSuffix(p, "broken") {
		_, _ = w.Write(data[:len(data)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(data)
}

func (f *fake) writeFile(w http.ResponseWriter, r *http.Request, _ api.Sandbox) {
	mode, _ := strconv.ParseUint(r.Header.Get("Soulbox-Mode"), 8, 32)
	if mode == 0 {
		mode = 0o644
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		refuse(w, 400, api.CodeInvalid, "%v", err)
		return
	}
	p := filepath.Join(f.root, f.path(r))
	must.NoError(f.t, os.MkdirAll(filepath.Dir(p), 0o755))
	must.NoError(f.t, os.WriteFile(p, b, 0o600))
	must.NoError(f.t, os.Chmod(p, os.FileMode(mode)))
	reply(w, 200, []map[string]string{{"path": f.path(r), "name": filepath.Base(p), "type": "file"}})
}
