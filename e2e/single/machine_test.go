package single

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/e2e/binaries"
	"github.com/soulbox-dev/soulbox/e2e/host"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/base"
)

// machine is a machine of its own for the programs that a test runs as a user does: state, sockets, home, port.
type machine struct {
	dir    string
	listen string
	key    string
	group  string // of the sandboxes
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	binaries.Path(t, "soulbox-init") // found beside the others
	// Unix sockets must fit into 107 bytes: the test's own folder may be too deep.
	dir, err := os.MkdirTemp("", "sbone")
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	must.NoError(t, os.Mkdir(filepath.Join(dir, "home"), 0o700))
	return &machine{dir: dir, listen: agenttest.Address(t), group: filepath.Base(dir)}
}

func (m *machine) env() []string {
	env := []string{"HOME=" + filepath.Join(m.dir, "home"), "SOULBOX_ADDR=http://" + m.listen, "TERM=xterm"}
	for _, kv := range os.Environ() {
		switch name, _, _ := strings.Cut(kv, "="); name {
		case "HOME", "XDG_CONFIG_HOME", "SOULBOX_ADDR", "SOULBOX_API_KEY", "TERM":
		default:
			env = append(env, kv)
		}
	}
	if m.key != "" {
		env = append(env, "SOULBOX_API_KEY="+m.key)
	}
	return env
}

func (m *machine) program(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(binaries.Path(t, name), args...)
	cmd.Env = m.env()
	cmd.Dir = m.dir
	return cmd
}

// soulbox runs the command line and returns what it printed on stdout.
func (m *machine) soulbox(t *testing.T, args ...string) string {
	t.Helper()
	out, stderr, code := m.trySoulbox(t, args...)
	if code != 0 {
		t.Fatalf("soulbox %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, stderr)
	}
	return out
}

func (m *machine) trySoulbox(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := m.program(t, "soulbox", args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		exit, ok := err.(*exec.ExitError)
		if !ok {
			t.Fatal(err)
		}
		code = exit.ExitCode()
	}
	return out.String(), errs.String(), code
}

// service is a program that goes on until it is ended.
type service struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// start runs a program in the background. It is ended with the test, if not before.
func (m *machine) start(t *testing.T, name string, args ...string) *service {
	t.Helper()
	s := &service{name: name + " " + args[0], cmd: m.program(t, name, args...), done: make(chan struct{})}
	s.log = filepath.Join(m.dir, name+"-"+args[0]+".log")
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must.NoError(t, err)
	defer log.Close()
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	must.NoError(t, s.cmd.Start())
	go func() { defer close(s.done); _ = s.cmd.Wait() }()
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(s.log)
			t.Logf("%s:\n%s", s.name, b[max(0, len(b)-4000):])
		}
		s.stop(t)
	})
	return s
}

// kill ends it as a crash would.
func (s *service) kill(t *testing.T) {
	t.Helper()
	must.NoError(t, s.cmd.Process.Kill())
	<-s.done
}

// stop ends it as ctrl-C would.
func (s *service) stop(t *testing.T) {
	t.Helper()
	_ = s.cmd.Process.Signal(os.Interrupt) // it may have ended
	select {
	case <-s.done:
	case <-time.After(60 * time.Second):
		t.Errorf("%s does not end", s.name)
		_ = s.cmd.Process.Kill()
		<-s.done
	}
}

// ready waits until the API answers.
func (m *machine) ready(t *testing.T, s *service) {
	t.Helper()
	poll(t, s.name+" to serve", func() error {
		select {
		case <-s.done:
			return fmt.Errorf("%s ended", s.name)
		default:
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.listen+"/v1/health", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode >= 300 {
			return fmt.Errorf("health: %s", resp.Status)
		}
		return nil
	})
}

// baseTar is the tar of the template base, made at the first call on a machine.
func baseTar(t *testing.T) string {
	t.Helper()
	tar, err := base.Build(t.Context(), base.Options{})
	must.NoError(t, err)
	return tar
}

// pair is a node daemon and a server as two programs, as they run on two machines.
type pair struct {
	*machine
	node, server *service
}

func startPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{machine: newMachine(t)}
	config := fmt.Sprintf("listen = %q\ndata_dir = %q\nnode \"here\" {\n  socket = %q\n}\n",
		p.listen, filepath.Join(p.dir, "server"), p.socket())
	must.NoError(t, os.WriteFile(filepath.Join(p.dir, "server.hcl"), []byte(config), 0o600))
	p.startNode(t)
	p.startServer(t)
	p.readKey(t, filepath.Join(p.dir, "server"))
	poll(t, "the template to be imported", func() error {
		_, stderr, code := p.trySoulbox(t, "template", "import", "base", baseTar(t))
		if code != 0 {
			return fmt.Errorf("exit code %d: %s", code, stderr) // the server may not have found its node yet
		}
		return nil
	})
	return p
}

// readKey takes the first API key from where a server leaves it.
func (m *machine) readKey(t *testing.T, dataDir string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dataDir, "bootstrap-key"))
	must.NoError(t, err)
	m.key = strings.TrimSpace(string(b))
}

func (m *machine) socket() string { return filepath.Join(m.dir, "run", "node.sock") }

func (p *pair) startNode(t *testing.T) {
	t.Helper()
	p.node = p.start(t, "nomad-driver-soulbox", "node", "-state-dir", filepath.Join(p.dir, "node"), "-run-dir", filepath.Join(p.dir, "run"),
		"-cgroup-parent", p.group, "-id-range-base", "600000000")
}

func (p *pair) startServer(t *testing.T) {
	t.Helper()
	p.server = p.start(t, "soulbox", "server", "-config", filepath.Join(p.dir, "server.hcl"))
	p.ready(t, p.server)
}

func (p *pair) host() host.Node {
	return host.Node{StateDir: filepath.Join(p.dir, "node"), RunDir: filepath.Join(p.dir, "run"), CgroupParent: p.group}
}

// poll waits until check has no error. The bound is for a test that hangs, not for speed.
func poll(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("wait for %s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestMain(m *testing.M) { binaries.Main(m) }

// contextFor bounds a call that has no test's context at hand.
func contextFor() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 10*time.Second)
}
