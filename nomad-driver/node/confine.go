package node

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/logbook"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// What Config.Confine may be.
const (
	ConfineAuto = "auto" // where the kernel has the controller cpuset
	ConfineOff  = "off"
)

// A quota of the processor stops a process on its way back from the kernel (Linux 6.18; before, at the next tick where the kernel lets itself be interrupted). Processes
// that search for memory at their limit, or that the kernel ends there, are long in coming back: by the dozen they take every core, and neighbours wait. So a sandbox that works
// much in the kernel, with much of its memory in use, is kept on as many cores as its quota is worth, for as long as that lasts. It has no less processor for it.
const (
	confineLook = 100 * time.Millisecond // between two looks
	confineCalm = 5 * time.Second        // without strain, until it may run everywhere again
	confineNews = time.Minute            // between two notes of it in one sandbox's book

	strainedKernel = 0.3 // of one core, in the kernel
	// A sandbox whose quota is worth all cores does lose one: it must stand at its limit, and do little else than the kernel's work there.
	strainedFull       = 15.0 / 16 // of its memory limit
	strainedFullKernel = 0.5       // of its quota
	strainedMemory     = 0.25      // of its memory limit, for all others: it can be full half a second later
)

// confinable is an instance that can be kept on some of the machine's cores, as *sandbox.Sandbox is.
type confinable interface {
	instance
	Charged() (uint64, error)     // bytes against its memory limit, page cache included
	KernelNanos() (uint64, error) // of processor time
	Confine(cores []int) error    // none: all cores
	Confined() ([]int, error)
}

// tenant is a sandbox that runs, as the confiner sees it.
type tenant struct {
	box    *box
	inst   confinable
	limits nodeapi.Limits
	born   time.Time
}

// strain is what the confiner knows of a sandbox.
type strain struct {
	box    *box
	at     time.Time // of the reading of kernel; zero: none
	kernel uint64    // nanoseconds
	cores  []int     // that it is kept on; nil: all
	millis int64     // of its quota, for as long as it is
	until  time.Time // for so long, without more strain
	unable bool      // it cannot be confined
}

// confiner keeps sandboxes under strain on few cores. It is not safe for concurrent use: one goroutine has it.
type confiner struct {
	log     hclog.Logger
	cores   []int // of the machine
	strains map[confinable]*strain
	told    map[api.SandboxID]time.Time // when its book was last told of it
	note    func(b *box, message string, fields map[string]string)
}

func newConfiner(log hclog.Logger, cores []int, note func(*box, string, map[string]string)) *confiner {
	return &confiner{log: log, cores: cores, strains: map[confinable]*strain{}, told: map[api.SandboxID]time.Time{}, note: note}
}

// takeOver finds those that an earlier daemon has confined.
func (c *confiner) takeOver(tenants []tenant, now time.Time) {
	for _, t := range tenants {
		cores, err := t.inst.Confined()
		if err != nil || len(cores) == 0 {
			continue // gone, or made without the controller
		}
		c.strains[t.inst] = &strain{box: t.box, cores: cores, millis: c.quota(t), until: now.Add(confineCalm)}
	}
}

// quota returns a sandbox's quota in thousandths of a core, as far as the machine has it.
func (c *confiner) quota(t tenant) int64 {
	all := int64(len(c.cores)) * 1000
	if t.limits.CPUMillis <= 0 {
		return all
	}
	return min(t.limits.CPUMillis, all)
}

// look confines and frees. busy tells that all sandboxes together have worked in the kernel as much as one needs to be under strain.
func (c *confiner) look(tenants []tenant, busy bool, now time.Time) {
	live := make(map[confinable]bool, len(tenants))
	for _, t := range tenants {
		live[t.inst] = true
	}
	for inst := range c.strains {
		if !live[inst] {
			delete(c.strains, inst) // with its group
		}
	}
	for _, t := range tenants {
		if busy && len(c.cores) > 1 && t.limits.MemoryBytes > 0 {
			c.lookAt(t, now)
		}
		if s := c.strains[t.inst]; s != nil && s.cores != nil && !now.Before(s.until) {
			c.free(t.inst, s)
		}
	}
	for id, at := range c.told {
		if now.Sub(at) >= confineNews {
			delete(c.told, id)
		}
	}
}

