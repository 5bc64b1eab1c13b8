package state

import (
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// BuildStatus is the state of a build of a template, in the words of the contract.
type BuildStatus string

// The states. The last two are final.
const (
	BuildWaiting  BuildStatus = api.BuildWaiting
	BuildBuilding BuildStatus = api.BuildBuilding
	BuildReady    BuildStatus = api.BuildReady
	BuildError    BuildStatus = api.BuildError
)

// Ended reports whether nothing more happens to a build.
func (s BuildStatus) Ended() bool { return s == BuildReady || s == BuildError }

// Build is the making of a template: asked for, under way, or ended a while ago.
type Build struct {
	ID         string        `codec:"id"`          // a UUID
	TemplateID string        `codec:"template_id"` // of the template that it makes
	Tenant     string        `codec:"tenant"`
	Name       string        `codec:"name"` // of the template, without a tag
	Tags       []string      `codec:"tags"`
	Public     bool          `codec:"public"`
	CPUMillis  int64         `codec:"cpu_millis"` // of the build's sandbox, and of the template's; 0: the default
	MemoryMB   int64         `codec:"memory_mb"`
	Status     BuildStatus   `codec:"status"`
	Reason     string        `codec:"reason"`  // why it failed, for people
	Step       string        `codec:"step"`    // at which
	Sandbox    api.SandboxID `codec:"sandbox"` // in which it runs; empty until there is one
	CreatedAt  time.Time     `codec:"created_at"`
	StartedAt  time.Time     `codec:"started_at"`
	EndedAt    time.Time     `codec:"ended_at"`
	CreatedBy  string        `codec:"created_by"` // who asked for it, in one word

	// Creator is the run of a control service that it is under way in, as Sandbox.Creator.
	Creator string `codec:"creator"`

	Chunks int `codec:"chunks"` // of its log
	Bytes  int `codec:"bytes"`  // of its log's messages

	CreateIndex uint64 `codec:"create_index"`
	ModifyIndex uint64 `codec:"modify_index"`
}

// BuildLogEntry is an entry of a build's log.
type BuildLogEntry struct {
	At      time.Time `codec:"at"`
	Level   string    `codec:"level"`
	Step    string    `codec:"step"`
	Message string    `codec:"message"`
}

// buildChunk is a part of a build's log, as it was written by one command.
type buildChunk struct {
	Key     string          `codec:"key"` // see chunkKey
	Entries []BuildLogEntry `codec:"entries"`
}
