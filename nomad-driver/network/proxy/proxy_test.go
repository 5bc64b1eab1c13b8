package proxy

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a proxy with 127.0.0.1 as its sandbox, and servers that are reached by made-up addresses.
type rig struct {
	t         testing.TB
	server    *Server
	client    *Client
	addr      string
	authority *Authority

	mu    sync.Mutex
	to    netip.AddrPort    // where the next connections go, as the sandbox sees it
	names map[string]string // name to address
	hosts map[string]string // address:port to where a server really is
	asked []string          // what was dialled
	made  net.Conn          // the last
}

var loopback = netip.MustParseAddr("127.0.0.1")

func newRig(t testing.TB, spec policy.Spec, rules ...Rule) *rig {
	t.Helper()
	r := &rig{t: t, names: map[string]string{}, hosts: map[string]string{}}
	var err error
	r.authority, err = OpenAuthority(t.TempDir())
	must.NoError(t, err)
	r.server = New(Config{Authority: r.authority, Roots: x509.NewCertPool(), Dial: r.dial, Original: func(*net.TCPConn) (netip.AddrPort, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.to, nil
	}})
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	must.NoError(t, err)
	r.addr = l.Addr().String()
	r.server.Serve(l)
	t.Cleanup(func() { must.NoError(t, r.server.Close()) })
	r.client = r.server.Attach(loopback, Sandbox{ID: "s", Settings: Settings{Policy: pol(t, spec), Rules: rules}, Lookup: r.lookup, Names: func(netip.Addr) []string { return nil }})
	return r
}

func pol(t testing.TB, spec policy.Spec) *policy.Policy {
	t.Helper()
	l, err := policy.ParseLayer("sandbox", spec)
	must.NoError(t, err)
	return policy.New(policy.Base{}, l)
}

func (r *rig) lookup(_ context.Context, name string) ([]netip.Addr, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a, ok := r.names[name]; ok {
		return []netip.Addr{netip.MustParseAddr(a)}, nil
	}
	return nil, errors.New("no such name")
}

func (r *rig) dial(ctx context.Context, network, address string) (net.Conn, error) {
	r.mu.Lock()
	r.asked = append(r.asked, address)
	to, ok := r.hosts[address]
	r.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("nobody is at %s", address)
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, to)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.made = c
	return c, err
}

func (r *rig) goesTo(to string) {
	_, out := r.client.current()
	out.CloseIdleConnections() // the next request needs one of its own
	r.mu.Lock()
	defer r.mu.Unlock()
	r.to, r.asked = netip.MustParseAddrPort(to), nil
}

// plain serves a name over HTTP at address:80, and answers with its own name and the headers that it got.
func (r *rig) plain(name, address string) {
	r.serve(name, address+":80", httptest.NewServer(echo(name)))
}

// secure serves a name over TLS at address:443.
func (r *rig) secure(name, address string) {
	s := httptest.NewUnstartedServer(echo(name))
	ca, err := parseAuthority(testAuthority())
	must.NoError(r.t, err)
	leaf, err := ca.certificate(name)
	must.NoError(r.t, err)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{*leaf}}
	s.StartTLS()
	r.server.cfg.Roots.AppendCertsFromPEM(ca.PEM())
	r.serve(name, address+":443", s)
}

var testAuthority = sync.OnceValue(func() []byte {
	b, err := makeAuthority()
	if err != nil {
		panic(err)
	}
	return b
})

func (r *rig) serve(name, address string, s *httptest.Server) {
	r.t.Cleanup(s.Close)
	r.mu.Lock()
	defer r.mu.Unlock()
	if name != "" {
		r.names[name], _, _ = strings.Cut(address, ":")
	}
	r.hosts[address] = s.Listener.Addr().String()
}

func echo(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s got %s for %s with key %q", name, r.URL.Path, r.Host, r.Header.Values("X-Key"))
	})
}

