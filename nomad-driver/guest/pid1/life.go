package pid1

import (
	"encoding/json"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// catchTerm returns where SIGTERM arrives.
func catchTerm() <-chan os.Signal {
	terms := make(chan os.Signal, 1)
	signal.Notify(terms, unix.SIGTERM)
	return terms
}

// startMain starts the sandbox's own command.
func (s *supervisor) startMain(st guest.Start) error {
	logged := st.Attach
	st.Attach, st.KillOnDetach = false, false
	if err := checkStart(&st); err != nil {
		return err
	}
	pl, err := s.plan(&st)
	if err != nil {
		return err
	}
	p, err := s.launch(pl, func(p *process) {
		if logged {
			p.expect(LogWait)
		}
	})
	if err != nil {
		return err
	}
	s.main, s.mainLogged = p, logged
	return nil
}

// run waits for the sandbox's end, brings it about, and returns PID 1's exit code. It makes reap return.
func (s *supervisor) run(terms <-chan os.Signal, sv *server, record *os.File) int {
	reason := guest.ReasonMainExited
	var mainDone chan struct{}
	if s.main != nil {
		mainDone = s.main.done
	}
	select {
	case <-mainDone:
	case <-terms:
		reason = guest.ReasonShutdown
		s.stop(guest.ShutdownParams{Grace: TermGrace}, mainDone)
	case o := <-s.orders:
		reason = guest.ReasonShutdown
		s.stop(o, mainDone)
	}
	exit, ended := s.killAll()
	writeRecord(record, guest.ExitRecord{
		Version: guest.ExitRecordVersion, SandboxID: s.sandboxID(), Reason: reason,
		Code: exit.Code, Signal: exit.Signal, EndedAt: ended.UTC().Format(time.RFC3339Nano),
	})
	if s.mainLogged {
		s.main.waitTold(LogWait)
	}
	s.endWatches()
	sv.drainConns(lastWords)
	s.mu.Lock()
	s.over = true
	s.born.Broadcast()
	s.mu.Unlock()
	// A child that even SIGKILL has not moved would hold reap up; the kernel waits for it when PID 1 is gone.
	time.AfterFunc(deathWait, func() { os.Exit(exit.Code) })
	return exit.Code
}

// stop asks all processes to end and waits for the main one, or where there is none for all, at most for the grace. Another
// order meanwhile may make it shorter.
func (s *supervisor) stop(o guest.ShutdownParams, mainDone <-chan struct{}) {
	deadline := time.Now().Add(o.Grace)
	again := time.NewTicker(hangUpAgain)
	defer again.Stop()
	for ordered := true; time.Until(deadline) > 0; {
		if ordered {
			select {
			case <-s.quiet: // from an earlier time
			default:
			}
			if !s.signalAll(o.Signal) && mainDone == nil {
				return
			}
		}
		ordered = false
		select {
		case <-mainDone:
			return
		case <-s.quietIf(mainDone == nil):
			return
		case <-time.After(time.Until(deadline)):
			return
		case <-again.C:
			s.hangUp()
		case o = <-s.orders:
			ordered = true
			if d := time.Now().Add(o.Grace); d.Before(deadline) {
				deadline = d
			}
		}
	}
}

// signalAll signals every process of the sandbox. Those that are stopped are continued to see it, and those that lead a
// terminal's session are told that it is over: an interactive shell ends for nothing less. It returns false where there is
// no process.
func (s *supervisor) signalAll(n int) bool {
	if n == 0 {
		n = int(unix.SIGTERM)
	}
	if unix.Kill(-1, unix.Signal(n)) == unix.ESRCH {
		return false
	}
	s.hangUp()
	_ = unix.Kill(-1, unix.SIGCONT)
	return true
}

// hangUpAgain is how often the leaders of terminals' sessions are told until they have ended: a shell that is just about to wait for input
// takes note of the signal, and forgets it until there is some.
const hangUpAgain = 500 * time.Millisecond

func (s *supervisor) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.procs {
		if p.tty && !p.hasEnded() {
			_ = unix.Kill(int(p.id), unix.SIGHUP)
		}
	}
}

// quietIf returns the channel that tells when no child is left, or nil.
func (s *supervisor) quietIf(want bool) <-chan struct{} {
	if want {
		return s.quiet
	}
	return nil
}

// killAll kills everything and returns how and when the main process ended.
func (s *supervisor) killAll() (frame.ExitBody, time.Time) {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	_ = unix.Kill(-1, unix.SIGKILL)
	if s.main == nil {
		return frame.ExitBody{}, time.Now()
	}
	select {
	case <-s.main.done:
	case <-time.After(deathWait):
		return exitBody(syscall.WaitStatus(unix.SIGKILL)), time.Now()
	}
	s.main.mu.Lock()
	defer s.main.mu.Unlock()
	return *s.main.exit, s.main.ended
}

// writeRecord writes the exit record with one write, so that no reader sees half of it.
func writeRecord(f *os.File, r guest.ExitRecord) {
	if f == nil {
		return
	}
	if b, err := json.Marshal(r); err == nil {
		_, _ = f.Write(append(b, '\n')) // nobody is left to be told
	}
	_ = f.Close()
}

// waitTold returns when an attachment has been told of the process's end, or after d.
func (p *process) waitTold(d time.Duration) {
	deadline := time.Now().Add(d)
	t := time.AfterFunc(d, p.broadcast)
	defer t.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.told && time.Now().Before(deadline) {
		p.cond.Wait()
	}
}
