package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/shoenig/test/wait"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

const execPath = "/v1/sandboxes/" + string(testID) + "/exec"

func TestExec_isSplicedToTheNode(t *testing.T) {
	h, node := withNode(t)
	c := h.client()
	var out, errs bytes.Buffer
	exit, err := c.Run(t.Context(), testID, api.ExecRequest{Argv: []string{"echo", "hello"}, Env: []string{"A=b"}, User: "root", Cwd: "/x", Tag: "t"}, nil, &out, &errs)
	must.NoError(t, err)
	must.Eq(t, frame.ExitBody{}, exit)
	must.Eq(t, "hello\n", out.String())
	must.Eq(t, guest.Start{Argv: []string{"echo", "hello"}, Env: []string{"A=b"}, User: "root", Cwd: "/x", Tag: "t", Attach: true}, node.exec)

	out.Reset()
	exit, err = c.Run(t.Context(), testID, api.ExecRequest{Argv: []string{"fail"}}, nil, &out, &errs)
	must.NoError(t, err)
	must.Eq(t, 3, exit.Code)
	must.Eq(t, "oops", errs.String())

	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	out.Reset()
	exit, err = c.Run(t.Context(), testID, api.ExecRequest{Argv: []string{"cat"}}, strings.NewReader(big), &out, nil)
	must.NoError(t, err)
	must.Eq(t, 0, exit.Code)
	must.True(t, big == out.String(), must.Sprint("what came back is not what was sent"))
}

