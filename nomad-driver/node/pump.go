package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

const (
	pumpRetry = 200 * time.Millisecond
	pumpSave  = time.Second // between two writes of the offsets
)

// offsets says how much of the main process's output has reached the log targets. It is kept in the run directory, so a
// daemon that is killed repeats at most what it copied in the last second, and loses nothing that the ring still has.
type offsets struct {
	Version int    `json:"version"`
	Stdout  uint64 `json:"stdout"`
	Stderr  uint64 `json:"stderr"`
}

func (n *Node) offsetsDir() string { return filepath.Join(n.cfg.RunDir, "logs") }

func (n *Node) offsetsPath(id api.SandboxID) string {
	return filepath.Join(n.offsetsDir(), string(id)+recordSuffix)
}

func (n *Node) forgetOffsets(id api.SandboxID) {
	if err := os.Remove(n.offsetsPath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		n.log.Warn("log offsets stay", "sandbox", id, "error", err)
	}
}

// loadOffsets reads where the pump of an earlier daemon was; what cannot be read is the beginning.
func loadOffsets(path string) offsets {
	o := offsets{Version: 1}
	if b, err := os.ReadFile(path); err == nil && json.Unmarshal(b, &o) != nil || o.Version != 1 {
		return offsets{Version: 1}
	}
	return o
}

func saveOffsets(path string, o offsets) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	temp := path + "~"
	if err := os.WriteFile(temp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

// pump copies the main process's output into the log targets until the process has ended and all is copied. It never
// holds up the sandbox: what nobody takes leaves the ring, and a line in the log says so.
func (n *Node) pump(b *box, inst instance, pumped chan struct{}, main guest.ProcessID, targets nodeapi.LogTargets) {
	g := inst.Guest()
	defer close(pumped)
	ctx, cancel := context.WithCancel(n.ctx)
	defer cancel()
	n.wg.Go(func() { // the end of the sandbox bounds the pump
		select {
		case <-inst.Done():
			if !waitFor(ctx, pumped, pumpGrace) {
				cancel()
			}
		case <-ctx.Done():
		}
	})
	p := &logPump{path: n.offsetsPath(b.id), out: newLogTarget(targets.Stdout), err: newLogTarget(targets.Stderr)}
	defer p.close()
	p.at = loadOffsets(p.path)
	for ctx.Err() == nil {
		done, err := p.run(ctx, g, main)
		if serr := saveOffsets(p.path, p.at); serr != nil {
			n.log.Warn("log offsets are not kept", "sandbox", b.id, "error", serr)
		}
		if done {
			return
		}
		select {
		case <-inst.Done():
			return // nothing more can come
		default:
		}
		if ctx.Err() == nil {
			n.log.Debug("log pump starts again", "sandbox", b.id, "error", err)
			waitFor(ctx, inst.Done(), pumpRetry)
		}
	}
}

// logPump is one sandbox's pump.
type logPump struct {
	path     string
	at       offsets
	saved    time.Time
	out, err *logTarget
}

func (p *logPump) close() {
	p.out.close()
	p.err.close()
}

// run copies from one attachment. done means that the process has ended and all of its output is copied.
func (p *logPump) run(ctx context.Context, g guestClient, main guest.ProcessID) (done bool, err error) {
	s, err := g.Attach(ctx, guest.Attach{PID: main, Stdout: int64(p.at.Stdout), Stderr: int64(p.at.Stderr)})
	if err != nil {
		return false, err
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	for {
		f, err := s.Recv()
		if err != nil {
			return false, err
		}
		if f.Type == frame.Exit {
			return true, nil
		}
		if err := p.frame(ctx, f); err != nil {
			return false, err
		}
		if now := time.Now(); now.Sub(p.saved) >= pumpSave {
			p.saved = now
			if err := saveOffsets(p.path, p.at); err != nil {
				return false, err
			}
		}
	}
}

// frame copies one frame's output.
func (p *logPump) frame(ctx context.Context, f frame.Frame) error {
	stream := f.Type
	var dropped frame.DroppedBody
	if f.Type == frame.Dropped {
		if err := json.Unmarshal(f.Payload, &dropped); err != nil {
			return err
		}
		stream = dropped.Stream
	}
	target, at := p.out, &p.at.Stdout
	if stream == frame.Stderr {
		target, at = p.err, &p.at.Stderr
	}
	if f.Type == frame.Dropped {
		*at = dropped.Offset
		return target.write(ctx, fmt.Appendf(nil, "\n[soulbox: %d bytes of output were dropped]\n", dropped.Bytes))
	}
	offset, data, err := frame.Output(f.Payload)
	if err != nil {
		return err
	}
	if err := target.write(ctx, data); err != nil {
		return err
	}
	*at = offset + uint64(len(data))
	return nil
}