// request sends what a sandbox would and returns all that comes back.
func (r *rig) request(raw string) string {
	r.t.Helper()
	c, err := net.Dial("tcp", r.addr)
	if err != nil { // who is refused may learn of it this early
		return "error: " + err.Error()
	}
	defer c.Close()
	must.NoError(r.t, c.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(c, raw)
	var b []byte
	if err == nil {
		b, err = io.ReadAll(c)
	}
	if err != nil && len(b) == 0 {
		return "error: " + err.Error()
	}
	head, body, _ := strings.Cut(string(b), "\r\n\r\n")
	line, _, _ := strings.Cut(head, "\r\n")
	return line + " | " + strings.TrimSpace(body)
}

func get(host string) string {
	return "GET /x HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\nX-Key: mine\r\n\r\n"
}

// secureGet asks over TLS with some name in the ClientHello and some host in the request.
func (r *rig) secureGet(sni, host string, roots *x509.CertPool) (string, error) {
	c, err := net.Dial("tcp", r.addr)
	must.NoError(r.t, err)
	defer c.Close()
	must.NoError(r.t, c.SetDeadline(time.Now().Add(20*time.Second)))
	cfg := &tls.Config{ServerName: sni, RootCAs: roots}
	if sni == "" {
		cfg.InsecureSkipVerify = true
	}
	conn := tls.Client(c, cfg)
	if _, err := io.WriteString(conn, get(host)); err != nil {
		return "", err
	}
	b, err := io.ReadAll(conn)
	head, body, _ := strings.Cut(string(b), "\r\n\r\n")
	if strings.Contains(head, "chunked") { // one chunk
		_, body, _ = strings.Cut(body, "\r\n")
		body, _, _ = strings.Cut(body, "\r\n")
	}
	line, _, _ := strings.Cut(head, "\r\n")
	return line + " | " + strings.TrimSpace(body), err
}

var closedTo = policy.Spec{Allow: []string{"*.example.com", "198.51.100.9"}, Deny: []string{policy.Everything}}

func TestHTTP_goesWhereItsHostMay(t *testing.T) {
	r := newRig(t, closedTo)
	r.plain("www.example.com", "198.51.100.1")
	r.plain("evil.example.org", "198.51.100.2")
	r.plain("", "198.51.100.9")
	for _, c := range []struct{ name, to, host, want, dialled string }{
		{"an allowed name", "198.51.100.1:80", "www.example.com", "HTTP/1.1 200 OK | www.example.com got /x for www.example.com with key [\"mine\"]", "198.51.100.1:80"},
		{"its address is looked up again", "198.51.100.2:80", "WWW.example.com", "HTTP/1.1 200 OK | www.example.com got /x for WWW.example.com with key [\"mine\"]", "198.51.100.1:80"},
		{"another name at an allowed one's address", "198.51.100.1:80", "evil.example.org", "HTTP/1.1 403 Forbidden | soulbox: denied by sandbox: deny 0.0.0.0/0", ""},
		{"no name", "198.51.100.1:80", "", "HTTP/1.1 403 Forbidden | soulbox: denied by sandbox: deny 0.0.0.0/0", ""},
		{"an address as the name", "198.51.100.1:80", "198.51.100.1", "HTTP/1.1 403 Forbidden | soulbox: denied by sandbox: deny 0.0.0.0/0", ""},
		{"an address that is allowed itself", "198.51.100.9:80", "198.51.100.9", "HTTP/1.1 200 OK | got /x for 198.51.100.9 with key [\"mine\"]", "198.51.100.9:80"},
		{"another port in the host", "198.51.100.1:80", "www.example.com:8080", "HTTP/1.1 421 Misdirected Request | soulbox: denied by platform: the host's port is another than the connection's", ""},
		{"an allowed name that is not there", "198.51.100.1:80", "none.example.com", "HTTP/1.1 403 Forbidden | soulbox: denied by platform: the name cannot be looked up", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.goesTo(c.to)
			must.EqOp(t, c.want, r.request(get(c.host)))
			must.EqOp(t, c.dialled, strings.Join(r.asked, " "))
		})
	}
	last := r.client.Decisions()
	must.EqOp(t, "none.example.com", last[0].Name)
	must.False(t, last[0].Allow)
}

func TestHTTP_whatIsSentForASandboxIsSortedAsItsOwn(t *testing.T) {
	r := newRig(t, closedTo)
	r.plain("www.example.com", "198.51.100.1")
	r.client.priority = 5 // nothing has been dialled yet
	r.goesTo("198.51.100.1:80")
	must.StrHasPrefix(t, "HTTP/1.1 200 OK", r.request(get("www.example.com")))
	raw, err := r.made.(*net.TCPConn).SyscallConn()
	must.NoError(t, err)
	var got int
	must.NoError(t, raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY) }))
	must.NoError(t, err)
	must.EqOp(t, 5, got)
}

