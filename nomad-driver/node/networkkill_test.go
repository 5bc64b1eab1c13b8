package node

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/shoenig/test/wait"
	"github.com/vishvananda/netlink"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// visited counts the connections to an address outside, and holds them open.
type visited struct {
	mu    sync.Mutex
	conns []net.Conn
}

func visit(t *testing.T, ns *os.File, address string) *visited {
	t.Helper()
	v := &visited{}
	var l net.Listener
	must.NoError(t, networktest.In(ns, func() (err error) { l, err = net.Listen("tcp4", address); return err }))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			v.mu.Lock()
			v.conns = append(v.conns, c)
			v.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
		for _, c := range v.conns {
			_ = c.Close()
		}
	})
	return v
}

func (v *visited) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.conns)
}

func (v *visited) first() net.Conn {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.conns[0]
}

// prober tries all that the policy says, over and over, in processes of its own: what hangs holds up nobody.
const prober = `try() { while :; do (exec 5<>"/dev/tcp/$1/$2") 2>/dev/null; sleep 0.1; done; }
try 198.51.100.1 9000 & try 198.51.100.2 9000 & try 198.51.100.2 80 & try www.example.com 9000 & try 198.51.100.1 80 & wait`

// The firewall is the kernel's: without the daemon, and with it without the resolver and the proxy, what it lets through goes on, and what they decide is
// closed.
func TestRealNetwork_withoutTheDaemonWhatIsAllowedGoesOnAndNothingElseBegins(t *testing.T) {
	w := networktest.New(t)
	networktest.ServeNames(t, w.Outside, networktest.OutsideAddr+":53", "www.example.com. 0 IN A 8.8.8.8", "web.example.com. 0 IN A 198.51.100.1")
	allowed, denied := visit(t, w.Outside, "198.51.100.1:9000"), visit(t, w.Outside, "198.51.100.2:9000")
	named, web, elsewhere := visit(t, w.Outside, "8.8.8.8:9000"), visit(t, w.Outside, "198.51.100.1:80"), visit(t, w.Outside, "198.51.100.2:80")
	d := startDaemonIn(t, w.Host, "-network", "on", "-config", configFile(t, `network { resolvers = ["`+networktest.OutsideAddr+`"] }`))
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Network = allowing("198.51.100.1", "*.example.com") })
	start := func(script string) {
		s, err := d.client.Exec(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"bash", "-c", script}}})
		must.NoError(t, err)
		must.NoError(t, s.Close())
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		must.Wait(t, wait.InitialSuccess(wait.BoolFunc(ok), wait.Timeout(30*time.Second), wait.Gap(20*time.Millisecond)), must.Sprint(what))
	}
	start(`exec 3<>/dev/tcp/198.51.100.1/9000; cat <&3 >&3`)
	until("a connection through the kernel", func() bool { return allowed.count() == 1 })
	flow := allowed.first()
	echo := bufio.NewReader(flow)
	goesOn := func(word string) {
		t.Helper()
		must.NoError(t, flow.SetDeadline(time.Now().Add(30*time.Second)))
		_, err := fmt.Fprintln(flow, word)
		must.NoError(t, err)
		said, err := echo.ReadString('\n')
		must.NoError(t, err)
		must.EqOp(t, word+"\n", said)
	}
	goesOn("before")
	start(`exec 4<>/dev/tcp/web.example.com/80; printf 'GET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n' >&4; cat <&4 >/dev/null; echo ended > /home/user/proxied`)
	until("a connection through the proxy", func() bool { return web.count() == 1 })
	start(prober)
	until("what is allowed", func() bool { return allowed.count() > 2 && named.count() > 2 })
	must.EqOp(t, 0, denied.count()+elsewhere.count())

	d.kill()
	// The proxy's end is its connections' end, on both sides.
	must.NoError(t, web.first().SetReadDeadline(time.Now().Add(30*time.Second)))
	_, err := io.Copy(io.Discard, web.first())
	must.NoError(t, err)
	// A round of the prober that had asked the resolver before may still connect.
	a := allowed.count()
	until("what the kernel allows", func() bool { return allowed.count() > a+3 })
	a, n, p := allowed.count(), named.count(), web.count()
	until("what the kernel allows", func() bool { return allowed.count() > a+10 })
	goesOn("without")
	must.EqOp(t, 0, denied.count()+elsewhere.count(), must.Sprint("denied connections"))
	must.EqOp(t, p, web.count(), must.Sprint("connections that the proxy has to decide about"))
	must.EqOp(t, n, named.count(), must.Sprint("names that nobody looks up"))

	d.start()
	until("names are found again", func() bool { return named.count() > n })
	goesOn("after")
	must.EqOp(t, 0, denied.count()+elsewhere.count())
	out, _ := d.exec(sb, "cat", "/home/user/proxied")
	must.EqOp(t, "ended\n", out)
}

// A node that is told what the machine's link carries shares it out, also after a restart, and leaves the link as it was.
func TestRealNetwork_theMachinesLinkIsSharedOut(t *testing.T) {
	w := networktest.New(t)
	networktest.Serve(t, w.Outside, "198.51.100.1:9000")
	d := startDaemonIn(t, w.Host, "-network", "on", "-config", configFile(t, "network {\n uplink {\n in_bytes_per_second = 125000000\n out_bytes_per_second = 125000000\n }\n}"))
	shared := func() (members int) {
		must.NoError(t, networktest.In(w.Host, func() error {
			l, err := netlink.LinkByName("up0")
			if err != nil {
				return err
			}
			list, err := netlink.ClassList(l, 0)
			for _, c := range list {
				if _, minor := netlink.MajorMinor(c.Attrs().Handle); minor >= 256 {
					members++
				}
			}
			return err
		}))
		return members
	}
	before := shared()
	must.EqOp(t, 0, before)
	sb := d.create(func(r *nodeapi.CreateRequest) { r.QoS = string(sandbox.BestEffort) })
	must.EqOp(t, 1, shared())
	_, ok := connect(d, sb, "198.51.100.1", 9000)
	must.True(t, ok)
	d.kill()
	d.start()
	must.EqOp(t, 1, shared())
	_, ok = connect(d, sb, "198.51.100.1", 9000)
	must.True(t, ok)
	must.NoError(t, d.client.Delete(t.Context(), sb.ID))
	must.EqOp(t, 0, shared())
	d.cleanup()
	d.cmd = nil
	var links []netlink.Link
	var disciplines []netlink.Qdisc
	must.NoError(t, networktest.In(w.Host, func() (err error) {
		if links, err = netlink.LinkList(); err == nil {
			disciplines, err = netlink.QdiscList(nil)
		}
		return err
	}))
	must.Len(t, 2, links)
	for _, q := range disciplines {
		must.NotEq(t, "htb", q.Type())
	}
}
