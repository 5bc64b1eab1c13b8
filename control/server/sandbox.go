package server

import (
	"cmp"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// Limits of a create's numbers that hold whatever the service is configured to; its own are lower.
const (
	maxCores    = 4096
	maxMemoryMB = 64 << 20 // 64 TiB
	maxDiskMB   = 1 << 30  // 1 PiB
	maxPIDs     = 4 << 20  // what the kernel can number
)

// createOptions checks what a create asks for beyond the contract, and adds it to p.
func createOptions(req api.CreateOptions, p *lifecycle.CreateParams) (err error) {
	if req.ID != "" {
		id, err := api.ParseSandboxID(string(req.ID))
		if err != nil || id != req.ID {
			return invalid("id %.40q is not \"i\" and 20 characters of [a-z0-9]", req.ID)
		}
	}
	p.ID, p.Hostname, p.User, p.Cwd, p.Profile, p.QoS = req.ID, req.Hostname, req.User, req.Cwd, req.Profile, req.QoS
	if p.CPUMillis, err = cpuMillis(req.CPU, req.CPUMillis); err != nil {
		return err
	}
	for _, n := range []struct {
		field string
		from  *int64
		to    *int64
		high  int64
	}{
		{"memory_mb", req.MemoryMB, &p.MemoryMB, maxMemoryMB},
		{"disk_mb", req.DiskMB, &p.DiskMB, maxDiskMB},
	} {
		if n.from == nil {
			continue
		}
		if *n.from < 1 || *n.from > n.high {
			return invalid("%s is %d, 1 to %d are allowed", n.field, *n.from, n.high)
		}
		*n.to = *n.from
	}
	if p.Where, err = placement.ParseRules(req.Placement); err != nil {
		return err
	}
	if p.Limits, err = storageLimits(req.PIDs, req.DiskMB, req.StorageLimits, false); err != nil {
		return err
	}
	for _, t := range []struct {
		field, value string
		limit        int
	}{
		{"hostname", req.Hostname, 64}, {"user", req.User, maxUserBytes}, {"cwd", req.Cwd, maxPathBytes}, {"profile", req.Profile, 32},
		{"qos", req.QoS, 32},
	} {
		if err := checkText(t.field, t.value, t.limit); err != nil {
			return err
		}
	}
	if req.TTY && len(req.Command) == 0 {
		return invalid("tty goes with a command")
	}
	if req.Command != nil {
		if err := checkArgv("command", req.Command); err != nil {
			return err
		}
		p.Main = &guest.Start{Argv: req.Command, TTY: req.TTY}
	}
	return nil
}

// createdView is what a create tells beyond the contract.
func createdView(sb state.Sandbox, steps []guest.Step) *api.Created {
	out := api.Created{Sandbox: sandboxView(sb), Steps: make([]api.Step, 0, len(steps))}
	for _, st := range steps {
		out.Steps = append(out.Steps, api.Step{Name: st.Name, Nanos: time.Duration(st.Nanos)})
	}
	return &out
}

// cpuMillis returns the thousandths of a core that a request asks for; 0 where it does not.
func cpuMillis(cores *float64, millis *int64) (int64, error) {
	switch {
	case cores != nil && millis != nil:
		return 0, invalid("cpu and cpu_millis are both given")
	case cores != nil:
		c := *cores
		if math.IsNaN(c) || c < 0.001 || c > maxCores {
			return 0, invalid("cpu is %g cores, 0.001 to %d are allowed", c, maxCores)
		}
		return int64(math.Round(c * 1000)), nil
	case millis != nil:
		if *millis < 1 || *millis > maxCores*1000 {
			return 0, invalid("cpu_millis is %d, 1 to %d are allowed", *millis, maxCores*1000)
		}
		return *millis, nil
	}
	return 0, nil
}

// checkText checks a short text.
func checkText(field, v string, limit int) error {
	if len(v) > limit {
		return invalid("%s is %d bytes, at most %d are allowed", field, len(v), limit)
	}
	if !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return invalid("%s has control characters", field)
	}
	return nil
}

// checkArgv checks a command and its arguments.
func checkArgv(field string, argv []string) error {
	if len(argv) == 0 || argv[0] == "" {
		return invalid("%s names no program", field)
	}
	if len(argv) > guest.MaxArgs {
		return invalid("%s has %d elements, at most %d are allowed", field, len(argv), guest.MaxArgs)
	}
	n := 0
	for i, a := range argv {
		if strings.ContainsRune(a, 0) {
			return invalid("%s: element %d has a NUL byte", field, i)
		}
		n += len(a) + 1
	}
	if n > guest.MaxArgBytes {
		return invalid("%s is %d bytes, at most %d are allowed", field, n, guest.MaxArgBytes)
	}
	return nil
}

// sandboxView is all that is told of a sandbox. Its environment is not in it: people put secrets there.
func sandboxView(sb state.Sandbox) api.Sandbox {
	out := api.Sandbox{
		ID: sb.ID, Template: sb.Template, Digest: sb.Digest, Node: sb.Node, State: string(sb.State), Reason: redact(sb.Reason),
		CreatedAt: sb.CreatedAt.UTC(), StartedAt: utc(sb.StartedAt), EndAt: utc(sb.EndAt), MaxEndAt: utc(sb.MaxEndAt), EndedAt: utc(sb.EndedAt),
		CPUMillis: sb.CPUMillis, MemoryMB: sb.MemoryMB, DiskMB: sb.Limits.DiskBytes >> 20,
		QoS: cmp.Or(sb.QoS, api.QoSBurstable), PIDs: sb.Limits.PIDs, DiskInodes: sb.Limits.DiskInodes,
		IOReadBytes: sb.Limits.IOReadBytes, IOWriteBytes: sb.Limits.IOWriteBytes, IOReadOps: sb.Limits.IOReadOps, IOWriteOps: sb.Limits.IOWriteOps,
		Metadata: sb.Metadata, KeyID: sb.KeyID, OnTimeout: string(sb.Lifecycle.OnTimeout), AutoResume: sb.Lifecycle.AutoResume,
		AllowInternetAccess: sb.AllowInternetAccess, Pool: sb.Pool, Warm: sb.Warm,
	}
	if out.OnTimeout == "" {
		out.OnTimeout = string(state.OnTimeoutKill)
	}
	if sb.Where != "" {
		where := placement.Rules(sb.Where).Placement()
		out.Placement = &where
	}
	if x := sb.Exit; x != nil {
		out.Exit = &api.SandboxExit{Reason: x.Reason, Code: x.Code, Signal: x.Signal, OOM: x.OOM, PIDs: x.PIDs, Disk: x.Disk, Message: x.Message}
	}
	return out
}

// utc keeps the zero time, which JSON leaves out.
func utc(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC()
}
