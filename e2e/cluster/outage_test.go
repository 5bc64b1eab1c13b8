package cluster

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

var outageTime = flag.Duration("outage", 8*time.Second, "how long TestOutages has each part of the stack away")

// outage is a part of the stack that is away for a while.
type outage struct {
	name     string
	down, up func(t *testing.T, s *service)
	// creates says that sandboxes are made meanwhile.
	creates bool
}

// hangs is a process that is stopped: its connections stay, and nobody answers.
func hangs(process string, creates bool) outage {
	signal := func(sig syscall.Signal) func(*testing.T, *service) {
		return func(t *testing.T, s *service) { must.NoError(t, s.Processes()[process].Signal(sig)) }
	}
	return outage{name: process + " hangs", down: signal(syscall.SIGSTOP), up: signal(syscall.SIGCONT), creates: creates}
}

func killed(process string) func(*testing.T, *service) {
	return func(t *testing.T, s *service) {
		p := s.Processes()[process]
		must.NoError(t, p.Signal(syscall.SIGKILL))
		<-p.Done()
	}
}

var outages = []outage{
	hangs("vault", true),
	hangs("consul", true),
	{"consul is killed, and replaced by one that knows nothing", killed("consul"), newConsul, true},
	hangs("nomad server", false),
	{"nomad server is killed", killed("nomad server"), func(t *testing.T, s *service) { must.NoError(t, s.Nomad().StartServer(t.Context())) }, false},
	hangs("nomad client", false),
	{"nomad client is killed", killed("nomad client"), func(t *testing.T, s *service) { must.NoError(t, s.Nomad().StartClient(t.Context())) }, false},
}

// newConsul starts a Consul where the old one was, for the rest of all tests. Its memory went with it.
func newConsul(t *testing.T, s *service) {
	ports := agenttest.Ports(t, 2)
	var port int
	_, err := fmt.Sscanf(s.ConsulAddress(), "http://127.0.0.1:%d", &port)
	must.NoError(t, err)
	agenttest.Consul(s.t, agent.ConsulConfig{Dir: filepath.Join(s.dir, "consul"), HTTP: port, Server: ports[0], Serf: ports[1]})
}

// TestOutages has each part of the stack away for a while under load: what runs goes on and is reached, ends at its deadline, and what was accepted is there afterwards, once.
func TestOutages(t *testing.T) {
	c := start(t)
	seen := c.follow(t)
	s := c.serve(t)
	for _, o := range outages {
		t.Run(o.name, func(t *testing.T) { s.outage(t, o, seen) })
	}
}

func (s *service) outage(t *testing.T, o outage, seen *events) {
	t.Helper()
	away := *outageTime
	steady := s.create(t, time.Hour)
	l := s.load(t, steady)
	l.wait(t, "the load to run", func() error { return l.atLeast(0, 2, 10) })
	fly := s.create(t, away/2) // it is to end meanwhile
	before := l.mark()

	begin := time.Now()
	o.down(t, s)
	time.Sleep(time.Until(begin.Add(away))) // the outage
	// What runs was reached, and what was due has ended, by the node's own word.
	must.NoError(t, l.atLeast(before.creates, 0, before.execs+5), must.Sprint(o.name))
	sb, err := s.node.Get(t.Context(), fly.id)
	must.True(t, api.IsNotFound(err) || err == nil && sb.State == nodeapi.StateStopped, must.Sprintf("%s: %s is %s at %s, due at %s: %v", o.name, fly.id, sb.State, time.Now(), fly.due, err))
	if err == nil {
		must.True(t, !sb.EndedAt.Before(fly.due.Add(-time.Second)), must.Sprintf("%s: it ended at %s, due at %s", o.name, sb.EndedAt, fly.due))
	}
	during := l.mark()
	o.up(t, s)
	back := time.Now()
	l.wait(t, "creates after "+o.name, func() error { return l.atLeast(during.creates, 3, 0) })
	first := time.Since(back)
	l.stop()

	l.mu.Lock()
	defer l.mu.Unlock()
	t.Logf("%s for %s: %d creates and %d execs meanwhile, slowest exec %s; three more creates %s after it was back; creates that were refused: %v, ends: %v %s",
		o.name, away, during.creates-before.creates, during.execs-before.execs, l.slowest.Round(time.Millisecond), first.Round(time.Millisecond), l.refused, l.notEnded, l.example)
	must.SliceEmpty(t, l.problems)
	if o.creates {
		must.Greater(t, before.creates, during.creates, must.Sprint("sandboxes are made without it"))
	}
	s.until(t, "service and node to agree after "+o.name, func() error { return s.agree(t, l, seen) })
	for id, there := range l.accepted {
		if there {
			must.NoError(t, s.alive(t.Context(), id), must.Sprint(id))
			must.NoError(t, s.client.DeleteSandbox(t.Context(), id))
		}
	}
	must.NoError(t, s.client.DeleteSandbox(t.Context(), steady.id))
	s.until(t, "the node to be empty", func() error {
		list, err := s.node.List(t.Context())
		for _, sb := range list {
			if sb.State != nodeapi.StateStopped {
				err = errors.Join(err, fmt.Errorf("%s is %s", sb.ID, sb.State))
			}
		}
		return err
	})
}

