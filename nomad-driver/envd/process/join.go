package process

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"connectrpc.com/connect"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// Headers and trailers that are ours, not the contract's: clients that do not know them are not touched by them.
const (
	// KillHeader of a Start request is "true" where the process is to be killed when its client leaves.
	KillHeader = "Soulbox-Kill-On-Disconnect"
	// SignalTrailer is the number of the signal that ended the process.
	SignalTrailer = "Soulbox-Signal"
	// OOMTrailer is "true" where the kernel ended the process because the sandbox had used up its memory.
	OOMTrailer = "Soulbox-Oom"
)

// OffsetHeader of a Connect request asks for output that was written before: "stdout=0,stderr=0", or "pty=0" for a
// terminal. A stream that is not named begins with what comes now. The answer's header of the same name says at which
// offsets the events begin: where they are larger, the bytes in between have left the process's ring. It is ours too.
const OffsetHeader = "Soulbox-Offset"

// Connect sends the events of a process that runs, or of one that has ended within the last 30 seconds.
func (s *service) Connect(ctx context.Context, req *connect.Request[wire.ConnectRequest], out *connect.ServerStream[wire.ConnectResponse]) error {
	at, asked, err := offsets(req.Header())
	if err != nil {
		return err
	}
	p, err := find(ctx, req.Msg.GetProcess(), joinable)
	if err != nil {
		return err
	}
	at.PID = p.PID
	if asked {
		first := func(want int64, end uint64) uint64 {
			low := uint64(0)
			if end > guest.RingBytes {
				low = end - guest.RingBytes
			}
			if want < 0 {
				return end
			}
			return min(max(uint64(want), low), end)
		}
		name := "stdout"
		if p.TTY {
			name = "pty"
		}
		out.ResponseHeader().Set(OffsetHeader, fmt.Sprintf("%s=%d,stderr=%d", name, first(at.Stdout, p.Stdout), first(at.Stderr, p.Stderr)))
	}
	stream, err := scope.Of(ctx).Guest.Attach(ctx, at)
	if err != nil {
		return failed(err)
	}
	return relay(ctx, stream, keepalive(req.Header()), out.ResponseTrailer(), func(e *wire.ProcessEvent) error {
		return out.Send(&wire.ConnectResponse{Event: e})
	})
}

// offsets reads OffsetHeader.
func offsets(h http.Header) (at guest.Attach, asked bool, err error) {
	at = guest.Attach{Stdout: -1, Stderr: -1}
	v := h.Get(OffsetHeader)
	if v == "" {
		return at, false, nil
	}
	for part := range strings.SplitSeq(v, ",") {
		name, num, _ := strings.Cut(strings.TrimSpace(part), "=")
		n, err := strconv.ParseInt(num, 10, 64)
		if err != nil || n < 0 {
			return at, false, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%s: %.40q is no offset", OffsetHeader, part))
		}
		switch name {
		case "stdout", "pty":
			at.Stdout = n
		case "stderr":
			at.Stderr = n
		default:
			return at, false, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%s: %.40q is neither stdout, stderr nor pty", OffsetHeader, name))
		}
	}
	return at, true, nil
}
