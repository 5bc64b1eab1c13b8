// Package faults kills the control service with SIGKILL at each step of what it does with pauses, snapshots and forks, again and again, on a real
// node, and looks at what became of the sandbox. What kills the node's daemon and CRIU so is in nomad-driver/node; a move takes two nodes: e2e/drain.
//
// It owns the programs that it starts and the folder in which they keep everything, and checks that nothing is left on the host.
package faults

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/e2e/binaries"
	"github.com/soulbox-dev/soulbox/e2e/host"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/base"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { binaries.Main(m) }

var faults = flag.Int("faults", 1, "how often to kill at each step (make faults: 100)")

// counter counts in a file, with the number in its memory: a second copy, or one that lost time, would show. It has the file open, by a name that is there no more.
const counter = `cd /home/user; exec 3>>begun; ln begun count; rm begun; n=0; while :; do n=$((n+1)); echo $n >&3; sleep 0.02; done`

// service is a control service that is killed, on one node.
type service struct {
	t        *testing.T
	dir      string
	arm      string // file that arms a step
	nodeArgs []string
	address  string
	server   *agent.Process
	client   *api.Client
	daemon   *agent.Process
	node     *nodeapi.Client
	sb       api.SandboxID
	sum      [sha256.Size]byte // of a file in it
	then     map[string]int    // what the kills have left
}

var ways = []struct {
	name   string
	do     func(s *service) error
	settle func(s *service)
	steps  []string
}{
	{"pause", (*service).pause, (*service).goOn, []string{"pause.unrecorded", "pause.told"}},
	{"resume", (*service).resume, (*service).goOn, []string{"resume.held", "resume.unrecorded", "resume.told"}},
	{"snapshot", (*service).snapshot, (*service).snapshots, []string{"snapshot.intended", "snapshot.unrecorded", "snapshot.recorded"}},
	{"fork", (*service).fork, (*service).forks, []string{
		"snapshot.intended", "snapshot.unrecorded", "snapshot.recorded", "create.before_intent", "create.before_place", "create.after_place",
		"create.before_fact", "create.after_fact", "fork.copied",
	}},
}

// TestFaults_theControlServiceIsKilledAtEveryStep: after each kill the record says what is true, the sandbox is there once and whole, and what was
// being made is finished or forgotten.
func TestFaults_theControlServiceIsKilledAtEveryStep(t *testing.T) {
	s := start(t)
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "way\tstep\tkilled\trounds\tand then\tlost, frozen or twice")
	for _, way := range ways {
		for _, step := range way.steps {
			s.then = map[string]int{}
			for range *faults {
				err := way.do(s.armed(step))
				<-s.server.Done()
				must.Error(t, err)
				_, serr := os.Stat(s.arm)
				must.ErrorIs(t, serr, os.ErrNotExist, must.Sprintf("nothing was killed at %s: %v", step, err))
				s.startServer()
				way.settle(s)
				s.whole(s.sb)
			}
			fmt.Fprintf(w, "%s\t%s\tcontrol service\t%d\t%s\t0\n", way.name, step, *faults, words(s.then))
		}
	}
	must.NoError(t, w.Flush())
	t.Logf("after kill -9:\n%s", out.String())
}

func words(then map[string]int) string {
	var out []string
	for _, what := range []string{"running", "paused", "snapshots", "copies"} {
		if n := then[what]; n > 0 {
			out = append(out, fmt.Sprintf("%d %s", n, what))
		}
	}
	return strings.Join(out, ", ")
}

