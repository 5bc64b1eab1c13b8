package nomad

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// TestKill_losesNothing kills each part alone, as a crash would, while a sandbox runs: the sandbox goes on, is not made a
// second time, and still answers to Nomad afterwards.
func TestKill_losesNothing(t *testing.T) {
	a := startAgent(t)
	a.cli(t, "job", "run", "-detach", jobFile)
	alloc := a.alloc(t, "sandbox", "running")
	before := a.sandboxes(t)
	must.SliceLen(t, 1, before)

	for _, tc := range []struct {
		name string
		kill func(t *testing.T)
	}{
		{"plugin", func(t *testing.T) { killPID(t, a.pluginPID(t)) }},
		{"node daemon", func(t *testing.T) {
			node, err := nodeapi.NewUnix(a.socket).Node(t.Context())
			must.NoError(t, err)
			killPID(t, node.PID)
		}},
		{"nomad client", func(t *testing.T) { a.kill(t); a.start(t); a.waitDriver(t) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.kill(t)
			poll(t, "exec to work again", func() error {
				out, err := a.tryCLI(t, "alloc", "exec", "-t=false", alloc.ID, "cat", "/proc/sys/kernel/hostname")
				if err != nil || out != "sandbox\n" {
					return fmt.Errorf("%v: %s", err, out)
				}
				return nil
			})
			after := a.sandboxes(t)
			must.SliceLen(t, 1, after)
			must.Eq(t, before[0].ID, after[0].ID)
			must.Eq(t, before[0].PID, after[0].PID, must.Sprint("the same PID 1 is there"))
			must.Eq(t, nodeapi.StateRunning, after[0].State)
			seen := strings.Count(a.cli(t, "alloc", "logs", alloc.ID), "tick")
			poll(t, "output to reach the logs again", func() error {
				if now := strings.Count(a.cli(t, "alloc", "logs", alloc.ID), "tick"); now <= seen {
					return fmt.Errorf("%d lines, %d before", now, seen)
				}
				return nil
			})
		})
	}
	t.Run("an end that nobody saw is told with its exit code", func(t *testing.T) {
		_, _, err := a.api.Jobs().Register(batchJob("unseen", command("bash", "-c", "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 9"), ""), nil)
		must.NoError(t, err)
		unseen := a.alloc(t, "unseen", "running")
		a.kill(t)
		var id nodeapi.Sandbox
		for _, sb := range a.sandboxes(t) {
			if sb.Owner.AllocID == unseen.ID {
				id = sb
			}
		}
		_, err = nodeapi.NewUnix(a.socket).WriteFile(t.Context(), id.ID, "/tmp/go", strings.NewReader(""), nodeapi.FileOptions{})
		must.NoError(t, err)
		ended, err := nodeapi.NewUnix(a.socket).Wait(t.Context(), id.ID)
		must.NoError(t, err)
		must.Eq(t, 9, ended.Exit.Code)
		a.start(t)
		a.waitDriver(t)
		must.StrContains(t, events(a.alloc(t, "unseen", "failed").TaskStates["main"]), "Exit Code: 9")
	})
	for _, job := range []string{"sandbox", "unseen"} {
		a.cli(t, "job", "stop", "-purge", "-detach", job)
	}
	poll(t, "all to be complete", func() error {
		a.cli(t, "system", "gc")
		if left := a.sandboxes(t); len(left) != 0 {
			return fmt.Errorf("sandboxes: %+v", left)
		}
		return nil
	})
	a.host().NothingLeft(t)
}

