package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/network"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/logbook"
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
	at    where
	stop  context.CancelFunc
	ended chan struct{} // nobody listens any more, and nothing is carried
	err   error         // why nobody listens: there is nothing to stop
}

// where names what is listened in: the node's own network where path is empty, else the namespace that the path led to.
type where struct {
	path string
	id   uint64
}

// published are the publications of a sandbox.
type published struct {
	mu    sync.Mutex // also held while they change
	ports []*publication
	over  bool // the sandbox has ended: nobody listens for it any more
}

func (p *published) list() []nodeapi.PublishedPort {
	list := make([]nodeapi.PublishedPort, 0, len(p.ports))
	for _, pub := range p.ports {
		spec := pub.spec
		if pub.err != nil {
			spec.Error = pub.err.Error()
		}
		list = append(list, spec)
	}
	return list
}

// place is what sockets of published ports are made in.
type place struct {
	where
	ns *network.Foreign // nil: the node's own network
}

// openPlace opens the network namespace at a path; the node's own network where it is empty.
func openPlace(path string) (*place, error) {
	if path == "" {
		return &place{}, nil
	}
	ns, err := network.OpenForeign(path)
	if err != nil {
		return nil, err
	}
	return &place{where: where{path, ns.ID()}, ns: ns}, nil
}

func (pl *place) do(f func() error) error {
	if pl.ns == nil {
		return f()
	}
	return pl.ns.Do(f)
}

func (pl *place) close() {
	if pl != nil && pl.ns != nil {
		_ = pl.ns.Close() // only read
	}
}