func TestHTTP_eachRequestIsDecided(t *testing.T) {
	r := newRig(t, closedTo)
	r.plain("www.example.com", "198.51.100.1")
	r.goesTo("198.51.100.1:80")
	got := r.request("GET /a HTTP/1.1\r\nHost: www.example.com\r\n\r\n" + get("evil.example.org"))
	must.StrContains(t, got, "www.example.com got /a")
	must.StrContains(t, got, "HTTP/1.1 403 Forbidden")
	for _, raw := range []string{
		"CONNECT evil.example.org:443 HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n",
		"GET http://evil.example.org/ HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: www.example.com\r\nHost: evil.example.org\r\nConnection: close\r\n\r\n",
		"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 4\r\nTransfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GARBAGE\r\n\r\n",
	} {
		r.goesTo("198.51.100.1:80")
		got := r.request(raw)
		must.StrNotContains(t, got, " 200 ", must.Sprintf("%q", raw))
		must.SliceEmpty(t, r.asked, must.Sprintf("%q", raw))
	}
}

func TestTLS_goesWhereItsNameMay(t *testing.T) {
	r := newRig(t, closedTo)
	r.secure("www.example.com", "198.51.100.1")
	r.secure("evil.example.org", "198.51.100.2")
	r.secure("", "198.51.100.9")
	r.goesTo("198.51.100.2:443") // the address is another's
	got, err := r.secureGet("www.example.com", "www.example.com", r.server.cfg.Roots)
	must.NoError(t, err)
	must.EqOp(t, `HTTP/1.1 200 OK | www.example.com got /x for www.example.com with key ["mine"]`, got)
	must.Eq(t, []string{"198.51.100.1:443"}, r.asked)
	for _, sni := range []string{"evil.example.org", ""} {
		r.goesTo("198.51.100.1:443")
		_, err = r.secureGet(sni, "www.example.com", r.server.cfg.Roots)
		must.ErrorContains(t, err, "access denied", must.Sprintf("%q", sni))
		must.SliceEmpty(t, r.asked)
	}
	must.StrContains(t, r.client.Decisions()[0].Rule, "names no domain")
	r.goesTo("198.51.100.9:443") // allowed as an address
	got, err = r.secureGet("", "198.51.100.9", nil)
	must.NoError(t, err)
	must.StrContains(t, got, "200 OK")
	r.goesTo("198.51.100.1:443")
	must.StrNotContains(t, r.request("\x00\x01 what is that"), "200")
	must.SliceEmpty(t, r.asked)
}

// clientHello returns the first bytes of a TLS client.
func clientHello(t testing.TB, name string) []byte { return helloOf(t, &tls.Config{ServerName: name}) }

func helloOf(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	cfg.InsecureSkipVerify = true // it gets no further
	a, b := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(a, cfg).Handshake()
	}()
	buf := make([]byte, maxHello)
	n, err := b.Read(buf)
	must.NoError(t, err)
	must.NoError(t, errors.Join(b.Close(), a.Close()))
	<-done
	return buf[:n]
}

// encryptedHello returns the first bytes of a TLS client that shows one name and means another.
func encryptedHello(t testing.TB, shown, meant string) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	must.NoError(t, err)
	// ECHConfigContents: id, KEM, key, suites, longest name, public name, no extensions.
	c := append([]byte{1, 0, 0x20, 0, 32}, key.PublicKey().Bytes()...)
	c = append(c, 0, 4, 0, 1, 0, 1, 32, byte(len(shown)))
	c = append(append(c, shown...), 0, 0)
	list := append([]byte{0, byte(len(c) + 4), 0xfe, 0x0d, 0, byte(len(c))}, c...)
	return helloOf(t, &tls.Config{ServerName: meant, MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: list})
}

// inRecords splits a record of TLS into several.
func inRecords(hello []byte, size int) []byte {
	var out []byte
	for body := hello[5:]; len(body) > 0; {
		n := min(size, len(body))
		out = append(out, 22, 3, 1, byte(n>>8), byte(n))
		out = append(out, body[:n]...)
		body = body[n:]
	}
	return out
}

