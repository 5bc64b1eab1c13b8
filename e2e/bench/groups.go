package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// A group is one benchmark with the rows that it fills.
type group struct {
	name, pkg, bench string
	times            int
	rows             func(figures) []Row
}

// µs to ms, ns to µs and KiB to MiB, as the table shows them.
const (
	nanos  = 1e-3
	micros = 1e-3
	kib    = 1.0 / 1024
)

// all are the groups in the order of the table, with the targets of this project.
func all(o options) []group {
	return []group{
		{"node", "./nomad-driver/node", "BenchmarkCreate", o.n, func(f figures) []Row {
			floor := "clone into all namespaces, exec and end of true"
			return []Row{
				f.row("create on the node", "ms", "", micros, floor, 8).withSteps(f),
				f.row("destroy", "ms", "destroy-", micros, "kill and wait of a process in all namespaces", 0),
			}
		}},
		{"nomad", "./e2e/cluster", "BenchmarkCreate", o.nomad, func(f figures) []Row {
			return []Row{
				f.row("create through Nomad to the node's report", "ms", "", micros, "the same on the node, without Nomad", 70).withSteps(f),
				f.row("stop through Nomad until the node has nothing of it", "ms", "destroy-", micros, "", 0),
			}
		}},
		{"exec", "./nomad-driver/node", "BenchmarkExec", o.n, func(f figures) []Row {
			return []Row{f.row("exec of /bin/true, to its exit code", "ms", "", micros, "the same program started on the host", 2.5)}
		}},
		{"hardening", "./nomad-driver/sandbox", "BenchmarkHardening", o.hardening, func(f figures) []Row {
			bare := "the same without seccomp, Landlock and masks, with all capabilities, in turns"
			ms := func(unit string) float64 { return f[unit] * micros }
			return []Row{
				{Metric: "create of a sandbox, hardened", Unit: "ms", P50: ms("create-hardened-p50-µs"), Floor: ms("create-bare-p50-µs"), FloorIs: bare},
				{
					Metric: "  what the hardening adds to it", Unit: "ms", P50: ms("create-cost-all-µs"), Target: 1,
					FloorIs: fmt.Sprintf("alone: seccomp %.2f ms, Landlock %.2f ms, masks %.2f ms, capabilities %.2f ms",
						ms("create-cost-seccomp-µs"), ms("create-cost-landlock-µs"), ms("create-cost-masks-µs"), ms("create-cost-capabilities-µs")),
				},
				{
					Metric: "  the same in time of processors", Unit: "ms", P50: ms("create-cpu-all-µs"),
					FloorIs: fmt.Sprintf("of %.2f ms in all; a process in namespaces takes %.2f ms on the clock; alone: seccomp %.2f ms, Landlock %.2f ms, masks %.2f ms, capabilities %.2f ms",
						ms("create-cpu-hardened-µs"), ms("floor-p50-µs"), ms("create-cpu-seccomp-µs"), ms("create-cpu-landlock-µs"), ms("create-cpu-masks-µs"), ms("create-cpu-capabilities-µs")),
				},
				{Metric: "exec of /bin/true in it", Unit: "ms", P50: ms("exec-hardened-p50-µs"), Floor: ms("exec-bare-p50-µs"), FloorIs: bare},
				{Metric: "  what the hardening adds to it", Unit: "ms", P50: ms("exec-cost-all-µs"), FloorIs: fmt.Sprintf("%.3f ms of processors", ms("exec-cpu-all-µs"))},
			}
		}},
		{"wire", "./e2e/api", "BenchmarkWire", o.n, func(f figures) []Row {
			return []Row{
				f.row("exec of /bin/true through the SDKs' protocol and the public port", "ms", "exec-", micros, "the same program started on the host", 2.5),
				f.row("echo of a terminal through the control service", "ms", "echo-", micros, "a byte there and back over loopback", 0.4),
				f.row("first byte of a followed log", "ms", "log-", micros, "", 0),
				{Metric: "200 long streams, until each has sent a line", Unit: "ms", P50: f["streams-µs"] * micros,
					Floor: f["streams-floor-µs"] * micros, FloorIs: "the same processes, plain"},
				{Metric: "upload of 64 MiB, to a loopback copy of the same bytes", Unit: "%", P50: f["up-%"], Target: 50, Rate: true},
				{Metric: "upload in the place of another file of 64 MiB", Unit: "%", P50: f["up-again-%"], Target: 50, Rate: true},
				{Metric: "download of it", Unit: "%", P50: f["down-%"], Target: 70, Rate: true},
			}
		}},
		{"pool", "./e2e/api", "BenchmarkPool", o.nomad, func(f figures) []Row {
			return []Row{
				f.row("create that finds a warm sandbox, durable", "ms", "create-", micros, "4 KiB written and synced", 2),
				f.row("  and a first exec in it", "ms", "first-", micros, "", 5),
				f.row("  fifty at once", "ms", "herd-", micros, "", 10),
				{Metric: "  until a slot is made and warm", Unit: "ms", P50: f["refill-µs"] * micros},
			}
		}},
		{"scale", "./control/core", "BenchmarkScale", o.scale, func(f figures) []Row {
			synced := "4 KiB written and synced"
			claim := func(metric, prefix string) Row {
				return Row{Metric: metric, Unit: "ms", P50: f[prefix+"p50-µs"] * micros, P99: f[prefix+"p99-µs"] * micros, Floor: f["floor-p50-µs"] * micros, FloorIs: synced}
			}
			return []Row{
				{Metric: "10,000 sandboxes on 200 nodes (simulated): the control service's memory", Unit: "MiB", P50: f["heap-MiB"]},
				{Metric: "  of it for each sandbox", Unit: "KiB", P50: f["sandbox-KiB"]},
				{Metric: "  of it for each node", Unit: "KiB", P50: f["node-KiB"]},
				{Metric: "  creates without a pool, 64 at once", Unit: "/s", P50: f["creates/s"], Rate: true},
				{Metric: "  reports of sandboxes that it takes from its nodes", Unit: "/s", P50: f["events/s"], Rate: true},
				claim("  create that finds a warm sandbox", "claim-"),
				claim("  fifty at once", "herd-"),
			}
		}},
		{"link", "./e2e/vault", "BenchmarkLink", o.nomad, func(f figures) []Row {
			return []Row{
				{Metric: "check of a signed link, with the key in memory", Unit: "µs", P50: f["local-µs"], Floor: f["floor-µs"], FloorIs: "HMAC-SHA256 of the same bytes", Target: 5},
				{Metric: "  the same HMAC made by Vault's transit engine", Unit: "µs", P50: f["vault-µs"], Floor: f["floor-µs"], FloorIs: "HMAC-SHA256 of the same bytes"},
			}
		}},
		{"key", "./control/auth", "BenchmarkVerify", o.service * 20_000, func(f figures) []Row {
			return []Row{{Metric: "authentication of an API key", Unit: "µs", P50: f["ns/op"] * nanos, Floor: f["floor-ns"] * nanos, FloorIs: "SHA-256 of its secret", Target: 2}}
		}},
		{"token", "./control/auth", "BenchmarkToken_known", o.service * 20_000, func(f figures) []Row {
			return []Row{{Metric: "authentication of a token that was seen before", Unit: "µs", P50: f["ns/op"] * nanos, Floor: f["floor-ns"] * nanos, FloorIs: "SHA-256 of it", Target: 2}}
		}},
		{"decision", "./control/rbac", "BenchmarkDecide_cached", o.service * 100_000, func(f figures) []Row {
			return []Row{{Metric: "decision on a permission, of somebody who was seen before", Unit: "µs", P50: f["ns/op"] * nanos, Target: 0.2}}
		}},
		{"decision-cold", "./control/rbac", "BenchmarkDecide_uncached", o.service * 20_000, func(f figures) []Row {
			return []Row{{Metric: "  of a stranger, by labels and ids, with 1,000 roles", Unit: "µs", P50: f["ns/op"] * nanos, Target: 5}}
		}},
		{"quota", "./control/quota", "BenchmarkCheck", o.service, func(f figures) []Row {
			return []Row{
				{Metric: "quota check of a call", Unit: "ns", P50: f["call-ns"], Floor: f["clock-ns"], FloorIs: "reading the clock", Target: 40},
				{Metric: "quota check of a create, and giving it back", Unit: "ns", P50: f["reserve-ns"], Floor: f["floor-ns"], FloorIs: "an atomic addition"},
			}
		}},
		{"audit", "./control/audit", "BenchmarkEvent", o.service, func(f figures) []Row {
			return []Row{{
				Metric: "audit events masked, encoded, chained and signed, per second and core", Unit: "/s", P50: f["events/s/core"], Floor: f["floor/s/core"],
				FloorIs: "the hash alone", Target: 200_000, Rate: true,
			}}
		}},
		{"audit-disk", "./control/audit", "BenchmarkDurable", o.service, func(f figures) []Row {
			return []Row{{
				Metric: "audit events that 256 callers get on the disk, per second", Unit: "/s", P50: f["events/s"], Floor: f["floor/s"],
				FloorIs: "a write and an fdatasync for each 256", Target: 30_000, Rate: true,
			}}
		}},
		{"memory", "./nomad-driver/node", "BenchmarkIdleMemory", o.memory, func(f figures) []Row {
			return []Row{
				{
					Metric: "private memory of an idle sandbox (platform only)", Unit: "MiB", P50: f["init-private-KiB"] * kib,
					P99: f["init-private-max-KiB"] * kib, Floor: f["floor-KiB"] * kib, FloorIs: "a static Go program that waits", Target: 1.5,
				},
				{Metric: "  and what the daemon grows by for each", Unit: "MiB", P50: f["daemon-growth-KiB"] * kib},
			}
		}},
		{"hundred", "./nomad-driver/node", "BenchmarkHundred", o.hundred, func(f figures) []Row {
			return []Row{{
				Metric: "creates per second and core, 100 sandboxes at once", Unit: "/s", P50: f["creates/s/core"], P99: f["worst-creates/s/core"],
				Floor: f["floor/s/core"], FloorIs: "clone into all namespaces, exec and end of true, 16 at once", Target: 120, Rate: true,
			}}
		}},
		{"pauses", "./nomad-driver/node", "BenchmarkPause", o.pauses, func(f figures) []Row {
			var rows []Row
			for _, k := range []struct {
				name, of                    string
				frozen, checkpoint, restore float64 // targets
			}{{"idle", "an idle sandbox", 0, 0, 0}, {"100m", "one with 100 MiB of Python", 60, 110, 30}, {"1g", "one with 1 GiB of Python", 0, 0, 0}} {
				ms := func(unit string) float64 { return f[k.name+unit] * micros }
				rows = append(rows,
					Row{Metric: "freeze of " + k.of, Unit: "ms", P50: ms("-freeze-µs"), Target: 1},
					Row{Metric: "  thaw", Unit: "ms", P50: ms("-thaw-µs"), Target: 1},
					Row{Metric: "  how long it stands still for a snapshot", Unit: "ms", P50: ms("-frozen-µs"), Target: k.frozen, Floor: ms("-frozen-floor-µs"), FloorIs: "what criu dump says of the same program on the host"},
					Row{Metric: "  checkpoint, until its memory is free and the disk has it", Unit: "ms", P50: ms("-checkpoint-µs"), Target: k.checkpoint, Floor: ms("-dump-floor-µs"), FloorIs: "criu dump of the same program on the host, not synced"},
					Row{Metric: "  restore", Unit: "ms", P50: ms("-restore-µs"), Floor: ms("-restore-floor-µs"), FloorIs: "criu restore of it"},
					Row{Metric: "  restore, to the exit code of an exec", Unit: "ms", P50: ms("-answer-µs"), Target: k.restore},
				)
			}
			return rows
		}},
		{"forks", "./nomad-driver/node", "BenchmarkForks", o.pauses, func(f figures) []Row {
			row := func(metric, prefix string) []Row {
				return []Row{
					{Metric: metric, Unit: "ms", P50: f[prefix+"hundred-µs"] * micros, Target: 541},
					{
						Metric: "  each of them", Unit: "ms", P50: f[prefix+"p50-µs"] * micros, P99: f[prefix+"p99-µs"] * micros,
						Floor: f["floor-µs"] * micros, FloorIs: "criu restore of a sleep on the host, alone",
					},
				}
			}
			return append(row("100 copies of a snapshot, 16 at a time, in which nothing runs", "bare-"), row("  and of one with a process", "busy-")...)
		}},
		{"stored", "./nomad-driver/node", "BenchmarkStored", o.pauses, func(f figures) []Row {
			return []Row{
				{Metric: "stored of 10 snapshots of 64 MiB with at most 5 % changed, to their size", Unit: "%", P50: f["stored-%"], Target: 100.0 / 7},
				{Metric: "  that is", Unit: "MiB", P50: f["stored-MiB"]},
			}
		}},
		{"slots", "./nomad-driver/network", "BenchmarkSlots", o.network, func(f figures) []Row {
			floor := "a network namespace and a pair of links"
			row := func(metric, prefix string) Row {
				return Row{Metric: metric, Unit: "ms", P50: f[prefix+"p50-µs"] * micros, P99: f[prefix+"p99-µs"] * micros, Floor: f["floor-p50-µs"] * micros, FloorIs: floor}
			}
			return []Row{
				{Metric: "network slot taken", Unit: "µs", P50: f["taken-p50-µs"], P99: f["taken-p99-µs"]},
				row("  made", "few-"), row("  made beside 500", "many-"),
				{Metric: "  made beside 500, per second", Unit: "/s", P50: f["made/s"], Rate: true},
			}
		}},
		{"policy", "./nomad-driver/network", "BenchmarkPolicy", o.network, func(f figures) []Row {
			return []Row{{Metric: "200 rules in place of 200, until a connection is refused", Unit: "ms", P50: f["effect-p50-µs"] * micros, P99: f["effect-p99-µs"] * micros, Target: 1000}}
		}},
		{"push", "./nomad-driver/node", "BenchmarkPush", o.network, func(f figures) []Row {
			return []Row{f.row("a policy pushed to a running sandbox, in force at the answer", "ms", "", micros, "a request that changes nothing", 0)}
		}},
		{"throughput", "./nomad-driver/network", "BenchmarkLink", min(o.network, 1), func(f figures) []Row {
			plain := "a plain pair of links"
			rows := []Row{
				{Metric: "a sandbox's link, one connection", Unit: "MB/s", P50: f["link-MB/s"], Floor: f["plain-MB/s"], FloorIs: plain, Rate: true},
				{Metric: "  with a shaper that holds nothing back", Unit: "MB/s", P50: f["shaped-MB/s"], Floor: f["plain-MB/s"], FloorIs: plain, Rate: true},
			}
			for _, mbit := range []int{10, 100, 1000} {
				for _, flows := range []int{1, 10} {
					rows = append(rows, Row{Metric: fmt.Sprintf("  a cap of %d Mbit/s, %d connections: off by", mbit, flows), Unit: "%", P50: f[fmt.Sprintf("%d-%d-%%", mbit, flows)], Target: 5})
				}
			}
			return rows
		}},
		{"names", "./nomad-driver/network/resolver", "BenchmarkAnswers", o.network * 100, func(f figures) []Row {
			return []Row{{Metric: "names looked up for a sandbox, 16 at a time", Unit: "/s", P50: f["answers/s"], Floor: f["floor/s"], FloorIs: "the server behind asked at once", Rate: true}}
		}},
		{"egress", "./nomad-driver/network/proxy", "BenchmarkProxy", o.network * 10, func(f figures) []Row {
			floor := "without the proxy"
			return []Row{
				f.row("a request through the egress proxy, on a connection of its own", "ms", "new-", micros, floor, 0),
				f.row("  on one that is open", "ms", "open-", micros, floor, 0),
			}
		}},
		{"sampling", "./nomad-driver/node", "BenchmarkSample", o.sampling, func(f figures) []Row {
			return []Row{
				{Metric: fmt.Sprintf("sampling 500 sandboxes every 5 s (measured with %.0f)", f["sandboxes"]), Unit: "% of a core", P50: f["p50-%"], P99: f["p99-%"], Target: 2,
					Floor: f["floor-p50-%"], FloorIs: fmt.Sprintf("the same %.0f files, open, one read each", f["descriptors"])},
				{Metric: "  of which looks at disks that no limiter counts", Unit: "% of a core", P50: f["disk-p50-%"]},
			}
		}},
		{"neighbours", "./nomad-driver/node", "BenchmarkNeighbour", o.neighbours, func(f figures) []Row {
			var rows []Row
			for _, a := range []struct{ name, is string }{
				{"fork", "a fork bomb"}, {"memory", "a memory bomb"}, {"disk", "256 MiB written and synced without end"}, {"inodes", "50,000 files made"},
				{"descriptors", "files, pipes and inotify instances without end"}, {"deaf", "a loop that ignores signals"},
			} {
				ms := func(unit string) float64 { return f[a.name+unit] * micros }
				rows = append(rows, Row{
					Metric: "exec p99 beside " + a.is + ", to the idle p99", Unit: "×", P50: f[a.name+"-x-idle"], Target: 2,
					Floor: f[a.name+"-floor-x-idle"],
					FloorIs: fmt.Sprintf("the same in plain control groups: p99 %.1f ms, idle %.1f ms. Here p99 %.1f ms, idle %.1f ms; p50 %.1f ms, idle %.1f ms; the node's slowest answer %.1f ms; %.0f attackers ended by the kernel, the neighbour waited for its own quota in %.0f periods",
						ms("-floor-p99-µs"), ms("-floor-idle-p99-µs"), ms("-p99-µs"), ms("-idle-p99-µs"), ms("-p50-µs"), ms("-idle-p50-µs"), ms("-node-slowest-µs"), f[a.name+"-ends"], f[a.name+"-throttled"]),
				}, Row{Metric: "  destroy of it", Unit: "ms", P50: ms("-destroy-µs"), Target: 1000})
			}
			return rows
		}},
	}
}

