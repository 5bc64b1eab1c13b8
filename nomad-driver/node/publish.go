package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Bounds of published ports.
const (
	maxPublished     = 32   // of a sandbox
	maxPublishedFlow = 1024 // connections, or peers of UDP, of one port at the same time
	packetIdle       = time.Minute
	maxPacket        = 64 << 10
)

// Publish says where the node listens for ports of sandboxes that callers of the API publish. The zero Publish: nowhere.
type Publish struct {
	Address  netip.Addr // that is listened at; the zero Addr: every one of the machine
	From, To int        // ports that may be used
}

// publication is a port of a sandbox that the node listens for. It is carried in the node, into the sandbox's loopback: so it works
// whatever the sandbox may reach itself, and for servers that listen on 127.0.0.1 alone, as the edge's ways do.
type publication struct {
	spec  nodeapi.PublishedPort
	stop  context.CancelFunc
	ended chan struct{} // nobody listens any more, and nothing is carried
}

// published are the publications of a sandbox.
type published struct {
	mu    sync.Mutex // also held while they change
	ports []*publication
}

func (p *published) list() []nodeapi.PublishedPort {
	list := make([]nodeapi.PublishedPort, 0, len(p.ports))
	for _, pub := range p.ports {
		list = append(list, pub.spec)
	}
	return list
}

// checkPublished checks what was asked for. bound is false where the caller may name any address and port of the machine.
func (n *Node) checkPublished(want []nodeapi.PublishedPort, bound bool) error {
	if len(want) > maxPublished {
		return invalid("ports: %d are to be published, at most %d", len(want), maxPublished)
	}
	where := n.cfg.Network.Publish
	if bound && len(want) > 0 && where.From == 0 {
		return api.Errorf(http.StatusNotImplemented, api.CodeUnsupported, "this node publishes no ports: its operator names none in publish_ports")
	}
	for i, p := range want {
		switch {
		case p.Proto != "tcp" && p.Proto != "udp":
			return invalid("ports[%d].proto: %.20q is neither tcp nor udp", i, p.Proto)
		case p.Port < 1 || p.Port > 65535:
			return invalid("ports[%d].port: %d is not between 1 and 65535", i, p.Port)
		case !bound && (p.NodePort < 1 || p.NodePort > 65535):
			return invalid("ports[%d].node_port: %d is not between 1 and 65535", i, p.NodePort)
		case bound && p.NodePort != 0 && (p.NodePort < where.From || p.NodePort > where.To):
			return invalid("ports[%d].node_port: %d is not between %d and %d, which this node publishes", i, p.NodePort, where.From, where.To)
		case bound && p.Address.IsValid() && p.Address != where.Address:
			return invalid("ports[%d].address: it is this node's to say", i)
		}
		for _, q := range want[:i] {
			if q.Proto == p.Proto && (q.Port == p.Port && bound || p.NodePort != 0 && q.NodePort == p.NodePort && q.Address == p.Address) {
				return invalid("ports[%d]: %s %d is there twice", i, p.Proto, p.Port)
			}
		}
	}
	return nil
}

// SetPublished replaces which ports of a sandbox the node listens for. Connections of those that stay go on. On error nothing has changed.
func (n *Node) SetPublished(id api.SandboxID, want []nodeapi.PublishedPort) ([]nodeapi.PublishedPort, error) {
	if err := n.checkPublished(want, true); err != nil {
		return nil, err
	}
	for i := range want {
		want[i].Address = n.cfg.Network.Publish.Address
	}
	b, err := n.box(id)
	if err != nil {
		return nil, err
	}
	if _, err := b.running(); err != nil {
		return nil, err
	}
	return n.publish(b, want)
}

// Published returns the ports of a sandbox that the node listens for.
func (n *Node) Published(id api.SandboxID) ([]nodeapi.PublishedPort, error) {
	b, err := n.box(id)
	if err != nil {
		return nil, err
	}
	b.published.mu.Lock()
	defer b.published.mu.Unlock()
	return b.published.list(), nil
}

// publish makes the publications of a sandbox what want says, and records them.
func (n *Node) publish(b *box, want []nodeapi.PublishedPort) ([]nodeapi.PublishedPort, error) {
	pubs := &b.published
	pubs.mu.Lock()
	defer pubs.mu.Unlock()
	var next, fresh []*publication
	for _, spec := range want {
		if i := slices.IndexFunc(pubs.ports, func(p *publication) bool { return p.is(spec) }); i >= 0 {
			next = append(next, pubs.ports[i])
			continue
		}
		p, err := n.listen(b, spec)
		if err != nil {
			end(fresh)
			return nil, err
		}
		next, fresh = append(next, p), append(fresh, p)
	}
	b.mu.Lock()
	old := b.rec.Published
	b.rec.Published = nil
	for _, p := range next {
		b.rec.Published = append(b.rec.Published, p.spec)
	}
	var err error
	if b.inst != nil { // else the creation writes it
		err = n.records.put(&b.rec)
	}
	if err != nil {
		b.rec.Published = old
	}
	b.mu.Unlock()
	if err != nil {
		end(fresh)
		return nil, err
	}
	end(slices.DeleteFunc(slices.Clone(pubs.ports), func(p *publication) bool { return slices.Contains(next, p) }))
	pubs.ports = next
	return pubs.list(), nil
}

// republish listens again for the ports that an earlier daemon listened for.
func (n *Node) republish(b *box) {
	if s := b.view().State; s == nodeapi.StateStopped {
		return
	}
	b.published.mu.Lock()
	defer b.published.mu.Unlock()
	for _, spec := range b.rec.Published {
		p, err := n.listen(b, spec)
		if err != nil {
			n.log.Error("port of a sandbox is not published any more", "sandbox", b.id, "proto", spec.Proto, "port", spec.Port, "error", err)
			continue
		}
		b.published.ports = append(b.published.ports, p)
	}
}

