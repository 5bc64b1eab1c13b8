package server

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// getNetwork is GET /v1/sandboxes/{id}/network.
func (s *Server) getNetwork(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	node, err := s.cfg.Lifecycle.NodeFor(r.Context(), tenant(r), id)
	if err != nil {
		return err
	}
	st, err := node.Network(r.Context(), id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, st)
	return nil
}

// putNetwork is PUT /v1/sandboxes/{id}/network: the lists with protocols and ports, which the contract's way does not have.
func (s *Server) putNetwork(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	var req api.NetworkPolicy
	if err := s.decodeBody(w, r, maxJSONBytes, true, &req); err != nil {
		return err
	}
	if _, err := policy.ParseLayer("sandbox", policy.Spec(req)); err != nil {
		return invalid("%s", err)
	}
	if err := s.cfg.Lifecycle.SetNetworkPolicy(r.Context(), tenant(r), id, req); err != nil {
		return err
	}
	return s.getNetwork(w, r)
}

// shapeNetwork is PUT /v1/sandboxes/{id}/network/shape.
func (s *Server) shapeNetwork(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	var req api.NetworkShape
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	if err := s.cfg.Lifecycle.ShapeNetwork(r.Context(), tenant(r), id, req); err != nil {
		return err
	}
	return s.getNetwork(w, r)
}

// joinNetworks is PUT /v1/sandboxes/{id}/network/join.
func (s *Server) joinNetworks(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	var req api.NetworkJoin
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	if err := s.cfg.Lifecycle.JoinNetworks(r.Context(), tenant(r), id, req.Networks); err != nil {
		return err
	}
	return s.getNetwork(w, r)
}

// dryRunNetwork is POST /v1/sandboxes/{id}/network/dry-run.
func (s *Server) dryRunNetwork(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	var req api.NetworkPolicy
	if err := s.decodeBody(w, r, maxJSONBytes, true, &req); err != nil {
		return err
	}
	if _, err := policy.ParseLayer("sandbox", policy.Spec(req)); err != nil {
		return invalid("%s", err)
	}
	node, err := s.cfg.Lifecycle.NodeFor(r.Context(), tenant(r), id)
	if err != nil {
		return err
	}
	out, err := node.DryRunNetwork(r.Context(), id, nodeapi.Network{Layers: []api.NetworkLayer{{Name: "sandbox", NetworkPolicy: req}}})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// testNetwork is POST /v1/sandboxes/{id}/network/test.
func (s *Server) testNetwork(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	var req api.NetworkTest
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
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
	node, err := s.cfg.Lifecycle.NodeFor(r.Context(), tenant(r), id)
	if err != nil {
		return err
	}
	list, err := node.Published(r.Context(), id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, api.PublishedPorts{Ports: list})
	return nil
}

// putPublished is PUT /v1/sandboxes/{id}/published. Ports are the node's to keep: they end with the sandbox there.
func (s *Server) putPublished(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	var req api.PublishedPorts
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	node, err := s.cfg.Lifecycle.NodeFor(r.Context(), tenant(r), id)
	if err != nil {
		return err
	}
	list, err := node.SetPublished(r.Context(), id, req.Ports)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, api.PublishedPorts{Ports: list})
	return nil
}
