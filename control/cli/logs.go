package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/soulbox-dev/soulbox/control/api"
)

func logsCommand(env *Env) *command {
	var (
		follow, stderr bool
		tail           int64 = -1
	)
	return &command{
		synopsis: "Show the output of a sandbox's own command",
		usage:    "[options] <id>",
		about: `
Shows what the command that a sandbox was made with has written: the newest
256 KiB of each stream, while the sandbox exists. A sandbox that was made
without a command has none.

    $ soulbox sandbox create -template=base -- python3 -m http.server
    $ soulbox logs -f -tail=20 <id>`,
		remote: true,
		flags: func(o *options) {
			o.Switch(&follow, "f", "Stay, and show what comes, until the command ends.")
			o.alias("follow", &follow)
			o.Int(&tail, "tail", "<lines>", "Start with the last so many lines.", 0)
			o.Switch(&stderr, "stderr", "Show standard error instead of standard output.")
		},
		args: sandboxNames(env, true),
		run: func(ctx context.Context, conn *connection, args []string) error {
			ids, err := sandboxIDs(args, 1, 1)
			if err != nil {
				return err
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			o := api.LogOptions{Stream: "stdout", Follow: follow}
			if stderr {
				o.Stream = "stderr"
			}
			if tail >= 0 {
				if o.Offset, err = showTail(ctx, env.Stdout, client, ids[0], o.Stream, int(tail)); err != nil {
					return fmt.Errorf("logs of sandbox %s: %w", ids[0], err)
				}
				if !follow {
					return nil
				}
			}
			if err := copyLogs(ctx, env.Stdout, client, ids[0], o); err != nil {
				return fmt.Errorf("logs of sandbox %s: %w", ids[0], err)
			}
			return nil
		},
	}
}

func copyLogs(ctx context.Context, w io.Writer, client *api.Client, id api.SandboxID, o api.LogOptions) error {
	body, _, err := client.Logs(ctx, id, o)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(w, body)
	return err
}

// maxTail is how much of a log is held to find its last lines, in bytes: more than what is kept of one.
const maxTail = 64 << 20

// showTail writes the last lines of what there is now and returns the offset behind it.
func showTail(ctx context.Context, w io.Writer, client *api.Client, id api.SandboxID, stream string, lines int) (end int64, err error) {
	body, offset, err := client.Logs(ctx, id, api.LogOptions{Stream: stream, Tail: maxTail})
	if err != nil {
		return 0, err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, maxTail))
	if err != nil {
		return 0, err
	}
	_, err = w.Write(lastLines(b, lines))
	return offset + int64(len(b)), err
}

// lastLines returns the last n lines of b; a last one without an end counts.
func lastLines(b []byte, n int) []byte {
	at := len(b)
	if at > 0 && b[at-1] == '\n' {
		at--
	}
	for range n {
		if at = bytes.LastIndexByte(b[:at], '\n'); at < 0 {
			return b
		}
	}
	if n == 0 {
		return nil
	}
	return b[at+1:]
}
