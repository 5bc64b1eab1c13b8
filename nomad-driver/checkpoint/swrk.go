package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v7/rpc"

	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/osthread"
)

// request is one call of CRIU. go-criu's own client cannot be given up half-way, hands every inheritable descriptor of the process to
// CRIU, and starts it where this process is; so only its messages are used, and the conversation is held here.
type request struct {
	typ      rpc.CriuReqType
	opts     *rpc.CriuOpts
	features *rpc.CriuFeatures
	// notify is called when CRIU tells where it is; an error makes it give up.
	notify func(script string, pid int) error
}

// place is where a CRIU is started.
type place struct {
	// files are CRIU's descriptors from firstFile on.
	files []*os.File
	// thread, where it is set, is run on a thread with a mount namespace of its own, from which CRIU is started then.
	thread func() error
	// started is called with CRIU's process once it runs, and has returned before it is asked for anything.
	started func(p *os.Process) error
	// kerndat is what it knows of the kernel; nil: what the engine has.
	kerndat []byte
	// follows has its mounts follow what becomes of the machine's, where the machine shares them.
	follows bool
}

const (
	// maxMessage bounds a message of CRIU's.
	maxMessage = 1 << 20
	// criuEnd bounds how long CRIU may take to end once it has answered, and how long a killed one may.
	criuEnd = 30 * time.Second
	// lastWords is how long what CRIU has said before its end may take to be read.
	lastWords = time.Second
)

// Error is CRIU's answer that something did not work. Log holds the last errors of its log.
type Error struct {
	Op    string // what was asked for
	Errno syscall.Errno
	Msg   string
	Log   string
	Ended bool // without an answer, in the midst of its work
}

func (e *Error) Error() string {
	s := "criu cannot " + e.Op
	if e.Errno != 0 {
		s += ": " + e.Errno.Error()
	}
	if e.Msg != "" {
		s += ": " + e.Msg
	}
	if e.Log != "" {
		s += ": " + e.Log
	}
	return s
}

// Unwrap lets errors.Is find the errno.
func (e *Error) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// call starts CRIU for one request and returns its answer when CRIU has ended. When ctx ends CRIU is killed.
func (e *Engine) call(ctx context.Context, at place, r request) (*rpc.CriuResp, error) {
	w, err := e.start(at)
	if err != nil {
		return nil, err
	}
	return w.ask(ctx, r)
}

// worker is a CRIU that was started and waits for its one request: its start takes milliseconds in which all else can be made ready. Either ask or end has to
// be called.
type worker struct {
	cmd *exec.Cmd
	sk  *os.File
	// unwatch ends the watch for its end.
	unwatch func()
	// noted gets what started returned, once; nil: there is nothing to wait for.
	noted <-chan error
	slots int // descriptors from firstFile on that give may set
}

// start starts a CRIU.
func (e *Engine) start(at place) (_ *worker, err error) {
	sp, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket for criu: %w", err)
	}
	// Before the file is made of it, so that it waits in the runtime's poller.
	nerr := unix.SetNonblock(sp[0], true)
	ours, theirs := os.NewFile(uintptr(sp[0]), "criu socket"), os.NewFile(uintptr(sp[1]), "criu socket")
	if nerr != nil {
		return nil, errors.Join(nerr, ours.Close(), theirs.Close())
	}
	w := &worker{cmd: e.program.command(strconv.Itoa(firstFile + len(at.files))), sk: ours}
	w.cmd.Dir = "/"
	w.cmd.ExtraFiles = append(append([]*os.File(nil), at.files...), theirs)
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	propagation := uintptr(unix.MS_PRIVATE)
	if at.follows {
		propagation = unix.MS_SLAVE
	}
	err = start(w.cmd, e.prepare(at), propagation)
	if err = errors.Join(err, theirs.Close()); err != nil {
		return nil, fmt.Errorf("start criu: %w", errors.Join(err, ours.Close()))
	}
	defer func() {
		if err != nil {
			w.end()
		}
	}()
	// Where it is killed in a restore, processes that it has made have the socket yet, which would never end.
	if w.unwatch, err = onEnd(w.pid(), func() { _ = ours.SetReadDeadline(time.Now().Add(lastWords)) }); err != nil {
		return nil, err
	}
	// In the middle of its work it must not be what the kernel ends for want of memory.
	_ = os.WriteFile("/proc/"+strconv.Itoa(w.pid())+"/oom_score_adj", []byte("-1000"), 0)
	w.note(at.started)
	return w, nil
}

