package node

import (
	"fmt"
	"net/http"

	"github.com/hashicorp/go-metrics"

	prommetrics "github.com/soulbox-dev/soulbox/nomad-driver/metrics"
)

// newMetrics returns the node's metrics: soulbox_node_creates, _create_failures{reason}, _create_seconds, _exec_sessions,
// _running, …
func newMetrics() (*prommetrics.Sink, *metrics.Metrics, error) {
	sink := prommetrics.NewSink()
	cfg := metrics.DefaultConfig("soulbox_node")
	cfg.EnableHostname = false
	m, err := metrics.New(cfg, sink)
	if err != nil {
		return nil, nil, fmt.Errorf("metrics: %w", err)
	}
	return sink, m, nil
}

func (n *Node) getMetrics(w http.ResponseWriter, _ *http.Request) error {
	n.metrics.SetGauge([]string{"running"}, float32(n.running()))
	if _, free, err := diskSpace(n.cfg.StateDir); err == nil {
		n.metrics.SetPrecisionGauge([]string{"disk_free_bytes"}, float64(free))
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, err := n.sink.WriteTo(w)
	return err
}