func (c *confiner) lookAt(t tenant, now time.Time) {
	s := c.strains[t.inst]
	if s != nil && s.unable {
		return
	}
	charged, err := t.inst.Charged()
	if err != nil {
		return // it ends
	}
	quota := c.quota(t)
	whole := quota > int64(len(c.cores)-1)*1000 // its quota is worth all cores
	memory, kernel := strainedMemory, strainedKernel
	if whole {
		memory, kernel = strainedFull, strainedFullKernel*float64(quota)/1000
	}
	if float64(charged) < memory*float64(t.limits.MemoryBytes) {
		if s != nil && s.cores == nil {
			delete(c.strains, t.inst)
		}
		return
	}
	nanos, err := t.inst.KernelNanos()
	if err != nil {
		return
	}
	if s == nil {
		s = &strain{box: t.box, at: t.born}
		c.strains[t.inst] = s
	}
	since, before := now.Sub(s.at), s.kernel
	fresh := !s.at.IsZero() && since > 0 && since < time.Second && nanos >= before
	s.at, s.kernel = now, nanos
	// Of one that is confined already, half of it is strain too: what it can do in the kernel is less now.
	if s.cores != nil {
		kernel /= 2
	}
	if !fresh || float64(nanos-before) < kernel*float64(since) {
		return
	}
	s.until = now.Add(confineCalm)
	n := int((quota + 999) / 1000)
	if whole {
		n = len(c.cores) - 1
	}
	if len(s.cores) == n {
		return
	}
	s.cores = nil
	cores := c.choose(n)
	if err := t.inst.Confine(cores); err != nil {
		s.unable = !errors.Is(err, cgroup.ErrNotExist)
		if s.unable && !errors.Is(err, cgroup.ErrUnsupported) {
			c.log.Warn("sandbox cannot be confined", "sandbox", t.box.id, "error", err)
		}
		return
	}
	s.cores, s.millis = cores, quota
	if _, ok := c.told[t.box.id]; !ok {
		c.told[t.box.id] = now
		c.note(t.box, "kept on "+strconv.Itoa(n)+" of "+strconv.Itoa(len(c.cores))+" cores, which is what its processor limit is worth: it works much in the kernel near its memory limit", map[string]string{
			"memory_bytes": strconv.FormatUint(charged, 10), "memory_limit_bytes": strconv.FormatInt(t.limits.MemoryBytes, 10),
		})
	}
	c.log.Debug("sandbox is confined", "sandbox", t.box.id, "cores", cores, "charged", charged, "kernel", time.Duration(nanos-before), "in", since)
}

// choose returns the n cores that have least to do for those confined already, the last first: the first one often has the machine's interrupts.
func (c *confiner) choose(n int) []int {
	load := make(map[int]int64, len(c.cores))
	for _, s := range c.strains {
		for _, core := range s.cores {
			load[core] += s.millis / int64(len(s.cores))
		}
	}
	cores := slices.Clone(c.cores)
	slices.SortFunc(cores, func(a, b int) int { return cmp.Or(cmp.Compare(load[a], load[b]), cmp.Compare(b, a)) })
	cores = cores[:n]
	slices.Sort(cores)
	return cores
}

func (c *confiner) free(inst confinable, s *strain) {
	if err := inst.Confine(nil); err != nil && !errors.Is(err, cgroup.ErrNotExist) {
		c.log.Warn("sandbox stays confined", "sandbox", s.box.id, "cores", s.cores, "error", err)
		s.until = s.until.Add(confineCalm)
		return
	}
	delete(c.strains, inst)
	c.log.Debug("sandbox may run on all cores again", "sandbox", s.box.id)
}

// confined returns how many are.
func (c *confiner) confined() (n int) {
	for _, s := range c.strains {
		if s.cores != nil {
			n++
		}
	}
	return n
}

// setCores is for a machine that has others now. Those who run on all need to be told: the kernel gives no group a core back that was offline.
func (c *confiner) setCores(cores []int, tenants []tenant) {
	c.cores = cores
	for _, t := range tenants {
		if err := t.inst.Confine(nil); err != nil && !errors.Is(err, cgroup.ErrNotExist) && !errors.Is(err, cgroup.ErrUnsupported) {
			c.log.Warn("sandbox may not run on all cores", "sandbox", t.box.id, "error", err)
		}
	}
	clear(c.strains) // who is still under strain is confined again
}

// watchStrain confines sandboxes until ctx ends.
func (n *Node) watchStrain(ctx context.Context) {
	if n.cgroups == nil {
		return
	}
	cores, err := n.cgroups.Cores()
	if err != nil {
		n.log.Info("sandboxes are not confined", "reason", err)
		return
	}
	c := newConfiner(n.log, cores, func(b *box, message string, fields map[string]string) {
		n.metrics.IncrCounter([]string{"confinements"}, 1)
		n.note(b, logbook.Warn, message, fields)
	})
	c.takeOver(n.tenants(), time.Now())
	if n.cfg.Confine == ConfineOff {
		for inst, s := range c.strains {
			c.free(inst, s)
		}
		return
	}
	t := time.NewTicker(confineLook)
	defer t.Stop()
	var last, coresAt time.Time
	var kernel uint64
	confined := -1
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := time.Now()
		sum, err := n.cgroups.KernelNanos()
		// Without the sum (before the first sandbox) there is nobody to look at, too.
		busy := err == nil && (last.IsZero() || sum < kernel || float64(sum-kernel) >= strainedKernel/2*float64(now.Sub(last)))
		last, kernel = now, sum
		if now.Sub(coresAt) >= houseInterval {
			coresAt = now
			if cores, err := n.cgroups.Cores(); err == nil && !slices.Equal(cores, c.cores) {
				n.log.Info("the machine's cores are others now", "cores", cores)
				c.setCores(cores, n.tenants())
			}
		}
		if busy || len(c.strains) > 0 {
			c.look(n.tenants(), busy, now)
		}
		if count := c.confined(); count != confined {
			confined = count
			n.metrics.SetGauge([]string{"confined"}, float32(count))
		}
	}
}

// tenants are the sandboxes that run now and can be confined.
func (n *Node) tenants() []tenant {
	n.mu.RLock()
	boxes := make([]*box, 0, len(n.boxes))
	for _, b := range n.boxes {
		boxes = append(boxes, b)
	}
	n.mu.RUnlock()
	out := make([]tenant, 0, len(boxes))
	for _, b := range boxes {
		b.mu.Lock()
		inst, ok := b.inst.(confinable)
		state := b.rec.Sandbox.State
		if ok && state != nodeapi.StateStopped {
			out = append(out, tenant{b, inst, b.rec.Sandbox.Limits, b.rec.Sandbox.StartedAt})
		}
		b.mu.Unlock()
	}
	return out
}
