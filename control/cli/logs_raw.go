package cli

import (
	"bytes"
	"context"
	"io"

	"github.com/soulbox-dev/soulbox/control/api"
)

// showRaw writes the output of the sandbox's own command.
func (v *logView) showRaw(ctx context.Context, w io.Writer, client *api.Client, id api.SandboxID) (err error) {
	o := api.LogOptions{Stream: "stdout", Follow: v.follow}
	if v.stderr {
		o.Stream = "stderr"
	}
	if v.tail >= 0 {
		if o.Offset, err = showTail(ctx, w, client, id, o.Stream, int(v.tail)); err != nil || !v.follow {
			return err
		}
	}
	return copyLogs(ctx, w, client, id, o)
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
