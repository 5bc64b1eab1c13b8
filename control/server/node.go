package server

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/state"
)

// nodes is GET /v1/nodes.
func (s *Server) nodes(w http.ResponseWriter, _ *http.Request) error {
	if s.cfg.Fleet == nil {
		return api.Errorf(http.StatusNotImplemented, codeUnsupported, "this service does not show its nodes")
	}
	ns := s.cfg.Fleet.Nodes()
	out := make([]api.Node, 0, len(ns))
	for _, n := range ns {
		out = append(out, nodeView(n))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// nodeOf returns the node that a request's path names.
func (s *Server) nodeOf(r *http.Request) (fleet.Node, error) {
	if s.cfg.Fleet != nil {
		for _, n := range s.cfg.Fleet.Nodes() {
			if string(nodeView(n).ID) == r.PathValue("node") {
				return n, nil
			}
		}
	}
	return fleet.Node{}, api.Errorf(http.StatusNotFound, api.CodeNotFound, "node %.80q does not exist", r.PathValue("node"))
}

// node is GET /v1/nodes/{node}.
func (s *Server) oneNode(w http.ResponseWriter, r *http.Request) error {
	n, err := s.nodeOf(r)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, nodeView(n))
	return nil
}

// orderNode is POST /v1/nodes/{node}/drain, /mark and, without an order, /resume.
func (s *Server) orderNode(order state.NodeOrder) handle {
	return func(w http.ResponseWriter, r *http.Request) error {
		var in api.NodeReason
		if order != "" {
			if err := s.decodeBody(w, r, maxJSONBytes, true, &in); err != nil {
				return err
			}
		}
		if err := s.mark(r, order, in.Reason); err != nil {
			return err
		}
		return s.oneNode(w, r)
	}
}

// mark says something about the node that the path names, or takes it back.
func (s *Server) mark(r *http.Request, order state.NodeOrder, reason string) error {
	if s.cfg.Nodes == nil {
		return api.Errorf(http.StatusNotImplemented, codeUnsupported, "this service does not take orders about its nodes")
	}
	who := caller(r)
	by := who.User()
	if by == "" {
		by = "key:" + who.KeyID
	}
	return s.cfg.Nodes.MarkNode(r.Context(), api.NodeID(r.PathValue("node")), order, reason, by)
}

func nodeView(n fleet.Node) api.Node {
	out := api.Node{
		ID: n.Self.ID, Name: n.Self.Name, Address: n.Entry.Address, Version: n.Self.Version, APIVersion: n.Self.APIVersion,
		Status: string(n.Status.State), StatusSince: n.Status.Since.UTC(), Reason: n.Status.Reason, Checks: make([]api.NodeCheck, 0, len(n.Self.Checks)),
		Connected: n.Connected, Healthy: n.Connected && n.Self.Healthy, Directory: string(n.Entry.Status), Kernel: n.Self.Kernel,
		CPUs: n.Self.CPUs, MemoryBytes: n.Self.MemoryBytes, DiskBytes: n.Self.DiskBytes, DiskFree: n.Self.DiskFree,
		Running: n.Self.Running, MaxSandbox: n.Self.MaxSandbox, StartedAt: utc(n.Self.StartedAt),
		Probes: make([]api.Probe, 0, len(n.Self.Probes)), Templates: make([]string, 0, len(n.Self.Templates)),
	}
	if out.ID == "" {
		out.ID = n.Entry.ID
	}
	if out.Name == "" {
		out.Name = n.Entry.Name
	}
	for _, c := range n.Self.Checks {
		out.Checks = append(out.Checks, api.NodeCheck{Name: c.Name, Status: string(c.Status), Output: c.Output})
	}
	if n.Mark.State != "" {
		out.Mark = &api.NodeMark{Status: string(n.Mark.State), Reason: n.Mark.Reason, By: n.Mark.By, At: n.Mark.At.UTC()}
	}
	for _, p := range n.Self.Probes {
		out.Probes = append(out.Probes, api.Probe{Name: p.Name, OK: p.OK, Value: p.Value, Reason: p.Reason, Needed: p.Needed})
	}
	for _, t := range n.Self.Templates {
		out.Templates = append(out.Templates, t.Name)
	}
	return out
}
