package server

import (
	"math"
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
)

// setLimits is PUT /v1/sandboxes/{id}/limits.
func (s *Server) setLimits(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	var req api.LimitsRequest
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	c, err := limitChange(req)
	if err != nil {
		return err
	}
	sb, err := s.cfg.Lifecycle.SetLimits(r.Context(), tenant(r), id, c)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, sandboxView(sb))
	return nil
}

// limitChange checks a change of limits and translates it.
func limitChange(req api.LimitsRequest) (c lifecycle.LimitChange, err error) {
	if c.CPUMillis, err = cpuMillis(req.CPU, req.CPUMillis); err != nil {
		return c, err
	}
	if m := req.MemoryMB; m != nil {
		if *m < 1 || *m > maxMemoryMB {
			return c, invalid("memory_mb is %d, 1 to %d are allowed", *m, maxMemoryMB)
		}
		c.MemoryMB = *m
	}
	c.Limits, err = storageLimits(req.PIDs, req.DiskMB, req.StorageLimits, true)
	if err == nil && c == (lifecycle.LimitChange{}) {
		return c, invalid("no limit is given")
	}
	return c, err
}

// storageLimits checks the limits of disk and processes in a request. A change of a running sandbox may lift those of io.
func storageLimits(pids, diskMB *int64, l api.StorageLimits, change bool) (out state.Limits, err error) {
	for _, n := range []struct {
		field string
		from  *int64
		to    *int64
		high  int64
		lift  bool
	}{
		{"pids", pids, &out.PIDs, maxPIDs, false},
		{"disk_mb", diskMB, &out.DiskBytes, maxDiskMB, false},
		{"disk_inodes", l.DiskInodes, &out.DiskInodes, math.MaxInt64, false},
		{"io_read_bytes", l.IOReadBytes, &out.IOReadBytes, math.MaxInt64, change},
		{"io_write_bytes", l.IOWriteBytes, &out.IOWriteBytes, math.MaxInt64, change},
		{"io_read_ops", l.IOReadOps, &out.IOReadOps, math.MaxInt64, change},
		{"io_write_ops", l.IOWriteOps, &out.IOWriteOps, math.MaxInt64, change},
	} {
		if n.from == nil {
			continue
		}
		if (*n.from < 1 || *n.from > n.high) && !(n.lift && *n.from == api.Unlimited) {
			return out, invalid("%s is %d, 1 to %d are allowed", n.field, *n.from, n.high)
		}
		*n.to = *n.from
	}
	out.DiskBytes <<= 20
	return out, nil
}
