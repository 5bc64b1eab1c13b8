// Package agent runs the agents of the HashiCorp stack on this machine for development and tests: Nomad, Consul and Vault,
// each with a configuration of its own, on loopback.
//
// It owns the processes that it starts, their configuration files and their logs. It speaks to an agent only to learn that
// it is ready, over plain HTTP, and never touches a process that it did not start. What runs on the agents is not its
// business; package dev wires them.
package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Spec describes a process to run.
type Spec struct {
	Name string // for people
	Path string // of the executable
	Args []string
	Env  []string // added to the cleaned environment of this process
	Dir  string   // working directory
	Log  string   // file that gets its output; appended to

	// Ready reports whether it serves. It is asked again and again until it returns nil.
	Ready func(ctx context.Context) error
	// ReadyTimeout bounds the wait for Ready; 60 s where zero.
	ReadyTimeout time.Duration
	// Grace is how long it may take to end after SIGINT before its process group is killed; 15 s where zero.
	Grace time.Duration
}

// Process is a running process. It leads a process group of its own, so that a terminal's ctrl-C does not reach it, and it
// is killed by the kernel when this process dies.
type Process struct {
	spec Spec
	cmd  *exec.Cmd
	log  *os.File

	mu       sync.Mutex
	stopping bool
	ended    bool // the process is a zombie or reaped: no signal by its id any more

	done chan struct{}
	err  error // set before done is closed
}

// Start runs spec and waits until it is ready. A process that is not ready in time, or ends before, is gone on return, and
// the error holds the end of its log.
func Start(ctx context.Context, spec Spec) (*Process, error) {
	if err := os.MkdirAll(filepath.Dir(spec.Log), 0o700); err != nil {
		return nil, fmt.Errorf("%s: %w", spec.Name, err)
	}
	log, err := os.OpenFile(spec.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: open log: %w", spec.Name, err)
	}
	from, err := log.Seek(0, 2)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: seek log: %w", spec.Name, err), log.Close())
	}
	cmd := exec.Command(spec.Path, spec.Args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = spec.Dir, log, log
	cmd.Env = append(environment(os.Environ()), spec.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &Process{spec: spec, cmd: cmd, log: log, done: make(chan struct{})}
	started := make(chan error, 1)
	go p.run(started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%s: %w", spec.Name, err)
	}
	if err := p.waitReady(ctx); err != nil {
		err = errors.Join(err, p.Stop(context.WithoutCancel(ctx)))
		return nil, fmt.Errorf("%s: %w\n%s", spec.Name, err, tail(spec.Log, from))
	}
	return p, nil
}

// run starts the process and reaps it. The kernel sends the death signal of a child when the *thread* that started it
// ends, so this goroutine keeps its thread until the child is gone.
func (p *Process) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.done)
	defer p.log.Close()
	if err := p.cmd.Start(); err != nil {
		p.err = err
		started <- err
		return
	}
	started <- nil
	pid := p.cmd.Process.Pid
	for {
		// Look without reaping: while the zombie is there, its id and that of its group belong to nobody else.
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.mu.Lock()
	p.ended = true
	if p.stopping {
		_ = unix.Kill(-pid, unix.SIGKILL) // what it left behind in its group
	}
	p.err = p.cmd.Wait()
	p.mu.Unlock()
}

// PID returns the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Log returns the path of the file with its output.
func (p *Process) Log() string { return p.spec.Log }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns how the process ended. It may be called once Done is closed.
func (p *Process) Err() error {
	<-p.done
	if p.err != nil {
		return fmt.Errorf("%s ended: %w", p.spec.Name, p.err)
	}
	return fmt.Errorf("%s ended", p.spec.Name)
}

// Signal sends sig to the process alone, not to its group.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return os.ErrProcessDone
	}
	return p.cmd.Process.Signal(sig)
}

// Stop ends the process with SIGINT, and its whole group with SIGKILL when the grace or ctx is over. It returns when the
// process is gone. Stopping a process that has ended is no error.
func (p *Process) Stop(ctx context.Context) error {
	p.mu.Lock()
	p.stopping = true
	if !p.ended {
		_ = unix.Kill(p.cmd.Process.Pid, unix.SIGINT)
	}
	p.mu.Unlock()
	grace := p.spec.Grace
	if grace == 0 {
		grace = 15 * time.Second
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
	case <-ctx.Done():
	}
	p.mu.Lock()
	if !p.ended {
		_ = unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
	}
	p.mu.Unlock()
	<-p.done
	return fmt.Errorf("%s did not end within %s of SIGINT and was killed", p.spec.Name, grace)
}

func (p *Process) waitReady(ctx context.Context) error {
	if p.spec.Ready == nil {
		return nil
	}
	timeout := p.spec.ReadyTimeout
	if timeout == 0 {
		timeout = 60 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := p.spec.Ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("ended before it was ready: %w", p.Err())
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w (last: %w)", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// foreign are the prefixes of variables that configure an agent, or a client of one, behind our back.
var foreign = []string{"NOMAD_", "CONSUL_", "VAULT_", "AWS_", "AZURE_", "GOOGLE_", "SOULBOX_API_KEY="}

func environment(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		return slices.ContainsFunc(foreign, func(prefix string) bool { return strings.HasPrefix(kv, prefix) })
	})
}

// tail returns the last lines that were written to a log after offset from.
func tail(path string, from int64) string {
	const most = 4 << 10
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	data = data[min(from, int64(len(data))):]
	if len(data) > most {
		data = data[len(data)-most:]
		if i := slices.Index(data, '\n'); i >= 0 {
			data = data[i+1:]
		}
	}
	return strings.TrimSpace(string(data))
}
