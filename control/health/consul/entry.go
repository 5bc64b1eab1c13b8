package consul

import (
	"cmp"
	"net"
	"slices"
	"strconv"
	"strings"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/health"
)

// The keys of a node's service metadata.
const (
	MetaNodeID = "node_id"
	MetaName   = "node_name"
)

// maxReason bounds what of a check's output is kept.
const maxReason = 300

// nodesOf returns the nodes behind entries, ordered by address. Of two instances with one address the healthier counts: an
// instance that was replaced can stay in the catalog for a while.
func nodesOf(entries []*consulapi.ServiceEntry, log hclog.Logger) []health.Node {
	out := make([]health.Node, 0, len(entries))
	for _, e := range entries {
		host := e.Service.Address
		if host == "" && e.Node != nil {
			host = e.Node.Address
		}
		if host == "" || e.Service.Port <= 0 {
			log.Warn("instance of a node in consul has no address", "id", e.Service.ID)
			continue
		}
		n := health.Node{
			ID:      api.NodeID(e.Service.Meta[MetaNodeID]),
			Name:    e.Service.Meta[MetaName],
			Address: "https://" + net.JoinHostPort(host, strconv.Itoa(e.Service.Port)),
		}
		if n.Name == "" && e.Node != nil {
			n.Name = e.Node.Node
		}
		n.Status, n.Reason = statusOf(e.Checks)
		out = append(out, n)
	}
	slices.SortStableFunc(out, func(a, b health.Node) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(rank(a.Status), rank(b.Status)), cmp.Compare(a.ID, b.ID))
	})
	return slices.CompactFunc(out, func(a, b health.Node) bool { return a.Address == b.Address })
}

func rank(s health.Status) int {
	switch s {
	case health.Passing:
		return 0
	case health.Unknown:
		return 1
	}
	return 2
}

// statusOf joins the checks of an instance, those of its machine included. A warning does not keep a node from work.
func statusOf(checks consulapi.HealthChecks) (health.Status, string) {
	if len(checks) == 0 {
		return health.Unknown, "it has no check"
	}
	status := health.Passing
	switch checks.AggregatedStatus() {
	case consulapi.HealthPassing, consulapi.HealthWarning:
	case consulapi.HealthCritical, consulapi.HealthMaint:
		status = health.Critical
	default:
		status = health.Unknown
	}
	var reasons []string
	for _, c := range checks {
		maintenance := c.CheckID == consulapi.NodeMaint || strings.HasPrefix(c.CheckID, consulapi.ServiceMaintPrefix)
		if c.Status == consulapi.HealthPassing {
			continue
		}
		text := strings.TrimSpace(c.Output)
		if text == "" {
			text = strings.TrimSpace(c.Notes)
		}
		switch {
		case maintenance:
			text = "maintenance: " + text
		case text == "":
			text = c.Name + " is " + c.Status
		}
		if !slices.Contains(reasons, text) { // the daemon's check has that of the thing that keeps it from work
			reasons = append(reasons, text)
		}
	}
	reason := strings.Join(reasons, "; ")
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") + "…"
	}
	return status, reason
}
