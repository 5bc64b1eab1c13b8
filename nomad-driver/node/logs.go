package node

import (
	"context"
	"net/http"
	"strconv"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// getLogs sends output of the main process as PID 1's ring still has it, and with follow what comes after.
func (n *Node) getLogs(w http.ResponseWriter, r *http.Request) error {
	g, b, err := n.requestGuest(r)
	if err != nil {
		return err
	}
	o, err := logOptions(r)
	if err != nil {
		return err
	}
	main := b.view().Main
	if main == 0 {
		return api.Errorf(http.StatusNotFound, guest.CodeNoProcess, "sandbox %s has no main process", b.id)
	}
	// The end of the ring as of now: where tail counts from, and where a reader that does not follow stops.
	size, err := mainOutput(r.Context(), g, main, o.Stream)
	if err != nil {
		return guestGone(b, err)
	}
	if o.Tail > 0 {
		o.Offset = max(0, size-o.Tail)
	}
	if !o.Follow && o.Offset >= size {
		startLog(w, o.Offset)
		return nil
	}
	at := guest.Attach{PID: main, Stdout: -1, Stderr: -1}
	if o.Stream == nodeapi.StreamStderr {
		at.Stderr = o.Offset
	} else {
		at.Stdout = o.Offset
	}
	stream, err := g.Attach(r.Context(), at)
	if err != nil {
		return guestGone(b, err)
	}
	defer stream.Close()
	defer context.AfterFunc(r.Context(), func() { _ = stream.Close() })()
	defer context.AfterFunc(n.ctx, func() { _ = stream.Close() })()
	end := int64(-1)
	if !o.Follow {
		end = size
	}
	if o.Follow && o.Offset >= size {
		// Who follows wants the answer before there is output.
		startLog(w, o.Offset)
		if http.NewResponseController(w).Flush() != nil {
			return nil
		}
	}
	return copyLog(w, stream, o, end)
}

func logOptions(r *http.Request) (o nodeapi.LogOptions, err error) {
	o.Stream = r.URL.Query().Get("stream")
	set(&o.Stream, nodeapi.StreamStdout)
	if o.Stream != nodeapi.StreamStdout && o.Stream != nodeapi.StreamStderr {
		return o, invalid("stream: %.20q is neither %s nor %s", o.Stream, nodeapi.StreamStdout, nodeapi.StreamStderr)
	}
	if o.Offset, err = intParam(r, "offset"); err != nil {
		return o, err
	}
	if o.Tail, err = intParam(r, "tail"); err != nil {
		return o, err
	}
	o.Follow, err = boolParam(r, "follow")
	return o, err
}

// mainOutput returns how many bytes the main process has written to a stream.
func mainOutput(ctx context.Context, g guestClient, main guest.ProcessID, stream string) (int64, error) {
	list, err := g.List(ctx)
	if err != nil {
		return 0, err
	}
	for _, p := range list {
		if p.PID == main {
			if stream == nodeapi.StreamStderr {
				return int64(p.Stderr), nil
			}
			return int64(p.Stdout), nil
		}
	}
	return 0, api.Errorf(http.StatusNotFound, guest.CodeNoProcess, "the main process is forgotten")
}

func startLog(w http.ResponseWriter, offset int64) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set(nodeapi.OffsetHeader, strconv.FormatInt(offset, 10))
	w.WriteHeader(http.StatusOK)
}

// copyLog copies one stream of an attachment until the process, the client or (where end is not negative) the offset end
// is reached. The header waits for the first byte, whose offset it carries.
func copyLog(w http.ResponseWriter, s *guest.Stream, o nodeapi.LogOptions, end int64) error {
	out := idleWriter{w: w, rc: http.NewResponseController(w)}
	begun := o.Follow && w.Header().Get(nodeapi.OffsetHeader) != ""
	begin := func(offset int64) {
		if !begun {
			startLog(w, offset)
			begun = true
		}
	}
	for {
		f, err := s.Recv()
		if err != nil || f.Type == frame.Exit {
			begin(o.Offset)
			return nil // the sandbox or the client has ended; either way there is no more
		}
		offset, data, ok := outputOf(f, o.Stream)
		if !ok {
			continue
		}
		if end >= 0 && int64(offset)+int64(len(data)) > end {
			data = data[:max(0, end-int64(offset))]
		}
		begin(int64(offset))
		if _, err := out.Write(data); err != nil {
			return nil //nolint:nilerr // the client is gone
		}
		if end >= 0 && int64(offset)+int64(len(data)) >= end {
			return nil
		}
		if o.Follow && out.rc.Flush() != nil {
			return nil
		}
	}
}

// outputOf returns a frame's output where it is of the stream.
func outputOf(f frame.Frame, stream string) (offset uint64, data []byte, ok bool) {
	switch f.Type {
	case frame.Stdout, frame.PTY:
		ok = stream == nodeapi.StreamStdout
	case frame.Stderr:
		ok = stream == nodeapi.StreamStderr
	}
	if !ok {
		return 0, nil, false
	}
	offset, data, err := frame.Output(f.Payload)
	return offset, data, err == nil
}
