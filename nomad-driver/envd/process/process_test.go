package process_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/envdtest"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/process"
	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process/processconnect"
)

func start(t testing.TB) *envdtest.Server {
	path, h := process.New(process.Config{})
	mux := http.NewServeMux()
	mux.Handle(path, h)
	return envdtest.Start(t, mux)
}

func client(s *envdtest.Server, o ...connect.ClientOption) processconnect.ProcessClient {
	return processconnect.NewProcessClient(s.Client, s.URL, o...)
}

func shell(script string) *wire.StartRequest {
	return &wire.StartRequest{Process: &wire.ProcessConfig{Cmd: "/bin/bash", Args: []string{"-l", "-c", script}}, Stdin: new(bool)}
}

// story is what a stream of events told.
type story struct {
	pid            uint32
	stdout, stderr string
	pty            string
	beats          int
	end            *wire.ProcessEvent_EndEvent
}

// events is what server streams of Start and Connect have in common.
type events interface {
	Receive() bool
	Err() error
	Close() error
}

func follow(t testing.TB, s events, event func() *wire.ProcessEvent) (story, error) {
	t.Helper()
	defer s.Close()
	var out story
	for s.Receive() {
		switch e := event().GetEvent().(type) {
		case *wire.ProcessEvent_Start:
			must.Eq(t, 0, out.pid, must.Sprint("a second start event"))
			out.pid = e.Start.GetPid()
		case *wire.ProcessEvent_Data:
			must.NotEq(t, 0, out.pid, must.Sprint("data before the start event"))
			out.stdout += string(e.Data.GetStdout())
			out.stderr += string(e.Data.GetStderr())
			out.pty += string(e.Data.GetPty())
		case *wire.ProcessEvent_Keepalive:
			out.beats++
		case *wire.ProcessEvent_End:
			out.end = e.End
		}
	}
	return out, s.Err()
}

func run(t testing.TB, c processconnect.ProcessClient, req *connect.Request[wire.StartRequest]) (story, error) {
	t.Helper()
	s, err := c.Start(t.Context(), req)
	must.NoError(t, err)
	return follow(t, s, func() *wire.ProcessEvent { return s.Msg().GetEvent() })
}

func code(t testing.TB, want connect.Code, err error) string {
	t.Helper()
	var e *connect.Error
	must.True(t, errors.As(err, &e), must.Sprintf("%v", err))
	must.Eq(t, want, e.Code(), must.Sprint(err))
	return e.Message()
}

func TestReal_bothCodecsTellHowAProcessWent(t *testing.T) {
	s := start(t)
	for name, o := range map[string][]connect.ClientOption{"binary": nil, "json": {connect.WithProtoJSON()}} {
		t.Run(name, func(t *testing.T) {
			c := client(s, o...)
			for script, want := range map[string]story{
				"echo out; echo err >&2": {stdout: "out\n", stderr: "err\n", end: &wire.ProcessEvent_EndEvent{Exited: true, Status: "exit status 0"}},
				"exit 3":                 {end: &wire.ProcessEvent_EndEvent{ExitCode: 3, Exited: true, Status: "exit status 3"}},
				"kill -9 $$":             {end: &wire.ProcessEvent_EndEvent{ExitCode: -1, Status: "signal: killed"}},
				"kill $$":                {end: &wire.ProcessEvent_EndEvent{ExitCode: -1, Status: "signal: terminated"}},
				"cat":                    {end: &wire.ProcessEvent_EndEvent{Exited: true, Status: "exit status 0"}}, // its stdin is empty
			} {
				got, err := run(t, c, connect.NewRequest(shell(script)))
				must.NoError(t, err)
				must.Positive(t, got.pid)
				must.Eq(t, want.stdout, got.stdout)
				must.Eq(t, want.stderr, got.stderr)
				must.Eq(t, want.end.GetExitCode(), got.end.GetExitCode(), must.Sprint(script))
				must.Eq(t, want.end.GetExited(), got.end.GetExited())
				must.Eq(t, want.end.GetStatus(), got.end.GetStatus())
				if want.end.GetStatus() == "exit status 0" {
					must.Nil(t, got.end.Error)
				} else {
					must.Eq(t, want.end.GetStatus(), got.end.GetError())
				}
			}
		})
	}
}

