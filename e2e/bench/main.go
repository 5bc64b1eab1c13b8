// Command bench runs the project's benchmarks and prints their figures as one table: what SoulBox takes, what the kernel
// alone takes for the same in the same minute, the ratio, and the target.
//
// It owns the choice of benchmarks, the targets and the table. It measures nothing itself: the benchmarks lie beside what
// they measure, and each takes its floor in the same run.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are how often each benchmark runs. 0 leaves a benchmark out.
type options struct {
	n, hardening, nomad, service, hundred, memory, sampling, neighbours, pauses, network, scale int
	only                                                                                        string
}

func run() error {
	var o options
	var jsonPath string
	flag.IntVar(&o.n, "n", 1000, "creates, destroys and execs on the node")
	flag.IntVar(&o.hardening, "hardening", 50, "creates with and without each part of the hardening")
	flag.IntVar(&o.nomad, "nomad", 50, "creates through Nomad")
	flag.IntVar(&o.service, "service", 5, "rounds of the service's checks: keys, rights, quotas, audit")
	flag.IntVar(&o.hundred, "hundred", 5, "times 100 creates at once")
	flag.IntVar(&o.memory, "memory", 1, "times 50 idle sandboxes")
	flag.IntVar(&o.network, "network", 200, "network slots and policies")
	flag.IntVar(&o.sampling, "sampling", 100, "rounds of samples")
	flag.IntVar(&o.neighbours, "neighbours", 1, "rounds of each attack of one sandbox on another, 900 execs each: a p99 is of all of them")
	flag.IntVar(&o.pauses, "pauses", 3, "rounds of pauses, of 100 forks and of 10 snapshots")
	flag.IntVar(&o.scale, "scale", 50, "claims beside 10,000 sandboxes on 200 simulated nodes")
	flag.StringVar(&o.only, "only", "", "run these groups only, separated by commas: "+groupNames())
	flag.StringVar(&jsonPath, "json", "", "also write the result to this file; - is stdout, in place of the table")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	for _, c := range []struct {
		name string
		n    int
	}{{"n", o.n}, {"hardening", o.hardening}, {"nomad", o.nomad}, {"service", o.service}, {"hundred", o.hundred}, {"memory", o.memory}, {"sampling", o.sampling}, {"neighbours", o.neighbours}, {"pauses", o.pauses}, {"network", o.network}, {"scale", o.scale}} {
		if c.n < 0 {
			return fmt.Errorf("-%s %d is negative", c.name, c.n)
		}
	}
	groups, err := chosen(o)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	result := Result{Machine: machine(), At: time.Now().UTC().Truncate(time.Second)}
	var errs []error
	for _, g := range groups {
		fmt.Fprintf(os.Stderr, "measuring %s …\n", g.name)
		rows, err := g.measure(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", g.name, err))
		}
		result.Rows = append(result.Rows, rows...)
	}
	if jsonPath != "-" {
		result.print(os.Stdout)
	}
	if jsonPath != "" {
		errs = append(errs, writeJSON(jsonPath, result))
	}
	return errors.Join(errs...)
}

func writeJSON(path string, r Result) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if path == "-" {
		_, err = os.Stdout.Write(b)
		return err
	}
	return os.WriteFile(path, b, 0o644)
}
