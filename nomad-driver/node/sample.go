package node

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/metrics"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Looking at the disk of a sandbox that no limiter counts means looking at every file of it. In each round of samples only
// so much of it is done, the sandboxes that have waited longest first; the others keep the figure of their last look.
const (
	diskShare       = 200                   // of the time between two rounds, one part in so many: half a percent of a core
	diskLookTime    = 10 * time.Millisecond // of one sandbox
	diskLookEntries = 20_000
)

// diskLooks are the last looks at sandboxes' disks.
type diskLooks struct {
	mu    sync.Mutex
	looks map[api.SandboxID]diskLook
}

type diskLook struct {
	at    time.Time
	usage disk.Usage
	exact bool
	// counted tells that a limiter counts this disk: nobody has to look.
	counted bool
}

// round looks at as many of the sandboxes as may begin in the given time, at one at least, and forgets those that are not among them.
func (d *diskLooks) round(boxes map[api.SandboxID]instance, limit time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	looks := make(map[api.SandboxID]diskLook, len(boxes))
	waiting := make([]api.SandboxID, 0, len(boxes))
	for id := range boxes {
		looks[id] = d.looks[id]
		if !looks[id].counted {
			waiting = append(waiting, id)
		}
	}
	slices.SortFunc(waiting, func(a, b api.SandboxID) int { return looks[a].at.Compare(looks[b].at) })
	begin := time.Now()
	for i, id := range waiting {
		if i > 0 && time.Since(begin) >= limit {
			break
		}
		look := looks[id]
		// A disk that cannot be read keeps its figure, and its turn is over like the others'.
		if u, exact, err := boxes[id].DiskUsed(disk.Budget{Entries: diskLookEntries, Time: diskLookTime}); err == nil {
			look.usage, look.exact = u, exact
		}
		look.at = time.Now()
		looks[id] = look
	}
	d.looks = looks
}

func (d *diskLooks) last(id api.SandboxID) diskLook {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.looks[id]
}

// count notes what a limiter has counted.
func (d *diskLooks) count(id api.SandboxID, u disk.Usage) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looks[id] = diskLook{at: time.Now(), usage: u, exact: true, counted: true}
}

// targets are the sandboxes that run now, for the sampler.
func (n *Node) targets() []metrics.Target {
	type running struct {
		inst   instance
		limits nodeapi.Limits
	}
	n.mu.RLock()
	boxes := make([]*box, 0, len(n.boxes))
	for _, b := range n.boxes {
		boxes = append(boxes, b)
	}
	n.mu.RUnlock()
	live := make(map[api.SandboxID]instance, len(boxes))
	targets := make([]metrics.Target, 0, len(boxes))
	size, _, err := diskSpace(n.cfg.StateDir)
	if err != nil {
		n.log.Warn("the size of the disk is not known", "error", err)
	}
	for _, b := range boxes {
		b.mu.Lock()
		r := running{b.inst, b.rec.Sandbox.Limits}
		state := b.rec.Sandbox.State
		b.mu.Unlock()
		if r.inst == nil || state != nodeapi.StateRunning && state != nodeapi.StateStopping {
			continue
		}
		live[b.id] = r.inst
		targets = append(targets, metrics.Target{ID: b.id, Read: func() (metrics.Counters, error) {
			return n.counters(b.id, r.inst, r.limits, uint64(size))
		}})
	}
	n.disks.round(live, n.cfg.SampleInterval/diskShare)
	return targets
}

// counters reads what a sandbox uses. It is bounded by its limits, or by the machine.
func (n *Node) counters(id api.SandboxID, inst instance, l nodeapi.Limits, diskSize uint64) (metrics.Counters, error) {
	u, err := inst.Usage()
	if err != nil {
		return metrics.Counters{}, err
	}
	if u.Disk != nil {
		n.disks.count(id, *u.Disk)
	}
	look := n.disks.last(id)
	c := metrics.Counters{
		CPUNanos: u.CPUNanos, CPUMillis: uint64(l.CPUMillis),
		MemoryBytes: u.MemoryBytes, MemoryCache: u.MemoryCache, MemoryTotal: uint64(l.MemoryBytes),
		DiskRead: u.DiskRead, DiskWritten: u.DiskWritten,
		DiskUsed: uint64(look.usage.Bytes), DiskPartial: !look.exact, DiskTotal: uint64(look.usage.Limits.Bytes),
		NetIn: u.NetIn, NetOut: u.NetOut, Processes: u.PIDs,
	}
	for _, f := range []struct {
		total   *uint64
		machine uint64
	}{{&c.CPUMillis, uint64(n.bounds.cpus)}, {&c.MemoryTotal, uint64(n.bounds.memory)}, {&c.DiskTotal, diskSize}} {
		if *f.total == 0 {
			*f.total = f.machine
		}
	}
	return c, nil
}

// getSamples is GET /v1/sandboxes/{id}/metrics.
func (n *Node) getSamples(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	if _, err := n.box(id); err != nil {
		return err
	}
	start, err := timeParam(r, "start")
	if err != nil {
		return err
	}
	end, err := timeParam(r, "end")
	if err != nil {
		return err
	}
	if !start.IsZero() && !end.IsZero() && end.Before(start) {
		return invalid("end: %s is before start", end.Format(time.RFC3339Nano))
	}
	samples := n.sampler.Between(id, start, end)
	out := make([]nodeapi.Sample, len(samples))
	for i, s := range samples {
		out[i] = sampleView(s)
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// getLatest is GET /v1/metrics/latest.
func (n *Node) getLatest(w http.ResponseWriter, r *http.Request) error {
	ids := strings.Split(r.URL.Query().Get("ids"), ",")
	if len(ids) > nodeapi.MaxLatest {
		return invalid("ids: %d of them, at most %d are answered at once", len(ids), nodeapi.MaxLatest)
	}
	out := make(map[api.SandboxID]nodeapi.Sample, len(ids))
	for _, s := range ids {
		id, err := api.ParseSandboxID(s)
		if err != nil {
			return invalid("ids: %v", err)
		}
		if last, ok := n.sampler.Last(id); ok {
			out[id] = sampleView(last)
		}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func sampleView(s metrics.Sample) nodeapi.Sample {
	return nodeapi.Sample{
		Time: s.Time.UTC(), CPUPercent: s.CPUPercent, CPUNanos: s.CPUNanos, CPUMillis: s.CPUMillis,
		MemoryBytes: s.MemoryBytes, MemoryCache: s.MemoryCache, MemoryTotal: s.MemoryTotal,
		DiskRead: s.DiskRead, DiskWritten: s.DiskWritten, DiskUsed: s.DiskUsed, DiskPartial: s.DiskPartial, DiskTotal: s.DiskTotal,
		NetIn: s.NetIn, NetOut: s.NetOut, Processes: s.Processes,
	}
}

// timeParam returns a time of the query; the zero time where it is not there.
func timeParam(r *http.Request, name string) (time.Time, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return t, invalid("%s: %.40q is not a time as 2006-01-02T15:04:05Z", name, s)
	}
	return t, nil
}