func TestHello_isReadAsItIs(t *testing.T) {
	plain := clientHello(t, "www.Example.com")
	for _, c := range []struct {
		name  string
		bytes []byte
		want  hello
	}{
		{"as it is sent", plain, hello{read: true, name: "www.example.com"}},
		{"in records of 7 bytes", inRecords(plain, 7), hello{read: true, name: "www.example.com"}},
		{"with an encrypted name", encryptedHello(t, "www.example.com", "evil.example.org"), hello{read: true, name: "www.example.com", encrypted: true}},
		{"without a name", clientHello(t, ""), hello{read: true}},
	} {
		got, err := parseHello(c.bytes)
		must.NoError(t, err, must.Sprint(c.name))
		must.Eq(t, c.want, got, must.Cmp(cmpHello()), must.Sprint(c.name))
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "the half": plain[:len(plain)/2], "noise": []byte("\x16\x03\x01\x00\x05hello"), "endless": inRecords(bytes.Repeat([]byte{1, 0, 255, 255}, 20000), 16000),
	} {
		_, err := parseHello(b)
		must.Error(t, err, must.Sprint(name))
	}
}

func TestTLS_encryptedNamesAndPiecesAreNoWayRound(t *testing.T) {
	r := newRig(t, closedTo)
	r.secure("www.example.com", "198.51.100.1")
	r.goesTo("198.51.100.1:443")
	must.StrContains(t, r.request(string(encryptedHello(t, "www.example.com", "evil.example.org"))), "\x15\x03\x03\x00\x02\x02\x31")
	must.SliceEmpty(t, r.asked)
	must.EqOp(t, "the name in the ClientHello is encrypted", r.client.Decisions()[0].Rule)
	evil := clientHello(t, "evil.example.org")
	must.StrContains(t, r.request(string(inRecords(evil, 3))), "\x15\x03\x03\x00\x02\x02\x31")
	must.SliceEmpty(t, r.asked)
}

func TestRules_addWhatTheSandboxNeverHas(t *testing.T) {
	name, err := policy.ParseEntry("*.example.com")
	must.NoError(t, err)
	r := newRig(t, policy.Spec{}, Rule{Domain: name, Headers: http.Header{"X-Key": {"secret"}}})
	r.secure("api.example.com", "198.51.100.1")
	r.secure("other.example.org", "198.51.100.2")
	trusting := x509.NewCertPool()
	trusting.AppendCertsFromPEM(r.authority.PEM())

	r.goesTo("198.51.100.1:443")
	got, err := r.secureGet("api.example.com", "api.example.com", trusting)
	must.NoError(t, err)
	must.EqOp(t, `HTTP/1.1 200 OK | api.example.com got /x for api.example.com with key ["secret"]`, got)
	// Over plain HTTP the server is spoken to by TLS all the same.
	r.goesTo("198.51.100.1:80")
	must.StrContains(t, r.request(get("api.example.com")), `with key ["secret"]`)
	must.Eq(t, []string{"198.51.100.1:443"}, r.asked)
	// Another name is not looked into.
	r.goesTo("198.51.100.2:443")
	got, err = r.secureGet("other.example.org", "other.example.org", r.server.cfg.Roots)
	must.NoError(t, err)
	must.StrContains(t, got, `with key ["mine"]`)
	// A request for another host over a connection for this one.
	r.goesTo("198.51.100.1:443")
	got, err = r.secureGet("api.example.com", "other.example.org", trusting)
	must.NoError(t, err)
	must.StrContains(t, got, "421 Misdirected Request")
	must.SliceEmpty(t, r.asked)
	// A server that is not who it says gets nothing.
	r.mu.Lock()
	r.hosts["198.51.100.1:443"] = r.hosts["198.51.100.2:443"]
	r.mu.Unlock()
	r.client.Set(Settings{Policy: pol(t, policy.Spec{}), Rules: []Rule{{Domain: name, Headers: http.Header{"X-Key": {"secret"}}}}})
	got, err = r.secureGet("api.example.com", "api.example.com", trusting)
	must.NoError(t, err)
	must.StrContains(t, got, "502 Bad Gateway")
}