func TestReal_requestsThatCannotBeMet(t *testing.T) {
	s := start(t)
	c := client(s)
	nowhere, big := "/nowhere", strings.Repeat("x", 3<<20)
	for name, tc := range map[string]struct {
		req  *wire.StartRequest
		user string
		code connect.Code
		text string
	}{
		"no command":       {&wire.StartRequest{}, "", connect.CodeInvalidArgument, "process.cmd is empty"},
		"a missing cwd":    {&wire.StartRequest{Process: &wire.ProcessConfig{Cmd: "true", Cwd: &nowhere}}, "", connect.CodeInvalidArgument, "cwd '/nowhere' does not exist"},
		"an unknown user":  {shell("true"), "nobody-here", connect.CodeUnauthenticated, "invalid username: 'nobody-here'"},
		"a missing file":   {&wire.StartRequest{Process: &wire.ProcessConfig{Cmd: "/no/such"}}, "", connect.CodeInvalidArgument, "/no/such"},
		"a NUL":            {&wire.StartRequest{Process: &wire.ProcessConfig{Cmd: "a\x00b"}}, "", connect.CodeInvalidArgument, "NUL"},
		"a bad variable":   {&wire.StartRequest{Process: &wire.ProcessConfig{Cmd: "true", Envs: map[string]string{"A=B": "c"}}}, "", connect.CodeInvalidArgument, "process.envs"},
		"too much":         {&wire.StartRequest{Process: &wire.ProcessConfig{Cmd: "true", Args: []string{big}}}, "", connect.CodeInvalidArgument, "at most"},
		"no cells":         {&wire.StartRequest{Process: &wire.ProcessConfig{Cmd: "true"}, Pty: &wire.PTY{}}, "", connect.CodeInvalidArgument, "pty.size"},
		"too many cells":   {&wire.StartRequest{Process: &wire.ProcessConfig{Cmd: "true"}, Pty: &wire.PTY{Size: &wire.PTY_Size{Cols: 1 << 20, Rows: 1}}}, "", connect.CodeInvalidArgument, "pty.size"},
		"a message of 17M": {&wire.StartRequest{Process: &wire.ProcessConfig{Cmd: strings.Repeat("x", 17<<20)}}, "", connect.CodeResourceExhausted, ""},
	} {
		t.Run(name, func(t *testing.T) {
			req := connect.NewRequest(tc.req)
			if tc.user != "" {
				req.Header().Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(tc.user+":")))
			}
			_, err := run(t, c, req)
			must.StrContains(t, code(t, tc.code, err), tc.text)
		})
	}
}

func pidOf(t testing.TB, s *connect.ServerStreamForClient[wire.StartResponse]) uint32 {
	t.Helper()
	must.True(t, s.Receive(), must.Sprint(s.Err()))
	return s.Msg().GetEvent().GetStart().GetPid()
}

func byPID(pid uint32) *wire.ProcessSelector {
	return &wire.ProcessSelector{Selector: &wire.ProcessSelector_Pid{Pid: pid}}
}

func stdin(data string) *wire.ProcessInput {
	return &wire.ProcessInput{Input: &wire.ProcessInput_Stdin{Stdin: []byte(data)}}
}