func groupNames() string {
	var names []string
	for _, g := range all(options{}) {
		names = append(names, g.name)
	}
	return strings.Join(names, ", ")
}

// chosen are the groups that shall run.
func chosen(o options) ([]group, error) {
	groups := all(o)
	if o.only != "" {
		for _, name := range strings.Split(o.only, ",") {
			if !slices.ContainsFunc(groups, func(g group) bool { return g.name == name }) {
				return nil, fmt.Errorf("-only %q: there are %s", name, groupNames())
			}
		}
		groups = slices.DeleteFunc(groups, func(g group) bool { return !slices.Contains(strings.Split(o.only, ","), g.name) })
	}
	return slices.DeleteFunc(groups, func(g group) bool { return g.times == 0 }), nil
}

// measure runs the benchmark. A benchmark that this machine cannot run gives a row that says so, and no error.
func (g group) measure(ctx context.Context) ([]Row, error) {
	f, skipped, err := gotest(ctx, g.pkg, g.bench, g.times)
	switch {
	case err != nil:
		return []Row{{Metric: g.name, Missing: "failed: see below"}}, err
	case skipped != "":
		return []Row{{Metric: g.name, Missing: skipped}}, nil
	}
	rows := g.rows(f)
	for i := range rows {
		rows[i].Runs = g.times
		rows[i].ratio()
	}
	return rows, nil
}
