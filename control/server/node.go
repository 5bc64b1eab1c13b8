package server

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
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

func nodeView(n fleet.Node) api.Node {
	out := api.Node{
		ID: n.Self.ID, Name: n.Self.Name, Address: n.Entry.Address, Version: n.Self.Version, APIVersion: n.Self.APIVersion,
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
	switch {
	case !n.Connected:
		out.Reason = n.Problem
	case !n.Self.Healthy:
		out.Reason = n.Self.Reason
	default:
		out.Reason = n.Entry.Reason
	}
	for _, p := range n.Self.Probes {
		out.Probes = append(out.Probes, api.Probe{Name: p.Name, OK: p.OK, Value: p.Value, Reason: p.Reason, Needed: p.Needed})
	}
	for _, t := range n.Self.Templates {
		out.Templates = append(out.Templates, t.Name)
	}
	return out
}
