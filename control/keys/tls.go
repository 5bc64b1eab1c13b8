package keys

import (
	"crypto/tls"
	"errors"
	"fmt"
)

// ClientTLS returns the settings of a client that has c and speaks to peer only. An empty name of peer means every
// identity of its role. The certificate is checked for the role's DNS name and for the identity's URI.
func (c *Certificate) ClientTLS(peer Identity) *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		RootCAs:          c.roots,
		Certificates:     []tls.Certificate{c.pair},
		ServerName:       peer.Role.DNSName(),
		VerifyConnection: verify(peer),
	}
}

// ServerTLS returns the settings of a server that has c and serves peer only, as ClientTLS. A client has to have a
// certificate that is made for clients.
func (c *Certificate) ServerTLS(peer Identity) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientCAs:              c.roots,
		ClientAuth:             tls.RequireAndVerifyClientCert,
		Certificates:           []tls.Certificate{c.pair},
		VerifyConnection:       verify(peer),
		SessionTicketsDisabled: true, // a resumed session would outlive its certificate
	}
}

func verify(peer Identity) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("the peer has shown no certificate")
		}
		got, err := identityOf(s.PeerCertificates[0])
		if err != nil {
			return err
		}
		if got.Role != peer.Role || peer.Name != "" && got.Name != peer.Name {
			return fmt.Errorf("the peer is %s, not %s", got, peer)
		}
		return nil
	}
}
