package api

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
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process/processconnect"
)

// wireBox is a sandbox with a client that speaks the contract to it, over the public port.
type wireBox struct {
	*stack
	id      api.SandboxID
	token   string
	process processconnect.ProcessClient
}

func newWireBox(tb testing.TB) *wireBox {
	tb.Helper()
	s := newStack(tb)
	r, err := http.NewRequestWithContext(tb.Context(), http.MethodPost, s.addr+"/v2/sandboxes", strings.NewReader(`{"templateID":"base"}`))
	must.NoError(tb, err)
	r.Header.Set("X-API-Key", s.key)
	resp, err := http.DefaultClient.Do(r)
	must.NoError(tb, err)
	defer resp.Body.Close()
	var made api.SandboxAccess
	must.NoError(tb, json.NewDecoder(resp.Body).Decode(&made))
	w := &wireBox{stack: s, id: made.SandboxID, token: made.EnvdAccessToken}
	w.process = processconnect.NewProcessClient(http.DefaultClient, s.addr, connect.WithProtoJSON(), connect.WithInterceptors(headers{w}))
	tb.Cleanup(http.DefaultClient.CloseIdleConnections)
	return w
}

func (w *wireBox) set(h http.Header) {
	h.Set("E2b-Sandbox-Id", string(w.id))
	h.Set("E2b-Sandbox-Port", "49983")
	h.Set("X-Access-Token", w.token)
}

// headers says which sandbox a call is for.
type headers struct{ w *wireBox }

func (h headers) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		h.w.set(r.Header())
		return next(ctx, r)
	}
}

func (h headers) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, s connect.Spec) connect.StreamingClientConn {
		c := next(ctx, s)
		h.w.set(c.RequestHeader())
		return c
	}
}

func (headers) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (w *wireBox) start(tb testing.TB, cmd ...string) *connect.ServerStreamForClient[wire.StartResponse] {
	tb.Helper()
	st, err := w.process.Start(tb.Context(), connect.NewRequest(&wire.StartRequest{
		Process: &wire.ProcessConfig{Cmd: cmd[0], Args: cmd[1:]}, Stdin: new(bool),
	}))
	must.NoError(tb, err)
	return st
}

func percentile(d []time.Duration, p float64) float64 {
	slices.Sort(d)
	return float64(d[min(len(d)-1, int(p*float64(len(d))))].Nanoseconds()) / 1e3
}

func report(b *testing.B, prefix string, d, floor []time.Duration) {
	b.ReportMetric(percentile(d, 0.5), prefix+"p50-µs")
	b.ReportMetric(percentile(d, 0.99), prefix+"p99-µs")
	if len(floor) > 0 {
		b.ReportMetric(percentile(floor, 0.5), prefix+"floor-p50-µs")
	}
}

// BenchmarkWire is what clients of the contract, and of terminals and logs, wait for, all through the public port.
func BenchmarkWire(b *testing.B) {
	w := newWireBox(b)
	var execs, spawns, echoes, loops, firsts []time.Duration
	term, err := w.client.CreateTerminal(b.Context(), api.TerminalRequest{SandboxID: w.id, Command: []string{"/bin/cat"}})
	must.NoError(b, err)
	st, err := w.client.AttachTerminal(b.Context(), term.ID, 0, api.TerminalWrite)
	must.NoError(b, err)
	defer st.Close()
	loop := newLoopback(b)
	for b.Loop() {
		begin := time.Now()
		must.NoError(b, exec.Command("/bin/true").Run())
		spawns = append(spawns, time.Since(begin))
		begin = time.Now()
		p := w.start(b, "/bin/true")
		for p.Receive() {
		}
		must.NoError(b, p.Err())
		execs = append(execs, time.Since(begin))

		loops = append(loops, loop.echo(b))
		begin = time.Now()
		must.NoError(b, st.Write(b.Context(), []byte("x")))
		_, err := st.Recv(b.Context())
		must.NoError(b, err)
		echoes = append(echoes, time.Since(begin))
		if len(firsts) < 100 {
			firsts = append(firsts, w.firstLogByte(b))
		}
	}
	report(b, "exec-", execs, spawns)
	report(b, "echo-", echoes, loops)
	report(b, "log-", firsts, nil)
	b.ReportMetric(float64(w.streams(b, 200).Microseconds()), "streams-µs")
	b.ReportMetric(float64(plainStreams(b, 200).Microseconds()), "streams-floor-µs")
	m := w.transfer(b, loop)
	b.ReportMetric(100*m.floor.Seconds()/m.up.Seconds(), "up-%")
	b.ReportMetric(100*m.floor.Seconds()/m.replacing.Seconds(), "up-again-%")
	b.ReportMetric(100*m.floor.Seconds()/m.down.Seconds(), "down-%")
	b.ReportMetric(0, "ns/op")
}

