package pid1

import (
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// process is one process that PID 1 started, running or ended.
type process struct {
	id      guest.ProcessID
	argv    []string
	env     []string
	cwd     string
	asked   string // the working directory as its start named it
	user    string
	tag     string
	tty     bool
	started time.Time

	done chan struct{} // closed when the process has ended

	mu    sync.Mutex
	cond  *sync.Cond // output, room in a ring, the end, the end of an attachment
	out   []*output  // stdout or the terminal; stderr
	in    *input     // nil: /dev/null
	exit  *frame.ExitBody
	ended time.Time
	told  bool        // an attachment has been sent the Exit frame
	kill  *time.Timer // kills it when its time is over; nil where it has as much as it likes
	// expected are the places in out that are held for the first attachment to come.
	expected []*reader
}

func newProcess() *process {
	p := &process{started: time.Now(), done: make(chan struct{})}
	p.cond = sync.NewCond(&p.mu)
	return p
}

func (p *process) broadcast() {
	p.mu.Lock()
	p.cond.Broadcast()
	p.mu.Unlock()
}

// end records how the process ended and makes its pumps take in the rest of its output.
func (p *process) end(ws syscall.WaitStatus) {
	exit := exitBody(ws)
	p.mu.Lock()
	p.exit, p.ended = &exit, time.Now()
	if p.kill != nil {
		p.kill.Stop()
	}
	p.cond.Broadcast()
	for _, o := range p.out {
		if !o.eof {
			o.wake()
		}
	}
	p.mu.Unlock()
	if p.in != nil {
		p.in.close()
	}
	close(p.done)
}

func exitBody(ws syscall.WaitStatus) frame.ExitBody {
	if ws.Signaled() {
		return frame.ExitBody{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}
	}
	return frame.ExitBody{Code: ws.ExitStatus()}
}

// hasEnded reports whether the process's pid may be another's by now.
func (p *process) hasEnded() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// info describes the process. Arguments and environment beyond maxShown bytes are left out.
func (p *process) info(withEnv bool) guest.ProcessInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := guest.ProcessInfo{
		PID: p.id, Argv: p.argv, Cwd: p.cwd, AskedCwd: p.asked, User: p.user, Tag: p.tag, TTY: p.tty,
		StartedAt: p.started, EndedAt: p.ended, Exit: p.exit,
	}
	if withEnv {
		i.Env = p.env
	}
	for n, o := range p.out {
		if n == 0 {
			i.Stdout = o.ring.end
		} else {
			i.Stderr = o.ring.end
		}
	}
	return i
}

// maxShown bounds the bytes of argv, and of env, that are kept to describe a process.
const maxShown = 32 << 10

// shown returns the first elements of list that fit into maxShown bytes.
func shown(list []string) []string {
	n := 0
	for i, s := range list {
		if n += len(s); n > maxShown {
			return list[:i:i]
		}
	}
	return list
}

// pipes are the two sides of a new process's input and output.
type pipes struct {
	child  [3]int // what becomes 0, 1 and 2 of the process
	outs   []*os.File
	in     *os.File
	toFree []int // the child's sides that PID 1 closes once the process has them
}

func (p *pipes) closeChild() {
	for _, fd := range p.toFree {
		unix.Close(fd)
	}
	p.toFree = nil
}

func (p *pipes) close() {
	p.closeChild()
	for _, f := range p.outs {
		f.Close()
	}
	if p.in != nil {
		p.in.Close()
	}
}

// newPipes makes the pipes of a process without a terminal. They belong to uid, so that the process can open /dev/stdout.
func newPipes(devNull int, stdin bool, uid, gid int) (*pipes, error) {
	p := &pipes{child: [3]int{devNull, -1, -1}}
	pair := func() (r, w int, err error) {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			return 0, 0, err
		}
		// Failure leaves the process with a pipe that it can use but not open again: no reason not to start it.
		_ = unix.Fchown(fds[0], uid, gid)
		return fds[0], fds[1], nil
	}
	for i := 1; i <= 2; i++ {
		r, w, err := pair()
		if err != nil {
			p.close()
			return nil, err
		}
		p.child[i] = w
		p.toFree = append(p.toFree, w)
		p.outs = append(p.outs, pollable(r, "output"))
	}
	if stdin {
		r, w, err := pair()
		if err != nil {
			p.close()
			return nil, err
		}
		p.child[0] = r
		p.toFree = append(p.toFree, r)
		p.in = pollable(w, "stdin")
	}
	return p, nil
}

// pollable makes a file of fd that waits in the runtime's poller, not in a thread.
func pollable(fd int, name string) *os.File {
	// It cannot fail on a descriptor that is open.
	_ = unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}
