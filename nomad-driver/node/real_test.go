package node

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func main(argv ...string) func(*nodeapi.CreateRequest) {
	return func(r *nodeapi.CreateRequest) { r.Main = &guest.Start{Argv: argv} }
}

func TestReal_aLife(t *testing.T) {
	d := startDaemon(t)
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Env = map[string]string{"GREETING": "hello"}; r.Hostname = "cell" })
	must.Eq(t, nodeapi.StateRunning, sb.State)
	must.SliceNotEmpty(t, sb.Steps)

	out, code := d.exec(sb, "bash", "-c", "echo $GREETING from $(hostname) as $(id -u) in $PWD; exit 3")
	must.Eq(t, "hello from cell as 1000 in /home/user\n", out)
	must.Eq(t, 3, code)

	var stdout bytes.Buffer
	exit, err := d.client.Run(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"tr", "a-z", "A-Z"}}}, strings.NewReader("shout"), &stdout, nil)
	must.NoError(t, err)
	must.Eq(t, 0, exit.Code)
	must.Eq(t, "SHOUT", stdout.String())

	h, err := d.client.Health(t.Context(), sb.ID)
	must.NoError(t, err)
	must.True(t, h.Healthy)
	must.Positive(t, h.Uptime)

	stats, err := d.client.Stats(t.Context(), sb.ID)
	must.NoError(t, err)
	must.SliceContains(t, stats.Measured, "memory_bytes")
	must.Positive(t, stats.MemoryBytes)

	processes, err := d.client.Processes(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Len(t, 2, processes)

	stopped, err := d.client.Stop(t.Context(), sb.ID, nodeapi.StopRequest{Timeout: 5 * time.Second})
	must.NoError(t, err)
	must.Eq(t, nodeapi.ExitStopped, stopped.Exit.Reason)
	_, err = d.client.Exec(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"true"}}})
	must.Eq(t, http.StatusConflict, api.StatusOf(err))
	must.NoError(t, d.client.Delete(t.Context(), sb.ID))
	_, err = d.client.Get(t.Context(), sb.ID)
	must.True(t, api.IsNotFound(err))
	d.noLeftovers()
}

func TestReal_exitCodes(t *testing.T) {
	d := startDaemon(t)
	for _, tc := range []struct {
		name string
		req  func(*nodeapi.CreateRequest)
		want nodeapi.Exit
	}{
		{"code", main("bash", "-c", "exit 7"), nodeapi.Exit{Reason: nodeapi.ExitMainExited, Code: 7}},
		{"signal", main("bash", "-c", "kill -SEGV $$"), nodeapi.Exit{Reason: nodeapi.ExitMainExited, Code: 139, Signal: 11}},
		{"out of memory", func(r *nodeapi.CreateRequest) {
			r.Limits.MemoryBytes = 48 << 20
			r.Main = &guest.Start{Argv: []string{"bash", "-c", "x=x; while :; do x=$x$x; done"}}
		}, nodeapi.Exit{Reason: nodeapi.ExitKilled, Code: 137, Signal: 9, OOM: true, Message: "the kernel ended it for lack of memory"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sb := d.create(tc.req)
			got, err := d.client.Wait(t.Context(), sb.ID)
			must.NoError(t, err)
			must.Eq(t, tc.want, *got.Exit)
		})
	}
}

func TestReal_createThatFailsLeavesNothing(t *testing.T) {
	d := startDaemon(t)
	for _, tc := range []struct {
		name string
		req  func(*nodeapi.CreateRequest)
		code string
	}{
		{"command", main("/no/such/program"), api.CodeCommand},
		{"cwd", func(r *nodeapi.CreateRequest) { r.Main = &guest.Start{Argv: []string{"true"}, Cwd: "/no/such/dir"} }, api.CodeCwd},
		{"user", func(r *nodeapi.CreateRequest) { r.Main = &guest.Start{Argv: []string{"true"}, User: "nobody-knows"} }, api.CodeUnknownUser},
		{"template", func(r *nodeapi.CreateRequest) { r.Template = "none" }, api.CodeUnknownTemplate},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req := createRequest()
			tc.req(&req)
			_, err := d.client.Create(t.Context(), req)
			must.Error(t, err)
			must.Eq(t, tc.code, apiError(err).ErrorCode)
			d.noLeftovers()
		})
	}
}

