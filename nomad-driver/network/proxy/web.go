package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// queue is a listener of the connections that are HTTP.
type queue struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newQueue() *queue { return &queue{conns: make(chan net.Conn), done: make(chan struct{})} }

// Accept implements net.Listener.
func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// Addr implements net.Listener.
func (q *queue) Addr() net.Addr { return &net.TCPAddr{} }

// handed is a connection with the flow that it belongs to.
type handed struct {
	net.Conn
	flow *flow
}

// Close implements net.Conn.
func (h *handed) Close() error {
	err := h.Conn.Close()
	h.flow.close()
	return err
}

// hand gives a connection to the HTTP server, and waits for its end.
func (s *Server) hand(f *flow, c net.Conn) {
	select {
	case s.queue.conns <- &handed{Conn: c, flow: f}:
		<-f.ended
	case <-s.ctx.Done():
	}
}

// terminate ends TLS with a certificate for the hello's name.
func (s *Server) terminate(f *flow, c net.Conn) *tls.Conn {
	return tls.Server(c, &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.cfg.Authority.certificate(f.hello.name) },
	})
}

type flowKey struct{}

// destination is where one request goes.
type destination struct {
	settings Settings
	name     string
	addrs    []netip.Addr
	port     uint16
}

type destinationKey struct{}

func (s *Server) webServer() *http.Server {
	return &http.Server{
		Handler: http.HandlerFunc(s.serveWeb), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 256 << 10,
		BaseContext: func(net.Listener) context.Context { return s.ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, flowKey{}, c.(*handed).flow) //nolint:forcetypeassert // the queue has no others
		},
		ErrorLog: s.quiet(),
	}
}

// quiet is where what sandboxes do wrong is written: they must not fill the log.
func (s *Server) quiet() *log.Logger {
	return s.log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug})
}

// transport returns what speaks HTTP to servers for one sandbox. Nobody else's requests go over its connections.
func (s *Server) transport(c *Client) *http.Transport {
	return &http.Transport{
		DisableCompression: true, MaxIdleConnsPerHost: 8, MaxIdleConns: 64, IdleConnTimeout: 30 * time.Second,
		TLSHandshakeTimeout: connectTimeout, TLSClientConfig: s.tlsOut(), Protocols: onlyHTTP1(),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d, ok := ctx.Value(destinationKey{}).(destination)
			if !ok {
				return nil, errors.New("a request without a destination")
			}
			ctx, cancel := context.WithTimeout(ctx, connectTimeout)
			defer cancel()
			return c.dial(ctx, d.settings, d.name, d.addrs, d.port)
		},
	}
}

func onlyHTTP1() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	return p
}

// serveWeb carries one request.
func (s *Server) serveWeb(w http.ResponseWriter, r *http.Request) {
	f := r.Context().Value(flowKey{}).(*flow) //nolint:forcetypeassert // set for every connection
	encrypted := f.hello.read
	deny := func(name string, d policy.Decision, status int) {
		s.decided(f, name, d)
		http.Error(w, "soulbox: "+d.String(), status)
	}
	if r.Method == http.MethodConnect {
		deny("", policy.Decision{Layer: policy.LayerPlatform, Rule: "CONNECT is for proxies"}, http.StatusMethodNotAllowed)
		return
	}
	host, port := r.Host, f.to.Port()
	if h, p, err := net.SplitHostPort(r.Host); err == nil {
		host = h
		if p != strconv.Itoa(int(port)) {
			deny(r.Host, policy.Decision{Layer: policy.LayerPlatform, Rule: "the host's port is another than the connection's"}, http.StatusMisdirectedRequest)
			return
		}
	}
	name, err := policy.ParseName(host)
	if err != nil || strings.HasPrefix(name, "*") {
		name = ""
	}
	if _, err := netip.ParseAddr(host); err == nil {
		name = ""
	}
	if encrypted && name != f.hello.name {
		deny(name, policy.Decision{Layer: policy.LayerPlatform, Rule: "the host is another than the certificate's"}, http.StatusMisdirectedRequest)
		return
	}
	st, out := f.client.current()
	rule := ruleFor(st.Rules, name)
	if rule != nil {
		port = 443 // what the rule adds is sent over TLS alone
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	addrs, d := s.webDestination(ctx, f, st, name, port)
	if !d.Allow {
		deny(name, d, http.StatusForbidden)
		return
	}
	if rule != nil && len(rule.Lacks) > 0 {
		deny(name, policy.Decision{Layer: policy.LayerPlatform, Rule: "headers for this domain wait for " + strings.Join(rule.Lacks, ", ")}, http.StatusBadGateway)
		return
	}
	s.decided(f, name, d)
	if !f.joined(name, addrs[0], nil) {
		return
	}
	target := name
	if target == "" {
		target = f.to.Addr().String()
	}
	scheme := "http"
	if rule != nil {
		scheme = "https"
	}
	ctx = context.WithValue(ctx, destinationKey{}, destination{st, target, addrs, port})
	(&httputil.ReverseProxy{
		Transport: out, FlushInterval: -1, ErrorLog: s.quiet(),
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = scheme, net.JoinHostPort(target, strconv.Itoa(int(port)))
			p.Out.Host = r.Host
			if rule != nil {
				for k, v := range rule.Headers {
					p.Out.Header[k] = v
				}
			}
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			s.log.Debug("request failed", "sandbox", f.client.id, "name", name, "error", err)
			http.Error(w, "soulbox: the server cannot be reached", http.StatusBadGateway)
		},
	}).ServeHTTP(w, r.WithContext(ctx))
}

// webDestination decides about one request: by its host, or else by the address of the connection.
func (s *Server) webDestination(ctx context.Context, f *flow, st Settings, name string, port uint16) ([]netip.Addr, policy.Decision) {
	if name != "" {
		if d := st.Policy.DecideName(name); d.Allow {
			addrs, d, err := f.client.addressesOf(ctx, st, name, port)
			if err != nil {
				s.log.Debug("name cannot be looked up", "sandbox", f.client.id, "name", name, "error", err)
			}
			if len(addrs) == 0 {
				d.Allow = false
			}
			return addrs, d
		}
		if d, ok := st.Policy.DeniesName(name); ok {
			return nil, d
		}
	}
	return []netip.Addr{f.to.Addr()}, st.Policy.Decide(policy.Flow{Addr: f.to.Addr(), Proto: policy.TCP, Port: f.to.Port()})
}

// ruleFor returns the rule for a name: the one of the name itself, or else the first that matches.
func ruleFor(rules []Rule, name string) *Rule {
	if name == "" {
		return nil
	}
	var found *Rule
	for i, r := range rules {
		if r.Domain.Name == name {
			return &rules[i]
		}
		if found == nil && r.Domain.MatchName(name) {
			found = &rules[i]
		}
	}
	return found
}
