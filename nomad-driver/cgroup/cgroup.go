// Package cgroup puts one sandbox into control groups of its own: limits, freezing, killing, counters. It works on cgroup
// v1 (also the hybrid layout) and on cgroup v2, and tells which it found.
//
// It owns every directory below its parent ("soulbox" by default) in each hierarchy and nothing else there. It knows
// nothing of namespaces, of guests or of the node. Package sandbox is its user.
package cgroup

import (
	"errors"
	"time"
)

// Limits of one group. Zero means no limit for a new group, and leaves that of an existing one.
type Limits struct {
	CPUMillis   int64 // hard limit in thousandths of a core
	CPUWeight   int64 // 1..10000 as cgroup v2's cpu.weight; 100 is the kernel's default
	MemoryBytes int64 // hard limit; swap is not available on top of it where the kernel can say so
	// MemoryLow is how much of its memory the kernel takes only when there is nothing else to take; Unlimited (-1) ends
	// the protection. v2 only.
	MemoryLow int64
	// MemorySoft is beyond what the kernel takes from the group first when memory is short; Unlimited (-1) lifts it. v1 only:
	// v2 takes by use beyond MemoryLow.
	MemorySoft int64
	PIDs       int64 // processes and threads
	IO         IOLimits
}

// Unlimited lifts a limit of a group that has one, where the field's comment allows it.
const Unlimited = -1

// IOLimits bound what a group reads from and writes to one disk, per second. Unlimited (-1) lifts a limit.
type IOLimits struct {
	Device                                   string // "major:minor" of a whole disk, not of a partition; see Disk
	ReadBytes, WriteBytes, ReadOps, WriteOps int64
}

// Any reports whether l says anything.
func (l IOLimits) Any() bool {
	return l.ReadBytes != 0 || l.WriteBytes != 0 || l.ReadOps != 0 || l.WriteOps != 0
}

// Stats are a group's counters at one moment. Measured names the fields (as snake_case) that the kernel has. The fields
// are those of the node API's Stats, in the same order, so that one converts to the other.
type Stats struct {
	Time        time.Time
	CPUNanos    uint64
	UserNanos   uint64
	SystemNanos uint64
	Throttled   uint64
	ThrottledNs uint64
	MemoryBytes uint64 // without the page cache that can be dropped
	MemoryCache uint64
	MemoryMax   uint64 // high-water mark
	MemoryLimit uint64 // 0: none
	PIDs        uint64
	OOMKills    uint64
	ForksDenied uint64 // processes and threads refused at the limit PIDs
	// Those of the disk are not the group's: package sandbox fills them in where a disk limit tells them.
	DiskBytes      uint64
	DiskLimit      uint64 // 0: none
	DiskInodes     uint64
	DiskInodeLimit uint64 // 0: none
	Measured       []string
}

// ErrNotExist is in the chain of errors about a group that is not there (any more).
var ErrNotExist = errors.New("control group does not exist")

// ErrBelowUse is in the chain of errors about a memory limit that is below what the group uses and cannot give back.
var ErrBelowUse = errors.New("memory limit is below what is in use")

// ErrUnsupported is in the chain of errors about a limit or an action that this kernel's controllers do not offer.
var ErrUnsupported = errors.New("not supported by this kernel's control groups")
