package nomad

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/bits"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// class is a size of sandbox, as Nomad's scheduler counts it. All sandboxes of a class are dispatched from one parent job.
// Sizes are rounded up to classes, so that their number, and with it that of parent jobs, stays small whatever sizes
// clients ask for. The limits that the node enforces are the exact ones of the request.
type class struct {
	cpuMillis int64
	memoryMB  int64
	node      api.NodeID // the only one that will do; empty: any
	tenant    string     // whose nodes they have to be; empty: those of all
	rules     placement.Rules
	prefer    api.NodeID // of those that will do; empty: the scheduler's choice
}

const (
	mib = 1 << 20

	defaultCPUMillis = 1000
	defaultMemoryMB  = 512
	minMemoryMB      = 16
)

// classOf returns the class that holds l on the node on, or on any. A limit of zero, the node's default, counts as one core and
// 512 MiB.
func classOf(l nodeapi.Limits, on api.NodeID) class {
	cpu, mem := l.CPUMillis, (l.MemoryBytes+mib-1)/mib
	if cpu <= 0 {
		cpu = defaultCPUMillis
	}
	if mem <= 0 {
		mem = defaultMemoryMB
	}
	return class{cpuMillis: roundCPU(cpu), memoryMB: roundMemory(mem), node: on}
}

// Reserved implements placement.Reserver: what Nomad counts for a sandbox is the class that it was placed in.
func (*Placer) Reserved(asked nodeapi.Limits) nodeapi.Limits {
	c := classOf(asked, "")
	return nodeapi.Limits{CPUMillis: c.cpuMillis, MemoryBytes: c.memoryMB * mib}
}

// roundCPU rounds up to 50 thousandths of a core up to one core, to a quarter up to four, and to whole cores above.
func roundCPU(millis int64) int64 {
	switch {
	case millis <= 1000:
		return roundUp(millis, 50)
	case millis <= 4000:
		return roundUp(millis, 250)
	}
	return roundUp(millis, 1000)
}

// roundMemory rounds up to an eighth of the next lower power of two: at most 12.5 % are reserved in vain.
func roundMemory(mb int64) int64 {
	if mb <= minMemoryMB {
		return minMemoryMB
	}
	power := int64(1) << (bits.Len64(uint64(mb)) - 1)
	return roundUp(mb, max(power/8, 1))
}

func roundUp(n, step int64) int64 { return (n + step - 1) / step * step }

// pool is the node pool of the nodes that a tenant has alone. Nomad places nothing of another pool there.
func pool(tenant string) string { return "soulbox-" + tenant }

// jobID names the class's parent job.
func (c class) jobID(prefix string) string {
	id := fmt.Sprintf("%s-%dc-%dm", prefix, c.cpuMillis, c.memoryMB)
	if c.node != "" {
		id += "-on-" + string(c.node)
	}
	if c.tenant != "" {
		id += "-of-" + c.tenant
	}
	if c.rules != "" { // what clients say is in no name
		sum := sha256.Sum256([]byte(c.rules))
		id += "-where-" + hex.EncodeToString(sum[:8])
	}
	if c.prefer != "" {
		id += "-near-" + string(c.prefer)
	}
	return id
}