// note calls started, where it is set, while the worker comes up.
func (w *worker) note(started func(*os.Process) error) {
	if started == nil {
		return
	}
	noted := make(chan error, 1)
	w.noted = noted
	go func() { noted <- started(w.cmd.Process) }()
}

// hasEnded reports whether it has ended, which reap has not seen yet.
func (w *worker) hasEnded() bool {
	fd, err := unix.PidfdOpen(w.pid(), unix.PIDFD_NONBLOCK)
	if err != nil {
		return true
	}
	ended := readableNow(uintptr(fd))
	_ = unix.Close(fd)
	return ended
}

// awaitNoted waits for started.
func (w *worker) awaitNoted() error {
	if w.noted == nil {
		return nil
	}
	err := <-w.noted
	w.noted = nil
	return err
}

func (w *worker) pid() int { return w.cmd.Process.Pid }

// inside runs f on a thread in the worker's mount namespace, which is its own where it was started with what is known of the kernel, or from a thread that was readied.
func (w *worker) inside(f func() error) (err error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", w.pid()))
	if err != nil {
		return fmt.Errorf("open criu's mount namespace: %w", err)
	}
	osthread.ThrowAway(func() {
		if err = unix.Unshare(unix.CLONE_FS); err != nil {
			err = fmt.Errorf("unshare the root directory: %w", err)
			return
		}
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			err = fmt.Errorf("enter criu's mount namespace: %w", err)
			return
		}
		err = f()
	})
	return errors.Join(err, ns.Close())
}

// end ends one that is asked nothing any more.
func (w *worker) end() {
	_ = w.awaitNoted()
	_ = w.cmd.Process.Kill() // it may have ended
	w.reap()
}

// reap lets it go, and waits for its end.
func (w *worker) reap() {
	_ = w.sk.Close()
	_ = w.cmd.Wait() // after its answer the exit status says nothing more
	if w.unwatch != nil {
		w.unwatch()
	}
}

// ask has the worker do what it was started for, and returns its answer when it has ended. When ctx ends it is killed.
func (w *worker) ask(ctx context.Context, r request) (*rpc.CriuResp, error) {
	resp, err := w.hear(ctx, r)
	if err != nil {
		w.end()
		return nil, err
	}
	w.letEnd()
	return resp, nil
}

// hear has the worker do what it was started for, and returns its answer, while it may still be ending: letEnd has to be called, or end.
func (w *worker) hear(ctx context.Context, r request) (*rpc.CriuResp, error) {
	if err := w.awaitNoted(); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() {
		_ = w.cmd.Process.Kill()
		_ = w.sk.SetDeadline(time.Unix(1, 0))
	})
	defer stop()
	resp, err := converse(w.sk, w.pid(), r)
	if ctx.Err() != nil && err != nil {
		err = ctx.Err()
	}
	return resp, err
}

// letEnd waits for the end of one that has answered.
func (w *worker) letEnd() {
	kill := time.AfterFunc(criuEnd, func() { _ = w.cmd.Process.Kill() })
	defer kill.Stop()
	w.reap()
}

// prepare is what the thread does that CRIU is started from: with what is known of the kernel it has a /run of its own. Nil: any thread will do.
func (e *Engine) prepare(at place) func() error {
	kerndat := at.kerndat
	if kerndat == nil {
		kerndat = e.kerndat
	}
	if kerndat == nil {
		return at.thread
	}
	return func() error {
		if err := mountRun(kerndat); err != nil || at.thread == nil {
			return err
		}
		return at.thread()
	}
}