func TestExec_errorsHaveTheirCodes(t *testing.T) {
	h, _ := withNode(t)
	c := h.client()
	_, err := c.Exec(t.Context(), testID, api.ExecRequest{Argv: []string{"nothing"}})
	var e *api.Error
	must.True(t, errors.As(err, &e), must.Sprint(err))
	must.Eq(t, api.Error{Code: 400, ErrorCode: api.CodeCommand, Message: "no program nothing"}, *e)

	_, err = c.Exec(t.Context(), otherID, api.ExecRequest{Argv: []string{"echo"}})
	must.True(t, api.IsNotFound(err), must.Sprint(err))

	h.life.err = api.Errorf(409, api.CodeNotRunning, "it has ended")
	_, err = c.Exec(t.Context(), testID, api.ExecRequest{Argv: []string{"echo"}})
	must.Eq(t, 409, api.StatusOf(err))

	s, err := c.Exec(t.Context(), testID, api.ExecRequest{Argv: []string{"break"}})
	must.NoError(t, err)
	defer s.Close()
	_, err = s.Recv()
	must.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

func TestExec_endsWithTheClient(t *testing.T) {
	for name, leave := range map[string]func(s *api.Stream, cancel func()){
		"closed":  func(s *api.Stream, _ func()) { _ = s.Close() },
		"context": func(_ *api.Stream, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			h, node := withNode(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s, err := h.client().Exec(ctx, testID, api.ExecRequest{Argv: []string{"hang"}})
			must.NoError(t, err)
			must.Eq(t, api.ProcessID(7), s.Process.PID)
			leave(s, cancel)
			select {
			case <-node.gone:
			case <-time.After(10 * time.Second):
				t.Fatal("the node did not learn that the client went")
			}
			_, err = s.Recv()
			must.Error(t, err)
		})
	}
}

func TestExec_signalsAndAttach(t *testing.T) {
	h, _ := withNode(t)
	c := h.client()
	s, err := c.Exec(t.Context(), testID, api.ExecRequest{Argv: []string{"cat"}, Stdin: true})
	must.NoError(t, err)
	defer s.Close()
	must.NoError(t, s.Resize(frame.Size{Cols: 10, Rows: 5}))
	must.NoError(t, s.Signal(15))
	exit, err := s.Copy(nil, nil)
	must.NoError(t, err)
	must.Eq(t, frame.ExitBody{Code: 143, Signal: 15}, exit)

	var out bytes.Buffer
	a, err := c.Attach(t.Context(), testID, api.AttachRequest{PID: 7, Stdout: 12})
	must.NoError(t, err)
	defer a.Close()
	_, err = a.Copy(&out, nil)
	must.NoError(t, err)
	must.Eq(t, "from 12\n", out.String())
	_, err = c.Attach(t.Context(), testID, api.AttachRequest{PID: 8})
	must.True(t, api.IsNotFound(err), must.Sprint(err))
}

func TestExec_framesThatComeWithTheRequestAreNotLost(t *testing.T) {
	h, _ := withNode(t)
	conn, err := net.Dial("tcp", h.http.Listener.Addr().String())
	must.NoError(t, err)
	defer conn.Close()
	var b bytes.Buffer
	fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nConnection: keep-alive, Upgrade\r\nUpgrade: SoulBox-Frames/1\r\n\r\n", execPath, keyA)
	must.NoError(t, frame.WriteJSON(&b, frame.Request, guest.Start{Argv: []string{"cat"}, Stdin: true}))
	must.NoError(t, frame.Write(&b, frame.Stdin, []byte("early")))
	must.NoError(t, frame.Write(&b, frame.StdinClose))
	_, err = conn.Write(b.Bytes())
	must.NoError(t, err)
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	must.NoError(t, err)
	must.Eq(t, 101, resp.StatusCode)
	r := frame.NewReader(br)
	var started guest.Response
	must.NoError(t, r.ReadJSON(frame.Response, &started))
	f, err := r.Read()
	must.NoError(t, err)
	must.Eq(t, frame.Stdout, f.Type)
	_, data, err := frame.Output(f.Payload)
	must.NoError(t, err)
	must.Eq(t, "early", string(data))
	var exit frame.ExitBody
	must.NoError(t, r.ReadJSON(frame.Exit, &exit))
	_, err = r.Read()
	must.ErrorIs(t, err, io.EOF)
}

func TestExec_upgradesThatAreNone(t *testing.T) {
	h, _ := withNode(t)
	h.do("POST", execPath, "", "Upgrade", "websocket", "Connection", "Upgrade").mustFail(t, 400, api.CodeInvalid)
	h.do("POST", execPath, "", "Upgrade", api.UpgradeProtocol).mustFail(t, 400, api.CodeInvalid)
	h.do("POST", execPath, "{}", "Upgrade", api.UpgradeProtocol, "Connection", "Upgrade").mustFail(t, 400, api.CodeInvalid)
	a := h.do("POST", "/v1/sandboxes/"+string(testID)+"/attach", `{"pid":7}`)
	a.mustFail(t, http.StatusUpgradeRequired, codeUpgrade)
	must.Eq(t, api.UpgradeProtocol, a.header.Get("Upgrade"))
}

// plain runs an exec without an upgrade and returns its lines.
func plain(t *testing.T, h *harness, body string) []api.ExecEvent {
	t.Helper()
	a := h.do("POST", execPath, body)
	must.Eq(t, 200, a.status, must.Sprint(a.body))
	must.Eq(t, "application/x-ndjson", a.header.Get("Content-Type"))
	var out []api.ExecEvent
	dec := json.NewDecoder(strings.NewReader(a.body))
	for dec.More() {
		var ev api.ExecEvent
		must.NoError(t, dec.Decode(&ev))
		out = append(out, ev)
	}
	return out
}

func TestPlainExec(t *testing.T) {
	h, node := withNode(t)
	evs := plain(t, h, `{"argv":["fail"],"user":"root"}`)
	must.Len(t, 4, evs)
	must.Eq(t, api.ProcessID(7), evs[0].Process.PID)
	must.Eq(t, "oops", string(evs[1].Stderr))
	must.Eq(t, frame.DroppedBody{Stream: frame.Stdout, Bytes: 9, Offset: 9}, *evs[2].Dropped)
	must.Eq(t, frame.ExitBody{Code: 3}, *evs[3].Exit)
	must.Eq(t, guest.Start{Argv: []string{"fail"}, User: "root", Attach: true}, node.exec)

	evs = plain(t, h, `{"argv":["cat"],"input":"aGVsbG8="}`)
	must.Len(t, 3, evs)
	must.Eq(t, "hello", string(evs[1].Stdout))
	must.True(t, node.exec.Stdin)

	evs = plain(t, h, `{"argv":["cat"],"input":""}`)
	must.Eq(t, 0, evs[len(evs)-1].Exit.Code)

	evs = plain(t, h, `{"argv":["break"]}`)
	must.Eq(t, api.CodeUnavailable, evs[len(evs)-1].Error.ErrorCode)

	h.do("POST", execPath, `{"argv":["nothing"]}`).mustFail(t, 400, api.CodeCommand)
}

func TestPlainExec_endsWithTheClient(t *testing.T) {
	h, node := withNode(t)
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "POST", h.http.URL+execPath, strings.NewReader(`{"argv":["hang"]}`))
	must.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+keyA)
	resp, err := h.http.Client().Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	must.NoError(t, err)
	must.StrContains(t, line, `"pid":7`)
	cancel()
	select {
	case <-node.gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the node did not learn that the client went")
	}
}

