package server

import (
	"net/http"
	"runtime"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
)

// The one cluster that the contract's ids speak of.
const clusterID = "00000000-0000-8000-8000-000000000000"

// e2bNodes is GET /nodes.
func (s *Server) e2bNodes(w http.ResponseWriter, _ *http.Request) error {
	if s.cfg.Fleet == nil {
		return api.Errorf(http.StatusNotImplemented, codeUnsupported, "this service does not show its nodes")
	}
	nodes := s.cfg.Fleet.Nodes()
	out := make([]api.E2BNode, 0, len(nodes))
	for _, n := range nodes {
		out = append(out, e2bNodeView(n))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// e2bNode is GET /nodes/{node}.
func (s *Server) e2bNode(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.Fleet != nil {
		for _, n := range s.cfg.Fleet.Nodes() {
			if v := e2bNodeView(n); string(v.ID) == r.PathValue("node") {
				writeJSON(w, http.StatusOK, v)
				return nil
			}
		}
	}
	return api.Errorf(http.StatusNotFound, api.CodeNotFound, "node %.80q does not exist", r.PathValue("node"))
}

func e2bNodeView(n fleet.Node) api.E2BNode {
	v := nodeView(n)
	out := api.E2BNode{
		ID: v.ID, ServiceInstanceID: n.Self.Epoch, ClusterID: clusterID, Version: v.Version, Status: "ready", StatusChangedAt: n.Self.StartedAt.UTC(),
		SandboxCount: v.Running, MachineInfo: api.E2BMachine{CPUArchitecture: runtime.GOARCH},
		Metrics: api.E2BNodeMetrics{
			CPUCount: v.CPUs, MemoryTotalBytes: v.MemoryBytes,
			Disks: []api.E2BDisk{{UsedBytes: max(0, v.DiskBytes-v.DiskFree), TotalBytes: v.DiskBytes}},
		},
	}
	switch {
	case !v.Connected:
		out.Status = "connecting"
	case !v.Healthy:
		out.Status = "unhealthy"
	}
	if out.StatusChangedAt.IsZero() {
		out.StatusChangedAt = time.Unix(0, 0).UTC()
	}
	return out
}
