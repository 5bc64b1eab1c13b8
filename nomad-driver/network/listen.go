package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// ListenNames opens the sockets at which sandboxes look names up: UDP and TCP of their gateway's address.
func (p *Pool) ListenNames() (packets *net.UDPConn, streams net.Listener, err error) {
	at := netip.AddrPortFrom(p.self, 53)
	err = p.inHost(func() (err error) {
		if packets, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at)); err != nil {
			return err
		}
		streams, err = net.Listen("tcp4", at.String())
		return err
	})
	if err != nil {
		if packets != nil {
			err = errors.Join(err, packets.Close())
		}
		return nil, nil, fmt.Errorf("network: names: %w", err)
	}
	return packets, streams, nil
}

// ListenProxy opens the socket to which connections are redirected.
func (p *Pool) ListenProxy() (l *net.TCPListener, err error) {
	err = p.inHost(func() error {
		l, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.self, ProxyPort)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("network: proxy: %w", err)
	}
	return l, nil
}

// Dial connects from the host, as the host itself.
func (p *Pool) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = p.inHost(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return c, err
}