// agree reports what is not as it was answered: each that was accepted runs, once, and what runs was accepted, or nobody was answered.
func (s *service) agree(t *testing.T, l *outageLoad, seen *events) error {
	known := map[api.SandboxID]bool{}
	for sb, err := range s.client.AllSandboxes(t.Context(), api.ListOptions{}) {
		if err != nil {
			return err
		}
		known[sb.ID] = sb.State == "running"
	}
	list, err := s.node.List(t.Context())
	if err != nil {
		return err
	}
	runs := map[api.SandboxID]bool{}
	for _, sb := range list {
		runs[sb.ID] = sb.State == nodeapi.StateRunning
		if runs[sb.ID] && !known[sb.ID] {
			err = errors.Join(err, fmt.Errorf("%s runs, and the service does not know why", sb.ID))
		}
	}
	for id, there := range l.accepted {
		// One that Nomad's client was starting when it was killed is begun again; nobody had it yet.
		if n := seen.ranTimes(id); n > 1 {
			t.Fatalf("%s began to run %d times", id, n)
		}
		if there != known[id] || there != runs[id] {
			err = errors.Join(err, fmt.Errorf("%s: accepted and not ended: %v; the service says that it runs: %v; the node: %v", id, there, known[id], runs[id]))
		}
	}
	return err
}

type made struct {
	id  api.SandboxID
	due time.Time
}

func (s *service) request(timeout time.Duration) api.CreateRequest {
	return api.CreateRequest{Template: "base", Timeout: new(int64(timeout.Seconds())), CreateOptions: api.CreateOptions{CPUMillis: new(int64(100)), MemoryMB: new(int64(32))}}
}

func (s *service) create(t *testing.T, timeout time.Duration) made {
	t.Helper()
	sb, err := s.client.CreateSandbox(t.Context(), s.request(timeout))
	must.NoError(t, err)
	return made{sb.ID, sb.EndAt}
}

// alive runs a command in a sandbox.
func (s *service) alive(ctx context.Context, id api.SandboxID) error {
	var out bytes.Buffer
	exit, err := s.client.Run(ctx, id, api.ExecRequest{Argv: []string{"bash", "-c", "echo alive"}}, nil, &out, nil)
	if err == nil && (exit.Code != 0 || out.String() != "alive\n") {
		err = fmt.Errorf("it answers %q, %+v", out.String(), exit)
	}
	return err
}

// until waits until check has no error. The bound is for a test that hangs, not for speed.
func (s *service) until(t *testing.T, what string, check func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatalf("wait for %s: %v", what, err)
}

// outageLoad is clients that make sandboxes, end most of them, and run commands in one that is there all the time.
type outageLoad struct {
	s   *service
	end chan struct{}
	wg  sync.WaitGroup

	mu       sync.Mutex
	accepted map[api.SandboxID]bool // and whether it shall still be there
	creates  int
	execs    int
	slowest  time.Duration // command
	refused  map[string]int
	notEnded map[string]int
	example  string // of a refusal
	problems []string
}