func TestExec_refusesBadProcesses(t *testing.T) {
	h, _ := withNode(t)
	for name, tc := range map[string]struct{ body, field string }{
		"no argv":         {`{}`, "argv"},
		"empty argv":      {`{"argv":[]}`, "argv"},
		"empty program":   {`{"argv":[""]}`, "argv"},
		"NUL":             {`{"argv":["a","b\u0000"]}`, "argv"},
		"argv a string":   {`{"argv":"ls"}`, "argv"},
		"env no =":        {`{"argv":["a"],"env":["A"]}`, "env"},
		"env no name":     {`{"argv":["a"],"env":["=A"]}`, "env"},
		"env NUL":         {`{"argv":["a"],"env":["A=\u0000"]}`, "env"},
		"too many args":   {`{"argv":["a"` + strings.Repeat(`,""`, guest.MaxArgs) + `]}`, "argv"},
		"too large args":  {`{"argv":["` + strings.Repeat("a", guest.MaxArgBytes) + `"]}`, "argv"},
		"cwd newline":     {`{"argv":["a"],"cwd":"/a\nb"}`, "cwd"},
		"user too long":   {`{"argv":["a"],"user":"` + strings.Repeat("u", 300) + `"}`, "user"},
		"tag too long":    {`{"argv":["a"],"tag":"` + strings.Repeat("u", 129) + `"}`, "tag"},
		"size negative":   {`{"argv":["a"],"size":{"cols":-1,"rows":1}}`, "size.cols"},
		"size too large":  {`{"argv":["a"],"size":{"cols":65536,"rows":1}}`, "size.cols"},
		"input no base64": {`{"argv":["a"],"input":"!!"}`, "base64"},
	} {
		t.Run(name, func(t *testing.T) {
			must.StrContains(t, h.do("POST", execPath, tc.body).mustFail(t, 400, api.CodeInvalid), tc.field)
		})
	}
}

func TestProcesses(t *testing.T) {
	h, node := withNode(t)
	c := h.client()
	p, err := c.StartProcess(t.Context(), testID, api.ExecRequest{Argv: []string{"sleep"}})
	must.NoError(t, err)
	must.Eq(t, api.Process{PID: 7, Argv: []string{"sleep"}, StartedAt: testTime}, p)
	ps, err := c.Processes(t.Context(), testID)
	must.NoError(t, err)
	must.Eq(t, []api.Process{{PID: 7, Argv: []string{"x"}, StartedAt: testTime, Exit: &frame.ExitBody{Code: 3}}}, ps)

	must.NoError(t, c.Signal(t.Context(), testID, api.SignalRequest{PID: 7, Signal: 9, Group: true}))
	must.NoError(t, c.Stdin(t.Context(), testID, api.StdinRequest{PID: 7, Data: []byte("x")}))
	must.NoError(t, c.Resize(t.Context(), testID, api.ResizeRequest{PID: 7, Size: frame.Size{Cols: 2, Rows: 3}}))
	base := "POST /v1/sandboxes/" + string(testID)
	must.Eq(t, `{"pid":7,"signal":9,"group":true}`, node.body[base+"/signal"])
	must.Eq(t, `{"pid":7,"data":"eA=="}`, node.body[base+"/stdin"])
	must.Eq(t, `{"pid":7,"size":{"cols":2,"rows":3}}`, node.body[base+"/resize"])

	for path, body := range map[string]string{
		"/signal":    `{"signal":0}`,
		"/stdin":     `{"pid":0}`,
		"/resize":    `{"pid":7,"size":{"cols":0,"rows":1}}`,
		"/processes": `{"argv":["a"],"kill_on_detach":true}`,
	} {
		h.do("POST", "/v1/sandboxes/"+string(testID)+path, body).mustFail(t, 400, api.CodeInvalid)
	}
	h.do("POST", "/v1/sandboxes/"+string(testID)+"/signal", `{"signal":65}`).mustFail(t, 400, api.CodeInvalid)
	h.do("POST", "/v1/sandboxes/"+string(testID)+"/signal", `{"signal":9,"pid":-1}`).mustFail(t, 400, api.CodeInvalid)
}

// A side that ends with bytes still on their way to it must get them.
func TestSplice_deliversWhatIsOnItsWay(t *testing.T) {
	nearOut, nearIn := tcpPair(t)
	farOut, farIn := tcpPair(t)
	done := make(chan int64)
	go func() { done <- splice(nearIn, farIn, strings.NewReader("early ")) }()
	// The far side writes its last words and ends, while the near one goes on sending.
	go func() { _, _ = nearOut.Write(bytes.Repeat([]byte("x"), 1<<20)) }()
	buf := make([]byte, 6)
	_, err := io.ReadFull(farOut, buf)
	must.NoError(t, err)
	must.Eq(t, "early ", string(buf))
	_, err = farOut.Write([]byte("last words"))
	must.NoError(t, err)
	must.NoError(t, farOut.Close())
	got, err := io.ReadAll(nearOut)
	must.NoError(t, err)
	must.Eq(t, "last words", string(got))
	must.NoError(t, nearOut.Close())
	must.Wait(t, wait.InitialSuccess(wait.BoolFunc(func() bool {
		select {
		case n := <-done:
			return n == int64(len("last words"))
		default:
			return false
		}
	}), wait.Timeout(10*time.Second), wait.Gap(5*time.Millisecond)))
}

func tcpPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	defer l.Close()
	a, err = net.Dial("tcp", l.Addr().String())
	must.NoError(t, err)
	b, err = l.Accept()
	must.NoError(t, err)
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}