func start(t *testing.T) *service {
	t.Helper()
	sandboxtest.RequireRoot(t)
	dir, err := os.MkdirTemp("", "sbfa") // a unix socket's path has to be short
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	ports := agenttest.Ports(t, 1)
	s := &service{t: t, dir: dir, arm: filepath.Join(dir, "step"), address: agent.Address(ports[0])}
	left := host.Node{StateDir: filepath.Join(dir, "node"), RunDir: filepath.Join(dir, "run"), CgroupParent: filepath.Base(dir)}
	t.Cleanup(func() { left.NothingLeft(t) })
	socket := filepath.Join(left.RunDir, "node.sock")
	s.node = nodeapi.NewUnix(socket)
	t.Cleanup(s.node.Close)
	s.nodeArgs = []string{
		"node", "-state-dir", left.StateDir, "-run-dir", left.RunDir, "-cgroup-parent", left.CgroupParent, "-id-range-base", "700000000",
		"-init", binaries.Path(t, "soulbox-init"), "-criu", sandboxtest.CRIU(t),
	}
	s.startNode()
	t.Cleanup(func() { must.NoError(t, s.daemon.Stop(context.WithoutCancel(t.Context()))) })
	must.NoError(t, os.WriteFile(filepath.Join(dir, "server.hcl"), fmt.Appendf(nil, "listen = %q\ndata_dir = %q\nnode \"here\" {\n  socket = %q\n}\n", s.address, filepath.Join(dir, "server"), socket), 0o600))
	s.startServer()
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range []string{"server.log", "node.log"} {
				b, _ := os.ReadFile(filepath.Join(dir, name))
				t.Logf("end of %s:\n%s", name, b[max(0, len(b)-4<<10):])
			}
		}
		s.end()
	})
	s.begin()
	return s
}

func (s *service) startNode() {
	s.t.Helper()
	var err error
	s.daemon, err = agent.Start(s.t.Context(), agent.Spec{
		Name: "node", Path: binaries.Path(s.t, "nomad-driver-soulbox"), Dir: s.dir, Log: filepath.Join(s.dir, "node.log"), Args: s.nodeArgs,
		Ready: func(ctx context.Context) error {
			_, err := s.node.Node(ctx)
			return err
		},
	})
	must.NoError(s.t, err)
}

func (s *service) startServer() {
	s.t.Helper()
	probe, err := api.New(api.Config{Address: "http://" + s.address})
	must.NoError(s.t, err)
	defer probe.Close()
	s.server, err = agent.Start(s.t.Context(), agent.Spec{
		Name: "soulbox server", Path: binaries.Killed(s.t, "soulbox"), Args: []string{"server", "-config", filepath.Join(s.dir, "server.hcl")},
		Env: []string{"SOULBOX_FAILPOINT=" + s.arm}, Dir: s.dir, Log: filepath.Join(s.dir, "server.log"),
		Ready: func(ctx context.Context) error {
			_, err := probe.Health(ctx)
			return err
		},
	})
	must.NoError(s.t, err)
	if s.client == nil {
		key, err := os.ReadFile(filepath.Join(s.dir, "server", "bootstrap-key"))
		must.NoError(s.t, err)
		s.client, err = api.New(api.Config{Address: "http://" + s.address, APIKey: strings.TrimSpace(string(key))})
		must.NoError(s.t, err)
	}
	s.until("the node to be connected", func() error {
		nodes, err := s.client.Nodes(s.t.Context())
		if err == nil && (len(nodes) != 1 || !nodes[0].Connected) {
			err = fmt.Errorf("%+v", nodes)
		}
		return err
	})
}

// begin makes the sandbox, with a counter and a file.
func (s *service) begin() {
	ctx := s.t.Context()
	path, err := base.Build(ctx, base.Options{})
	must.NoError(s.t, err)
	tar, err := os.Open(path)
	must.NoError(s.t, err)
	defer tar.Close()
	_, err = s.client.ImportTemplate(ctx, "base", tar, api.ImportOptions{Source: "the test's own"})
	must.NoError(s.t, err)
	timeout := int64(12 * 3600)
	made, err := s.client.CreateSandbox(ctx, api.CreateRequest{Template: "base", Timeout: &timeout})
	must.NoError(s.t, err)
	s.sb = made.ID
	file := make([]byte, 300_000)
	_, _ = rand.Read(file)
	s.sum = sha256.Sum256(file)
	must.NoError(s.t, s.client.WriteFile(ctx, s.sb, "/home/user/file", bytes.NewReader(file), api.FileOptions{}))
	_, err = s.client.StartProcess(ctx, s.sb, api.ExecRequest{Argv: []string{"bash", "-c", counter}})
	must.NoError(s.t, err)
}

