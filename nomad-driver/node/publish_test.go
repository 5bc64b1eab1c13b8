package node

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// echoServer answers every line and every packet at a port of the sandbox's loopback with the same in capitals.
const echoServer = `
import socket, sys, threading
port = int(sys.argv[1])
def stream():
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1", port)); s.listen()
    while True:
        c, _ = s.accept()
        threading.Thread(target=lambda c: [c.sendall(b.upper()) for b in iter(lambda: c.recv(4096), b"")] and c.close(), args=(c,)).start()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("127.0.0.1", port))
threading.Thread(target=stream).start()
while True:
    b, a = u.recvfrom(4096)
    u.sendto(b.upper(), a)
`

// ask sends a line to an address and returns the answer.
func askLine(network, address, line string) (string, error) {
	c, err := net.DialTimeout(network, address, 3*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return "", err
	}
	return bufio.NewReader(c).ReadString('\n')
}

func published127(t *testing.T, from, to int) []string {
	t.Helper()
	return []string{"-network", "off", "-config", configFile(t, fmt.Sprintf("network {\n publish_address = \"127.0.0.1\"\n publish_ports = \"%d-%d\"\n}", from, to))}
}

func at(p nodeapi.PublishedPort) string {
	return netip.AddrPortFrom(p.Address, uint16(p.NodePort)).String() //nolint:gosec // a port
}

func TestRealPublish_streamsAndPacketsReachTheSandboxThroughTheNode(t *testing.T) {
	d := startDaemon(t, published127(t, 23100, 23149)...)
	d.importPython()
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Template = "python" })
	_, err := d.client.Start(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"python3", "-c", echoServer, "8080"}}})
	must.NoError(t, err)
	list, err := d.client.SetPublished(t.Context(), sb.ID, []nodeapi.PublishedPort{{Proto: "tcp", Port: 8080}, {Proto: "udp", Port: 8080, NodePort: 23149}})
	must.NoError(t, err)
	must.Len(t, 2, list)
	must.Between(t, 23100, list[0].NodePort, 23149)
	must.EqOp(t, 23149, list[1].NodePort)
	answers := func() {
		t.Helper()
		for _, p := range list {
			waitUntil(t, p.Proto, func() bool {
				got, err := askLine(p.Proto, at(p), "hello")
				return err == nil && got == "HELLO\n"
			})
		}
	}
	answers()
	// A daemon that was killed listens again.
	d.kill()
	d.start()
	again, err := d.client.Published(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Eq(t, list, again)
	answers()

	// One that is taken away ends with what it carries; the other one goes on.
	held, err := net.Dial("tcp", at(list[0]))
	must.NoError(t, err)
	defer held.Close()
	_, err = d.client.SetPublished(t.Context(), sb.ID, list[1:])
	must.NoError(t, err)
	must.NoError(t, held.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err = held.Read(make([]byte, 1))
	must.ErrorIs(t, err, io.EOF)
	_, err = net.Dial("tcp", at(list[0]))
	must.Error(t, err)
	got, err := askLine("udp", at(list[1]), "still")
	must.NoError(t, err)
	must.EqOp(t, "STILL\n", got)

	must.NoError(t, d.client.Delete(t.Context(), sb.ID))
	l, err := net.ListenPacket("udp4", at(list[1])) // nobody has it any more
	must.NoError(t, err)
	must.NoError(t, l.Close())
}

func TestRealPublish_saysWhatIsWrong(t *testing.T) {
	d := startDaemon(t, published127(t, 23150, 23151)...)
	sb := d.create()
	for _, c := range []struct {
		list   []nodeapi.PublishedPort
		status int
		text   string
	}{
		{[]nodeapi.PublishedPort{{Proto: "sctp", Port: 80}}, http.StatusBadRequest, `ports[0].proto: "sctp" is neither tcp nor udp`},
		{[]nodeapi.PublishedPort{{Proto: "tcp", Port: 70000}}, http.StatusBadRequest, "ports[0].port: 70000 is not between 1 and 65535"},
		{[]nodeapi.PublishedPort{{Proto: "tcp", Port: 80, NodePort: 22}}, http.StatusBadRequest, "ports[0].node_port: 22 is not between 23150 and 23151"},
		{[]nodeapi.PublishedPort{{Proto: "tcp", Port: 80, Address: netip.MustParseAddr("0.0.0.0")}}, http.StatusBadRequest, "ports[0].address"},
		{[]nodeapi.PublishedPort{{Proto: "tcp", Port: 80}, {Proto: "tcp", Port: 80}}, http.StatusBadRequest, "is there twice"},
		{[]nodeapi.PublishedPort{{Proto: "tcp", Port: 1}, {Proto: "tcp", Port: 2}, {Proto: "tcp", Port: 3}}, http.StatusConflict, "publish tcp port 3"},
	} {
		_, err := d.client.SetPublished(t.Context(), sb.ID, c.list)
		must.EqOp(t, c.status, api.StatusOf(err))
		must.ErrorContains(t, err, c.text)
	}
	list, err := d.client.Published(t.Context(), sb.ID) // and nothing of it stays
	must.NoError(t, err)
	must.Len(t, 0, list)
}

func TestPublish_needsAnOperatorWhoNamesPorts(t *testing.T) {
	n := &Node{}
	err := n.checkPublished([]nodeapi.PublishedPort{{Proto: "tcp", Port: 80}}, true)
	must.EqOp(t, http.StatusNotImplemented, api.StatusOf(err))
	must.NoError(t, n.checkPublished([]nodeapi.PublishedPort{{Proto: "tcp", Port: 80, NodePort: 8080}}, false)) // Nomad has given it
}