func (w *wireBox) request(tb testing.TB, method, path string, body io.Reader) *http.Response {
	tb.Helper()
	r, err := http.NewRequestWithContext(tb.Context(), method, w.addr+path, body)
	must.NoError(tb, err)
	w.set(r.Header)
	r.Header.Set("X-API-Key", w.key)
	r.Header.Set("Content-Type", "application/octet-stream")
	r.Header.Set("Accept-Encoding", "identity") // the bytes themselves are measured, not their compression
	if strings.HasPrefix(path, "/v1/") {
		r.Header.Del("E2b-Sandbox-Id")
		r.Header.Del("E2b-Sandbox-Port")
	}
	resp, err := http.DefaultClient.Do(r)
	must.NoError(tb, err)
	must.Eq(tb, 200, resp.StatusCode)
	return resp
}

// firstLogByte is the time from the request to the first entry of a followed log.
func (w *wireBox) firstLogByte(tb testing.TB) time.Duration {
	begin := time.Now()
	resp := w.request(tb, http.MethodGet, "/v1/sandboxes/"+string(w.id)+"/log/stream", nil)
	defer resp.Body.Close()
	_, err := resp.Body.Read(make([]byte, 1))
	must.NoError(tb, err)
	return time.Since(begin)
}

// longStream says something and stays.
const longStream = "echo up; read -t 60 x < <(sleep 60)"

// plainStreams is what streams takes for the same processes without a sandbox or a protocol.
func plainStreams(tb testing.TB, n int) time.Duration {
	tb.Helper()
	begin := time.Now()
	var wg sync.WaitGroup
	all := make([]*exec.Cmd, n)
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() {
			c := exec.CommandContext(tb.Context(), "/bin/bash", "-c", longStream)
			c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			out, err := c.StdoutPipe()
			if err == nil {
				err = c.Start()
			}
			if err == nil {
				all[i] = c
				_, err = io.ReadFull(out, make([]byte, len("up\n")))
			}
			errs[i] = err
		})
	}
	wg.Wait()
	took := time.Since(begin)
	for _, c := range all {
		if c != nil {
			must.NoError(tb, syscall.Kill(-c.Process.Pid, syscall.SIGKILL)) // with the children
			_ = c.Wait()
		}
	}
	must.NoError(tb, errors.Join(errs...))
	return took
}