// TestKill_whileOneIsMade kills each part at several moments of a start. However far it had come, in the end the
// allocation has exactly one sandbox, and nothing is left of another.
func TestKill_whileOneIsMade(t *testing.T) {
	a := startAgent(t)
	client := nodeapi.NewUnix(a.socket)
	for _, tc := range []struct {
		name string
		kill func(t *testing.T)
	}{
		{"plugin", func(t *testing.T) { killPID(t, a.pluginPID(t)) }},
		{"node-daemon", func(t *testing.T) {
			node, err := client.Node(t.Context())
			must.NoError(t, err)
			killPID(t, node.PID)
		}},
		{"nomad-client", func(t *testing.T) { a.kill(t); a.start(t) }},
	} {
		for _, after := range []time.Duration{20 * time.Millisecond, 60 * time.Millisecond, 110 * time.Millisecond} {
			t.Run(fmt.Sprintf("%s after %v", tc.name, after), func(t *testing.T) {
				a.waitDriver(t)
				poll(t, "the node to answer", func() error { _, err := client.Node(t.Context()); return err })
				job := batchJob(fmt.Sprintf("%s-%d", tc.name, after.Milliseconds()), command("sleep", "1000"), "")
				attempts, mode, delay := 3, "fail", time.Second
				job.TaskGroups[0].RestartPolicy = &nomadapi.RestartPolicy{Attempts: &attempts, Mode: &mode, Delay: &delay}
				// Where the plugin is gone at the moment when Nomad makes the allocation's runner, the allocation fails before its first task.
				again, constant, hour, soon, never := 3, "constant", time.Hour, 5*time.Second, time.Duration(0)
				job.TaskGroups[0].ReschedulePolicy = &nomadapi.ReschedulePolicy{
					Attempts: &again, Interval: &hour, Delay: &soon, DelayFunction: &constant, MaxDelay: &never, Unlimited: new(bool),
				}
				_, _, err := a.api.Jobs().Register(job, nil)
				must.NoError(t, err)
				time.Sleep(after) // the moment of the kill is what is tried
				tc.kill(t)
				// Nomad may put another in an allocation's place, also after it has said that it runs.
				poll(t, "the allocation's one sandbox", func() error {
					alloc := a.alloc(t, *job.ID, "running")
					all, err := client.List(t.Context())
					if err != nil {
						return err
					}
					var mine []string
					for _, sb := range all {
						if sb.Owner.AllocID == alloc.ID {
							mine = append(mine, fmt.Sprintf("%s %s", sb.ID, sb.State))
						}
					}
					if len(mine) != 1 || !strings.HasSuffix(mine[0], " "+string(nodeapi.StateRunning)) {
						return fmt.Errorf("sandboxes of the allocation: %s", strings.Join(mine, ", "))
					}
					if out, err := a.tryCLI(t, "alloc", "exec", "-t=false", alloc.ID, "true"); err != nil {
						return fmt.Errorf("exec: %w: %s", err, out)
					}
					return nil
				})
				a.cli(t, "job", "stop", "-purge", "-detach", *job.ID)
			})
		}
	}
	poll(t, "the node to forget all", func() error {
		if out, err := a.tryCLI(t, "system", "gc"); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return a.none(t)
	})
	a.host().NothingLeft(t)
}

// TestKill_whileOneIsDestroyed kills the plugin between its report that a task has ended and Nomad's request to destroy it, which Nomad makes
// once. So nobody asks the node to forget the sandbox; the node does when Nomad has collected the allocation, and not before.
func TestKill_whileOneIsDestroyed(t *testing.T) {
	a := startAgent(t)
	client := nodeapi.NewUnix(a.socket)
	var left nodeapi.Sandbox
	for i := 0; left.ID == ""; i++ {
		must.Less(t, 10, i, must.Sprint("no kill came between the two"))
		job := batchJob(fmt.Sprintf("ended-%d", i), command("sleep", "1000"), "")
		_, _, err := a.api.Jobs().Register(job, nil)
		must.NoError(t, err)
		alloc := a.alloc(t, *job.ID, "running")
		plugin := a.pluginPID(t)
		must.NoError(t, a.cmd.Process.Signal(syscall.SIGSTOP)) // it reads the report and the plugin's end at one time
		for _, sb := range a.sandboxes(t) {
			if sb.Owner.AllocID == alloc.ID {
				_, err := client.Stop(t.Context(), sb.ID, nodeapi.StopRequest{})
				must.NoError(t, err)
			}
		}
		poll(t, "the plugin to have seen the end", func() error {
			if n := pipes(t, plugin); n != 0 { // it lets go of the task's log pipes, and reports
				return fmt.Errorf("it holds %d log pipes", n)
			}
			return nil
		})
		killPID(t, plugin)
		must.NoError(t, a.cmd.Process.Signal(syscall.SIGCONT))
		a.alloc(t, *job.ID, "failed")
		for _, sb := range a.sandboxes(t) {
			if sb.Owner.AllocID == alloc.ID {
				left = sb
			}
		}
	}
	must.Eq(t, nodeapi.StateStopped, left.State)
	must.DirExists(t, left.Owner.Folder)
	a.waitDriver(t)
	a.cli(t, "system", "gc")
	poll(t, "the node to forget all", func() error { return a.none(t) })
	must.DirNotExists(t, left.Owner.Folder)
	a.host().NothingLeft(t)
}

// pipes counts the named pipes that a process has open.
func pipes(t *testing.T, pid int) int {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	must.NoError(t, err)
	n := 0
	for _, fd := range fds {
		if fi, err := os.Stat(fd); err == nil && fi.Mode()&os.ModeNamedPipe != 0 {
			if name, err := os.Readlink(fd); err == nil && filepath.IsAbs(name) {
				n++
			}
		}
	}
	return n
}

// pluginPID finds the plugin's process: the agent's plugin binary without the word node.
func (a *agent) pluginPID(t *testing.T) int {
	t.Helper()
	pids, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must.NoError(t, err)
	for _, file := range pids {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it ended meanwhile
		}
		argv := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		if len(argv) == 1 && argv[0] == filepath.Join(a.dir, "plugins", "nomad-driver-soulbox") {
			pid, err := strconv.Atoi(strings.Split(file, "/")[2])
			must.NoError(t, err)
			return pid
		}
	}
	t.Fatal("the plugin does not run")
	return 0
}

func killPID(t *testing.T, pid int) {
	t.Helper()
	must.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
}
