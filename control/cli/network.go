package cli

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/transfer"
)

func networkCommand(*Env) *command {
	return &command{
		synopsis: "See and change what a sandbox may reach",
		usage:    "<subcommand> [options] [args]",
		about: `
Groups the commands for the networks of sandboxes.

    $ soulbox network show <id>
    $ soulbox network set -closed -allow='*.example.com:443' <id>
    $ soulbox network test <id> 198.51.100.7:443
    $ soulbox network publish <id> 5432
    $ soulbox network join <id> backend db

See the help of each subcommand for more.`,
	}
}

func networkShowCommand(env *Env) *command {
	var asJSON bool
	return &command{
		synopsis: "Show a sandbox's network",
		usage:    "[options] <id>",
		about: `
Shows a sandbox's address, the policy in force, the kernel's counters, and
what was denied to it in the last ten minutes, with the rule that said so.

    $ soulbox network show <id>`,
		remote: true,
		flags:  func(o *options) { o.Switch(&asJSON, "json", "Print it as JSON.") },
		args:   sandboxNames(env, false),
		run: onSandbox(func(ctx context.Context, client *api.Client, id api.SandboxID) error {
			st, err := client.Network(ctx, id)
			if err != nil {
				return fmt.Errorf("network of sandbox %s: %w", id, err)
			}
			return showNetwork(env, st, asJSON)
		}),
	}
}

func showNetwork(env *Env, st api.NetworkStatus, asJSON bool) error {
	if asJSON {
		return printJSON(env.Stdout, st)
	}
	if !st.Enabled {
		return printPairs(env.Stdout, [][]string{{"Network", "loopback only: " + st.Reason}})
	}
	c := st.Counts
	pairs := [][]string{
		{"Address", st.Address.String()},
		{"Gateway", st.Gateway.String()},
		{"On the host", fmt.Sprintf("%s, %s", st.Host, st.Link)},
		{"Sent", fmt.Sprintf("%d bytes, %d packets", c.SentBytes, c.SentPackets)},
		{"Received", fmt.Sprintf("%d bytes, %d packets, %d dropped", c.ReceivedBytes, c.ReceivedPackets, c.Dropped)},
		{"Connections", strconv.Itoa(c.Connections)},
	}
	for _, l := range st.Layers {
		pairs = append(pairs, policyRows(l.Name, l.NetworkPolicy)...)
	}
	for _, n := range st.Notes {
		pairs = append(pairs, []string{"Note", n})
	}
	for _, d := range st.Denied {
		to := d.Address.String()
		if d.Port != 0 {
			to = netip.AddrPortFrom(d.Address, d.Port).String()
		}
		pairs = append(pairs, []string{"Denied", fmt.Sprintf("%s %s://%s by %s: %s", d.Last.Local().Format(time.TimeOnly), d.Proto, to, d.Layer, d.Rule)})
	}
	for _, m := range slices.Concat(st.Joined, st.Networks) {
		pairs = append(pairs, []string{"Network " + m.Network, m.Name + " " + m.Address})
	}
	for _, m := range st.Elsewhere {
		pairs = append(pairs, []string{"Network " + m.Network, fmt.Sprintf("%s is on node %s and not reached", m.Name, m.Node)})
	}
	if st.Shape != nil {
		pairs = append(pairs, []string{"Shape in", shapeText(st.Shape.In)}, []string{"Shape out", shapeText(st.Shape.Out)})
	}
	if q := st.Quota; q != nil {
		text := fmt.Sprintf("%s of %s", transfer.Bytes(int64(min(q.Used, q.Limit))), transfer.Bytes(int64(q.Limit))) //nolint:gosec // for people
		if q.UsedUp {
			text += ", used up: nothing passes"
		}
		pairs = append(pairs, []string{"Quota", text})
	}
	if st.Proxy != "" {
		pairs = append(pairs, []string{"Egress proxy", st.Proxy})
	}
	for _, r := range st.Rules {
		text := r.Domain + ": " + strings.Join(slices.Sorted(maps.Keys(r.Headers)), ", ")
		if len(r.Lacks) > 0 {
			text += "; refused, waits for " + strings.Join(r.Lacks, ", ")
		}
		pairs = append(pairs, []string{"Header rule", text})
	}
	for _, p := range st.Proxied {
		if !p.Allow {
			to := p.Name
			if to == "" {
				to = p.Address.String()
			}
			pairs = append(pairs, []string{"Denied", fmt.Sprintf("%s %s:%d by %s: %s", p.Time.Local().Format(time.TimeOnly), to, p.Port, p.Layer, p.Rule)})
		}
	}
	n := st.Names
	pairs = append(pairs, []string{"Names", fmt.Sprintf("%d asked for, %d denied, %d out of reach, %d too many, %d failed", n.Queries, n.Denied, n.Refused, n.Limited, n.Failed)})
	for _, l := range n.Last {
		if !l.Allow {
			pairs = append(pairs, []string{"Denied", fmt.Sprintf("%s %s by %s: %s", l.Last.Local().Format(time.TimeOnly), l.Name, l.Layer, l.Rule)})
		}
	}
	return printPairs(env.Stdout, pairs)
}

