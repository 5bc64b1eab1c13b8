package server

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// sandboxAndBody returns the sandbox that a request names, and reads its body into v.
func (s *Server) sandboxAndBody(w http.ResponseWriter, r *http.Request, optional bool, v any) (api.SandboxID, error) {
	id, err := sandboxID(r)
	if err != nil {
		return "", err
	}
	return id, s.decodeBody(w, r, maxJSONBytes, optional, v)
}

// networkPolicy returns the sandbox that a request names, and the policy in its body, which has no mistake.
func (s *Server) networkPolicy(w http.ResponseWriter, r *http.Request) (api.SandboxID, api.NetworkPolicy, error) {
	var req api.NetworkPolicy
	id, err := s.sandboxAndBody(w, r, true, &req)
	if err != nil {
		return "", req, err
	}
	if _, err := policy.ParseLayer("sandbox", policy.Spec(req)); err != nil {
		return "", req, invalid("%s", err)
	}
	return id, req, nil
}

// getNetwork is GET /v1/sandboxes/{id}/network.
func (s *Server) getNetwork(w http.ResponseWriter, r *http.Request) error {
	id, node, err := s.node(r)
	if err != nil {
		return err
	}
	st, err := node.Network(r.Context(), id)
	if err != nil {
		return err
	}
	if st.Elsewhere, err = s.cfg.Lifecycle.Elsewhere(tenant(r), id); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, st)
	return nil
}

// putNetwork is PUT /v1/sandboxes/{id}/network: the lists with protocols and ports, which the contract's way does not have.
func (s *Server) putNetwork(w http.ResponseWriter, r *http.Request) error {
	id, req, err := s.networkPolicy(w, r)
	if err != nil {
		return err
	}
	if err := s.cfg.Lifecycle.SetNetworkPolicy(r.Context(), tenant(r), id, req); err != nil {
		return err
	}
	return s.getNetwork(w, r)
}

// shapeNetwork is PUT /v1/sandboxes/{id}/network/shape.
func (s *Server) shapeNetwork(w http.ResponseWriter, r *http.Request) error {
	var req api.NetworkShape
	id, err := s.sandboxAndBody(w, r, false, &req)
	if err != nil {
		return err
	}
	if err := s.cfg.Lifecycle.ShapeNetwork(r.Context(), tenant(r), id, req); err != nil {
		return err
	}
	return s.getNetwork(w, r)
}

// joinNetworks is PUT /v1/sandboxes/{id}/network/join.
func (s *Server) joinNetworks(w http.ResponseWriter, r *http.Request) error {
	var req api.NetworkJoin
	id, err := s.sandboxAndBody(w, r, false, &req)
	if err != nil {
		return err
	}
	if err := s.cfg.Lifecycle.JoinNetworks(r.Context(), tenant(r), id, req.Networks); err != nil {
		return err
	}
	return s.getNetwork(w, r)
}

// dryRunNetwork is POST /v1/sandboxes/{id}/network/dry-run.
func (s *Server) dryRunNetwork(w http.ResponseWriter, r *http.Request) error {
	id, req, err := s.networkPolicy(w, r)
	if err != nil {
		return err
	}
	node, err := s.cfg.Lifecycle.NodeFor(r.Context(), tenant(r), id)
	if err != nil {
		return err
	}
	want, err := s.cfg.Lifecycle.NetworkWith(tenant(r), id, req)
	if err != nil {
		return err
	}
	out, err := node.DryRunNetwork(r.Context(), id, want)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// testNetwork is POST /v1/sandboxes/{id}/network/test.
func (s *Server) testNetwork(w http.ResponseWriter, r *http.Request) error {
	var req api.NetworkTest
	id, err := s.sandboxAndBody(w, r, false, &req)
	if err != nil {
		return err
	}
	node, err := s.cfg.Lifecycle.NodeFor(r.Context(), tenant(r), id)
	if err != nil {
		return err
	}
	v, err := node.TestNetwork(r.Context(), id, req)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, v)
	return nil
}

// getPublished is GET /v1/sandboxes/{id}/published.
func (s *Server) getPublished(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	list, err := s.cfg.Lifecycle.Published(r.Context(), tenant(r), id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, api.PublishedPorts{Ports: list})
	return nil
}

// putPublished is PUT /v1/sandboxes/{id}/published.
func (s *Server) putPublished(w http.ResponseWriter, r *http.Request) error {
	var req api.PublishedPorts
	id, err := s.sandboxAndBody(w, r, false, &req)
	if err != nil {
		return err
	}
	list, err := s.cfg.Lifecycle.SetPublished(r.Context(), tenant(r), id, req.Ports)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, api.PublishedPorts{Ports: list})
	return nil
}
