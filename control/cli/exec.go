package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/session"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// Exit codes of exec for its own failures, as shells and other programs that run programs have them.
const (
	exitFailed   = 125 // the command was not started, or the connection was lost
	exitNotFound = 127 // there is no such command
)

func execCommand(env *Env) *command {
	var (
		input, tty bool
		user, cwd  string
		escape     = "~"
		vars       map[string]string
	)
	return &command{
		synopsis: "Run a command in a sandbox",
		usage:    "[options] <id> [--] <command> [args]",
		about: `
Runs a command in a sandbox, with its output here, and ends with its exit
code, or with 128 and the number of the signal that ended it. The code is 127
where there is no such command and 125 where it could not be run or the
connection was lost. Without -t, the command ends with the connection.

    $ soulbox exec <id> -- python3 -c 'print(6*7)'
    $ soulbox exec -it <id> bash
    $ tar c src | soulbox exec -i <id> -- tar x

With -t, Ctrl-C and all other keys go to the command, and ~. at the start of a
line leaves it: it goes on, as it does where the connection is lost, and
soulbox terminal attach comes back to it. Without -t, the signals that this
program gets go to the command; the third Ctrl-C ends the connection.`,
		remote:  true,
		literal: true,
		flags: func(o *options) {
			o.Switch(&input, "i", "Pass this program's standard input to the command.")
			o.Switch(&tty, "t", "Give the command a terminal. -it is -i and -t.")
			o.alias("it", &input, &tty)
			o.alias("ti", &input, &tty)
			o.String(&user, "user", "<name>", "User to run it as: a name or number, with :group if need be.", nil)
			o.String(&cwd, "cwd", "<path>", "Working directory.", nil)
			o.Pairs(&vars, "env", "Environment variable. May be given many times. Without a value, that of this shell is taken.", func(k string) (string, bool) {
				v := env.Getenv(k)
				return v, v != ""
			})
			o.Func("escape", "<char>", `Character that, at the start of a line and followed by a dot, leaves the command; "none" for none. Default = ~.`,
				complete.PredictSet("none"), func(s string) error {
					if s != "none" && len(s) != 1 {
						return fmt.Errorf("%.40q is not one character", s)
					}
					escape = s
					return nil
				})
		},
		args: sandboxNames(env, false),
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) > 1 && args[1] == "--" {
				args = slices.Delete(slices.Clone(args), 1, 2)
			}
			switch {
			case len(args) == 0:
				return usagef("which sandbox? The command needs its id")
			case len(args) == 1:
				return usagef("which command? It follows the id")
			}
			ids, err := sandboxIDs(args[:1], 1, 1)
			if err != nil {
				return err
			}
			if tty && input && !session.IsTerminal(env.Stdin) {
				return errors.New("-it needs a terminal, and standard input is none: leave out -t")
			}
			s := session.Session{Stdout: env.Stdout, Stderr: env.Stderr, TTY: tty}
			if input {
				s.Stdin = env.Stdin
			}
			if len(escape) == 1 {
				s.Escape = escape[0]
			}
			if tty {
				return execTerminal(ctx, conn, &s, api.TerminalRequest{SandboxID: ids[0], Command: args[1:], User: user, Cwd: cwd, Env: vars})
			}
			req := api.ExecRequest{Argv: args[1:], Env: vars, Cwd: cwd, User: user, Stdin: input, KillOnDetach: true}
			return execIn(ctx, conn, ids[0], req, &s)
		},
	}
}

// execIn runs the command. Its exit code is the error.
func execIn(ctx context.Context, conn *connection, id api.SandboxID, req api.ExecRequest, s *session.Session) error {
	client, err := conn.client()
	if err != nil {
		return err
	}
	// ctx ends with a signal: until the command runs a signal ends this program, from then on it is the command's.
	live, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, cancel)
	stream, err := client.Exec(live, id, req)
	if err != nil {
		return fmt.Errorf("exec in sandbox %s: %w", id, err)
	}
	if !stop() {
		_ = stream.Close()
		return ctx.Err()
	}
	s.Stream = &running{Stream: stream}
	exit, err := s.RunThen(live, conn.release)
	var sig *session.SignalError
	switch {
	case errors.As(err, &sig):
		return exitCode(128 + int(sig.Signal))
	case err != nil:
		return fmt.Errorf("exec in sandbox %s: %w", id, err)
	}
	return ended(conn.env, exit)
}

// running is a process as a session sees it.
type running struct {
	*api.Stream
	buf []byte // of the last frame
}

var _ session.Stream = (*running)(nil)

// Recv implements session.Stream. Where in its stream a piece of output is, a session without a terminal does not ask.
func (r *running) Recv() (frame.Frame, error) {
	e, err := r.Stream.Recv()
	switch {
	case err != nil:
		return frame.Frame{}, err
	case e.Exit != nil:
		return jsonFrame(frame.Exit, e.Exit)
	case e.Stderr != nil:
		return outputFrame(frame.Stderr, &r.buf, 0, e.Stderr), nil
	case e.PTY != nil:
		return outputFrame(frame.PTY, &r.buf, 0, e.PTY), nil
	}
	return outputFrame(frame.Stdout, &r.buf, 0, e.Stdout), nil
}

// ended is the error for how a process ended: its exit code.
func ended(env *Env, exit frame.ExitBody) error {
	if exit.OOM {
		fmt.Fprintln(env.Stderr, "The sandbox ran out of memory and the kernel ended the command.")
	}
	if code := session.ExitCode(exit); code != 0 {
		return exitCode(code)
	}
	return nil
}

// execFailure is the exit code for a command that did not run.
func execFailure(err error) int {
	var e *api.Error
	if errors.As(err, &e) && e.ErrorCode == api.CodeCommand {
		return exitNotFound
	}
	return exitFailed
}

// screenOf is the terminal whose size counts: that of the input, else of the output.
func screenOf(env *Env) *os.File {
	if session.IsTerminal(env.Stdin) {
		return env.Stdin
	}
	if f, ok := env.Stdout.(*os.File); ok && session.IsTerminal(f) {
		return f
	}
	return nil
}
