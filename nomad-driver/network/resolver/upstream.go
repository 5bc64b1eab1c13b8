package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// DefaultTimeout is how long one upstream is waited for. All of them together may take as long as a sandbox waits.
const (
	DefaultTimeout = 1500 * time.Millisecond
	totalTimeout   = 4500 * time.Millisecond
)

// resolvConf names the machine's name servers.
const resolvConf = "/etc/resolv.conf"

// upstream are the servers that know.
type upstream struct {
	fixed   []netip.AddrPort
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	timeout time.Duration
	file    string
	first   atomic.Uint32 // the one that answered last

	mu     sync.Mutex
	read   time.Time // when file was looked at
	stamp  time.Time // of file, then
	listed []netip.AddrPort
}

// lookEvery is how often a change of resolv.conf is looked for.
const lookEvery = 5 * time.Second

// servers returns those to ask now.
func (u *upstream) servers() ([]netip.AddrPort, error) {
	if len(u.fixed) > 0 {
		return u.fixed, nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Since(u.read) < lookEvery {
		return u.listed, nil
	}
	st, err := os.Stat(u.file)
	if err != nil {
		return u.listed, err
	}
	if !st.ModTime().Equal(u.stamp) {
		b, err := os.ReadFile(u.file)
		if err != nil {
			return u.listed, err
		}
		u.listed = parseServers(string(b))
		u.stamp = st.ModTime()
	}
	u.read = time.Now()
	return u.listed, nil
}

// parseServers reads the name servers of a resolv.conf, without zones of IPv6.
func parseServers(conf string) []netip.AddrPort {
	var list []netip.AddrPort
	for line := range strings.Lines(conf) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			list = append(list, netip.AddrPortFrom(a, 53))
		}
	}
	return list
}

// errNoServers tells that there is nobody to ask.
var errNoServers = errors.New("no name server is known: the machine's resolv.conf has none, and the configuration names none")

// exchange asks one server after the other until one knows.
func (u *upstream) exchange(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
	list, err := u.servers()
	if len(list) == 0 {
		return nil, errors.Join(errNoServers, err)
	}
	ctx, cancel := context.WithTimeout(ctx, totalTimeout)
	defer cancel()
	first := int(u.first.Load())
	var errs []error
	for i := range max(2, len(list)) { // also the only one a second time: a packet may have been lost
		at := (first + i) % len(list)
		r, err := u.one(ctx, list[at], m)
		if err == nil && (r.Rcode == dns.RcodeSuccess || r.Rcode == dns.RcodeNameError) {
			u.first.Store(uint32(at)) //nolint:gosec // an index
			return r, nil
		}
		if err == nil {
			err = errors.New(dns.RcodeToString[r.Rcode])
		}
		errs = append(errs, fmt.Errorf("name server %s: %w", list[at], err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// one asks one server, by TCP where the answer is too long for UDP.
func (u *upstream) one(ctx context.Context, server netip.AddrPort, m *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, u.timeout)
	defer cancel()
	r, err := u.over(ctx, "udp", server, m)
	if err == nil && r.Truncated {
		r, err = u.over(ctx, "tcp", server, m)
	}
	return r, err
}

// over asks over one transport, from a port of its own each time: who wants to answer in the server's place has to guess it.
func (u *upstream) over(ctx context.Context, transport string, server netip.AddrPort, m *dns.Msg) (*dns.Msg, error) {
	conn, err := u.dial(ctx, transport, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if t, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(t); err != nil {
			return nil, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	q := m.Copy()
	q.Id = dns.Id()
	client := dns.Client{Net: transport, UDPSize: udpSize, Timeout: u.timeout}
	r, _, err := client.ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: conn, UDPSize: udpSize})
	if err != nil {
		return nil, err
	}
	if !r.Response || len(r.Question) != 1 || !strings.EqualFold(r.Question[0].Name, q.Question[0].Name) ||
		r.Question[0].Qtype != q.Question[0].Qtype || r.Question[0].Qclass != dns.ClassINET {
		return nil, errors.New("the answer is to another question")
	}
	return r, nil
}