func TestReal_inputReachesTheProcess(t *testing.T) {
	s := start(t)
	c := client(s)
	tag := "the cat"
	cwd, envs := "/", map[string]string{"A": "b"}
	st, err := c.Start(t.Context(), connect.NewRequest(&wire.StartRequest{Process: &wire.ProcessConfig{Cmd: "cat", Cwd: &cwd, Envs: envs}, Tag: &tag})) // stdin is there where nothing is said
	must.NoError(t, err)
	pid := pidOf(t, st)
	byTag := &wire.ProcessSelector{Selector: &wire.ProcessSelector_Tag{Tag: tag}}
	_, err = c.SendInput(t.Context(), connect.NewRequest(&wire.SendInputRequest{Process: byTag, Input: stdin("one ")}))
	must.NoError(t, err)
	in := c.StreamInput(t.Context())
	must.NoError(t, in.Send(&wire.StreamInputRequest{Event: &wire.StreamInputRequest_Start{Start: &wire.StreamInputRequest_StartEvent{Process: byPID(pid)}}}))
	for _, part := range []string{"two ", strings.Repeat("x", 100_000)} {
		must.NoError(t, in.Send(&wire.StreamInputRequest{Event: &wire.StreamInputRequest_Data{Data: &wire.StreamInputRequest_DataEvent{Input: stdin(part)}}}))
	}
	_, err = in.CloseAndReceive()
	must.NoError(t, err)
	list, err := c.List(t.Context(), connect.NewRequest(&wire.ListRequest{}))
	must.NoError(t, err)
	must.Eq(t, 1, len(list.Msg.GetProcesses()))
	must.Eq(t, "cat", list.Msg.GetProcesses()[0].GetConfig().GetCmd())
	must.Eq(t, tag, list.Msg.GetProcesses()[0].GetTag())
	must.Eq(t, envs, list.Msg.GetProcesses()[0].GetConfig().GetEnvs()) // as asked for, without what all processes have
	must.Eq(t, cwd, list.Msg.GetProcesses()[0].GetConfig().GetCwd())
	_, err = c.CloseStdin(t.Context(), connect.NewRequest(&wire.CloseStdinRequest{Process: byPID(pid)}))
	must.NoError(t, err)
	echoed := ""
	for st.Receive() {
		echoed += string(st.Msg().GetEvent().GetData().GetStdout())
	}
	must.NoError(t, st.Err())
	must.Eq(t, "one two "+strings.Repeat("x", 100_000), echoed)
}

func TestReal_whatIsNotThereIsNotFound(t *testing.T) {
	s := start(t)
	c := client(s)
	missing := byPID(99999)
	calls := map[string]func() error{
		"connect": func() error {
			st, err := c.Connect(t.Context(), connect.NewRequest(&wire.ConnectRequest{Process: missing}))
			must.NoError(t, err)
			defer st.Close()
			st.Receive()
			return st.Err()
		},
		"signal": func() error {
			_, err := c.SendSignal(t.Context(), connect.NewRequest(&wire.SendSignalRequest{Process: missing, Signal: wire.Signal_SIGNAL_SIGKILL}))
			return err
		},
		"input": func() error {
			_, err := c.SendInput(t.Context(), connect.NewRequest(&wire.SendInputRequest{Process: missing, Input: stdin("x")}))
			return err
		},
		"close stdin": func() error {
			_, err := c.CloseStdin(t.Context(), connect.NewRequest(&wire.CloseStdinRequest{Process: missing}))
			return err
		},
		"update": func() error {
			_, err := c.Update(t.Context(), connect.NewRequest(&wire.UpdateRequest{Process: missing}))
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			must.StrContains(t, code(t, connect.CodeNotFound, call()), "process with pid 99999 not found")
		})
	}
}

func TestReal_processesOutliveTheirClients(t *testing.T) {
	s := start(t)
	c := client(s)
	ctx, leave := context.WithCancel(t.Context())
	waits := shell("echo first; read x; echo last; exit 7")
	waits.Stdin = nil // a pipe, as the contract has it where nothing is said
	st, err := c.Start(ctx, connect.NewRequest(waits))
	must.NoError(t, err)
	pid := pidOf(t, st)
	must.True(t, st.Receive())
	must.Eq(t, "first\n", string(st.Msg().GetEvent().GetData().GetStdout()))
	leave()

	connectTo := func(offset string) (story, http.Header) {
		req := connect.NewRequest(&wire.ConnectRequest{Process: byPID(pid)})
		if offset != "" {
			req.Header().Set(process.OffsetHeader, offset)
		}
		at, err := c.Connect(t.Context(), req)
		must.NoError(t, err)
		got, err := follow(t, at, func() *wire.ProcessEvent {
			if at.Msg().GetEvent().GetStart() != nil && offset == "" { // it goes on once somebody listens
				_, err := c.SendInput(t.Context(), connect.NewRequest(&wire.SendInputRequest{Process: byPID(pid), Input: stdin("go on\n")}))
				must.NoError(t, err)
			}
			return at.Msg().GetEvent()
		})
		must.NoError(t, err)
		return got, at.ResponseHeader()
	}
	live, _ := connectTo("")
	must.Eq(t, pid, live.pid)
	must.Eq(t, "last\n", live.stdout)
	must.Eq(t, 7, live.end.GetExitCode())
	late, h := connectTo("stdout=0") // it has ended; its output from the beginning
	must.Eq(t, "first\nlast\n", late.stdout)
	must.Eq(t, "stdout=0,stderr=0", strings.Replace(h.Get(process.OffsetHeader), "stderr=-1", "stderr=0", 1))
}

