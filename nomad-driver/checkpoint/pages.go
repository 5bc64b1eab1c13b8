package checkpoint

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/pager"
	"github.com/soulbox-dev/soulbox/nomad-driver/procstat"
)

// PagesArg makes the init binary a page server.
const PagesArg = "pages"

const (
	pagesState = "state"
	pagesNote  = "note.json"
	pagesLog   = "log"

	// pagesStart bounds how long a page server may take to begin.
	pagesStart = 10 * time.Second
	// pagesEnd bounds how long a killed process may take to end.
	pagesEnd = 10 * time.Second
	// pagesTries is how often a page server is started again that has ended before its time.
	pagesTries = 3
)

// ErrPagesLost is in the chain of an error that says that what a sandbox still had to get of its memory never comes.
var ErrPagesLost = errors.New("memory is lost")

// Pages is a page server, which goes on without this process. Wait and End may be called from any goroutine.
type Pages struct {
	dir, init string
	state     *pager.State
	tries     int // that Wait has made

	mu     sync.Mutex // held over a start and an end
	note   note
	server *server // that this process has started; nil: it has started none
	over   bool    // none is started any more
}

// process is a process that must not be taken for another one with its number.
type process struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // field 22 of its stat
}

// note is what one that comes after this process has to know.
type note struct {
	Version int      `json:"version"`
	Server  process  `json:"server"`
	Keeper  process  `json:"keeper"` // has its descriptors too
	Files   []string `json:"files"`  // of pages
}

const noteVersion = 1

// newPages makes what one needs, in a new folder.
func newPages(init, dir string, files []string) (*Pages, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	p := &Pages{dir: dir, init: init, note: note{Version: noteVersion, Files: files}}
	var err error
	if p.state, err = pager.CreateState(filepath.Join(dir, pagesState), len(files)); err != nil {
		return nil, err
	}
	return p, nil
}

// firstSpace is the number of the first userfaultfd in the server.
func (p *Pages) firstSpace() int { return pager.StateFD + 1 + len(p.note.Files) }

// ready starts a server for that many userfaultfds, which waits for them. It may be that it never gets them.
func (p *Pages) ready(spaces int) error {
	var numbers []int
	for i := range spaces {
		numbers = append(numbers, p.firstSpace()+i)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.start(numbers)
}

// begin has the server begin that ready has started. fds are the userfaultfds of the spaces.
func (p *Pages) begin(ctx context.Context, fds []int, spaces []pager.Space, first []pager.First, watch time.Duration) error {
	at := map[int]int{}
	for i := range spaces {
		spaces[i].FD = p.firstSpace() + i
		at[spaces[i].FD] = fds[i]
	}
	if err := p.state.Fill(spaces, first); err != nil {
		return err
	}
	if watch > 0 {
		p.state.Watch(watch)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.handOver(ctx, at)
}

// server is one that was started by this process.
type server struct {
	process *os.Process
	socket  *os.File // to hand over; nil: it was done
	says    *os.File
	reaped  chan struct{} // closed when it has ended and is reaped
}

// start starts a server that will have userfaultfds at these numbers. p.mu is held.
func (p *Pages) start(numbers []int) (err error) {
	var opened []*os.File
	defer func() {
		for _, f := range opened {
			err = errors.Join(err, f.Close())
		}
	}()
	open := func(path string, flag int) (*os.File, error) {
		f, err := os.OpenFile(path, flag, 0o600)
		if err == nil {
			opened = append(opened, f)
		}
		return f, err
	}
	state, err := open(filepath.Join(p.dir, pagesState), os.O_RDWR)
	if err != nil {
		return err
	}
	log, err := open(filepath.Join(p.dir, pagesLog), os.O_WRONLY|os.O_CREATE|os.O_APPEND)
	if err != nil {
		return err
	}
	extra := []*os.File{state}
	for _, path := range p.note.Files {
		f, err := open(path, os.O_RDONLY|unix.O_NOFOLLOW)
		if err != nil {
			return err
		}
		extra = append(extra, f)
	}
	for _, n := range numbers {
		for len(extra) <= n-pager.StateFD {
			extra = append(extra, nil)
		}
		extra[n-pager.StateFD] = state // it keeps the place
	}
	sp, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make socket for the page server: %w", err)
	}
	socket, theirs := os.NewFile(uintptr(sp[0]), "page server"), os.NewFile(uintptr(sp[1]), "page server")
	opened = append(opened, theirs)
	cmd := exec.Command(p.init, PagesArg)
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.ExtraFiles, cmd.Stderr = "/", []string{"GOMAXPROCS=1"}, theirs, extra, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	says, told, err := os.Pipe()
	if err != nil {
		return errors.Join(err, socket.Close())
	}
	cmd.Stdout = told
	opened = append(opened, told)
	if err := cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("start page server: %w", err), socket.Close(), says.Close())
	}
	s := &server{process: cmd.Process, socket: socket, says: says, reaped: make(chan struct{})}
	p.server = s
	go func() { // ends with the server
		defer close(s.reaped)
		_ = cmd.Wait() // what it has done is in the state
	}()
	if p.note.Server, err = identify(cmd.Process.Pid); err != nil {
		_ = cmd.Process.Kill()
		return errors.Join(err, s.close())
	}
	return nil
}