// end deletes everything and stops the server.
func (s *service) end() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), time.Minute)
	defer cancel()
	for sb, err := range s.client.AllSandboxes(ctx, api.ListOptions{}) {
		if err != nil {
			s.t.Errorf("list at the end of the test: %v", err)
			break
		}
		if err := s.client.DeleteSandbox(ctx, sb.ID); err != nil && !api.IsNotFound(err) {
			s.t.Errorf("delete %s: %v", sb.ID, err)
		}
	}
	s.client.Close()
	if err := s.server.Stop(ctx); err != nil {
		s.t.Error(err)
	}
}

// armed has the control service killed at a step.
func (s *service) armed(step string) *service {
	s.t.Helper()
	must.NoError(s.t, os.WriteFile(s.arm, []byte(step), 0o600))
	return s
}

func (s *service) pause() error { return s.client.PauseSandbox(s.t.Context(), s.sb, false) }

func (s *service) resume() error {
	// The step that is armed lies in the resume only.
	must.NoError(s.t, s.client.PauseSandbox(s.t.Context(), s.sb, false))
	_, err := s.client.ResumeSandbox(s.t.Context(), s.sb, 12*time.Hour, false)
	return err
}

func (s *service) snapshot() error {
	_, err := s.client.CreateSnapshot(s.t.Context(), api.SnapshotRequest{SandboxID: s.sb})
	return err
}

func (s *service) fork() error {
	_, err := s.client.ForkSandbox(s.t.Context(), s.sb, 2, time.Hour)
	return err
}

// goOn waits until record and node say the same, and lets a paused sandbox run.
func (s *service) goOn() {
	s.t.Helper()
	var state string
	s.until("the record to say what is true", func() error {
		sb, err := s.client.GetSandbox(s.t.Context(), s.sb)
		if err != nil {
			return err
		}
		on, err := s.node.Get(s.t.Context(), s.sb)
		if state = string(sb.State); err == nil && string(on.State) != state {
			err = fmt.Errorf("it is %s, recorded as %s", on.State, state)
		}
		return err
	})
	s.then[state]++
	if state == "paused" {
		_, err := s.client.ResumeSandbox(s.t.Context(), s.sb, 12*time.Hour, false)
		must.NoError(s.t, err)
	}
	s.alone()
}

// snapshots waits for the snapshot to be ready or forgotten, and takes it away.
func (s *service) snapshots() {
	s.t.Helper()
	s.goOn()
	for _, sn := range s.settledSnapshots() {
		s.then["snapshots"]++
		timeout := int64(3600)
		made, err := s.client.CreateSandbox(s.t.Context(), api.CreateRequest{Template: string(sn.ID), Timeout: &timeout})
		must.NoError(s.t, err)
		s.whole(made.ID)
		must.NoError(s.t, s.client.DeleteSandbox(s.t.Context(), made.ID))
		must.NoError(s.t, s.client.DeleteSnapshot(s.t.Context(), string(sn.ID), false))
	}
}

// settledSnapshots returns those that are ready. What no node has stored is recorded as being made for as long as a call could be at it; whoever
// does not want to wait for that deletes it.
func (s *service) settledSnapshots() (ready []api.Snapshot) {
	s.t.Helper()
	begin := time.Now()
	s.until("the snapshots to be made or forgotten", func() error {
		list, err := s.client.Snapshots(s.t.Context(), api.SnapshotFilter{})
		ready = list
		for _, sn := range list {
			if err != nil || sn.State == "ready" {
				continue
			}
			err = fmt.Errorf("%s is %s", sn.ID, sn.State)
			if time.Since(begin) > 12*time.Second {
				err = errors.Join(err, s.client.DeleteSnapshot(s.t.Context(), string(sn.ID), true))
			}
		}
		return err
	})
	return ready
}