func TestReal_offsetsSayWhereTheRingHasMovedOn(t *testing.T) {
	s := start(t)
	c := client(s)
	st, err := c.Start(t.Context(), connect.NewRequest(shell("head -c 1000000 /dev/zero | tr '\\0' x; sleep 100")))
	must.NoError(t, err)
	pid := pidOf(t, st)
	for n := 0; n < 1_000_000 && st.Receive(); {
		n += len(st.Msg().GetEvent().GetData().GetStdout())
	}
	req := connect.NewRequest(&wire.ConnectRequest{Process: byPID(pid)})
	req.Header().Set(process.OffsetHeader, "stdout=10")
	at, err := c.Connect(t.Context(), req)
	must.NoError(t, err)
	defer at.Close()
	must.True(t, at.Receive())
	must.StrHasPrefix(t, fmt.Sprintf("stdout=%d,", 1_000_000-256<<10), at.ResponseHeader().Get(process.OffsetHeader))
	bad := connect.NewRequest(&wire.ConnectRequest{Process: byPID(pid)})
	bad.Header().Set(process.OffsetHeader, "stdout=-1")
	st2, err := c.Connect(t.Context(), bad)
	must.NoError(t, err)
	defer st2.Close()
	st2.Receive()
	code(t, connect.CodeInvalidArgument, st2.Err())
	must.NoError(t, st.Close())
}

func TestReal_theDeadlineKillsTheProcessAndItsChildren(t *testing.T) {
	s := start(t)
	c := client(s)
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	st, err := c.Start(ctx, connect.NewRequest(shell("sleep 1234 & sleep 1234")))
	must.NoError(t, err)
	_, err = follow(t, st, func() *wire.ProcessEvent { return st.Msg().GetEvent() })
	code(t, connect.CodeDeadlineExceeded, err)
	for end := time.Now().Add(10 * time.Second); ; {
		got, err := run(t, c, connect.NewRequest(shell(`for p in /proc/[0-9]*; do [ "$(tr '\0' ' ' <$p/cmdline)" = "sleep 1234 " ] && echo $p; done; true`)))
		must.NoError(t, err)
		if got.stdout == "" {
			return
		}
		must.True(t, time.Now().Before(end), must.Sprint("still running: ", got.stdout))
		time.Sleep(20 * time.Millisecond)
	}
}

func TestReal_aQuietProcessIsAlive(t *testing.T) {
	s := start(t)
	req := connect.NewRequest(shell("sleep 2.5"))
	req.Header().Set("Keepalive-Ping-Interval", "1")
	got, err := run(t, client(s), req)
	must.NoError(t, err)
	must.Between(t, 1, got.beats, 3)
}

func TestReal_theEndOfTheSandboxCutsTheStream(t *testing.T) {
	s := start(t)
	st, err := client(s).Start(t.Context(), connect.NewRequest(shell("sleep 100")))
	must.NoError(t, err)
	pidOf(t, st)
	must.NoError(t, s.Sandbox.Kill(t.Context()))
	got, err := follow(t, st, func() *wire.ProcessEvent { return st.Msg().GetEvent() })
	must.Error(t, err)
	must.Nil(t, got.end, must.Sprint("an end event would say that the process ended by itself"))
}

