package service

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/soulbox-dev/soulbox/control/health"
)

// nodeTLS sets up how nodes are reached over TCP.
func (f File) nodeTLS(_ context.Context, _ func(string) string, cfg *Config) error {
	c := f.Client
	if c == nil {
		return nil
	}
	files := &certFiles{cert: c.CertFile, key: c.KeyFile}
	if _, err := files.get(); err != nil {
		return fmt.Errorf("node_tls: %w", err)
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return fmt.Errorf("node_tls.ca_file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return errors.New("node_tls.ca_file: holds no certificate in PEM form")
	}
	cfg.NodeTLS = func(health.Node) (*tls.Config, error) {
		return &tls.Config{
			MinVersion:           tls.VersionTLS13,
			RootCAs:              roots,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return files.get() },
		}, nil
	}
	return nil
}