// progress is how much was done.
type progress struct{ creates, execs int }

func (s *service) load(t *testing.T, steady made) *outageLoad {
	l := &outageLoad{s: s, end: make(chan struct{}), accepted: map[api.SandboxID]bool{}, refused: map[string]int{}, notEnded: map[string]int{}}
	work := func(f func(n int)) {
		l.wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-l.end:
					return
				case <-t.Context().Done():
					return
				default:
				}
				f(n)
			}
		})
	}
	for range 3 {
		work(func(n int) { l.life(t.Context(), n) })
	}
	for range 2 {
		work(func(int) { l.exec(t.Context(), steady.id) })
	}
	t.Cleanup(l.stop)
	return l
}

func (l *outageLoad) stop() {
	l.mu.Lock()
	select {
	case <-l.end:
	default:
		close(l.end)
	}
	l.mu.Unlock()
	l.wg.Wait()
}

// keptEach is how many sandboxes a client leaves.
const keptEach = 3

// life is a create, a command, and, but for a few, an end.
func (l *outageLoad) life(ctx context.Context, n int) {
	begin := time.Now()
	sb, err := l.s.client.CreateSandbox(ctx, l.s.request(time.Hour))
	if err != nil {
		l.refusal(ctx, l.refused, "create", err, begin)
		return
	}
	l.mu.Lock()
	if _, twice := l.accepted[sb.ID]; twice {
		l.problems = append(l.problems, "given twice: "+string(sb.ID))
	}
	l.accepted[sb.ID] = true
	l.creates++
	l.mu.Unlock()
	l.exec(ctx, sb.ID)
	if n%4 == 0 && n < 4*keptEach { // the rest of a long outage's would fill the node
		return
	}
	begin = time.Now()
	err = l.s.client.DeleteSandbox(ctx, sb.ID)
	l.mu.Lock()
	if err == nil {
		l.accepted[sb.ID] = false
	} else {
		delete(l.accepted, sb.ID) // nobody knows
	}
	l.mu.Unlock()
	if err != nil {
		l.refusal(ctx, l.notEnded, "end", err, begin)
	}
}

// refusal counts an error. It has to be one that tells a client to try again, and says why.
func (l *outageLoad) refusal(ctx context.Context, in map[string]int, what string, err error, begin time.Time) {
	if ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := api.AsError(err)
	in[fmt.Sprintf("%d %s", e.Code, e.ErrorCode)]++
	l.example = e.Message
	if e.Code != http.StatusServiceUnavailable && e.Code != http.StatusGatewayTimeout || e.Message == "" {
		l.problems = append(l.problems, fmt.Sprintf("%s after %s: %v", what, time.Since(begin).Round(time.Millisecond), err))
	}
}

func (l *outageLoad) exec(ctx context.Context, id api.SandboxID) {
	begin := time.Now()
	err := l.s.alive(ctx, id)
	if ctx.Err() != nil {
		return
	}
	took := time.Since(begin)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.problems = append(l.problems, fmt.Sprintf("command in %s after %s: %v", id, took.Round(time.Millisecond), err))
		return
	}
	l.execs++
	l.slowest = max(l.slowest, took)
}

func (l *outageLoad) mark() progress {
	l.mu.Lock()
	defer l.mu.Unlock()
	return progress{l.creates, l.execs}
}

// atLeast reports what is missing of so many more creates than from, and of so many commands in all.
func (l *outageLoad) atLeast(from, more, execs int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.creates >= from+more && l.execs >= execs {
		return nil
	}
	return fmt.Errorf("%d of %d creates, %d of %d commands; refused: %v; %s", l.creates-from, more, l.execs, execs, slices.Collect(maps.Keys(l.refused)), strings.Join(l.problems, "\n"))
}

func (l *outageLoad) wait(t *testing.T, what string, check func() error) {
	t.Helper()
	l.s.until(t, what, check)
}
