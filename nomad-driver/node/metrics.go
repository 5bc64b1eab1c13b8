package node

import (
	"fmt"
	"net/http"

	"github.com/hashicorp/go-metrics"

	prommetrics "github.com/soulbox-dev/soulbox/nomad-driver/metrics"
)

const metricsPrefix = "soulbox_node"

// newMetrics returns the node's metrics: soulbox_node_creates, _create_failures{reason}, _create_seconds, _exec_sessions,
// _running, …
func newMetrics() (*prommetrics.Sink, *metrics.Metrics, error) {
	sink := prommetrics.NewSink()
	cfg := metrics.DefaultConfig(metricsPrefix)
	cfg.EnableHostname = false
	m, err := metrics.New(cfg, sink)
	if err != nil {
		return nil, nil, fmt.Errorf("metrics: %w", err)
	}
	return sink, m, nil
}

func (n *Node) getMetrics(w http.ResponseWriter, _ *http.Request) error {
	n.metrics.SetGauge([]string{"running"}, float32(n.running()))
	n.metrics.SetGauge([]string{"id_ranges"}, float32(n.ids.held()))
	if _, free, err := diskSpace(n.cfg.StateDir); err == nil {
		n.metrics.SetPrecisionGauge([]string{"disk_free_bytes"}, float64(free))
	}
	n.exportSamples()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, err := n.sink.WriteTo(w)
	return err
}

// exportSamples puts the sums of all sandboxes into the sink: gauges of what they use now, and counters of what they have
// used since this daemon started. Each sandbox's own figures are in its samples: as labels they would be series without end.
func (n *Node) exportSamples() {
	count, now := n.sampler.Total()
	for name, v := range map[string]float64{
		"sandboxes_sampled": float64(count), "sandboxes_cpu_percent": now.CPUPercent,
		"sandboxes_memory_bytes": float64(now.MemoryBytes), "sandboxes_memory_cache_bytes": float64(now.MemoryCache),
		"sandboxes_memory_limit_bytes": float64(now.MemoryTotal), "sandboxes_cpu_limit_millis": float64(now.CPUMillis),
		"sandboxes_disk_used_bytes": float64(now.DiskUsed), "sandboxes_processes": float64(now.Processes),
	} {
		n.metrics.SetPrecisionGauge([]string{name}, v)
	}
	grown := n.sampler.Grown()
	for name, v := range map[string]float64{
		"sandboxes_cpu_seconds_total":        float64(grown.CPUNanos) / 1e9,
		"sandboxes_disk_read_bytes_total":    float64(grown.DiskRead),
		"sandboxes_disk_written_bytes_total": float64(grown.DiskWritten),
		"sandboxes_net_in_bytes_total":       float64(grown.NetIn),
		"sandboxes_net_out_bytes_total":      float64(grown.NetOut),
	} {
		n.sink.SetCounter([]string{metricsPrefix, name}, v)
	}
}
