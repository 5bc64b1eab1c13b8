package state

import (
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// SnapshotPut records a snapshot that is being made. An id that exists is ErrExists.
type SnapshotPut struct {
	Snapshot Snapshot `codec:"snapshot"`
}

// SnapshotEnd records how the making of a snapshot ended: ready or failed. One that has ended stays as it is. A ready one takes
// its name and tag from any other that has them.
type SnapshotEnd struct {
	ID     api.SnapshotID `codec:"id"`
	State  SnapshotState  `codec:"state"`
	Reason string         `codec:"reason"`
	At     time.Time      `codec:"at"`
	Bytes  int64          `codec:"bytes"`
	Stored int64          `codec:"stored"`
	Pages  int64          `codec:"pages"`
	Files  int64          `codec:"files"`
}

// SnapshotDelete forgets a snapshot of a tenant. One that sandboxes which have not ended were made from is ErrState, unless
// Force.
type SnapshotDelete struct {
	Tenant string         `codec:"tenant"`
	ID     api.SnapshotID `codec:"id"`
	Force  bool           `codec:"force"`
}

func (*SnapshotPut) kind() commandType    { return typeSnapshotPut }
func (*SnapshotEnd) kind() commandType    { return typeSnapshotEnd }
func (*SnapshotDelete) kind() commandType { return typeSnapshotDelete }

func (c *SnapshotPut) check() error {
	s := &c.Snapshot
	switch {
	case s.Tenant == "":
		return limitErrorf("tenant", "is missing")
	case s.State != SnapshotMaking:
		return limitErrorf("state", "is %q, a new snapshot is %q", s.State, SnapshotMaking)
	case s.CreatedAt.IsZero():
		return limitErrorf("created_at", "is missing")
	case len(s.Name) > MaxTemplateName || !clean(s.Name):
		return limitErrorf("name", "is longer than %d bytes, or not UTF-8", MaxTemplateName)
	case len(s.Tag) > MaxTemplateName || !clean(s.Tag):
		return limitErrorf("tag", "is longer than %d bytes, or not UTF-8", MaxTemplateName)
	case len(s.Description) > MaxReason || !clean(s.Description):
		return limitErrorf("description", "is longer than %d bytes, or not UTF-8", MaxReason)
	}
	if err := CheckMetadata(s.Labels); err != nil {
		return err
	}
	if err := CheckEnv(s.EnvVars); err != nil {
		return err
	}
	if err := checkID(s.Sandbox); err != nil {
		return err
	}
	return checkSnapshotID(s.ID)
}

func (c *SnapshotEnd) check() error {
	if c.State != SnapshotReady && c.State != SnapshotFailed {
		return limitErrorf("state", "is %q, which is no end of making a snapshot", c.State)
	}
	if c.At.IsZero() {
		return limitErrorf("at", "is missing")
	}
	c.Reason = cut(c.Reason)
	return checkSnapshotID(c.ID)
}

func (c *SnapshotDelete) check() error {
	if c.Tenant == "" {
		return limitErrorf("tenant", "is missing")
	}
	return checkSnapshotID(c.ID)
}

func checkSnapshotID(id api.SnapshotID) error {
	_, err := api.ParseSnapshotID(string(id))
	return err
}
