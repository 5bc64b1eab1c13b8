package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// figures are what a benchmark reported, by unit.
type figures map[string]float64

// gotest runs one benchmark n times. skipped says why it did not run.
func gotest(ctx context.Context, pkg, bench string, n int) (f figures, skipped string, err error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-tags=hashicorpmetrics", "-run=^$", "-bench=^"+bench+"$", "-benchtime="+strconv.Itoa(n)+"x", "-timeout=60m", pkg)
	cmd.Cancel = func() error { return nil } // it has the same interrupt, and cleans up
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return nil, "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out.String())
	}
	f, skipped = parse(out.String(), bench)
	if f == nil && skipped == "" {
		return nil, "", fmt.Errorf("%s: no result in its output\n%s", strings.Join(cmd.Args, " "), out.String())
	}
	return f, skipped, nil
}

// parse reads the line of a benchmark: its name, the number of runs, and pairs of a value and its unit. Where it was skipped,
// the line after the one that says so has the reason.
func parse(out, bench string) (f figures, skipped string) {
	lines := strings.Split(out, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "--- SKIP: "+bench) {
			if i+1 < len(lines) {
				return nil, strings.TrimSpace(lines[i+1])
			}
			return nil, "skipped"
		}
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[0] != bench && !strings.HasPrefix(fields[0], bench+"-") {
			continue
		}
		f = figures{}
		for i := 2; i+1 < len(fields); i += 2 {
			v, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, ""
			}
			f[fields[i+1]] = v
		}
		return f, ""
	}
	return nil, ""
}

// row reads a figure whose units are prefix+"p50-µs" and so on.
func (f figures) row(metric, unit, prefix string, factor float64, floorIs string, target float64) Row {
	return Row{
		Metric: metric, Unit: unit, P50: f[prefix+"p50-µs"] * factor, P99: f[prefix+"p99-µs"] * factor,
		Floor: f[prefix+"floor-p50-µs"] * factor, FloorIs: floorIs, Target: target,
	}
}

// steps are the figures "step-NN-name-p50-µs" in the order of their numbers.
func (f figures) steps() []Step {
	var units []string
	for unit := range f {
		if strings.HasPrefix(unit, "step-") && strings.HasSuffix(unit, "-p50-µs") {
			units = append(units, strings.TrimSuffix(unit, "-p50-µs"))
		}
	}
	slices.Sort(units)
	var steps []Step
	for _, u := range units {
		name := strings.SplitN(u, "-", 3)
		if len(name) == 3 {
			steps = append(steps, Step{Name: name[2], P50: f[u+"-p50-µs"] * micros, P99: f[u+"-p99-µs"] * micros})
		}
	}
	return steps
}

func (r Row) withSteps(f figures) Row {
	r.Steps = f.steps()
	return r
}
