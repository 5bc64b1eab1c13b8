package node

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// A template may bring the server for a port of its own: an executable at /etc/soulbox/ports/<port>. It is started with the
// sandbox, and again for a connection that finds the port closed where it does not run any more. Inside it is a process like any other.
const (
	portsDir = "/etc/soulbox/ports"
	portTag  = "port:"
	// activeTimeout is how long a server may take to listen.
	activeTimeout = 30 * time.Second
	activePoll    = 20 * time.Millisecond // nothing tells when a port is listened on
	maxPortFiles  = 64
)

// prestart starts the servers that the sandbox's template has. The create does not wait for them.
func (n *Node) prestart(b *box, g guestClient, root string) {
	ports := templatePorts(root)
	if len(ports) == 0 {
		return
	}
	n.wg.Go(func() {
		for _, port := range ports {
			if _, err := n.activate(n.ctx, b, g, port); err != nil && n.ctx.Err() == nil {
				n.log.Warn("server of a template's port did not start", "sandbox", b.id, "port", port, "error", err)
			}
		}
	})
}

// templatePorts returns the ports that a template has a server for. Links do not lead out of the template.
func templatePorts(dir string) []int {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), portsDir[1:])
	if err != nil {
		return nil // the usual case: there is no such folder
	}
	var ports []int
	for _, e := range entries[:min(len(entries), maxPortFiles)] {
		if port, err := strconv.Atoi(e.Name()); err == nil && port > 0 && port <= 65535 {
			ports = append(ports, port)
		}
	}
	return ports
}

// activate sees to it that the server that the sandbox has for a port runs, or returns false where it has none.
func (n *Node) activate(ctx context.Context, b *box, g guestClient, port int) (bool, error) {
	b.activation.Lock() // one server for all who knock at once
	defer b.activation.Unlock()
	tag := portTag + strconv.Itoa(port)
	if up, err := serverRuns(ctx, g, tag); up || err != nil {
		return up, err
	}
	path := portsDir + "/" + strconv.Itoa(port)
	if _, err := g.Stat(ctx, guest.FileRequest{Path: path}); err != nil {
		var body *frame.ErrorBody
		if errors.As(err, &body) && (body.Code == guest.CodeNotFound || body.Code == guest.CodeNotDir) {
			return false, nil
		}
		return false, err
	}
	p, err := g.Start(ctx, guest.Start{Argv: []string{path}, Tag: tag})
	if err == nil {
		n.processStarted(b, g, p)
	}
	return err == nil, err
}

func serverRuns(ctx context.Context, g guestClient, tag string) (bool, error) {
	all, err := g.List(ctx)
	for _, p := range all {
		if p.Tag == tag && p.Exit == nil {
			return true, nil
		}
	}
	return false, err
}

// dialPort connects to a port inside. One that is closed is tried again while the sandbox's own server for it comes up.
func (n *Node) dialPort(ctx context.Context, b *box, inst instance, port int) (net.Conn, error) {
	once := func() (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, portTimeout)
		defer cancel()
		return inst.Dial(ctx, port)
	}
	conn, err := once()
	if !errors.Is(err, sandbox.ErrPortClosed) {
		return conn, err
	}
	g := inst.Guest()
	has, aerr := n.activate(ctx, b, g, port)
	if !has || aerr != nil {
		return nil, err // closed is what it is, whatever else is wrong
	}
	end := time.Now().Add(activeTimeout)
	tick := time.NewTicker(activePoll)
	defer tick.Stop()
	for look := 1; time.Now().Before(end); look++ {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-b.stopped:
			return nil, err
		case <-tick.C:
		}
		if conn, err = once(); !errors.Is(err, sandbox.ErrPortClosed) {
			return conn, err
		}
		if look%25 == 0 {
			if up, lerr := serverRuns(ctx, g, portTag+strconv.Itoa(port)); !up || lerr != nil {
				return nil, err
			}
		}
	}
	return nil, err
}
