package proxy

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/proxy"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// Egress is a proxy of the sandbox's owner that everything goes through.
type Egress struct {
	Scheme   string // socks5 or http
	Address  string // host:port
	Username string
	Password string
}

// ParseEgress reads [socks5://|http://]HOST:PORT; without a scheme it is SOCKS5.
func ParseEgress(address, username, password string) (*Egress, error) {
	e := &Egress{Scheme: "socks5", Address: address, Username: username, Password: password}
	if scheme, rest, ok := strings.Cut(address, "://"); ok {
		e.Scheme, e.Address = scheme, strings.TrimSuffix(rest, "/")
	}
	if e.Scheme != "socks5" && e.Scheme != "http" {
		return nil, fmt.Errorf("scheme %.20q is neither socks5 nor http", e.Scheme)
	}
	host, port, err := net.SplitHostPort(e.Address)
	if err != nil {
		return nil, fmt.Errorf("%.80q is not host:port", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return nil, fmt.Errorf("%.20q is no port between 1 and 65535", port)
	}
	if a, err := netip.ParseAddr(host); err == nil && a.Zone() == "" {
		return e, nil
	}
	if name, err := policy.ParseName(host); err != nil || strings.HasPrefix(name, "*") {
		return nil, fmt.Errorf("%.80q is neither an address nor a host name", host)
	}
	return e, nil
}

func (e *Egress) equal(o *Egress) bool {
	return e == o || e != nil && o != nil && *e == *o
}

// ErrEgress is in the chain of errors of the sandbox's own egress proxy.
var ErrEgress = errors.New("egress proxy")

// dial connects to the first of some addresses that answers, through the egress proxy where there is one: that one is given the name and
// finds it for itself.
func (c *Client) dial(ctx context.Context, st Settings, host string, addrs []netip.Addr, port uint16) (net.Conn, error) {
	if st.Egress != nil {
		return c.dialEgress(ctx, st, net.JoinHostPort(host, strconv.Itoa(int(port))))
	}
	return c.dialFirst(ctx, addrs, port)
}

func (c *Client) dialFirst(ctx context.Context, addrs []netip.Addr, port uint16) (net.Conn, error) {
	var errs []error
	for i, a := range addrs[:min(len(addrs), 4)] {
		// Each has a share of the time that is left.
		end, _ := ctx.Deadline()
		one, cancel := context.WithTimeout(ctx, max(time.Until(end)/time.Duration(min(len(addrs), 4)-i), time.Second))
		conn, err := c.server.cfg.Dial(one, "tcp", netip.AddrPortFrom(a, port).String())
		cancel()
		if err == nil {
			err = c.prioritize(conn)
		}
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// prioritize has what is sent over a connection be sorted as the sandbox's own. On error it is closed.
func (c *Client) prioritize(conn net.Conn) error {
	tcp, ok := conn.(*net.TCPConn)
	if !ok || c.priority == 0 {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY, c.priority) })
		err = errors.Join(cerr, os.NewSyscallError("setsockopt SO_PRIORITY", err))
	}
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	return nil
}

// dialEgress connects to a destination through the egress proxy, which is itself reached only where every sandbox could.
func (c *Client) dialEgress(ctx context.Context, st Settings, to string) (net.Conn, error) {
	e := st.Egress
	host, p, err := net.SplitHostPort(e.Address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEgress, err)
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEgress, err)
	}
	var addrs []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{a}
	} else if addrs, err = c.lookup(ctx, strings.ToLower(strings.TrimSuffix(host, "."))); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEgress, err)
	}
	platform := policy.New(st.Policy.Base())
	var good []netip.Addr
	for _, a := range addrs {
		if platform.Decide(policy.Flow{Addr: a, Proto: policy.TCP, Port: uint16(port)}).Allow {
			good = append(good, a)
		}
	}
	if len(good) == 0 {
		return nil, fmt.Errorf("%w: %s is out of reach for every sandbox", ErrEgress, e.Address)
	}
	conn, err := c.dialFirst(ctx, good, uint16(port))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEgress, err)
	}
	if end, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(end)
	}
	if e.Scheme == "http" {
		err = tunnel(conn, e, to)
	} else {
		err = socks(ctx, conn, e, to)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrEgress, err), conn.Close())
	}
	return conn, nil
}

// socks asks a SOCKS5 proxy for a connection.
func socks(ctx context.Context, conn net.Conn, e *Egress, to string) error {
	var auth *proxy.Auth
	if e.Username != "" {
		auth = &proxy.Auth{User: e.Username, Password: e.Password}
	}
	d, err := proxy.SOCKS5("tcp", e.Address, auth, made{conn})
	if err != nil {
		return err
	}
	_, err = d.(proxy.ContextDialer).DialContext(ctx, "tcp", to) //nolint:forcetypeassert // that package's always is
	return err
}

// made dials a connection that is there already.
type made struct{ conn net.Conn }

func (m made) Dial(string, string) (net.Conn, error) { return m.conn, nil }

// DialContext implements proxy.ContextDialer.
func (m made) DialContext(context.Context, string, string) (net.Conn, error) { return m.conn, nil }

// tunnel asks an HTTP proxy for a connection.
func tunnel(conn net.Conn, e *Egress, to string) error {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: to}, Host: to, Header: http.Header{}}
	if e.Username != "" {
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(e.Username+":"+e.Password)))
	}
	if err := req.Write(conn); err != nil {
		return err
	}
	// One byte at a time: what follows the head is the destination's.
	resp, err := http.ReadResponse(bufio.NewReaderSize(oneByte{conn}, 1<<10), req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %s", resp.Status)
	}
	return nil
}

type oneByte struct{ net.Conn }

func (o oneByte) Read(b []byte) (int, error) { return o.Conn.Read(b[:min(len(b), 1)]) }
