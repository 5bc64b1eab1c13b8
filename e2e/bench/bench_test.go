package main

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestParse_readsTheLineOfTheBenchmark(t *testing.T) {
	const out = "goos: linux\nBenchmarkCreateAll-2 \t 1\t 9 p50-µs\n" +
		"BenchmarkCreate-2   \t      20\t     3.5 destroy-p50-µs\t  8569 p50-µs\t 441 step-00-cgroup-p50-µs\t 2 step-00-cgroup-p99-µs\t 7 step-01-boot.names-p50-µs\n" +
		"--- BENCH: BenchmarkCreate-2\n    bench_test.go:60: a log\nPASS\n"
	f, skipped := parse(out, "BenchmarkCreate")
	must.Eq(t, "", skipped)
	must.Eq(t, 8569, f["p50-µs"])
	must.Eq(t, 3.5, f["destroy-p50-µs"])
	must.Eq(t, []Step{{Name: "cgroup", P50: .441, P99: .002}, {Name: "boot.names", P50: .007}}, f.steps())
}

func TestParse_tellsWhyABenchmarkWasLeftOut(t *testing.T) {
	f, skipped := parse("--- SKIP: BenchmarkCreate\n    agenttest.go:27: nomad is missing\nPASS\n", "BenchmarkCreate")
	must.Nil(t, f)
	must.Eq(t, "agenttest.go:27: nomad is missing", skipped)
	f, skipped = parse("PASS\nok  \tpkg\t0.1s\n", "BenchmarkCreate")
	must.Nil(t, f)
	must.Eq(t, "", skipped)
}

func TestRow_ratioSaysHowManyTimesTheFloorItTakes(t *testing.T) {
	slow := Row{P50: 6, Floor: 2, Target: 5}
	slow.ratio()
	must.Eq(t, 3, slow.Ratio)
	must.Eq(t, " ✗", slow.met())
	rate := Row{P50: 50, Floor: 200, Target: 40, Rate: true}
	rate.ratio()
	must.Eq(t, 4, rate.Ratio)
	must.Eq(t, " ✓", rate.met())
	alone := Row{P50: 5}
	alone.ratio()
	must.Zero(t, alone.Ratio)
}

func TestPrint_aRowWithoutAFigureSaysWhy(t *testing.T) {
	var b strings.Builder
	Result{Rows: []Row{{Metric: "create", Missing: "nomad is missing"}, {Metric: "exec", Unit: "ms", P50: .0123, Runs: 3}}}.print(&b)
	must.StrContains(t, b.String(), "not measured: nomad is missing")
	must.StrContains(t, b.String(), "0.012 ms")
}

func TestChosen_groups(t *testing.T) {
	groups, err := chosen(options{n: 1, memory: 1})
	must.NoError(t, err)
	must.Len(t, 4, groups) // node, exec, wire, memory
	groups, err = chosen(options{n: 1, memory: 1, only: "exec"})
	must.NoError(t, err)
	must.Len(t, 1, groups)
	_, err = chosen(options{only: "speed"})
	must.ErrorContains(t, err, "node, nomad")
}