func TestRules_thatLackSomethingRefuseTheirRequests(t *testing.T) {
	name, err := policy.ParseEntry("api.example.com")
	must.NoError(t, err)
	r := newRig(t, policy.Spec{}, Rule{Domain: name, Headers: http.Header{"X-Key": {"${e2b.secrets.none}"}}, Lacks: []string{"secrets.none"}})
	r.secure("api.example.com", "198.51.100.1")
	trusting := x509.NewCertPool()
	trusting.AppendCertsFromPEM(r.authority.PEM())
	r.goesTo("198.51.100.1:443")
	got, err := r.secureGet("api.example.com", "api.example.com", trusting)
	must.NoError(t, err)
	must.StrContains(t, got, "502 Bad Gateway")
	must.StrContains(t, got, "secrets.none")
	r.goesTo("198.51.100.1:80")
	must.StrContains(t, r.request(get("api.example.com")), "502 Bad Gateway")
	must.SliceEmpty(t, r.asked, must.Sprint("the server is not asked"))
}

func TestSet_cutsWhatIsForbiddenAndSparesTheRest(t *testing.T) {
	r := newRig(t, policy.Spec{Allow: []string{"a.example.com", "b.example.com"}, Deny: []string{policy.Everything}})
	release := make(chan struct{})
	for name, address := range map[string]string{"a.example.com": "198.51.100.1", "b.example.com": "198.51.100.2"} {
		r.serve(name, address+":80", httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			for i := 0; ; i++ {
				_, _ = io.WriteString(w, "more\n")
				w.(http.Flusher).Flush()
				select {
				case <-release:
					return
				case <-q.Context().Done():
					return
				case <-time.After(10 * time.Millisecond):
				}
			}
		})))
	}
	defer close(release)
	open := func(host, to string) net.Conn {
		r.goesTo(to)
		c, err := net.Dial("tcp", r.addr)
		must.NoError(t, err)
		must.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		_, err = io.WriteString(c, get(host))
		must.NoError(t, err)
		_, err = io.ReadFull(c, make([]byte, 200))
		must.NoError(t, err)
		return c
	}
	a, b := open("a.example.com", "198.51.100.1:80"), open("b.example.com", "198.51.100.2:80")
	defer a.Close()
	defer b.Close()
	start := time.Now()
	r.client.Set(Settings{Policy: pol(t, policy.Spec{Allow: []string{"b.example.com"}, Deny: []string{policy.Everything}})})
	_, _ = io.Copy(io.Discard, a) // ends
	must.Less(t, time.Second, time.Since(start))
	_, err := io.ReadFull(b, make([]byte, 100))
	must.NoError(t, err)
	r.server.Detach(loopback)
	_, _ = io.Copy(io.Discard, b)
	r.goesTo("198.51.100.2:80")
	must.StrContains(t, r.request(get("b.example.com")), "error")
}

func TestAuthority_isKeptAndPrivate(t *testing.T) {
	dir := t.TempDir()
	a, err := OpenAuthority(dir)
	must.NoError(t, err)
	b, err := OpenAuthority(dir)
	must.NoError(t, err)
	must.Eq(t, a.PEM(), b.PEM())
	must.StrNotContains(t, string(a.PEM()), "KEY")
	leaf, err := b.certificate("www.example.com")
	must.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.PEM())
	_, err = leaf.Leaf.Verify(x509.VerifyOptions{DNSName: "www.example.com", Roots: pool})
	must.NoError(t, err)
	again, err := b.certificate("www.example.com")
	must.NoError(t, err)
	must.Eq(t, leaf.Certificate, again.Certificate)
}

func TestParseEgress_saysWhatIsWrong(t *testing.T) {
	for in, want := range map[string]string{
		"proxy.example.com:1080": "", "http://10.0.0.1:3128": "", "socks5://[::1]:1080/": "",
		"ftp://x:1":     `scheme "ftp" is neither socks5 nor http`,
		"proxy":         `"proxy" is not host:port`,
		"proxy:0":       `"0" is no port between 1 and 65535`,
		"exa mple:1080": `"exa mple" is neither an address nor a host name`,
	} {
		_, err := ParseEgress(in, "", "")
		if want == "" {
			must.NoError(t, err, must.Sprint(in))
			continue
		}
		must.EqError(t, err, want)
	}
}