// close lets go of what it is told and says by.
func (s *server) close() error {
	if s.socket == nil {
		return nil
	}
	err := errors.Join(s.socket.Close(), s.says.Close())
	s.socket, s.says = nil, nil
	return err
}

// handOver gives the server that was started last its userfaultfds, by their numbers, and has it begin. p.mu is held.
func (p *Pages) handOver(ctx context.Context, at map[int]int) (err error) {
	s := p.server
	if s == nil || s.socket == nil {
		return errors.New("no page server waits")
	}
	defer func() {
		if err != nil {
			_ = s.process.Kill() // also one that no note names
		}
		err = errors.Join(err, s.close())
	}()
	kill := time.AfterFunc(pagesStart, func() { _ = s.process.Kill() })
	defer kill.Stop()
	stop := context.AfterFunc(ctx, func() { _ = s.process.Kill() })
	defer stop()
	// It begins when whoever comes after this process can know of it; where this process ends before, it does too.
	if err := p.write(); err != nil {
		return err
	}
	if err := pager.HandOver(int(s.socket.Fd()), at); err != nil {
		return fmt.Errorf("%w: %s", err, p.lastWords())
	}
	line, err := bufio.NewReader(s.says).ReadString('\n')
	if err != nil {
		return fmt.Errorf("page server does not begin: %w: %s", err, p.lastWords())
	}
	var keeper int
	if _, err := fmt.Sscanf(line, "ready %d", &keeper); err != nil {
		return fmt.Errorf("page server says %.60q: %w", line, err)
	}
	if p.note.Keeper, err = identify(keeper); err != nil {
		p.note.Keeper = process{} // it has ended: there was little to do
	}
	return p.write()
}

func (p *Pages) write() error { return WriteNote(filepath.Join(p.dir, pagesNote), p.note) }

// lastWords returns the end of its log.
func (p *Pages) lastWords() string {
	b, err := os.ReadFile(filepath.Join(p.dir, pagesLog))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// FindPages finds the page server of a process before this one, which may have ended, in its folder. Nil: there is none.
func FindPages(init, dir string) (*Pages, error) {
	p := &Pages{dir: dir, init: init}
	b, err := os.ReadFile(filepath.Join(dir, pagesNote))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &p.note)
	}
	if err == nil && p.note.Version != noteVersion {
		err = fmt.Errorf("version %d, this node reads %d", p.note.Version, noteVersion)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, pagesNote), err)
	}
	if p.state, err = pager.OpenState(filepath.Join(dir, pagesState)); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return p, nil
}

// Faults returns how often a process has waited for a page.
func (p *Pages) Faults() uint64 { return p.state.Faults() }

// Touched returns which pages were waited for, in order.
func (p *Pages) Touched() *Touched {
	t := &Touched{Version: touchedVersion}
	for _, f := range p.note.Files {
		t.Files = append(t.Files, filepath.Base(f))
	}
	for _, page := range p.state.Touched() {
		if int(page.File) < len(t.Files) {
			t.Pages = append(t.Pages, TouchedPage{page.File, page.Page})
		}
	}
	return t
}

