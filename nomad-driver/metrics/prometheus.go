// Package metrics is a go-metrics sink that a Prometheus server can scrape.
//
// It owns the sums and the text form. It measures nothing itself and serves no HTTP; go-metrics' own Prometheus sink is
// not used because it brings the whole client library for a page of text.
package metrics

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/hashicorp/go-metrics"
)

// maxSeries bounds the memory of a Sink whose labels come, against the rules, from outside.
const maxSeries = 10_000

// Buckets are the upper bounds of samples, in the samples' own unit (seconds): 1 ms to 10 s.
var buckets = []float64{.001, .002, .004, .008, .015, .03, .06, .125, .25, .5, 1, 2.5, 5, 10}

// Sink is a metrics.MetricSink. Counters and samples add up from its making on, as Prometheus wants them.
type Sink struct {
	mu     sync.Mutex
	series map[string]*series // by name and labels
}

var (
	_ metrics.MetricSink               = (*Sink)(nil)
	_ metrics.PrecisionGaugeMetricSink = (*Sink)(nil)
)

type series struct {
	name, labels, kind string
	value              float64  // of a gauge or counter; sum of a histogram
	counts             []uint64 // of a histogram: one for each bucket, and all
}

// NewSink returns an empty sink.
func NewSink() *Sink { return &Sink{series: map[string]*series{}} }

// with calls do, under the lock, with the series of a key.
func (s *Sink) with(kind string, key []string, labels []metrics.Label, do func(*series)) {
	name := metricName(key)
	text := labelText(labels)
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.series[name+text]
	if !ok {
		if len(s.series) >= maxSeries {
			return
		}
		m = &series{name: name, labels: text, kind: kind}
		if kind == "histogram" {
			m.counts = make([]uint64, len(buckets)+1)
		}
		s.series[name+text] = m
	}
	if m.kind == kind {
		do(m)
	}
}

// SetGauge implements metrics.MetricSink.
func (s *Sink) SetGauge(key []string, val float32) {
	s.SetPrecisionGaugeWithLabels(key, float64(val), nil)
}

// SetGaugeWithLabels implements metrics.MetricSink.
func (s *Sink) SetGaugeWithLabels(key []string, val float32, labels []metrics.Label) {
	s.SetPrecisionGaugeWithLabels(key, float64(val), labels)
}

// SetPrecisionGauge implements metrics.PrecisionGaugeMetricSink.
func (s *Sink) SetPrecisionGauge(key []string, val float64) {
	s.SetPrecisionGaugeWithLabels(key, val, nil)
}

// SetPrecisionGaugeWithLabels implements metrics.PrecisionGaugeMetricSink.
func (s *Sink) SetPrecisionGaugeWithLabels(key []string, val float64, labels []metrics.Label) {
	s.with("gauge", key, labels, func(m *series) { m.value = val })
}

// EmitKey implements metrics.MetricSink. Prometheus has no such thing.
func (s *Sink) EmitKey([]string, float32) {}

// IncrCounter implements metrics.MetricSink.
func (s *Sink) IncrCounter(key []string, val float32) { s.IncrCounterWithLabels(key, val, nil) }

// IncrCounterWithLabels implements metrics.MetricSink.
func (s *Sink) IncrCounterWithLabels(key []string, val float32, labels []metrics.Label) {
	s.with("counter", key, labels, func(m *series) { m.value += float64(val) })
}

// SetCounter sets a counter that somebody else adds up, and that starts anew only with the process. Its name is key alone,
// without what metrics.Metrics puts before others.
func (s *Sink) SetCounter(key []string, total float64) {
	s.with("counter", key, nil, func(m *series) { m.value = total })
}

// AddSample implements metrics.MetricSink.
func (s *Sink) AddSample(key []string, val float32) { s.AddSampleWithLabels(key, val, nil) }

// AddSampleWithLabels implements metrics.MetricSink.
func (s *Sink) AddSampleWithLabels(key []string, val float32, labels []metrics.Label) {
	s.with("histogram", key, labels, func(m *series) {
		v := float64(val)
		m.value += v
		for i, le := range buckets {
			if v <= le {
				m.counts[i]++
			}
		}
		m.counts[len(buckets)]++
	})
}

// WriteTo writes all series in Prometheus' text form, in the order of their names.
func (s *Sink) WriteTo(w io.Writer) (int64, error) {
	s.mu.Lock()
	all := make([]series, 0, len(s.series))
	for _, m := range s.series {
		c := *m
		c.counts = slices.Clone(m.counts)
		all = append(all, c)
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b series) int {
		if c := strings.Compare(a.name, b.name); c != 0 {
			return c
		}
		return strings.Compare(a.labels, b.labels)
	})
	c := &counter{w: w}
	b := bufio.NewWriter(c)
	last := ""
	for _, m := range all {
		if m.name != last {
			fmt.Fprintf(b, "# TYPE %s %s\n", m.name, m.kind)
			last = m.name
		}
		m.write(b)
	}
	return c.n, b.Flush()
}

func (m *series) write(b *bufio.Writer) {
	if m.kind != "histogram" {
		fmt.Fprintf(b, "%s%s %s\n", m.name, braces(m.labels), number(m.value))
		return
	}
	sep := ""
	if m.labels != "" {
		sep = ","
	}
	for i, le := range append(slices.Clone(buckets), math.Inf(1)) {
		fmt.Fprintf(b, "%s_bucket{%s%sle=\"%s\"} %d\n", m.name, m.labels, sep, number(le), m.counts[i])
	}
	fmt.Fprintf(b, "%s_sum%s %s\n", m.name, braces(m.labels), number(m.value))
	fmt.Fprintf(b, "%s_count%s %d\n", m.name, braces(m.labels), m.counts[len(buckets)])
}

func number(v float64) string {
	if math.IsInf(v, 1) {
		return "+Inf"
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

func braces(labels string) string {
	if labels == "" {
		return ""
	}
	return "{" + labels + "}"
}

// metricName joins a key and replaces what a Prometheus name may not hold.
func metricName(key []string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '_'
	}, strings.Join(key, "_"))
}

func labelText(labels []metrics.Label) string {
	var parts []string
	for _, l := range labels {
		v := strings.NewReplacer("\\", `\\`, "\"", `\"`, "\n", `\n`).Replace(l.Value)
		parts = append(parts, metricName([]string{l.Name})+`="`+v+`"`)
	}
	return strings.Join(parts, ",")
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
