package sandboxtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// execTime bounds one Exec.
const execTime = 60 * time.Second

// Output is what a process wrote and how it ended.
type Output struct {
	Stdout, Stderr string
	Exit           frame.ExitBody
}

// Exec runs a process to its end.
func Exec(ctx context.Context, s *sandbox.Sandbox, start guest.Start) (out Output, err error) {
	ctx, cancel := context.WithTimeout(ctx, execTime)
	defer cancel()
	stream, err := s.Guest().StartAttached(ctx, start)
	if err != nil {
		return out, err
	}
	stop := context.AfterFunc(ctx, func() { _ = stream.Close() })
	defer func() {
		if stop() {
			err = errors.Join(err, stream.Close())
		}
	}()
	var stdout, stderr bytes.Buffer
	for {
		f, err := stream.Recv()
		if err != nil {
			return out, fmt.Errorf("exec %q: %w", start.Argv, err)
		}
		switch f.Type {
		case frame.Stdout, frame.PTY, frame.Stderr:
			_, data, err := frame.Output(f.Payload)
			if err != nil {
				return out, err
			}
			if f.Type == frame.Stderr {
				stderr.Write(data)
			} else {
				stdout.Write(data)
			}
		case frame.Exit:
			e, err := guest.ExitOf(f)
			return Output{Stdout: stdout.String(), Stderr: stderr.String(), Exit: e}, err
		}
	}
}

// Shell runs a script with bash as user (empty: root) and returns what it wrote to stdout. Another end than exit code 0
// fails the test.
func Shell(tb testing.TB, s *sandbox.Sandbox, user, script string) string {
	tb.Helper()
	out, err := Exec(tb.Context(), s, guest.Start{Argv: []string{"/bin/bash", "-c", script}, User: user, Cwd: "/"})
	if err != nil {
		tb.Fatal(err)
	}
	if out.Exit.Code != 0 {
		tb.Fatalf("%q ended with %+v\nstdout: %s\nstderr: %s", script, out.Exit, out.Stdout, out.Stderr)
	}
	return out.Stdout
}