// Wait returns nil when every page is there, or nobody is left who could want one. A server that has ended before is started again. On ErrPagesLost those who
// wait for a page wait until End.
func (p *Pages) Wait(ctx context.Context) error {
	for {
		if err := p.ended(ctx); err != nil {
			return err
		}
		if p.state.Done() {
			return nil
		}
		if p.tries++; p.tries > pagesTries {
			return fmt.Errorf("%w: page server has ended %d times: %s", ErrPagesLost, p.tries, p.lastWords())
		}
		if err := p.takeOver(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%w: page server has ended, and none can go on: %w: %s", ErrPagesLost, err, p.lastWords())
		}
	}
}

// ended waits for the server to end.
func (p *Pages) ended(ctx context.Context) error {
	p.mu.Lock()
	named, own := p.note.Server, p.server
	p.mu.Unlock()
	if own != nil {
		select {
		case <-own.reaped:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	fd, err := named.open()
	if err != nil || fd == nil {
		return err
	}
	defer fd.Close()
	return awaitEnd(ctx, fd)
}

// takeOver starts a server with what the keeper of the one before has.
func (p *Pages) takeOver(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return errors.New("it was ended")
	}
	old := p.note.Keeper
	keeper, err := old.open()
	if err != nil {
		return err
	}
	if keeper == nil {
		return errors.New("its keeper has ended too")
	}
	defer keeper.Close()
	at := map[int]int{}
	defer func() {
		for _, fd := range at {
			_ = unix.Close(fd)
		}
	}()
	for _, n := range p.state.FDs() {
		fd, err := unix.PidfdGetfd(int(keeper.Fd()), n, 0)
		if errors.Is(err, unix.EBADF) {
			continue // of memory that is gone
		}
		if err != nil {
			return fmt.Errorf("take userfaultfd %d from the keeper: %w", n, err)
		}
		at[n] = fd
	}
	if hasEnded(keeper) { // what it has not given is gone
		return errors.New("its keeper has ended meanwhile")
	}
	if err := p.start(slices.Collect(maps.Keys(at))); err != nil {
		return err
	}
	if err := p.handOver(ctx, at); err != nil {
		return err
	}
	return old.kill()
}

// Close lets go of what this process has of it. Nothing else may be called then but End.
func (p *Pages) Close() error { return p.state.Close() }

// End ends the server and its keeper. What processes have not got by then they find to be zeros: none of them may run any more.
func (p *Pages) End() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	err := p.note.Server.kill()
	if p.server != nil {
		<-p.server.reaped
		err = errors.Join(err, p.server.close())
	}
	return errors.Join(err, p.note.Keeper.kill())
}

// identify names a process that runs.
func identify(pid int) (process, error) {
	s, err := procstat.Of(pid)
	return process{PID: pid, Start: s.Started()}, err
}

// open returns a pidfd, or nil where the process has ended.
func (q process) open() (*os.File, error) {
	if q.PID == 0 {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(q.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", q.PID, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	if s, err := procstat.Of(q.PID); err != nil || s.Started() != q.Start || hasEnded(f) {
		return nil, f.Close() // and another one may have its number
	}
	return f, nil
}

// hasEnded reports whether the process of a pidfd has ended, reaped or not: one that nobody has reaped has no descriptors either.
func hasEnded(pidfd *os.File) (ended bool) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return true
	}
	err = raw.Control(func(fd uintptr) { ended = readableNow(fd) })
	return ended || err != nil
}

// readableNow reports whether a pidfd's process has ended.
func readableNow(fd uintptr) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
}

// kill kills the process and waits for its end. Who is its parent reaps it.
func (q process) kill() error {
	f, err := q.open()
	if err != nil || f == nil {
		return err
	}
	defer f.Close()
	if err := unix.PidfdSendSignal(int(f.Fd()), unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", q.PID, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), pagesEnd)
	defer cancel()
	return awaitEnd(ctx, f)
}

// awaitEnd waits for the process of a pidfd to end.
func awaitEnd(ctx context.Context, pidfd *os.File) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = pidfd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err = raw.Read(readableNow)
	if ctx.Err() != nil && err != nil {
		return ctx.Err()
	}
	return err
}