// forks finds each copy whole, or none of it, and nothing of the snapshot that they were made from.
func (s *service) forks() {
	s.t.Helper()
	s.settledSnapshots()
	s.until("the copies to be made or gone, and their snapshot with them", func() error {
		list, err := s.client.Snapshots(s.t.Context(), api.SnapshotFilter{})
		if err == nil && len(list) != 0 {
			err = fmt.Errorf("%+v", list)
		}
		if err != nil {
			return err
		}
		stored, err := s.node.Snapshots(s.t.Context(), state.DefaultTenant)
		if err == nil && len(stored) != 0 {
			err = fmt.Errorf("stored: %+v", stored)
		}
		return errors.Join(err, s.agree())
	})
	for sb, err := range s.client.AllSandboxes(s.t.Context(), api.ListOptions{}) {
		must.NoError(s.t, err)
		if sb.ID == s.sb {
			continue
		}
		s.then["copies"]++
		must.Eq(s.t, "running", string(sb.State))
		s.whole(sb.ID)
		must.NoError(s.t, s.client.DeleteSandbox(s.t.Context(), sb.ID))
	}
	s.goOn()
}

// agree says in what the record and the node differ.
func (s *service) agree() error {
	recorded := map[api.SandboxID]string{}
	for sb, err := range s.client.AllSandboxes(s.t.Context(), api.ListOptions{}) {
		if err != nil {
			return err
		}
		if sb.State == "starting" {
			return fmt.Errorf("%s is starting", sb.ID)
		}
		recorded[sb.ID] = string(sb.State)
	}
	there, err := s.node.List(s.t.Context())
	if err != nil {
		return err
	}
	for _, sb := range there {
		if recorded[sb.ID] != string(sb.State) {
			return fmt.Errorf("%s is %s on the node, recorded as %q", sb.ID, sb.State, recorded[sb.ID])
		}
		delete(recorded, sb.ID)
	}
	for id, state := range recorded {
		if state == "running" || state == "paused" {
			return fmt.Errorf("%s is recorded as %s, and not on the node", id, state)
		}
	}
	return nil
}

// alone waits until the node has this sandbox and no other.
func (s *service) alone() {
	s.t.Helper()
	s.until("one sandbox", func() error {
		list, err := s.node.List(s.t.Context())
		if err == nil && len(list) != 1 {
			err = fmt.Errorf("%d sandboxes", len(list))
		}
		return err
	})
}

// whole checks that a sandbox counts without a gap and without a number twice, and has its file.
func (s *service) whole(id api.SandboxID) {
	s.t.Helper()
	s.counts(id)
	r, _, err := s.client.ReadFile(s.t.Context(), id, "/home/user/file", api.FileOptions{})
	must.NoError(s.t, err)
	defer r.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, r)
	must.NoError(s.t, err)
	must.Eq(s.t, s.sum[:], sum.Sum(nil))
}

// counts checks that a sandbox counts without a gap and without a number twice.
func (s *service) counts(id api.SandboxID) {
	s.t.Helper()
	count := func() []string {
		r, _, err := s.client.ReadFile(s.t.Context(), id, "/home/user/count", api.FileOptions{})
		must.NoError(s.t, err)
		defer r.Close()
		b, err := io.ReadAll(r)
		must.NoError(s.t, err)
		return strings.Fields(string(b))
	}
	before := count()
	s.until("it to count", func() error {
		now := count()
		for i, n := range now {
			must.Eq(s.t, strconv.Itoa(i+1), n, must.Sprint("the counter stood still, ran twice or lost a number"))
		}
		if len(now) <= len(before) {
			return fmt.Errorf("%d, and %d before", len(now), len(before))
		}
		return nil
	})
}

func (s *service) until(what string, check func() error) {
	s.t.Helper()
	agenttest.Eventually(s.t, 2*time.Minute, func() error {
		if err := check(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	})
}
