// Package metrics samples what sandboxes use from the kernel's own counters and keeps a window of it on the node.
//
// It owns the samples, the ring that bounds them and the loop that takes them. It never reads a file itself: a source
// given by the node does.
package metrics

import (
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Counters are one reading of a sandbox. Counters that only grow are since its start; a field whose counter the kernel
// lacks is 0.
type Counters struct {
	CPUNanos    uint64 // processor time
	MemoryBytes uint64 // in use, without cache that can be dropped
	MemoryCache uint64
	MemoryTotal uint64 // limit, or the machine's memory
	DiskRead    uint64 // bytes
	DiskWritten uint64
	DiskUsed    uint64
	DiskPartial bool   // DiskUsed is what a bounded look found: there is at least as much
	DiskTotal   uint64 // limit, or the file system's size
	NetIn       uint64 // bytes
	NetOut      uint64
	Processes   uint64 // and their threads
	CPUMillis   uint64 // limit in thousandths of a core, or the machine's cores
}

// Sample is a reading at a moment. CPUPercent is since the sample before: 100 is one core in full.
type Sample struct {
	Time       time.Time
	CPUPercent float64
	Counters
}

// Target is a sandbox to sample. Read must not block on the sandbox itself: it reads files of the kernel.
type Target struct {
	ID   api.SandboxID
	Read func() (Counters, error)
}
