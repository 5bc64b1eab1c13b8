package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// Result is what one run measured.
type Result struct {
	At      time.Time `json:"at"`
	Machine Machine   `json:"machine"`
	Rows    []Row     `json:"rows"`
}

// Machine is where it was measured.
type Machine struct {
	Kernel string  `json:"kernel"`
	CPU    string  `json:"cpu"`
	Cores  int     `json:"cores"`
	Load   float64 `json:"load_1m"` // before the run: what else was going on
}

// Row is one figure. P50, P99, Floor and Target are in Unit.
type Row struct {
	Metric  string  `json:"metric"`
	Unit    string  `json:"unit,omitempty"`
	Runs    int     `json:"runs,omitempty"`
	P50     float64 `json:"p50"`
	P99     float64 `json:"p99,omitempty"` // of memory the largest, of rates the least
	Floor   float64 `json:"floor_p50,omitempty"`
	FloorIs string  `json:"floor_is,omitempty"`
	Ratio   float64 `json:"ratio,omitempty"` // P50 to Floor; of rates the other way round: how many times slower
	Target  float64 `json:"target,omitempty"`
	Rate    bool    `json:"rate,omitempty"` // more is better
	Steps   []Step  `json:"steps,omitempty"`
	Missing string  `json:"missing,omitempty"` // why there is no figure
}

// Step is a part of a Row's time.
type Step struct {
	Name string  `json:"name"`
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
}

func (r *Row) ratio() {
	if r.Floor <= 0 || r.P50 <= 0 {
		return
	}
	r.Ratio = r.P50 / r.Floor
	if r.Rate {
		r.Ratio = 1 / r.Ratio
	}
}

// met says how the figure stands to its target.
func (r Row) met() string {
	switch {
	case r.Target == 0:
		return ""
	case r.Rate && r.P50 >= r.Target, !r.Rate && r.P50 <= r.Target:
		return " ✓"
	}
	return " ✗"
}

func machine() Machine {
	m := Machine{Cores: runtime.NumCPU()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(b), &m.Load) // 0 where it cannot be read
	}
	return m
}

// print writes the table for people.
func (r Result) print(w io.Writer) {
	fmt.Fprintf(w, "%s, Linux %s, %d cores of %s, load %.1f before\n\n", r.At.Format(time.RFC3339), r.Machine.Kernel, r.Machine.Cores, r.Machine.CPU, r.Machine.Load)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "METRIC\tP50\tP99\tFLOOR\tRATIO\tTARGET\tRUNS\tTHE FLOOR, OR MORE")
	for _, row := range r.Rows {
		if row.Missing != "" {
			fmt.Fprintf(t, "%s\tnot measured: %s\n", row.Metric, row.Missing)
			continue
		}
		ratio, target := "", ""
		if row.Ratio > 0 {
			ratio = fmt.Sprintf("%.2f", row.Ratio)
		}
		if row.Target > 0 {
			target = number(row.Target, row.Unit) + row.met()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", row.Metric, number(row.P50, row.Unit), number(row.P99, row.Unit),
			number(row.Floor, row.Unit), ratio, target, row.Runs, row.FloorIs)
	}
	_ = t.Flush() // a table that cannot be printed has no reader
	for _, row := range r.Rows {
		if len(row.Steps) == 0 {
			continue
		}
		fmt.Fprintf(w, "\nSteps of \"%s\"\n", row.Metric)
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, "\tp50\tp99\t")
		for _, s := range row.Steps {
			fmt.Fprintf(t, "%s\t%s\t%s\t\n", s.Name, number(s.P50, "ms"), number(s.P99, "ms"))
		}
		_ = t.Flush()
	}
}

// number writes three digits that mean something, with their unit; nothing for 0.
func number(v float64, unit string) string {
	if v == 0 || math.IsNaN(v) {
		return ""
	}
	digits := 2
	switch a := math.Abs(v); {
	case a >= 100:
		digits = 0
	case a >= 10:
		digits = 1
	case a < .1:
		digits = 3
	}
	if strings.HasPrefix(unit, "/") {
		return fmt.Sprintf("%.*f%s", digits, v, unit)
	}
	return fmt.Sprintf("%.*f %s", digits, v, unit)
}
