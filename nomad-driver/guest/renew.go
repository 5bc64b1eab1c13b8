package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// Renew tells a guest that was restored from a checkpoint who it is now. Its guest socket is exchanged for one that it makes itself:
// one made outside belongs to another network namespace, and could not be in the next checkpoint.
type Renew struct {
	SandboxID string   `json:"sandbox_id"`
	Env       []string `json:"env,omitempty"` // takes precedence over the environment that processes had so far
}

// ErrParked is in the chain of the error of every call between Park and Unpark.
var ErrParked = errors.New("the sandbox is paused")

// gate keeps conversations from beginning while a sandbox is parked: one that began would be found by its checkpoint.
type gate struct {
	mu     sync.RWMutex // held for reading until a request is sent
	parked bool
}

// enter lets a conversation begin, or not. leave is called when its request is sent.
func (g *gate) enter(op Op) (leave func(), err error) {
	if op == OpPark {
		return func() {}, nil // Park itself has shut the gate
	}
	g.mu.RLock()
	if g.parked {
		g.mu.RUnlock()
		return nil, ErrParked
	}
	return g.mu.RUnlock, nil
}

func (g *gate) set(parked bool) {
	g.mu.Lock()
	g.parked = parked
	g.mu.Unlock()
}

// Shut makes every call fail with ErrParked, as Park does, of a guest that cannot be asked.
func (c *Client) Shut() { c.gate.set(true) }

// Unpark lets conversations begin again. Park that failed needs it too.
func (c *Client) Unpark() { c.gate.set(false) }

// Park ends all conversations with the guest and returns when the guest has none left, this one included. Processes that would be
// killed with their conversation are not. Until Unpark every call of this client fails with ErrParked.
func (c *Client) Park(ctx context.Context) error {
	c.gate.set(true)
	v, err := c.dial(ctx, Request{Op: OpPark})
	if err != nil {
		return err
	}
	if _, err := readResponse(frame.NewReader(v.conn)); err != nil {
		return v.fail(err)
	}
	var one [1]byte
	if _, err := v.conn.Read(one[:]); !errors.Is(err, io.EOF) {
		return v.fail(fmt.Errorf("%w: more than an answer (%w)", ErrBadAnswer, err))
	}
	v.stop()
	return v.conn.Close()
}

// Renew tells a restored guest who it is, and has bind bind the socket that it will listen on.
func (c *Client) Renew(ctx context.Context, r Renew, bind func(*os.File) error) error {
	v, err := c.dial(ctx, Request{Op: OpRenew, Renew: &r})
	if err != nil {
		return err
	}
	fds := &fdReader{conn: v.conn}
	defer fds.close()
	if _, err := readResponse(frame.NewReader(fds)); err != nil {
		return v.fail(err)
	}
	fd, err := fds.take()
	if err != nil {
		return v.fail(err)
	}
	f := os.NewFile(uintptr(fd), "guest socket")
	if err := errors.Join(bind(f), f.Close()); err != nil {
		return v.fail(err)
	}
	if err := frame.WriteJSON(v.conn, frame.Request, Request{Version: ProtocolVersion, Op: OpRenew}); err != nil {
		return v.fail(err)
	}
	if _, err := readResponse(frame.NewReader(v.conn)); err != nil {
		return v.fail(err)
	}
	v.stop()
	return v.conn.Close()
}
