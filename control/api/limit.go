package api

// Classes of a sandbox: how it fares against the others when the machine runs short.
const (
	QoSGuaranteed = "guaranteed"  // its memory is kept for it, four times the processor weight
	QoSBurstable  = "burstable"   // the ordinary one
	QoSBestEffort = "best_effort" // a tenth of the weight; gives memory first, ends first
)

// Unlimited lifts a limit of a running sandbox, where that can be lifted: those of io.
const Unlimited = -1

// StorageLimits bound what a sandbox does to its node's disk beyond the bytes that it keeps there. Missing ones are the node's
// own, which are none unless its operator has set them. A node that cannot hold one refuses it with CodeUnsupported.
type StorageLimits struct {
	DiskInodes *int64 `json:"disk_inodes,omitempty"` // files that it may make outside /tmp

	// Per second. With cgroup v1 only direct and synchronous transfers count.
	IOReadBytes  *int64 `json:"io_read_bytes,omitempty"`
	IOWriteBytes *int64 `json:"io_write_bytes,omitempty"`
	IOReadOps    *int64 `json:"io_read_ops,omitempty"`
	IOWriteOps   *int64 `json:"io_write_ops,omitempty"`
}

// LimitsRequest is the body of PUT /v1/sandboxes/{id}/limits. What is missing stays. Either all of it comes to hold or nothing: memory
// below what is in use, disk below what is written and cannot be taken back, and more processor or memory than was reserved where the
// sandbox is, are refused with 409. Limits of io are lifted with Unlimited.
type LimitsRequest struct {
	CPU       *float64 `json:"cpu,omitempty"`        // cores; not together with CPUMillis
	CPUMillis *int64   `json:"cpu_millis,omitempty"` // thousandths of a core
	MemoryMB  *int64   `json:"memory_mb,omitempty"`  // MiB
	DiskMB    *int64   `json:"disk_mb,omitempty"`    // MiB
	PIDs      *int64   `json:"pids,omitempty"`       // processes and threads
	StorageLimits
}