func TestReal_terminals(t *testing.T) {
	s := start(t)
	c := client(s)
	st, err := c.Start(t.Context(), connect.NewRequest(&wire.StartRequest{
		Process: &wire.ProcessConfig{Cmd: "/bin/bash", Args: []string{"-c", "shopt -s checkwinsize; (:;:); echo $LINES $COLUMNS; read x; (:;:); echo $LINES $COLUMNS; exit 5"}},
		Pty:     &wire.PTY{Size: &wire.PTY_Size{Cols: 100, Rows: 30}},
	}))
	must.NoError(t, err)
	pid := pidOf(t, st)
	must.True(t, st.Receive())
	must.Eq(t, "30 100\r\n", string(st.Msg().GetEvent().GetData().GetPty()))
	_, err = c.Update(t.Context(), connect.NewRequest(&wire.UpdateRequest{Process: byPID(pid), Pty: &wire.PTY{Size: &wire.PTY_Size{Cols: 90, Rows: 20}}}))
	must.NoError(t, err)
	_, err = c.SendInput(t.Context(), connect.NewRequest(&wire.SendInputRequest{Process: byPID(pid), Input: stdin("x")}))
	code(t, connect.CodeFailedPrecondition, err)
	_, err = c.SendInput(t.Context(), connect.NewRequest(&wire.SendInputRequest{Process: byPID(pid), Input: &wire.ProcessInput{Input: &wire.ProcessInput_Pty{Pty: []byte("\n")}}}))
	must.NoError(t, err)
	screen := ""
	for st.Receive() {
		screen += string(st.Msg().GetEvent().GetData().GetPty())
		if e := st.Msg().GetEvent().GetEnd(); e != nil {
			must.Eq(t, 5, e.GetExitCode())
		}
	}
	must.StrContains(t, screen, "20 90")
}

// What the JavaScript client sends, byte for byte, with a field that nobody knows.
func TestReal_jsonAsABrowserSendsIt(t *testing.T) {
	s := start(t)
	post := func(body []byte) *http.Response {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/process.Process/Start", bytes.NewReader(body))
		must.NoError(t, err)
		r.Header.Set("Content-Type", "application/connect+json")
		r.Header.Set("Connect-Protocol-Version", "1")
		resp, err := s.Client.Do(r)
		must.NoError(t, err)
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	msg := `{"process":{"cmd":"/bin/bash","args":["-l","-c","echo hi"],"envs":{}},"stdin":false,"somethingNew":{"a":[1]}}`
	resp := post(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg))), msg...))
	must.Eq(t, 200, resp.StatusCode)
	var kinds []string
	for {
		var head [5]byte
		if _, err := io.ReadFull(resp.Body, head[:]); err != nil {
			break
		}
		b := make([]byte, binary.BigEndian.Uint32(head[1:]))
		_, err := io.ReadFull(resp.Body, b)
		must.NoError(t, err)
		if head[0] == 2 {
			must.Eq(t, "{}", string(b))
			kinds = append(kinds, "eos")
			continue
		}
		var e struct{ Event map[string]json.RawMessage }
		must.NoError(t, json.Unmarshal(b, &e))
		for k := range e.Event {
			kinds = append(kinds, k)
		}
	}
	must.Eq(t, "start data end eos", strings.Join(kinds, " "))

	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	liar := post([]byte{0, 0xff, 0xff, 0xff, 0xff, '{'}) // four gigabytes, says its head
	b, err := io.ReadAll(liar.Body)
	must.NoError(t, err)
	must.StrContains(t, string(b), "resource_exhausted")
	runtime.ReadMemStats(&after)
	must.Less(t, uint64(64<<20), after.TotalAlloc-before.TotalAlloc)
}

// BenchmarkExec is one command through the SDK's protocol, over the node's kind of socket.
func BenchmarkExec(b *testing.B) {
	s := start(b)
	c := client(s, connect.WithProtoJSON())
	for b.Loop() {
		got, err := run(b, c, connect.NewRequest(&wire.StartRequest{Process: &wire.ProcessConfig{Cmd: "/bin/true"}, Stdin: new(bool)}))
		if err != nil || got.end.GetExitCode() != 0 {
			b.Fatal(got, err)
		}
	}
}