func networkSetCommand(env *Env) *command {
	var p policyFlags
	var dry, asJSON bool
	return &command{
		synopsis: "Change what a sandbox may reach",
		usage:    "[options] <id>",
		about: `
Replaces a sandbox's network policy. An entry is [PROTO://]DEST[:PORTS]:
DEST an address, a range, a domain or *.domain, PORTS as 443,8000-8100. What
is allowed wins over what is denied; without options everything is allowed
that the platform allows. Connections that it forbids end within a second.

    $ soulbox network set -closed -allow='*.example.com:443' <id>
    $ soulbox network set -deny=198.51.100.0/24 <id>`,
		remote: true,
		flags: func(o *options) {
			p.flags(o)
			o.Switch(&dry, "dry-run", "Change nothing: say what becomes of the sandbox's connections, and of what was denied to it lately.")
			o.Switch(&asJSON, "json", "Print the network as JSON.")
		},
		args: sandboxNames(env, false),
		run: onSandbox(func(ctx context.Context, client *api.Client, id api.SandboxID) error {
			if dry {
				run, err := client.DryRunNetwork(ctx, id, p.policy())
				if err != nil {
					return fmt.Errorf("network of sandbox %s: %w", id, err)
				}
				return showDryRun(env, run, asJSON)
			}
			st, err := client.SetNetwork(ctx, id, p.policy())
			if err != nil {
				return fmt.Errorf("network of sandbox %s: %w", id, err)
			}
			return showNetwork(env, st, asJSON)
		}),
	}
}

// showDryRun prints what a policy would make of a sandbox's flows.
func showDryRun(env *Env, run api.NetworkDryRun, asJSON bool) error {
	if asJSON {
		return printJSON(env.Stdout, run)
	}
	word := func(v api.NetworkVerdict) string {
		if v.Allow {
			return "allowed"
		}
		return "denied"
	}
	var pairs [][]string
	for _, n := range run.Notes {
		pairs = append(pairs, []string{"Note", n})
	}
	for _, f := range run.Flows {
		to := f.Proto + "://" + f.Address.String()
		if f.Port != 0 {
			to = f.Proto + "://" + netip.AddrPortFrom(f.Address, f.Port).String()
		}
		if len(f.Names) > 0 {
			to += " (" + strings.Join(f.Names, ", ") + ")"
		}
		stays := "as now"
		if f.Now.Allow != f.Then.Allow {
			stays = word(f.Now) + " now"
		}
		pairs = append(pairs, []string{to, fmt.Sprintf("%s by %s %s, %s", word(f.Then), f.Then.Layer, f.Then.Rule, stays)})
	}
	return printPairs(env.Stdout, pairs)
}