// is reports whether p is what spec asks for.
func (p *publication) is(spec nodeapi.PublishedPort) bool {
	if spec.NodePort == 0 {
		spec.NodePort = p.spec.NodePort
	}
	return p.spec == spec
}

func end(list []*publication) {
	for _, p := range list {
		p.stop()
	}
	for _, p := range list {
		<-p.ended
	}
}

// unpublish ends the publications of a sandbox that has ended.
func (b *box) unpublish() {
	b.published.mu.Lock()
	defer b.published.mu.Unlock()
	end(b.published.ports)
	b.published.ports = nil
}

// listen begins to listen for a port. Where the port of the node is not named a free one is taken.
func (n *Node) listen(b *box, spec nodeapi.PublishedPort) (*publication, error) {
	candidates := []int{spec.NodePort}
	if spec.NodePort == 0 {
		where := n.cfg.Network.Publish
		candidates = rand.Perm(where.To - where.From + 1) // so that a port is not somebody else's right after
		for i := range candidates {
			candidates[i] += where.From
		}
	}
	var err error
	for _, port := range candidates {
		spec.NodePort = port
		var p *publication
		if p, err = n.listenAt(b, spec); err == nil {
			return p, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil, api.Errorf(http.StatusConflict, api.CodeConflict, "publish %s port %d: %s", spec.Proto, spec.Port, err)
	}
	return nil, fmt.Errorf("publish %s port %d of sandbox %s: %w", spec.Proto, spec.Port, b.id, err)
}

func (n *Node) listenAt(b *box, spec nodeapi.PublishedPort) (*publication, error) {
	host := ""
	if spec.Address.IsValid() {
		host = spec.Address.String()
	}
	at := net.JoinHostPort(host, strconv.Itoa(spec.NodePort))
	ctx, stop := context.WithCancel(n.ctx)
	p := &publication{spec: spec, stop: stop, ended: make(chan struct{})}
	var carry func()
	if spec.Proto == "tcp" {
		l, err := net.Listen("tcp", at)
		if err != nil {
			stop()
			return nil, err
		}
		carry = func() { n.carryStreams(ctx, b, spec.Port, l) }
	} else {
		addr, err := net.ResolveUDPAddr("udp", at)
		var l *net.UDPConn
		if err == nil {
			l, err = net.ListenUDP("udp", addr)
		}
		if err != nil {
			stop()
			return nil, err
		}
		carry = func() { n.carryPackets(ctx, b, spec.Port, l) }
	}
	n.wg.Go(func() {
		defer close(p.ended)
		defer stop()
		carry()
	})
	return p, nil
}

// carryStreams takes connections until ctx ends, and with it every one that is carried.
func (n *Node) carryStreams(ctx context.Context, b *box, port int, l net.Listener) {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	room := make(chan struct{}, maxPublishedFlow)
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = c.Close()
			}
			return
		}
		if err != nil { // too many files are open, say
			n.log.Warn("published port does not accept", "sandbox", b.id, "port", port, "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		select {
		case room <- struct{}{}:
		default:
			_ = c.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-room }()
			n.carryStream(ctx, b, port, c)
		})
	}
}

func (n *Node) carryStream(ctx context.Context, b *box, port int, c net.Conn) {
	defer c.Close()
	inst, err := b.open()
	if err != nil {
		return // paused, or about to end: nobody is there
	}
	far, err := n.dialPort(ctx, b, inst, port)
	if err != nil {
		return
	}
	defer far.Close()
	defer context.AfterFunc(ctx, func() { _, _ = c.Close(), far.Close() })()
	n.metrics.IncrCounter([]string{"port_connections"}, 1)
	join(&prefixed{Conn: c}, far)
}

// open returns the instance of a sandbox whose ports somebody may connect to.
func (b *box) open() (instance, error) {
	inst, err := b.running()
	if err == nil && b.view().Warm {
		err = errors.New("nobody has the sandbox yet")
	}
	return inst, err
}

// carryPackets passes packets on until ctx ends. Each peer has a socket of its own inside, so that answers find back to it, for as long as
// packets come at least once a minute.
func (n *Node) carryPackets(ctx context.Context, b *box, port int, l *net.UDPConn) {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex
	peers := map[netip.AddrPort]net.Conn{}
	buf := make([]byte, maxPacket)
	for {
		size, from, err := l.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			continue // an earlier answer was refused
		}
		mu.Lock()
		far, ok := peers[from]
		room := len(peers) < maxPublishedFlow
		mu.Unlock()
		if !ok {
			if !room {
				continue
			}
			inst, err := b.open()
			if err != nil {
				continue
			}
			if far, err = inst.DialPacket(ctx, port); err != nil {
				continue
			}
			mu.Lock()
			peers[from] = far
			mu.Unlock()
			wg.Go(func() {
				defer context.AfterFunc(ctx, func() { _ = far.Close() })()
				answerPackets(l, from, far)
				mu.Lock()
				delete(peers, from)
				mu.Unlock()
				_ = far.Close()
			})
		}
		_ = far.SetReadDeadline(time.Now().Add(packetIdle))
		_, _ = far.Write(buf[:size]) // what is lost is lost, as packets may be
	}
}

// answerPackets passes on what comes back for one peer, until nothing has for a while or nobody listens inside.
func answerPackets(l *net.UDPConn, to netip.AddrPort, far net.Conn) {
	buf := make([]byte, maxPacket)
	for {
		n, err := far.Read(buf)
		if err != nil {
			return
		}
		if _, err := l.WriteToUDPAddrPort(buf[:n], to); errors.Is(err, net.ErrClosed) {
			return
		}
	}
}
