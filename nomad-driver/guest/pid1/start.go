package pid1

import (
	"errors"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// plan is a process about to be started: everything that can be refused has been looked at.
type plan struct {
	start   *guest.Start
	user    guest.UserInfo
	program string
	cwd     string
	env     []string
}

// plan resolves the user, the working directory and the program of s.
func (s *supervisor) plan(st *guest.Start) (*plan, error) {
	u, _, err := s.lookup(st.User)
	if err != nil {
		return nil, err
	}
	p := &plan{start: st, user: u, env: environment(s.defaultEnv(), st.Env, u, st.TTY)}
	err = s.workers.as(u, func() error {
		if p.cwd, err = s.workDir(st.Cwd, u); err != nil {
			return err
		}
		p.program, err = program(st.Argv[0], variable(p.env, "PATH"))
		return err
	})
	return p, err
}

// workDir returns the directory to start in, after the thread's user could enter it.
func (s *supervisor) workDir(cwd string, u guest.UserInfo) (string, error) {
	asked := cwd
	if cwd == "" {
		cwd = s.cwd
	}
	if cwd == "" {
		cwd = u.Home
	}
	path, err := checkPath("start.cwd", cwd, u)
	if err != nil {
		return "", err
	}
	switch err := enter(path); {
	case err == nil:
		return path, nil
	case asked == "" && s.cwd == "":
		return "/", nil // a user without a home
	case err == unix.ENOENT:
		return "", fail(guest.CodeBadCwd, "cwd '%s' does not exist", path)
	default:
		return "", fail(guest.CodeBadCwd, "cwd '%s' cannot be entered: %v", path, err)
	}
}

func enter(path string) error {
	fd, err := openAt(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Faccessat(fd, ".", unix.X_OK, unix.AT_EACCESS)
}

// program finds a command as a shell would. A name with a slash is left to the kernel, which sees it from the working
// directory.
func program(name, path string) (string, error) {
	if strings.IndexByte(name, '/') >= 0 {
		return name, nil
	}
	var denied bool
	for dir := range strings.SplitSeq(path, ":") {
		if !strings.HasPrefix(dir, "/") {
			continue // from the working directory, which may be anyone's
		}
		file := joinPath(dir, name)
		var st unix.Stat_t
		if unix.Stat(file, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		if unix.Faccessat(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS) == nil {
			return file, nil
		}
		denied = true
	}
	if denied {
		return "", fail(guest.CodeBadCommand, "command '%s' may not be executed by this user", name)
	}
	return "", fail(guest.CodeBadCommand, "command '%s' not found", name)
}

// environment joins the sandbox's environment and a process's own, the later winning, and adds what programs expect.
func environment(base, own []string, u guest.UserInfo, tty bool) []string {
	env := make([]string, 0, len(base)+len(own)+6)
	at := make(map[string]int, cap(env))
	add := func(e string, replace bool) {
		k, _, _ := strings.Cut(e, "=")
		if i, ok := at[k]; !ok {
			at[k] = len(env)
			env = append(env, e)
		} else if replace {
			env[i] = e
		}
	}
	for _, e := range base {
		add(e, true)
	}
	for _, e := range own {
		add(e, true)
	}
	add("PATH="+defaultPath, false)
	add("HOME="+u.Home, false)
	add("USER="+u.Name, false)
	add("LOGNAME="+u.Name, false)
	add("SHELL="+u.Shell, false)
	if tty {
		add("TERM=xterm-256color", false)
	}
	return env
}

func variable(env []string, key string) string {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, key+"="); ok {
			return v
		}
	}
	return ""
}

// launch starts a planned process and registers it. before, which may be nil, is called with the process before its output is read.
func (s *supervisor) launch(pl *plan, before func(*process)) (*process, error) {
	st := pl.start
	var io *pipes
	var err error
	if st.TTY {
		io, err = newTerminal(st.Size, int(pl.user.UID))
	} else {
		io, err = newPipes(s.devNull, st.Stdin, int(pl.user.UID), int(pl.user.GID))
	}
	if err != nil {
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM) {
			return nil, fail(guest.CodeLimit, "start '%s': %v", st.Argv[0], err)
		}
		return nil, fail(guest.CodeInternal, "start '%s': %v", st.Argv[0], err)
	}
	attr := &syscall.ProcAttr{
		Dir:   pl.cwd,
		Env:   pl.env,
		Files: []uintptr{uintptr(io.child[0]), uintptr(io.child[1]), uintptr(io.child[2])},
		Sys: &syscall.SysProcAttr{
			Setsid:     true,
			Setctty:    st.TTY,
			Credential: &syscall.Credential{Uid: pl.user.UID, Gid: pl.user.GID, Groups: pl.user.Groups},
		},
	}
	p := newProcess()
	p.argv, p.env, p.cwd, p.asked, p.user = shown(st.Argv), shown(st.Env), pl.cwd, st.Cwd, pl.user.Name
	p.tag, p.tty = st.Tag, st.TTY
	types := []frame.Type{frame.Stdout, frame.Stderr}
	if st.TTY {
		types = []frame.Type{frame.PTY}
	}
	for i, f := range io.outs {
		p.out = append(p.out, &output{p: p, typ: types[i], file: f})
	}
	if io.in != nil {
		p.in = newInput(io.in, st.TTY)
	}
	if before != nil {
		before(p)
	}
	err = s.fork(p, func() (int, error) {
		exec := func() (int, error) { return syscall.ForkExec(pl.program, st.Argv, attr) }
		if s.spawn == nil {
			return exec()
		}
		return s.spawn(exec)
	})
	io.closeChild()
	if err != nil {
		io.close()
		return nil, failStart(st.Argv[0], err)
	}
	for _, o := range p.out {
		go o.pump()
	}
	if st.KillAfter > 0 {
		p.mu.Lock()
		if p.exit == nil {
			p.kill = time.AfterFunc(st.KillAfter, func() { s.killSession(p) })
		}
		p.mu.Unlock()
	}
	return p, nil
}

// failStart explains why a program could not be executed. The working directory has been looked at before.
func failStart(name string, err error) *frame.ErrorBody {
	var body *frame.ErrorBody
	if errors.As(err, &body) {
		return body
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return fail(guest.CodeBadCommand, "command '%s' not found, or the interpreter that it names", name)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ETXTBSY):
		return fail(guest.CodeBadCommand, "command '%s' cannot be executed: %v", name, err)
	case errors.Is(err, unix.E2BIG):
		return fail(guest.CodeBadRequest, "start.argv and start.env are more than the kernel takes: %v", err)
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM):
		return fail(guest.CodeLimit, "start '%s': the sandbox is at its limit of processes or memory: %v", name, err)
	}
	return fail(guest.CodeInternal, "start '%s': %v", name, err)
}
