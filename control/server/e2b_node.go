package server

import (
	"net/http"
	"runtime"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/state"
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
	n, err := s.nodeOf(r)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, e2bNodeView(n))
	return nil
}

func e2bNodeView(n fleet.Node) api.E2BNode {
	v := nodeView(n)
	out := api.E2BNode{
		ID: v.ID, ServiceInstanceID: n.Self.Epoch, ClusterID: clusterID, Version: v.Version, Status: e2bStatus(v.Status), StatusChangedAt: v.StatusSince,
		SandboxCount: v.Running, MachineInfo: api.E2BMachine{CPUArchitecture: runtime.GOARCH},
		Metrics: api.E2BNodeMetrics{
			CPUCount: v.CPUs, MemoryTotalBytes: v.MemoryBytes,
			Disks: []api.E2BDisk{{UsedBytes: max(0, v.DiskBytes-v.DiskFree), TotalBytes: v.DiskBytes}},
		},
	}
	return out
}

// e2bStatus is the contract's word for how a node is.
func e2bStatus(status string) string {
	switch status {
	case api.NodeHealthy, api.NodeDegraded:
		return e2bReady
	}
	return status
}

const e2bReady = "ready"

// e2bChangeNode is POST /nodes/{node}.
func (s *Server) e2bChangeNode(w http.ResponseWriter, r *http.Request) error {
	var in api.E2BNodeStatus
	if err := s.decodeBody(w, r, maxJSONBytes, false, &in); err != nil {
		return err
	}
	var order state.NodeOrder
	switch in.Status {
	case e2bReady:
	case api.NodeDraining:
		order = state.NodeDrain
	case api.NodeUnhealthy:
		order = state.NodeUnhealthy
	default:
		return invalid("status is %.40q: ready, draining and unhealthy can be asked for", in.Status)
	}
	if err := s.mark(r, order, ""); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
