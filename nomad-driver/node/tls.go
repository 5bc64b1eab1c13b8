package node

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"
)

// noHTTP2 keeps the server to HTTP/1.1: exec upgrades the connection, which HTTP/2 cannot.
var noHTTP2 = map[string]func(*http.Server, *tls.Conn, http.Handler){}

// certCheck is how often the files are looked at.
const certCheck = time.Second

func (n *Node) listenTLS() (net.Listener, error) {
	certs := &certFiles{cfg: n.cfg.TLS}
	if _, err := certs.current(); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", n.cfg.Address)
	if err != nil {
		return nil, err
	}
	n.cfg.Address = l.Addr().String() // of port 0
	return tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			cfg, err := certs.current()
			if err != nil {
				n.log.Error("certificates cannot be read; the old ones stay in use", "error", err)
			}
			if cfg == nil {
				return nil, err
			}
			return cfg, nil
		},
	}), nil
}

// certFiles makes the TLS configuration from its files, again whenever one of them has changed.
type certFiles struct {
	cfg TLS

	mu      sync.Mutex
	checked time.Time
	stamps  [3]fileStamp
	made    *tls.Config
}

type fileStamp struct {
	mod  time.Time
	size int64
	ino  uint64
}

// current returns the configuration to use. Beside an error it is the last good one, if there was one.
func (c *certFiles) current() (*tls.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made != nil && time.Since(c.checked) < certCheck {
		return c.made, nil
	}
	c.checked = time.Now()
	var stamps [3]fileStamp
	for i, p := range []string{c.cfg.CAFile, c.cfg.CertFile, c.cfg.KeyFile} {
		fi, err := os.Stat(p)
		if err != nil {
			return c.made, fmt.Errorf("tls: %w", err)
		}
		stamps[i] = fileStamp{mod: fi.ModTime(), size: fi.Size(), ino: inode(fi)}
	}
	if c.made != nil && stamps == c.stamps {
		return c.made, nil
	}
	made, err := c.load()
	if err != nil {
		return c.made, fmt.Errorf("tls: %w", err)
	}
	c.made, c.stamps = made, stamps
	return made, nil
}

func (c *certFiles) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(c.cfg.CertFile, c.cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(c.cfg.CAFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", c.cfg.CAFile)
	}
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		Certificates:     []tls.Certificate{cert},
		ClientCAs:        pool,
		ClientAuth:       tls.RequireAndVerifyClientCert,
		NextProtos:       []string{"http/1.1"},
		VerifyConnection: c.verify,
		// A resumed session would outlive the change of the CA.
		SessionTicketsDisabled: true,
	}, nil
}

// verify checks the client's name beyond what its chain has shown.
func (c *certFiles) verify(s tls.ConnectionState) error {
	if len(c.cfg.ClientNames) == 0 {
		return nil
	}
	if len(s.PeerCertificates) == 0 {
		return errors.New("client without a certificate")
	}
	for _, name := range s.PeerCertificates[0].DNSNames {
		if slices.Contains(c.cfg.ClientNames, name) {
			return nil
		}
	}
	return fmt.Errorf("client certificate for %q carries none of the names that may use this node", s.PeerCertificates[0].DNSNames)
}
