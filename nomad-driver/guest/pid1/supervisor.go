package pid1

import (
	"encoding/json"
	"os"
	"runtime"
	"sort"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// keptOutput bounds the output, in bytes, that is kept of all ended processes together. The oldest goes first.
const keptOutput = 8 << 20

// supervisor is what PID 1 knows. Its mutex orders the births and deaths of processes: it is held over every fork together
// with the registration of what came of it, and over every reaping together with its recording. So no exit is lost, and a
// pid that is not marked as ended under it is still the process's own. It comes before the mutex of a process.
type supervisor struct {
	files
	boot    *guest.Boot
	version string
	env     []string // default environment
	cwd     string   // default working directory
	devNull int
	began   time.Time
	spawn   func(func() (int, error)) (int, error) // Config.Spawn
	// warm is closed when the runtime has all the threads that it will need. No process starts before: the first one may be
	// a bomb that leaves no room for another thread.
	warm chan struct{}

	main       *process
	mainLogged bool // the node said that it would attach to main

	orders chan guest.ShutdownParams
	quiet  chan struct{} // takes a token when the last child is gone

	mu        sync.Mutex
	born      *sync.Cond // forks or over has changed
	forks     int
	over      bool // nothing is left to reap
	ending    bool // no process is started any more
	procs     map[guest.ProcessID]*process
	live      int
	ended     []*process // in the order of their end
	uncounted int        // ends since the output kept was last counted
}

func newSupervisor(c Config) *supervisor {
	s := &supervisor{
		files: files{user: c.Boot.User}, boot: c.Boot, version: c.Version, env: c.Boot.Env, cwd: c.Boot.Cwd,
		devNull: -1, began: time.Now().UTC(), spawn: c.Spawn, warm: make(chan struct{}),
		orders: make(chan guest.ShutdownParams, 8), quiet: make(chan struct{}, 1),
		procs: make(map[guest.ProcessID]*process),
	}
	s.born = sync.NewCond(&s.mu)
	return s
}

// fork starts a process with start and registers it.
func (s *supervisor) fork(p *process, start func() (int, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return fail(guest.CodeNoProcess, "the sandbox is ending")
	}
	if s.live >= guest.MaxProcesses {
		return fail(guest.CodeLimit, "more than %d processes started from outside are running", guest.MaxProcesses)
	}
	pid, err := start()
	if err != nil {
		return err
	}
	p.id = guest.ProcessID(pid)
	if old := s.procs[p.id]; old != nil { // an ended one; the number has come round
		s.forget(old)
	}
	s.procs[p.id] = p
	s.live++
	s.forks++
	s.born.Broadcast()
	return nil
}

// buried records the end of a child. The mutex is held.
func (s *supervisor) buried(pid int, ws syscall.WaitStatus) {
	p := s.procs[guest.ProcessID(pid)]
	if p == nil || p.hasEnded() {
		return // an orphan
	}
	p.end(ws)
	s.live--
	s.ended = append(s.ended, p)
	s.prune()
}

// prune forgets ended processes that are too many or too old, and output of theirs that is too much. The mutex is held.
func (s *supervisor) prune() {
	limit := time.Now().Add(-guest.KeepExited)
	for len(s.ended) > 0 && (len(s.procs) > guest.MaxProcesses || s.ended[0].endedBefore(limit)) {
		s.forget(s.ended[0])
	}
	if s.uncounted++; s.uncounted < 8 {
		return
	}
	s.uncounted = 0
	left := keptOutput
	for i := len(s.ended) - 1; i >= 0; i-- {
		left = s.ended[i].limitOutput(left)
	}
}

// forget drops an ended process. The mutex is held.
func (s *supervisor) forget(p *process) {
	if s.procs[p.id] == p {
		delete(s.procs, p.id)
	}
	for i, e := range s.ended {
		if e == p {
			s.ended = append(s.ended[:i:i], s.ended[i+1:]...)
			return
		}
	}
}

func (p *process) endedBefore(t time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended.Before(t)
}

// limitOutput clears the output of an ended process where it is more than left bytes, and returns what is left then.
func (p *process) limitOutput(left int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.out {
		if len(o.ring.buf) > left && o.drained {
			o.ring.clear()
		}
		left -= len(o.ring.buf)
	}
	return left
}

// reap buries children until the sandbox is over. A child is looked at first and taken from the kernel under the mutex, so
// that its pid stays its own until its end is recorded.
func (s *supervisor) reap() {
	for {
		s.mu.Lock()
		forks, over := s.forks, s.over
		s.mu.Unlock()
		if over {
			return
		}
		var info unix.Siginfo
		switch err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil); err {
		case nil:
			s.mu.Lock()
			var ws syscall.WaitStatus
			// A failed exec's child may have been taken by the fork that made it.
			if pid, err := syscall.Wait4(siginfoPID(&info), &ws, syscall.WNOHANG, nil); err == nil && pid > 0 {
				s.buried(pid, ws)
			}
			s.mu.Unlock()
		case unix.ECHILD:
			select {
			case s.quiet <- struct{}{}:
			default:
			}
			s.mu.Lock()
			for s.forks == forks && !s.over {
				s.born.Wait()
			}
			s.mu.Unlock()
		}
	}
}

// find returns a process that is running or remembered.
func (s *supervisor) find(pid guest.ProcessID) (*process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.procs[pid]; p != nil {
		return p, nil
	}
	return nil, fail(guest.CodeNoProcess, "process %d does not exist", pid)
}

