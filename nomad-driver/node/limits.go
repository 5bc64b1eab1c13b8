package node

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// Values of Config.DiskLimitPolicy.
const (
	DiskLimitRefuse     = "refuse"      // a create that asks for a disk limit which this machine lacks fails
	DiskLimitBestEffort = "best_effort" // it runs without; its limits as enforced show that
)

// diskLimits is what a node can do about disk limits.
type diskLimits struct {
	limiter disk.Limiter // nil: none
	why     error        // why there is none
	policy  string
}

// chooseDisk finds the limiter for writable layers below dir. It fails where the configuration asks for one, or for a limit
// of every sandbox, that this machine does not have.
func chooseDisk(dir string, cfg *Config) (diskLimits, error) {
	d := diskLimits{policy: cfg.DiskLimitPolicy}
	if cfg.DiskLimiter == disk.None {
		d.why = errors.New("disk_limiter is none")
	} else {
		d.limiter, d.why = disk.Choose(dir, cfg.DiskLimiter)
	}
	if d.why == nil {
		return d, nil
	}
	d.limiter = nil
	if d.policy != DiskLimitBestEffort && (cfg.DiskLimiter != "" && cfg.DiskLimiter != disk.None || cfg.Defaults.DiskBytes != 0 || cfg.Defaults.DiskInodes != 0) {
		return d, fmt.Errorf("disk limits: %w", d.why)
	}
	return d, nil
}

// admit checks the disk limits of a request, and takes them out where they cannot be had and need not be.
func (d diskLimits) admit(l *nodeapi.Limits) error {
	if l.DiskBytes == 0 && l.DiskInodes == 0 || d.limiter != nil {
		return nil
	}
	if d.policy == DiskLimitBestEffort {
		l.DiskBytes, l.DiskInodes = 0, 0
		return nil
	}
	return api.Errorf(http.StatusNotImplemented, api.CodeUnsupported, "limits.disk_bytes, limits.disk_inodes: this node has no disk limits: %v", d.why)
}

// checkChange refuses what does not change in a running sandbox.
func checkChange(l nodeapi.Limits) error {
	for _, f := range []struct {
		name string
		v    int64
	}{{"limits.tmp_bytes", l.TmpBytes}, {"limits.nofile", l.NoFile}} {
		if f.v != 0 {
			return invalid("%s does not change in a running sandbox", f.name)
		}
	}
	if l == (nodeapi.Limits{}) {
		return invalid("limits: none is given")
	}
	return nil
}

// SetLimits changes limits of a running sandbox. Zero values leave what is set. On error they are as they were.
func (n *Node) SetLimits(id api.SandboxID, l nodeapi.Limits) (nodeapi.Sandbox, error) {
	if err := checkChange(l); err != nil {
		return nodeapi.Sandbox{}, err
	}
	// With every field that is left out at its default, so that only those that are given can be out of bounds.
	bounded := l
	if err := n.checkLimits(&bounded, sandbox.Burstable); err != nil {
		return nodeapi.Sandbox{}, err
	}
	b, err := n.box(id)
	if err != nil {
		return nodeapi.Sandbox{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rec.Sandbox.State != nodeapi.StateRunning {
		return nodeapi.Sandbox{}, notRunning(b.rec.Sandbox)
	}
	old := b.rec.Sandbox.Limits
	err = b.inst.SetLimits(sandbox.Limits(l))
	if err == nil {
		b.rec.Sandbox.Limits = merged(old, l)
		err = n.records.put(&b.rec)
	}
	if err != nil {
		b.rec.Sandbox.Limits = old
		if uerr := b.inst.SetLimits(sandbox.Limits(restore(old, l))); uerr != nil {
			n.log.Error("limits of sandbox are not what they were", "sandbox", id, "error", uerr)
		}
		return nodeapi.Sandbox{}, limitError(id, err)
	}
	sb := b.rec.Sandbox
	n.hub.publish(nodeapi.EventUpdated, id, &sb)
	return sb, nil
}

func limitError(id api.SandboxID, err error) error {
	switch {
	case errors.Is(err, cgroup.ErrBelowUse), errors.Is(err, disk.ErrCannotShrink):
		return api.Errorf(http.StatusConflict, api.CodeConflict, "sandbox %s: %v", id, err)
	case errors.Is(err, disk.ErrUnsupported):
		return api.Errorf(http.StatusNotImplemented, api.CodeUnsupported, "sandbox %s: %v", id, err)
	}
	return fmt.Errorf("sandbox %s: %w", id, err)
}

// limitFields pairs the fields of limits.
func limitFields(l *nodeapi.Limits) []*int64 {
	return []*int64{
		&l.CPUMillis, &l.CPUWeight, &l.MemoryBytes, &l.PIDs, &l.TmpBytes, &l.NoFile, &l.DiskBytes, &l.DiskInodes,
		&l.IOReadBytes, &l.IOWriteBytes, &l.IOReadOps, &l.IOWriteOps,
	}
}

// merged returns old with what change says in its place. A lifted limit is 0.
func merged(old, change nodeapi.Limits) nodeapi.Limits {
	to, from := limitFields(&old), limitFields(&change)
	for i := range to {
		if *from[i] != 0 {
			*to[i] = max(*from[i], 0)
		}
	}
	return old
}

// restore returns what undoes change: the old value of each field in it.
func restore(old, change nodeapi.Limits) nodeapi.Limits {
	undo := change
	to, was := limitFields(&undo), limitFields(&old)
	for i := range to {
		if *to[i] != 0 {
			*to[i] = *was[i]
		}
	}
	for _, io := range []struct{ changed, to *int64 }{
		{&change.IOReadBytes, &undo.IOReadBytes}, {&change.IOWriteBytes, &undo.IOWriteBytes},
		{&change.IOReadOps, &undo.IOReadOps}, {&change.IOWriteOps, &undo.IOWriteOps},
	} {
		if *io.changed != 0 && *io.to == 0 {
			*io.to = cgroup.Unlimited // there was none
		}
	}
	return undo
}
