package lifecycle

import (
	"context"
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Bounds of limits that hold on every node. A node's own may be narrower; it says so itself.
const (
	maxPIDs       = 1 << 20
	maxDiskInodes = 1 << 32
	minIOBytes    = 64 << 10
	maxIOBytes    = 1 << 50
	minIOOps      = 10
	maxIOOps      = 1 << 32
)

// LimitChange changes limits of a running sandbox. Zero leaves what is set; api.Unlimited lifts one of io.
type LimitChange struct {
	CPUMillis int64
	MemoryMB  int64
	Limits    state.Limits
}

// checkLimits checks limits beyond processor and memory. Only a change can lift one.
func (s *Service) checkLimits(l state.Limits, change bool) error {
	for _, b := range []struct {
		name           string
		got, low, high int64
	}{
		{"diskMB", l.DiskBytes >> 20, 1, s.cfg.MaxDiskMB},
		{"pids", l.PIDs, 1, maxPIDs},
		{"diskInodes", l.DiskInodes, 64, maxDiskInodes},
		{"ioReadBytes", l.IOReadBytes, minIOBytes, maxIOBytes},
		{"ioWriteBytes", l.IOWriteBytes, minIOBytes, maxIOBytes},
		{"ioReadOps", l.IOReadOps, minIOOps, maxIOOps},
		{"ioWriteOps", l.IOWriteOps, minIOOps, maxIOOps},
	} {
		lifted := change && b.got == api.Unlimited && b.name[:2] == "io"
		if b.got != 0 && !lifted && (b.got < b.low || b.got > b.high) {
			return invalid("%s is %d, %d to %d are allowed", b.name, b.got, b.low, b.high)
		}
	}
	return nil
}

// SetLimits implements API. The quota is asked first, then the node, because it may refuse, and it changes all or nothing. Where the
// state cannot be written after that, the node is brought back to it by the reconciler.
func (s *Service) SetLimits(ctx context.Context, tenant string, id api.SandboxID, c LimitChange) (state.Sandbox, error) {
	if c == (LimitChange{}) {
		return state.Sandbox{}, invalid("no limit is given")
	}
	for _, b := range []struct {
		name           string
		got, low, high int64
	}{
		{"cpuMillis", c.CPUMillis, minCPUMillis, s.cfg.MaxCPUMillis},
		{"memoryMB", c.MemoryMB, minMemoryMB, s.cfg.MaxMemoryMB},
	} {
		if b.got != 0 && (b.got < b.low || b.got > b.high) {
			return state.Sandbox{}, invalid("%s is %d, %d to %d are allowed", b.name, b.got, b.low, b.high)
		}
	}
	if err := s.checkLimits(c.Limits, true); err != nil {
		return state.Sandbox{}, err
	}
	defer s.locks.lock(id)()
	sb, err := s.live(tenant, id)
	if err != nil {
		return state.Sandbox{}, err
	}
	if sb.State != state.Running {
		return state.Sandbox{}, notRunning(sb)
	}
	owner, err := s.tenantOf(tenant)
	if err == nil {
		err = bound(owner, c.CPUMillis, c.MemoryMB, c.Limits.DiskBytes>>20)
	}
	if err != nil {
		return state.Sandbox{}, err
	}
	if err := s.reserved(sb, c); err != nil {
		return state.Sandbox{}, err
	}
	node, err := s.cfg.Fleet.Client(sb.Node)
	if err != nil {
		return state.Sandbox{}, err
	}
	held, drop, err := s.hold(ctx, sb, state.Hold{CPUMillis: c.CPUMillis, MemoryMB: c.MemoryMB, DiskMB: c.Limits.DiskBytes >> 20})
	if err != nil {
		return state.Sandbox{}, err
	}
	now, err := node.SetLimits(ctx, id, limitsOf(c.CPUMillis, c.MemoryMB, c.Limits))
	if err != nil {
		drop()
	}
	if api.IsNotFound(err) {
		return state.Sandbox{}, notFound(id)
	}
	if err != nil {
		return state.Sandbox{}, err
	}
	orDefault(&c.CPUMillis, sb.CPUMillis)
	orDefault(&c.MemoryMB, sb.MemoryMB)
	r, err := s.cfg.State.Apply(context.WithoutCancel(ctx), &state.SandboxLimits{
		ID: id, CPUMillis: c.CPUMillis, MemoryMB: c.MemoryMB, Limits: Enforced(now.Limits), Hold: held,
	})
	return r.Sandbox, stateError(id, err)
}

// reserved refuses more than the placer counts for the sandbox: the node would be given away twice.
func (s *Service) reserved(sb state.Sandbox, c LimitChange) error {
	r, ok := s.cfg.Placer.(placement.Reserver)
	if !ok {
		return nil
	}
	cpu, memory := sb.Reserved()
	most := r.Reserved(limitsOf(cpu, memory, state.Limits{}))
	for _, b := range []struct {
		name      string
		got, most int64
	}{{"cpuMillis", c.CPUMillis, most.CPUMillis}, {"memoryMB", c.MemoryMB, most.MemoryBytes >> 20}} {
		if b.got > b.most {
			return api.Errorf(http.StatusConflict, api.CodeConflict,
				"%s is %d, but %d are reserved where sandbox %s is: what needs more is another sandbox", b.name, b.got, b.most, sb.ID)
		}
	}
	return nil
}

// NodeLimits are a sandbox's limits, as its node is asked for them.
func NodeLimits(sb state.Sandbox) nodeapi.Limits {
	return limitsOf(sb.CPUMillis, sb.MemoryMB, sb.Limits)
}

func limitsOf(cpuMillis, memoryMB int64, l state.Limits) nodeapi.Limits {
	return nodeapi.Limits{
		CPUMillis: cpuMillis, MemoryBytes: memoryMB << 20, PIDs: l.PIDs, DiskBytes: l.DiskBytes, DiskInodes: l.DiskInodes,
		IOReadBytes: l.IOReadBytes, IOWriteBytes: l.IOWriteBytes, IOReadOps: l.IOReadOps, IOWriteOps: l.IOWriteOps,
	}
}

// Enforced are the limits that a node reports, as they are recorded.
func Enforced(l nodeapi.Limits) state.Limits {
	return state.Limits{
		PIDs: l.PIDs, DiskBytes: l.DiskBytes, DiskInodes: l.DiskInodes,
		IOReadBytes: l.IOReadBytes, IOWriteBytes: l.IOWriteBytes, IOReadOps: l.IOReadOps, IOWriteOps: l.IOWriteOps,
	}
}
