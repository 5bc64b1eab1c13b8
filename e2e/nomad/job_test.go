package nomad

import (
	"bytes"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/creack/pty"
	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/e2e/binaries"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

const jobFile = "../../jobs/sandbox.nomad.hcl"

// TestJob_doesAllThatNomadUsersExpect walks one sandbox through every command that a user of Nomad has for a task.
func TestJob_doesAllThatNomadUsersExpect(t *testing.T) {
	a := startAgent(t)
	a.cli(t, "job", "run", "-detach", jobFile)
	alloc := a.alloc(t, "sandbox", "running")

	t.Run("logs", func(t *testing.T) {
		poll(t, "the task's output", func() error {
			if out := a.cli(t, "alloc", "logs", alloc.ID); !strings.Contains(out, "sandbox of allocation "+alloc.ID+" is up") {
				return fmt.Errorf("logs: %q", out)
			}
			return nil
		})
	})
	t.Run("exec", func(t *testing.T) {
		must.Eq(t, "42\n", a.cli(t, "alloc", "exec", "-t=false", alloc.ID, "python3", "-c", "print(6*7)"))
		must.Eq(t, "sandbox\n", a.cli(t, "alloc", "exec", "-t=false", alloc.ID, "hostname"))
		must.Eq(t, "user\n", a.cli(t, "alloc", "exec", "-t=false", alloc.ID, "whoami"))
	})
	t.Run("exec passes the exit code on", func(t *testing.T) {
		_, err := a.tryCLI(t, "alloc", "exec", "-t=false", alloc.ID, "sh", "-c", "exit 7")
		must.Eq(t, 7, exitCode(t, err))
		out, err := a.tryCLI(t, "alloc", "exec", "-t=false", alloc.ID, "no-such-command")
		must.Eq(t, 127, exitCode(t, err))
		must.StrContains(t, out, "no-such-command")
	})
	t.Run("exec passes stdin on", func(t *testing.T) {
		cmd := a.command(t, "alloc", "exec", "-i", "-t=false", alloc.ID, "wc", "-c")
		cmd.Stdin = bytes.NewReader(make([]byte, 1<<20))
		out, err := cmd.CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
		must.Eq(t, "1048576\n", string(out))
	})
	t.Run("exec with a terminal", func(t *testing.T) { execTerminal(t, a, alloc.ID) })
	t.Run("signal", func(t *testing.T) {
		a.cli(t, "alloc", "signal", "-s", "SIGHUP", alloc.ID)
		poll(t, "the answer to the signal", func() error {
			if out := a.cli(t, "alloc", "logs", alloc.ID); !strings.Contains(out, "reloaded") {
				return fmt.Errorf("logs: %q", out)
			}
			return nil
		})
	})
	t.Run("stats", func(t *testing.T) {
		poll(t, "the task's statistics", func() error {
			out := a.cli(t, "alloc", "status", "-stats", alloc.ID)
			if !regexp.MustCompile(`RSS`).MatchString(out) || !strings.Contains(out, "Percent") {
				return fmt.Errorf("status: %s", out)
			}
			return nil
		})
	})
	t.Run("restart", func(t *testing.T) {
		before := a.sandboxes(t)
		a.cli(t, "alloc", "restart", alloc.ID)
		poll(t, "a new sandbox of the same allocation", func() error {
			after := a.sandboxes(t)
			if len(after) != 1 || after[0].ID == before[0].ID || after[0].State != nodeapi.StateRunning {
				return fmt.Errorf("sandboxes: %+v", after)
			}
			return nil
		})
	})
	t.Run("stop", func(t *testing.T) {
		a.cli(t, "job", "stop", "-detach", "sandbox")
		poll(t, "the last words of the task", func() error {
			if out := a.cli(t, "alloc", "logs", alloc.ID); !strings.Contains(out, "stopping") {
				return fmt.Errorf("logs: %q", tail(out, 300))
			}
			return nil
		})
		a.alloc(t, "sandbox", "complete")
	})
	t.Run("gc leaves nothing on the host", func(t *testing.T) {
		a.cli(t, "job", "stop", "-purge", "-detach", "sandbox")
		a.cli(t, "system", "gc")
		poll(t, "the node to forget the sandbox", func() error {
			if left := a.sandboxes(t); len(left) != 0 {
				return fmt.Errorf("sandboxes: %+v", left)
			}
			return nil
		})
		a.host().NothingLeft(t)
	})
}

// execTerminal drives bash as a person would: sees its size, changes it, interrupts a command.
func execTerminal(t *testing.T, a *agent, allocID string) {
	cmd := a.command(t, "alloc", "exec", "-i", "-t", allocID, "bash", "--norc")
	term, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 40, Cols: 120})
	must.NoError(t, err)
	defer term.Close()
	screen := &screen{}
	go func() { _, _ = io.Copy(screen, term) }() // ends with the terminal
	say := func(line string) {
		_, err := term.Write([]byte(line))
		must.NoError(t, err)
	}
	poll(t, "a prompt", screen.has("$ "))
	say("stty size\n")
	poll(t, "the size of the terminal", screen.has("40 120"))
	must.NoError(t, pty.Setsize(term, &pty.Winsize{Rows: 33, Cols: 99}))
	poll(t, "the new size", func() error {
		say("stty size\n")
		return screen.has("33 99")()
	})
	say("echo star''ted; sleep 1000\n")
	poll(t, "the command to run", screen.has("started"))
	say("\x03")
	poll(t, "ctrl-C to end the command", func() error {
		say("echo after=$((40+2))\n") // the shell drops what is typed before it is back
		return screen.has("after=42")()
	})
	say("exit 5\n")
	must.Eq(t, 5, exitCode(t, cmd.Wait()))
}

