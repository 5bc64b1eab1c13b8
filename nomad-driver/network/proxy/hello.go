package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// maxHello bounds a ClientHello, with the records around it.
const maxHello = 32 << 10

const (
	recordHandshake = 22
	extensionECH    = 0xfe0d
)

// hello is what a ClientHello says.
type hello struct {
	read      bool
	name      string // as policy.ParseName returns it; empty where there is none, or what is no domain
	encrypted bool   // a name of its own is encrypted in it
}

var errStop = errors.New("the hello was read")

// readHello reads a ClientHello and leaves it in the reader. What reads it is the standard library's server, which goes no further: a hello
// in many records and one that is no hello are its to know.
func readHello(in *bufio.Reader) (hello, error) {
	var h hello
	p := &peeker{in: in}
	err := tls.Server(p, &tls.Config{ //nolint:gosec // nothing is agreed with it
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			h.read = true
			h.encrypted = slices.Contains(info.Extensions, extensionECH)
			if name, err := policy.ParseName(info.ServerName); err == nil && !strings.HasPrefix(name, "*") {
				h.name = name
			}
			return nil, errStop
		},
	}).Handshake()
	if !h.read {
		if p.err != nil {
			err = p.err
		}
		return h, err
	}
	return h, nil
}

// peeker lets somebody read what stays in a buffer, and swallows what he says.
type peeker struct {
	in  *bufio.Reader
	at  int
	err error
}

func (p *peeker) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if p.at == maxHello {
		p.err = errors.New("it is longer than 32 KiB")
		return 0, p.err
	}
	buffered, err := p.in.Peek(min(max(p.at+1, p.in.Buffered()), maxHello))
	if len(buffered) <= p.at {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		p.err = err
		return 0, err
	}
	n := copy(b, buffered[p.at:])
	p.at += n
	return n, nil
}

func (p *peeker) Write(b []byte) (int, error)      { return len(b), nil }
func (p *peeker) Close() error                     { return nil }
func (p *peeker) LocalAddr() net.Addr              { return nil }
func (p *peeker) RemoteAddr() net.Addr             { return nil }
func (p *peeker) SetDeadline(time.Time) error      { return nil }
func (p *peeker) SetReadDeadline(time.Time) error  { return nil }
func (p *peeker) SetWriteDeadline(time.Time) error { return nil }

// parseHello reads a ClientHello from bytes.
func parseHello(b []byte) (hello, error) {
	return readHello(bufio.NewReaderSize(bytes.NewReader(b), maxHello))
}
