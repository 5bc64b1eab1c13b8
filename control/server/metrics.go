package server

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/hashicorp/go-metrics"
)

// maxSeries bounds the series that are kept, so that no label that a client can choose fills the memory.
const maxSeries = 10_000

// Metrics is a sink of go-metrics that shows itself in the text format of Prometheus. It is safe for concurrent use.
type Metrics struct {
	mu      sync.Mutex
	series  map[string]*series // by name and labels
	dropped float64            // values of series beyond maxSeries
}

var _ metrics.MetricSink = (*Metrics)(nil)

type series struct {
	name, labels, kind string
	value              float64 // of a gauge or counter; the sum of a summary
	count              uint64
}

// NewMetrics returns an empty sink.
func NewMetrics() *Metrics { return &Metrics{series: map[string]*series{}} }

// SetGauge implements metrics.MetricSink.
func (m *Metrics) SetGauge(key []string, v float32) { m.SetGaugeWithLabels(key, v, nil) }

// SetGaugeWithLabels implements metrics.MetricSink.
func (m *Metrics) SetGaugeWithLabels(key []string, v float32, labels []metrics.Label) {
	m.update("gauge", key, labels, func(s *series) { s.value = float64(v) })
}

// EmitKey implements metrics.MetricSink. Prometheus has nothing like it.
func (m *Metrics) EmitKey([]string, float32) {}

// IncrCounter implements metrics.MetricSink.
func (m *Metrics) IncrCounter(key []string, v float32) { m.IncrCounterWithLabels(key, v, nil) }

// IncrCounterWithLabels implements metrics.MetricSink.
func (m *Metrics) IncrCounterWithLabels(key []string, v float32, labels []metrics.Label) {
	m.update("counter", key, labels, func(s *series) { s.value += float64(v) })
}

// AddSample implements metrics.MetricSink.
func (m *Metrics) AddSample(key []string, v float32) { m.AddSampleWithLabels(key, v, nil) }

// AddSampleWithLabels implements metrics.MetricSink: a sample is a summary with its sum and its count.
func (m *Metrics) AddSampleWithLabels(key []string, v float32, labels []metrics.Label) {
	m.update("summary", key, labels, func(s *series) { s.value += float64(v); s.count++ })
}

func (m *Metrics) update(kind string, key []string, labels []metrics.Label, change func(*series)) {
	name, text := metricName(key), labelText(labels)
	m.mu.Lock()
	defer m.mu.Unlock()
	id := kind + "\x00" + name + text
	s, ok := m.series[id]
	if !ok {
		if len(m.series) >= maxSeries {
			m.dropped++
			return
		}
		s = &series{name: name, labels: text, kind: kind}
		m.series[id] = s
	}
	change(s)
}

// text returns all series in the text format of Prometheus, version 0.0.4.
func (m *Metrics) text() []byte {
	m.mu.Lock()
	all := make([]series, 0, len(m.series)+1)
	for s := range maps.Values(m.series) {
		all = append(all, *s)
	}
	all = append(all, series{name: "soulbox_metrics_dropped_total", kind: "counter", value: m.dropped})
	m.mu.Unlock()
	slices.SortFunc(all, func(a, b series) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.kind, b.kind), cmp.Compare(a.labels, b.labels))
	})
	var b bytes.Buffer
	last, kind := "", ""
	for _, s := range all {
		if s.name != last {
			fmt.Fprintf(&b, "# TYPE %s %s\n", s.name, s.kind)
			last, kind = s.name, s.kind
		}
		if s.kind != kind { // one name of two kinds is not allowed: the first one counts
			continue
		}
		value := strconv.FormatFloat(s.value, 'g', -1, 64)
		if s.kind == "summary" {
			fmt.Fprintf(&b, "%s_sum%s %s\n%s_count%s %d\n", s.name, s.labels, value, s.name, s.labels, s.count)
			continue
		}
		fmt.Fprintf(&b, "%s%s %s\n", s.name, s.labels, value)
	}
	return b.Bytes()
}

// metricName joins a key of go-metrics to a name that Prometheus takes.
func metricName(key []string) string {
	name := strings.Map(func(r rune) rune {
		if (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z') || (r >= '0' && r <= '9') || r == '_' || r == ':' {
			return r
		}
		return '_'
	}, strings.Join(key, "_"))
	if name == "" || (name[0] >= '0' && name[0] <= '9') {
		return "_" + name
	}
	return name
}

func labelText(labels []metrics.Label) string {
	if len(labels) == 0 {
		return ""
	}
	var b strings.Builder
	for i, l := range labels {
		b.WriteByte("{,"[min(i, 1)])
		b.WriteString(strings.ReplaceAll(metricName([]string{l.Name}), ":", "_"))
		b.WriteString(`="`)
		b.WriteString(labelEscaper.Replace(l.Value))
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

var labelEscaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// showMetrics is GET /v1/metrics.
func (s *Server) showMetrics(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(s.metrics.text())
	return nil
}