// signal signals a process or its group.
func (s *supervisor) signal(p *process, n int, group bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.hasEnded() {
		return fail(guest.CodeNoProcess, "process %d has ended", p.id)
	}
	pid := int(p.id)
	if group {
		pid = -pid
	}
	if err := unix.Kill(pid, unix.Signal(n)); err != nil && err != unix.ESRCH {
		return fail(guest.CodeInternal, "signal %d to process %d: %v", n, p.id, err)
	}
	return nil
}

func (s *supervisor) info() guest.Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := guest.Info{
		SandboxID: s.boot.SandboxID, Version: s.version,
		Protocol: guest.ProtocolVersion, MinProtocol: guest.MinProtocolVersion,
		StartedAt: s.began, Processes: s.live,
	}
	if s.main != nil {
		i.Main = s.main.id
	}
	return i
}

func (s *supervisor) list() []guest.ProcessInfo {
	s.mu.Lock()
	s.prune()
	all := make([]*process, 0, len(s.procs))
	for _, p := range s.procs {
		all = append(all, p)
	}
	s.mu.Unlock()
	sort.Slice(all, func(i, j int) bool { return all[i].started.Before(all[j].started) })
	infos := make([]guest.ProcessInfo, len(all))
	for i, p := range all {
		infos[i] = p.info(true)
	}
	return infos
}

func (s *supervisor) lookupUser(spec string) (*guest.UserInfo, error) {
	u, _, err := s.lookup(spec)
	return &u, err
}

func (s *supervisor) start(c *conn, st *guest.Start) {
	<-s.warm
	pl, err := s.plan(st)
	if err != nil {
		c.fail(failBody(err))
		return
	}
	var at *attachment
	p, err := s.launch(pl, func(p *process) {
		if st.Attach {
			at = s.join(p, c, guest.Attach{}, true)
		}
	})
	if err != nil {
		c.fail(failBody(err))
		return
	}
	s.joined(c, p, at, st.KillOnDetach)
}

func (s *supervisor) attach(c *conn, a *guest.Attach) {
	p, err := s.find(a.PID)
	if err != nil {
		c.fail(failBody(err))
		return
	}
	s.joined(c, p, s.join(p, c, *a, false), false)
}

// joined answers with the process and serves the attachment, where there is one.
func (s *supervisor) joined(c *conn, p *process, at *attachment, killOnDetach bool) {
	info := p.info(false)
	body, err := json.Marshal(guest.Response{Version: guest.ProtocolVersion, Process: &info})
	if err == nil {
		err = frame.Write(c.f, frame.Response, body)
	}
	if at == nil {
		return
	}
	if err != nil {
		at.hangup() // serve returns at once, and does what follows from that
	}
	at.serve(killOnDetach)
}

func (s *supervisor) signalTo(r *guest.SignalRequest) error {
	p, err := s.find(r.PID)
	if err != nil {
		return err
	}
	return s.signal(p, r.Signal, r.Group)
}

func (s *supervisor) resizeTo(r *guest.ResizeRequest) error {
	p, err := s.find(r.PID)
	if err != nil {
		return err
	}
	if !p.tty {
		return fail(guest.CodeBadRequest, "process %d has no terminal", r.PID)
	}
	s.resize(p, r.Size)
	return nil
}

// resize sets the size of the process's terminal. Where that is gone nobody is left to see it.
func (s *supervisor) resize(p *process, size frame.Size) {
	if !p.tty {
		return
	}
	if rc, err := p.out[0].file.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { _ = setSize(int(fd), size) })
	}
}

func (s *supervisor) stdin(c *conn, r *guest.StdinRequest) error {
	p, err := s.find(r.PID)
	if err != nil {
		return err
	}
	if p.in == nil {
		return fail(guest.CodeBadRequest, "process %d was started without stdin", r.PID)
	}
	left := make(chan struct{})
	var werr error
	c.during(func() {
		if werr = p.in.write(r.Data, left); werr == nil && r.Close {
			werr = p.in.eof(left)
		}
	}, func() {
		close(left)
		p.in.poke()
	})
	if werr != nil {
		return fail(guest.CodeNoProcess, "stdin of process %d is closed", r.PID)
	}
	return nil
}

func (s *supervisor) wait(c *conn, pid guest.ProcessID) (*guest.ProcessInfo, error) {
	p, err := s.find(pid)
	if err != nil {
		return nil, err
	}
	left := make(chan struct{})
	c.during(func() {
		select {
		case <-p.done:
		case <-left:
		}
	}, func() { close(left) })
	i := p.info(false)
	return &i, nil
}

func (s *supervisor) shutdown(p *guest.ShutdownParams) error {
	select {
	case s.orders <- *p:
		return nil
	default:
		return fail(guest.CodeLimit, "too many orders to shut down")
	}
}

// prewarm makes n threads that the runtime keeps. Later, at the limit of processes, it could not make any and would give
// up: whatever blocks for a while needs one.
func prewarm(n int) {
	var ready sync.WaitGroup
	ready.Add(n)
	release := make(chan struct{})
	var done sync.WaitGroup
	for range n {
		done.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ready.Done()
			<-release
		})
	}
	ready.Wait()
	close(release)
	done.Wait()
}

// openNull opens /dev/null, or a file that is as empty where the sandbox has none.
func openNull() (int, error) {
	fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return -1, os.NewSyscallError("open /dev/null", err)
	}
	return fd, nil
}