func networkShapeCommand(env *Env) *command {
	var in, out, both api.NetworkDirection
	var quota uint64
	var asJSON bool
	return &command{
		synopsis: "Change how fast and how reliably a sandbox's link is",
		usage:    "[options] <id>",
		about: `
Replaces what shapes a sandbox's link, at once; without options nothing does.
Rates are in bits a second, with the headers of packets. Delay, jitter, loss,
duplicates and reordering hold in each direction; all but loss alone need a
kernel with netem on the node. Once a quota is used up nothing passes until it
is raised; what was used stays used.

    $ soulbox network shape -in=100mbit -out=20mbit <id>
    $ soulbox network shape -delay=50ms -jitter=10ms -loss=2% <id>`,
		remote: true,
		flags: func(o *options) {
			rate := func(name, help string, to *uint64) {
				o.Func(name, "<rate>", help, nil, func(s string) (err error) { *to, err = parseBitRate(s); return err })
			}
			rate("in", "What it receives at most, as in 800kbit, 100mbit or 1gbit.", &in.Rate)
			rate("out", "What it sends at most.", &out.Rate)
			o.Duration(&both.Delay, "delay", "<duration>", "Delay of each packet, at most 10s.")
			o.Duration(&both.Jitter, "jitter", "<duration>", "How much more or less that may be.")
			share := func(name, help string, to *float64) {
				o.Func(name, "<share>", help, nil, func(s string) (err error) { *to, err = parseShare(s); return err })
			}
			share("loss", "Share of packets that get lost, as in 2% or 0.02.", &both.Loss)
			share("duplicate", "Share of packets that arrive twice.", &both.Duplicate)
			share("reorder", "Share of packets that overtake the delayed ones.", &both.Reorder)
			o.Func("quota", "<size>", "Bytes that pass in both directions together, as in 10GiB; then nothing does.", nil, func(s string) error {
				n, err := parseMebibytes(s)
				quota = uint64(max(n, 0)) << 20 //nolint:gosec // not negative
				return err
			})
			o.Switch(&asJSON, "json", "Print the network as JSON.")
		},
		args: sandboxNames(env, false),
		run: func(ctx context.Context, conn *connection, args []string) error {
			ids, err := sandboxIDs(args, 1, 1)
			if err != nil {
				return err
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			s := api.NetworkShape{In: both, Out: both, Quota: quota}
			s.In.Rate, s.Out.Rate = in.Rate, out.Rate
			st, err := client.ShapeNetwork(ctx, ids[0], s)
			if err != nil {
				return fmt.Errorf("network of sandbox %s: %w", ids[0], err)
			}
			return showNetwork(env, st, asJSON)
		},
	}
}

// parseBitRate reads bits a second, with a unit of 1000, and returns bytes.
func parseBitRate(s string) (uint64, error) {
	for _, u := range []struct {
		name string
		bits float64
	}{{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}, {"bit", 1}} {
		digits, ok := strings.CutSuffix(strings.ToLower(s), u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(digits, 64)
		if err == nil && n > 0 && n*u.bits <= 1e12 {
			return uint64(n * u.bits / 8), nil
		}
	}
	return 0, fmt.Errorf("%.40q is no rate such as 800kbit, 100mbit or 1gbit", s)
}

// parseShare reads a share, or a percentage.
func parseShare(s string) (float64, error) {
	digits, percent := strings.CutSuffix(s, "%")
	n, err := strconv.ParseFloat(digits, 64)
	if percent {
		n /= 100
	}
	if err != nil || !(n >= 0 && n <= 1) {
		return 0, fmt.Errorf("%.40q is no share between 0 and 1, or 0%% and 100%%", s)
	}
	return n, nil
}

// shapeText says what a direction is held to.
func shapeText(d api.NetworkDirection) string {
	var parts []string
	if d.Rate > 0 {
		parts = append(parts, fmt.Sprintf("%.4g Mbit/s", float64(d.Rate)*8/1e6))
	}
	if d.Delay > 0 {
		parts = append(parts, fmt.Sprintf("delay %s ± %s", d.Delay, d.Jitter))
	}
	for _, f := range []struct {
		name  string
		share float64
	}{{"loss", d.Loss}, {"duplicates", d.Duplicate}, {"reordered", d.Reorder}} {
		if f.share > 0 {
			parts = append(parts, fmt.Sprintf("%s %.3g%%", f.name, f.share*100))
		}
	}
	if len(parts) == 0 {
		return "as it is"
	}
	return strings.Join(parts, ", ")
}

func networkTestCommand(env *Env) *command {
	var proto, name string
	var asJSON bool
	return &command{
		synopsis: "Explain what would become of a connection",
		usage:    "[options] <id> <host:port>",
		about: `
Says whether a sandbox reaches a destination and which rule decides. Nothing
is sent. A host that is a name is asked for as one that it may look up.

    $ soulbox network test <id> 198.51.100.7:443
    $ soulbox network test -name=www.example.com <id> 198.51.100.7:443`,
		remote: true,
		flags: func(o *options) {
			o.String(&proto, "proto", "<protocol>", "tcp (the default), udp or icmp.", nil)
			o.String(&name, "name", "<domain>", "The name that the address was found by.", nil)
			o.Switch(&asJSON, "json", "Print the answer as JSON.")
		},
		args: sandboxNames(env, false),
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) != 2 {
				return usagef("a sandbox and a destination are needed")
			}
			ids, err := sandboxIDs(args[:1], 1, 1)
			if err != nil {
				return err
			}
			t, err := networkTest(args[1])
			if err != nil {
				return err
			}
			t.Proto = proto
			if name != "" {
				t.Name = name
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			v, err := client.TestNetwork(ctx, ids[0], t)
			if err != nil {
				return fmt.Errorf("network of sandbox %s: %w", ids[0], err)
			}
			if asJSON {
				return printJSON(env.Stdout, v)
			}
			word := "denied"
			if v.Allow {
				word = "allowed"
			}
			if v.Rule != "" {
				v.Rule = ": " + v.Rule
			}
			_, err = fmt.Fprintf(env.Stdout, "%s by %s%s\n", word, v.Layer, v.Rule)
			return err
		},
	}
}

// appendTo returns what appends a flag's value.
func appendTo(list *[]string) func(string) error {
	return func(s string) error {
		*list = append(*list, s)
		return nil
	}
}

// networkTest reads HOST:PORT, or HOST alone.
func networkTest(s string) (api.NetworkTest, error) {
	var t api.NetworkTest
	host := s
	if h, port, err := net.SplitHostPort(s); err == nil {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return t, usagef("port %q is not between 1 and 65535", port)
		}
		host, t.Port = h, uint16(n)
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if err != nil {
		t.Name = host
		return t, nil
	}
	t.Address = addr
	return t, nil
}