// streams starts n processes whose streams stay open, and returns how long it takes until each has said something.
func (w *wireBox) streams(tb testing.TB, n int) time.Duration {
	begin := time.Now()
	var wg sync.WaitGroup
	all := make([]*connect.ServerStreamForClient[wire.StartResponse], n)
	for i := range n {
		wg.Go(func() {
			all[i] = w.start(tb, "/bin/bash", "-c", longStream)
			for all[i].Receive() && all[i].Msg().GetEvent().GetData() == nil {
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	for _, s := range all {
		must.NotNil(tb, s.Msg().GetEvent().GetData(), must.Sprint(s.Err()))
		_ = s.Close()
	}
	return took
}

const transferred = 64 << 20

// moves are the medians of what a transfer took, and of a loopback copy of the same bytes beside each.
type moves struct{ up, replacing, down, floor time.Duration }

// transfer moves a file up and down, and the same bytes over loopback, one after the other. What a round leaves is removed before the next: the kernel frees a file's memory as
// slowly as it fills it. An upload that takes the place of another file has its own median, since that one's memory is freed beside what comes behind it.
func (w *wireBox) transfer(tb testing.TB, loop *loopback) moves {
	data := bytes.Repeat([]byte("0123456789abcdef"), transferred/16)
	var ups, replacings, downs, floors []time.Duration
	sink := make([]byte, 256<<10) // as the floor's reader has it
	conn := w.dial(tb)
	took := func(f func()) time.Duration {
		begin := time.Now()
		f()
		return time.Since(begin)
	}
	upload := func() { w.upload(tb, conn, "/files?path=big", data) }
	remove := func() {
		p := w.start(tb, "/bin/rm", "/home/user/big")
		for p.Receive() {
		}
		must.NoError(tb, p.Err())
	}
	for range 21 {
		floors = append(floors, took(func() { loop.copy(tb, data) }))
		ups = append(ups, took(upload))
		downs = append(downs, took(func() {
			resp := w.request(tb, http.MethodGet, "/files?path=big", nil)
			n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{resp.Body}, sink)
			must.NoError(tb, err)
			must.Eq(tb, transferred, n)
			_ = resp.Body.Close()
		}))
		replacings = append(replacings, took(upload))
		remove()
	}
	middle := func(d []time.Duration) time.Duration {
		slices.Sort(d)
		return d[len(d)/2]
	}
	return moves{middle(ups), middle(replacings), middle(downs), middle(floors)}
}

func (w *wireBox) dial(tb testing.TB) net.Conn {
	tb.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(w.addr, "http://"))
	must.NoError(tb, err)
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// upload sends a file with one system call, as the floor is sent: Go's own client, which copies its body twice in pieces of 32 KiB, is not what is measured.
func (w *wireBox) upload(tb testing.TB, c net.Conn, path string, data []byte) {
	tb.Helper()
	r, err := http.NewRequestWithContext(tb.Context(), http.MethodPost, w.addr+path, http.NoBody)
	must.NoError(tb, err)
	w.set(r.Header)
	var head bytes.Buffer
	fmt.Fprintf(&head, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n", path, r.URL.Host, len(data))
	must.NoError(tb, r.Header.Write(&head))
	head.WriteString("\r\n")
	sent := make(chan error, 1)
	go func() {
		_, err := (&net.Buffers{head.Bytes(), data}).WriteTo(c)
		sent <- err
	}()
	resp, err := http.ReadResponse(bufio.NewReader(c), r)
	must.NoError(tb, err)
	must.NoError(tb, <-sent)
	said, err := io.ReadAll(resp.Body)
	must.NoError(tb, err)
	must.Eq(tb, 200, resp.StatusCode, must.Sprint(string(said)))
}

// loopback is a TCP connection to this process: the floor of everything that crosses one.
type loopback struct{ near, far net.Conn }

func newLoopback(tb testing.TB) *loopback {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(tb, err)
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	must.NoError(tb, err)
	far, err := l.Accept()
	must.NoError(tb, err)
	tb.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return &loopback{near, far}
}

func (l *loopback) echo(tb testing.TB) time.Duration {
	begin := time.Now()
	b := []byte("x")
	for _, c := range []struct{ from, to net.Conn }{{l.near, l.far}, {l.far, l.near}} {
		_, err := c.from.Write(b)
		must.NoError(tb, err)
		_, err = io.ReadFull(c.to, b)
		must.NoError(tb, err)
	}
	return time.Since(begin)
}

func (l *loopback) copy(tb testing.TB, data []byte) time.Duration {
	begin := time.Now()
	done := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.Discard, bufio.NewReaderSize(l.far, 256<<10), int64(len(data)))
		done <- err
	}()
	_, err := l.near.Write(data)
	must.NoError(tb, err)
	must.NoError(tb, <-done)
	return time.Since(begin)
}
