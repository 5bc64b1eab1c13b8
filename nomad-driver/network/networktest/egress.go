package networktest

import (
	"bufio"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
)

// Egress is a proxy outside, as a sandbox's owner has one: HTTP's CONNECT, or SOCKS5.
type Egress struct {
	ns             *os.File
	user, password string
	hosts          map[string]string // by name, whom it knows

	mu    sync.Mutex
	asked []string
}

// ServeEgress serves a proxy at an address of a namespace. Clients must have the password.
func ServeEgress(t testing.TB, ns *os.File, scheme, address, user, password string, hosts map[string]string) *Egress {
	t.Helper()
	e := &Egress{ns: ns, user: user, password: password, hosts: hosts}
	answer := e.socks
	if scheme == "http" {
		answer = e.connect
	}
	ServeStreams(t, ns, address, answer)
	return e
}

// Asked returns the destinations that it was asked for, as it was told them.
func (e *Egress) Asked() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.asked)
}

// dial connects to a destination as the proxy itself.
func (e *Egress) dial(to string) (c net.Conn, err error) {
	e.mu.Lock()
	e.asked = append(e.asked, to)
	e.mu.Unlock()
	host, port, err := net.SplitHostPort(to)
	if err != nil {
		return nil, err
	}
	if a, ok := e.hosts[host]; ok {
		host = a
	}
	err = In(e.ns, func() error { c, err = net.Dial("tcp4", net.JoinHostPort(host, port)); return err })
	return c, err
}

func carry(a io.ReadWriter, b net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(b, a)
		_ = b.(*net.TCPConn).CloseWrite() //nolint:forcetypeassert // dialed above
	}()
	_, _ = io.Copy(a, b)
	_ = b.Close()
	if c, ok := a.(io.Closer); ok {
		_ = c.Close()
	}
	<-done
}

func (e *Egress) connect(c net.Conn) {
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil || req.Method != http.MethodConnect {
		return
	}
	if req.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte(e.user+":"+e.password)) {
		_, _ = io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
		return
	}
	far, err := e.dial(req.Host)
	if err != nil {
		_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return
	}
	_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
	carry(c, far)
}

// socks speaks as much of RFC 1928 and RFC 1929 as CONNECT with a password needs.
func (e *Egress) socks(c net.Conn) {
	read := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(c, b); err != nil {
			return make([]byte, n)
		}
		return b
	}
	if head := read(2); head[0] != 5 || !slices.Contains(read(int(head[1])), 2) {
		_, _ = c.Write([]byte{5, 0xff})
		return
	}
	_, _ = c.Write([]byte{5, 2})
	user := read(int(read(2)[1]))
	password := read(int(read(1)[0]))
	if string(user) != e.user || string(password) != e.password {
		_, _ = c.Write([]byte{1, 1})
		return
	}
	_, _ = c.Write([]byte{1, 0})
	var host string
	switch head := read(4); head[3] {
	case 1:
		host = net.IP(read(4)).String()
	case 3:
		host = string(read(int(read(1)[0])))
	default:
		return
	}
	p := read(2)
	far, err := e.dial(net.JoinHostPort(host, strconv.Itoa(int(p[0])<<8|int(p[1]))))
	if err != nil {
		_, _ = c.Write([]byte{5, 4, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	}
	_, _ = c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	carry(c, far)
}