// checkPublishIn checks the network namespace that ports are to be published in.
func checkPublishIn(path string) error {
	if path == "" {
		return nil
	}
	if !filepath.IsAbs(path) || len(path) > maxPath || strings.ContainsRune(path, 0) {
		return invalid("publish_in: %.100q is not an absolute path", path)
	}
	ns, err := network.OpenForeign(path)
	if err != nil {
		return invalid("publish_in: %v", err)
	}
	defer ns.Close()
	wired, err := ns.Wired()
	if err != nil {
		return fmt.Errorf("publish_in: %s: %w", path, err)
	}
	if !wired {
		return invalid("publish_in: network namespace %s has nothing but its loopback, as those of network mode none, which is not supported", path)
	}
	return nil
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
	return n.publish(b, want, "")
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

// RenewPublished listens again for ports of a sandbox that nobody listens for, and for those of a network namespace in whose place another one is.
// It returns all of them, with the reason where one cannot be had.
func (n *Node) RenewPublished(id api.SandboxID) ([]nodeapi.PublishedPort, error) {
	b, err := n.box(id)
	if err != nil {
		return nil, err
	}
	select { // what is being made listens by itself
	case <-b.created:
		n.republish(b)
	default:
	}
	return n.Published(id)
}

// publish makes the publications of a sandbox what want says, in the network namespace at a path, and records them.
func (n *Node) publish(b *box, want []nodeapi.PublishedPort, in string) ([]nodeapi.PublishedPort, error) {
	pubs := &b.published
	pubs.mu.Lock()
	defer pubs.mu.Unlock()
	if pubs.over {
		return nil, notRunning(b.view())
	}
	pl, err := openPlace(in)
	if errors.Is(err, network.ErrNoNamespace) { // it was there when the request was checked
		err = api.Errorf(http.StatusConflict, api.CodeConflict, "%s", err)
	}
	if err != nil {
		return nil, fmt.Errorf("publish ports of sandbox %s: %w", b.id, err)
	}
	defer pl.close()
	var next, fresh []*publication
	for _, spec := range want {
		if i := slices.IndexFunc(pubs.ports, func(p *publication) bool { return p.is(spec, pl.where) }); i >= 0 {
			next = append(next, pubs.ports[i])
			continue
		}
		p, err := n.listen(b, spec, pl)
		if err != nil {
			end(fresh)
			return nil, err
		}
		next, fresh = append(next, p), append(fresh, p)
	}
	b.mu.Lock()
	old, oldIn := b.rec.Published, b.rec.PublishedIn
	b.rec.Published, b.rec.PublishedIn = nil, in
	for _, p := range next {
		b.rec.Published = append(b.rec.Published, p.spec)
	}
	if b.inst != nil { // else the creation writes it
		err = n.records.put(&b.rec)
	}
	if err != nil {
		b.rec.Published, b.rec.PublishedIn = old, oldIn
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

// republish listens for the recorded ports of a sandbox that nobody listens for: an earlier daemon did, or they are to be in a namespace whose
// path leads to another one by now. What cannot be had is kept with the reason.
func (n *Node) republish(b *box) {
	pubs := &b.published
	pubs.mu.Lock()
	defer pubs.mu.Unlock()
	b.mu.Lock()
	specs, in, state := b.rec.Published, b.rec.PublishedIn, b.rec.Sandbox.State
	b.mu.Unlock()
	if pubs.over || state == nodeapi.StateStopped || len(specs) == 0 {
		return
	}
	pl, gone := openPlace(in)
	defer pl.close()
	next := make([]*publication, 0, len(specs))
	for _, spec := range specs {
		i := slices.IndexFunc(pubs.ports, func(p *publication) bool { return p.spec == spec })
		if i >= 0 && gone == nil && pubs.ports[i].is(spec, pl.where) {
			next = append(next, pubs.ports[i])
			continue
		}
		if i >= 0 { // before its number is taken again
			end(pubs.ports[i : i+1])
		}
		p, err := (*publication)(nil), gone
		if err == nil {
			p, err = n.listen(b, spec, pl)
		}
		if err != nil {
			p = &publication{spec: spec, err: err}
			if i < 0 || pubs.ports[i].err == nil { // it is news
				n.log.Error("port of a sandbox is not published any more", "sandbox", b.id, "proto", spec.Proto, "port", spec.Port, "error", err)
				n.note(b, logbook.Error, fmt.Sprintf("%s port %d is not published any more: %s", spec.Proto, spec.Port, err), nil)
			}
		}
		next = append(next, p)
	}
	pubs.ports = next
}

// is reports whether p is what spec asks for.
func (p *publication) is(spec nodeapi.PublishedPort, at where) bool {
	if spec.NodePort == 0 {
		spec.NodePort = p.spec.NodePort
	}
	return p.spec == spec && p.at == at && p.err == nil
}

func end(list []*publication) {
	for _, p := range list {
		if p.err == nil {
			p.stop()
		}
	}
	for _, p := range list {
		if p.err == nil {
			<-p.ended
		}
	}
}

// unpublish ends the publications of a sandbox that has ended.
func (b *box) unpublish() {
	b.published.mu.Lock()
	defer b.published.mu.Unlock()
	end(b.published.ports)
	b.published.ports, b.published.over = nil, true
}

// listen begins to listen for a port. Where the port of the node is not named a free one is taken.
func (n *Node) listen(b *box, spec nodeapi.PublishedPort, pl *place) (*publication, error) {
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
		if p, err = n.listenAt(b, spec, pl); err == nil {
			return p, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	in := ""
	if pl.path != "" {
		in = " in network namespace " + pl.path
	}
	if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil, api.Errorf(http.StatusConflict, api.CodeConflict, "publish %s port %d%s: %s", spec.Proto, spec.Port, in, err)
	}
	return nil, fmt.Errorf("publish %s port %d of sandbox %s%s: %w", spec.Proto, spec.Port, b.id, in, err)
}

func (n *Node) listenAt(b *box, spec nodeapi.PublishedPort, pl *place) (*publication, error) {
	at := netip.AddrPortFrom(spec.Address, uint16(spec.NodePort)) //nolint:gosec // checked
	var carry func(context.Context)
	err := pl.do(func() error {
		if spec.Proto == "tcp" {
			l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
			carry = func(ctx context.Context) { n.carryStreams(ctx, b, spec.Port, l) }
			return err
		}
		l, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		carry = func(ctx context.Context) { n.carryPackets(ctx, b, spec.Port, l) }
		return err
	})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(n.ctx)
	p := &publication{spec: spec, at: pl.where, stop: stop, ended: make(chan struct{})}
	n.wg.Go(func() {
		defer close(p.ended)
		defer stop()
		carry(ctx)
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