// screen collects what a terminal shows.
type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *screen) has(text string) func() error {
	return func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !strings.Contains(s.b.String(), text) {
			return fmt.Errorf("screen: %q", tail(s.b.String(), 500))
		}
		return nil
	}
}

// TestTask_endsAreToldApart runs tasks that end in every way, and reads what Nomad was told.
func TestTask_endsAreToldApart(t *testing.T) {
	a := startAgent(t)
	for _, tc := range []struct {
		name    string
		config  map[string]any
		user    string
		status  string
		message string // of one of the task's events
	}{
		{"success", command("true"), "", "complete", "Exit Code: 0"},
		{"exit code", command("bash", "-c", "exit 3"), "", "failed", "Exit Code: 3"},
		{"signal", command("bash", "-c", "kill -SEGV $$"), "", "failed", "Signal: 11"},
		{"out of memory", command("python3", "-c", "b = bytearray(1 << 30)"), "", "failed", "oom_killed=true"},
		{"missing command", command("no-such-command"), "", "failed", "no-such-command"},
		{"missing cwd", with(command("true"), "cwd", "/no/such/folder"), "", "failed", "/no/such/folder"},
		{"unknown template", with(command("true"), "template", "no-such-template"), "", "failed", "no-such-template"},
		{"unknown user", command("true"), "nobody-here", "failed", "nobody-here"},
		{"bad hostname", with(command("true"), "hostname", "a b"), "", "failed", "hostname"},
		{"bad profile", with(command("true"), "profile", "loose"), "", "failed", "profile"},
		{"deadline", with(command("sleep", "1000"), "deadline", "2s"), "", "failed", "deadline"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id := strings.ReplaceAll(tc.name, " ", "-")
			_, _, err := a.api.Jobs().Register(batchJob(id, tc.config, tc.user), nil)
			must.NoError(t, err)
			alloc := a.alloc(t, id, tc.status)
			must.StrContains(t, events(alloc.TaskStates["main"]), tc.message)
			_, _, err = a.api.Jobs().Deregister(id, true, nil)
			must.NoError(t, err)
		})
	}
	a.cli(t, "system", "gc")
	poll(t, "the node to forget all", func() error {
		if left := a.sandboxes(t); len(left) != 0 {
			return fmt.Errorf("sandboxes: %+v", left)
		}
		return nil
	})
	a.host().NothingLeft(t)
}

func command(argv ...string) map[string]any {
	return map[string]any{"template": "base", "command": argv[0], "args": argv[1:]}
}

func with(config map[string]any, key string, value any) map[string]any {
	config[key] = value
	return config
}

func batchJob(id string, config map[string]any, user string) *nomadapi.Job {
	cpu, memory, attempts := 100, 128, 0
	mode, kind := "fail", "batch"
	task := nomadapi.NewTask("main", "soulbox").Require(&nomadapi.Resources{CPU: &cpu, MemoryMB: &memory})
	task.Config, task.User = config, user
	group := nomadapi.NewTaskGroup("main", 1).AddTask(task)
	group.RestartPolicy = &nomadapi.RestartPolicy{Attempts: &attempts, Mode: &mode}
	group.ReschedulePolicy = &nomadapi.ReschedulePolicy{Attempts: &attempts, Unlimited: new(bool)}
	job := &nomadapi.Job{ID: &id, Name: &id, Type: &kind, TaskGroups: []*nomadapi.TaskGroup{group}}
	return job
}

func (a *agent) sandboxes(t *testing.T) []nodeapi.Sandbox {
	t.Helper()
	all, err := nodeapi.NewUnix(a.socket).List(t.Context())
	must.NoError(t, err)
	return all
}

// none says which sandboxes the node still has records of.
func (a *agent) none(t *testing.T) error {
	t.Helper()
	if left := a.sandboxes(t); len(left) != 0 {
		return fmt.Errorf("sandboxes: %+v", left)
	}
	return nil
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	exit, ok := err.(*exec.ExitError)
	if !ok {
		t.Fatalf("not an exit code: %v", err)
	}
	return exit.ExitCode()
}

func TestMain(m *testing.M) { binaries.Main(m) }