func TestReal_terminal(t *testing.T) {
	d := startDaemon(t)
	sb := d.create()
	s, err := d.client.Exec(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{
		Argv: []string{"bash", "--norc"}, TTY: true, Stdin: true, Size: &frame.Size{Cols: 100, Rows: 30}, KillOnDetach: true,
	}})
	must.NoError(t, err)
	defer s.Close()
	_, err = s.Write([]byte("echo marker-$((6*7)); exit 5\n"))
	must.NoError(t, err)
	var out bytes.Buffer
	exit, err := s.Copy(&out, nil)
	must.NoError(t, err)
	must.Eq(t, 5, exit.Code)
	must.StrContains(t, out.String(), "marker-42")
}

// The end of a client ends the process that was started for it, also when it says nothing.
func TestReal_clientThatLeavesTakesItsProcessAlong(t *testing.T) {
	d := startDaemon(t)
	sb := d.create()
	s, err := d.client.Exec(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"sleep", "1000"}, KillOnDetach: true}})
	must.NoError(t, err)
	must.NoError(t, s.Close())
	waitUntil(t, "end of sleep", func() bool {
		list, err := d.client.Processes(t.Context(), sb.ID)
		must.NoError(t, err)
		return len(list) == 1 && list[0].Exit != nil
	})

	kept, err := d.client.Exec(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"bash", "-c", "read x; echo got $x"}, Stdin: true}})
	must.NoError(t, err)
	must.NoError(t, kept.Close())
	again, err := d.client.Attach(t.Context(), sb.ID, nodeapi.AttachRequest{Attach: guest.Attach{PID: kept.Process.PID}})
	must.NoError(t, err)
	defer again.Close()
	_, err = again.Write([]byte("it\n"))
	must.NoError(t, err)
	var out bytes.Buffer
	_, err = again.Copy(&out, nil)
	must.NoError(t, err)
	must.Eq(t, "got it\n", out.String())
}

func TestReal_execErrors(t *testing.T) {
	d := startDaemon(t)
	sb := d.create()
	for _, tc := range []struct {
		start guest.Start
		code  string
	}{
		{guest.Start{Argv: []string{"no-such-program"}}, api.CodeCommand},
		{guest.Start{Argv: []string{"true"}, Cwd: "/nowhere"}, api.CodeCwd},
		{guest.Start{Argv: []string{"true"}, User: "nobody-knows"}, api.CodeUnknownUser},
		{guest.Start{}, api.CodeInvalid},
	} {
		_, err := d.client.Exec(t.Context(), sb.ID, nodeapi.ExecRequest{Start: tc.start})
		must.Error(t, err)
		must.Eq(t, tc.code, apiError(err).ErrorCode, must.Sprintf("%+v: %v", tc.start, err))
	}
}

func TestReal_killOfTheDaemon(t *testing.T) {
	d := startDaemon(t)
	running := d.create(main("sleep", "1000"))
	plain := d.create()
	ends := d.create(main("bash", "-c", "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 21"))
	dies := d.create()
	bad := d.create(main("bash", "-c", "while [ ! -e /tmp/go ]; do sleep 0.05; done; x=x; while :; do x=$x$x; done"), func(r *nodeapi.CreateRequest) { r.Limits.MemoryBytes = 48 << 20 })
	due := d.create(func(r *nodeapi.CreateRequest) { r.Deadline = time.Now().Add(3 * time.Second) })
	for _, sb := range []nodeapi.Sandbox{ends, bad} {
		_, err := d.client.Start(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"bash", "-c", "sleep 0.5; touch /tmp/go"}}})
		must.NoError(t, err)
	}
	d.kill()
	must.NoError(t, unix.Kill(dies.PID, unix.SIGKILL))
	waitUntil(t, "ends without a daemon", func() bool { return gone(ends.PID) && gone(bad.PID) && gone(dies.PID) })
	d.start()

	for _, tc := range []struct {
		sb   nodeapi.Sandbox
		want nodeapi.Exit
	}{
		{ends, nodeapi.Exit{Reason: nodeapi.ExitMainExited, Code: 21}},
		{dies, nodeapi.Exit{Reason: nodeapi.ExitKilled, Code: 137, Signal: 9, Message: "its PID 1 was killed"}},
		{bad, nodeapi.Exit{Reason: nodeapi.ExitKilled, Code: 137, Signal: 9, OOM: true, Message: "the kernel ended it for lack of memory"}},
		{due, nodeapi.Exit{Reason: nodeapi.ExitDeadline}},
	} {
		got, err := d.client.Wait(t.Context(), tc.sb.ID)
		must.NoError(t, err)
		if tc.want.Reason == nodeapi.ExitDeadline {
			must.Eq(t, tc.want.Reason, got.Exit.Reason)
			continue
		}
		must.Eq(t, tc.want, *got.Exit)
	}
	for _, sb := range []nodeapi.Sandbox{running, plain} {
		got, err := d.client.Get(t.Context(), sb.ID)
		must.NoError(t, err)
		must.Eq(t, nodeapi.StateRunning, got.State)
		must.Eq(t, sb.PID, got.PID)
		out, _ := d.exec(sb, "echo", "alive")
		must.Eq(t, "alive\n", out)
	}
}

func gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, state, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(state, "Z")
}

// The daemon is killed again and again while sandboxes are being made. What was answered is there afterwards, what was
// not is either whole or gone, and nothing is made twice.
func TestReal_killOfTheDaemonWhileCreating(t *testing.T) {
	d := startDaemon(t)
	var mu sync.Mutex
	answered := map[api.SandboxID]nodeapi.Sandbox{}
	for round := range 5 {
		var wg sync.WaitGroup
		for range 8 {
			req := createRequest()
			wg.Go(func() {
				sb, err := d.client.Create(t.Context(), req)
				if err == nil {
					mu.Lock()
					answered[sb.ID] = sb
					mu.Unlock()
				}
			})
		}
		time.Sleep(time.Duration(20+round*25) * time.Millisecond) // a moment in the middle, another one each time
		d.kill()
		wg.Wait()
		d.start()
		list, err := d.client.List(t.Context())
		must.NoError(t, err)
		var dirs []string
		for _, sb := range list {
			must.Eq(t, nodeapi.StateRunning, sb.State)
			out, _ := d.exec(sb, "echo", "ok")
			must.Eq(t, "ok\n", out)
			dirs = append(dirs, string(sb.ID))
		}
		for id, sb := range answered {
			i := slices.IndexFunc(list, func(s nodeapi.Sandbox) bool { return s.ID == id })
			must.GreaterEq(t, 0, i, must.Sprintf("sandbox %s was answered and is lost", id))
			must.Eq(t, sb.PID, list[i].PID)
		}
		slices.Sort(dirs)
		for _, pattern := range []string{d.dir + "/s/sandboxes/*", d.dir + "/r/sandboxes/*"} {
			paths, err := filepath.Glob(pattern)
			must.NoError(t, err)
			var names []string
			for _, p := range paths {
				names = append(names, filepath.Base(p))
			}
			must.Eq(t, dirs, names)
		}
	}
	t.Logf("%d sandboxes survived", len(answered))
}

func TestReal_hundredAtOnce(t *testing.T) {
	d := startDaemon(t)
	var wg sync.WaitGroup
	start := time.Now()
	for range 100 {
		wg.Go(func() {
			sb, err := d.client.Create(t.Context(), createRequest())
			must.NoError(t, err)
			exit, err := d.client.Run(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"true"}}}, nil, nil, nil)
			must.NoError(t, err)
			must.Eq(t, 0, exit.Code)
		})
	}
	wg.Wait()
	t.Logf("100 creates and execs in %s", time.Since(start))
	list, err := d.client.List(t.Context())
	must.NoError(t, err)
	must.Len(t, 100, list)
	for _, sb := range list {
		wg.Go(func() { must.NoError(t, d.client.Delete(t.Context(), sb.ID)) })
	}
	wg.Wait()
	d.noLeftovers()
}

func TestReal_fiveHundredLeaveNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds")
	}
	d := startDaemon(t)
	must.NoError(t, d.client.Delete(t.Context(), d.create().ID)) // what is opened once stays open
	files := func() int {
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid))
		must.NoError(t, err)
		return len(list)
	}
	before := files()
	start := time.Now()
	var wg sync.WaitGroup
	for range 8 {
		client := nodeapi.NewUnix(d.dir + "/r/node.sock")
		wg.Go(func() {
			defer client.Close()
			for range 63 {
				sb, err := client.Create(t.Context(), createRequest())
				must.NoError(t, err)
				must.NoError(t, client.Delete(t.Context(), sb.ID))
			}
		})
	}
	wg.Wait()
	t.Logf("504 creates and destroys in %s", time.Since(start))
	d.noLeftovers()
	waitUntil(t, "descriptors", func() bool { return files() <= before+3 })
}

func TestReal_cancelledCreatesLeaveNothing(t *testing.T) {
	d := startDaemon(t)
	for i := range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Millisecond/2)
		_, _ = d.client.Create(ctx, createRequest())
		cancel()
	}
	waitUntil(t, "rest", func() bool {
		list, err := d.client.List(t.Context())
		must.NoError(t, err)
		for _, sb := range list { // those that were quicker than their cancellation
			if sb.State == nodeapi.StateRunning {
				must.NoError(t, d.client.Delete(t.Context(), sb.ID))
			}
		}
		return len(list) == 0
	})
	d.noLeftovers()
}