// onEnd calls f when a child has ended, until stop, which waits for f. The child is not waited for: that would take the stops from a thread that traces it.
func onEnd(pid int, f func()) (stop func(), err error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	process := os.NewFile(uintptr(fd), "pidfd") // which waits in the runtime's poller
	raw, err := process.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, process.Close())
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := raw.Read(func(fd uintptr) bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
		})
		if err == nil {
			f()
		}
	}()
	return func() {
		_ = process.Close()
		<-done
	}, nil
}

// start starts cmd; with prepare, from a thread with a new mount namespace, of that propagation, that prepare has been run on. The thread does not come back.
func start(cmd *exec.Cmd, prepare func() error, propagation uintptr) error {
	if prepare == nil {
		return cmd.Start()
	}
	done := make(chan error, 1)
	go osthread.ThrowAway(func() {
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			done <- fmt.Errorf("unshare mounts: %w", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|propagation, ""); err != nil {
			done <- fmt.Errorf("part mounts from the machine's: %w", err)
			return
		}
		if err := prepare(); err != nil {
			done <- err
			return
		}
		done <- cmd.Start()
	})
	return <-done
}

// converse sends the request to the process criu and answers notifications until the answer comes.
func converse(sk *os.File, criu int, r request) (*rpc.CriuResp, error) {
	if r.notify != nil {
		r.opts.NotifyScripts = proto.Bool(true)
	}
	req := &rpc.CriuReq{Type: r.typ.Enum(), Opts: r.opts, Features: r.features}
	buf := make([]byte, maxMessage)
	for {
		b, err := proto.Marshal(req)
		if err != nil {
			return nil, fmt.Errorf("encode request to criu: %w", err)
		}
		if _, err := sk.Write(b); err != nil {
			return nil, fmt.Errorf("ask criu: %w", err)
		}
		n, err := sk.Read(buf)
		if err == nil && n == 0 {
			err = io.EOF
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, &Error{Op: opName(r.typ), Msg: "it ended without an answer", Ended: true}
		}
		if err != nil {
			return nil, fmt.Errorf("hear criu: %w", err)
		}
		resp := &rpc.CriuResp{}
		if err := proto.Unmarshal(buf[:n], resp); err != nil {
			return nil, fmt.Errorf("decode answer of criu: %w", err)
		}
		if resp.GetType() != rpc.CriuReqType_NOTIFY {
			if !resp.GetSuccess() {
				return nil, &Error{Op: opName(r.typ), Errno: syscall.Errno(resp.GetCrErrno()), Msg: resp.GetCrErrmsg()}
			}
			return resp, nil
		}
		script := resp.GetNotify().GetScript()
		failpoint.At(opName(r.typ) + " at " + script)
		failpoint.AtOther("criu "+opName(r.typ)+" "+script, criu)
		var nerr error
		if r.notify != nil {
			nerr = r.notify(script, int(resp.GetNotify().GetPid()))
		}
		req = &rpc.CriuReq{Type: rpc.CriuReqType_NOTIFY.Enum(), NotifySuccess: proto.Bool(nerr == nil)}
		if nerr != nil {
			// CRIU is told, so that it cleans up; its answer is that it failed.
			if b, err := proto.Marshal(req); err == nil {
				if _, err := sk.Write(b); err == nil {
					// Of one that has ended meanwhile less is waited for.
					late := time.AfterFunc(criuEnd, func() { _ = sk.SetReadDeadline(time.Unix(1, 0)) })
					_, _ = sk.Read(buf)
					late.Stop()
				}
			}
			return nil, nerr
		}
	}
}

func opName(t rpc.CriuReqType) string {
	switch t {
	case rpc.CriuReqType_DUMP:
		return "checkpoint"
	case rpc.CriuReqType_RESTORE:
		return "restore"
	case rpc.CriuReqType_VERSION:
		return "tell its version"
	default:
		return "check features"
	}
}
