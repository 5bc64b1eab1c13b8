package fleet

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// dial makes the client of a directory entry. It does not connect yet.
func (f *Fleet) dial(n health.Node) (*nodeapi.Client, error) {
	if path, ok := strings.CutPrefix(n.Address, "unix://"); ok && strings.HasPrefix(path, "/") {
		return nodeapi.NewUnix(path), nil
	}
	addr, ok := strings.CutPrefix(n.Address, "https://")
	if !ok {
		return nil, fmt.Errorf("address %.80q of node %s is neither unix:///path nor https://host:port", n.Address, n.Name)
	}
	if f.cfg.TLS == nil {
		return nil, fmt.Errorf("node at %s needs mutual TLS, which is not configured", n.Address)
	}
	cfg, err := f.cfg.TLS(n)
	if err != nil {
		return nil, fmt.Errorf("TLS settings for node at %s: %w", n.Address, err)
	}
	return nodeapi.NewTLS(addr, cfg), nil
}

// CheckAPIVersion refuses a node whose API this control service does not speak.
func CheckAPIVersion(n nodeapi.Node) error {
	if n.APIVersion == nodeapi.Version {
		return nil
	}
	older := "node"
	if n.APIVersion > nodeapi.Version {
		older = "control service"
	}
	return api.Errorf(http.StatusBadRequest, api.CodeVersion,
		"node %s has version %s with node API %d, this control service speaks %d: upgrade the %s",
		n.ID, n.Version, n.APIVersion, nodeapi.Version, older)
}