func TestReal_logTargets(t *testing.T) {
	d := startDaemon(t)
	fifo, plain := filepath.Join(d.dir, "out"), filepath.Join(d.dir, "err")
	must.NoError(t, unix.Mkfifo(fifo, 0o600))
	must.NoError(t, os.WriteFile(plain, nil, 0o600))
	r, err := os.OpenFile(fifo, os.O_RDWR|unix.O_NONBLOCK, 0) // for writing too: no end before the first writer
	must.NoError(t, err)
	defer r.Close()
	sb := d.create(main("bash", "-c", "echo one; echo two >&2; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo three"),
		func(q *nodeapi.CreateRequest) { q.Logs = &nodeapi.LogTargets{Stdout: fifo, Stderr: plain} })
	must.Eq(t, "one\n", readN(t, r, 4))
	waitUntil(t, "stderr", func() bool { b, _ := os.ReadFile(plain); return string(b) == "two\n" })
	d.kill()
	d.start()
	_, code := d.exec(sb, "touch", "/tmp/go")
	must.Eq(t, 0, code)
	got, err := d.client.Wait(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Eq(t, 0, got.Exit.Code)
	rest := readAvailable(t, r)
	must.StrHasSuffix(t, "three\n", rest)
	must.LessEq(t, len("one\nthree\n"), len(rest)) // at least once
}

// A process that ends at once has its output in the logs.
func TestReal_logTargetsOfAShortLife(t *testing.T) {
	d := startDaemon(t)
	plain := filepath.Join(d.dir, "out")
	for i := range 10 {
		must.NoError(t, os.WriteFile(plain, nil, 0o600))
		sb := d.create(main("echo", fmt.Sprint("line", i)), func(q *nodeapi.CreateRequest) { q.Logs = &nodeapi.LogTargets{Stdout: plain} })
		_, err := d.client.Wait(t.Context(), sb.ID)
		must.NoError(t, err)
		b, err := os.ReadFile(plain)
		must.NoError(t, err)
		must.Eq(t, fmt.Sprintf("line%d\n", i), string(b))
	}
}

// Nobody reads the FIFO: the sandbox goes on, and ends.
func TestReal_logTargetThatNobodyReads(t *testing.T) {
	d := startDaemon(t)
	fifo := filepath.Join(d.dir, "out")
	must.NoError(t, unix.Mkfifo(fifo, 0o600))
	sb := d.create(main("bash", "-c", "seq 1 200000; exit 4"), func(q *nodeapi.CreateRequest) { q.Logs = &nodeapi.LogTargets{Stdout: fifo} })
	got, err := d.client.Wait(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Eq(t, 4, got.Exit.Code)
}

func TestReal_logs(t *testing.T) {
	d := startDaemon(t)
	sb := d.create(main("bash", "-c", "echo 123456789; echo error >&2; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo last"))
	waitUntil(t, "output", func() bool {
		list, err := d.client.Processes(t.Context(), sb.ID)
		must.NoError(t, err)
		return len(list) == 1 && list[0].Stdout == 10 && list[0].Stderr == 6
	})
	for _, tc := range []struct {
		o      nodeapi.LogOptions
		want   string
		offset int64
	}{
		{nodeapi.LogOptions{}, "123456789\n", 0},
		{nodeapi.LogOptions{Offset: 4}, "56789\n", 4},
		{nodeapi.LogOptions{Tail: 3}, "89\n", 7},
		{nodeapi.LogOptions{Offset: 10}, "", 10},
		{nodeapi.LogOptions{Stream: nodeapi.StreamStderr}, "error\n", 0},
	} {
		body, offset, err := d.client.Logs(t.Context(), sb.ID, tc.o)
		must.NoError(t, err)
		b, err := io.ReadAll(body)
		must.NoError(t, err)
		must.NoError(t, body.Close())
		must.Eq(t, tc.want, string(b), must.Sprintf("%+v", tc.o))
		must.Eq(t, tc.offset, offset)
	}
	body, _, err := d.client.Logs(t.Context(), sb.ID, nodeapi.LogOptions{Follow: true, Tail: 1})
	must.NoError(t, err)
	defer body.Close()
	d.exec(sb, "touch", "/tmp/go")
	b, err := io.ReadAll(body)
	must.NoError(t, err)
	must.Eq(t, "\nlast\n", string(b))
}

func readN(t *testing.T, r io.Reader, n int) string {
	t.Helper()
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	must.NoError(t, err)
	return string(b)
}

// readAvailable reads what is in a FIFO now.
func readAvailable(t *testing.T, f *os.File) string {
	t.Helper()
	must.NoError(t, f.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	b, _ := io.ReadAll(f)
	return string(b)
}
