package state

import "time"

// BuildPut records a build that waits for its instructions. A build of the same tenant and name that has not failed is of the same
// template: where the new one is Fresh, it gets that one's id. Builds that ended, or were never started, before the given times are
// forgotten, and the oldest of a tenant that has more than MaxTenantBuilds.
type BuildPut struct {
	Build         Build     `codec:"build"`
	Fresh         bool      `codec:"fresh"` // there is no template of its name yet
	WaitingBefore time.Time `codec:"waiting_before"`
	EndedBefore   time.Time `codec:"ended_before"`
}

// BuildStart records that a waiting build is under way. Any other is ErrState.
type BuildStart struct {
	ID      string    `codec:"id"`
	Creator string    `codec:"creator"`
	At      time.Time `codec:"at"`
}

// BuildLog adds to the log of a build that is under way in Creator's run. Any other is ErrState. Sandbox, where it is set, is what the
// build runs in.
type BuildLog struct {
	ID      string          `codec:"id"`
	Creator string          `codec:"creator"`
	Sandbox string          `codec:"sandbox"`
	Entries []BuildLogEntry `codec:"entries"`
}

// BuildEnd records how a build ended, with the last entries of its log. One that has ended stays as it is.
type BuildEnd struct {
	ID      string          `codec:"id"`
	Status  BuildStatus     `codec:"status"`
	Reason  string          `codec:"reason"`
	Step    string          `codec:"step"`
	At      time.Time       `codec:"at"`
	Entries []BuildLogEntry `codec:"entries"`
	// Unless is the run whose builds stay as they are. Empty: it ends whosever it is.
	Unless string `codec:"unless"`
}

func (*BuildPut) kind() commandType   { return typeBuildPut }
func (*BuildStart) kind() commandType { return typeBuildStart }
func (*BuildLog) kind() commandType   { return typeBuildLog }
func (*BuildEnd) kind() commandType   { return typeBuildEnd }

func (c *BuildPut) check() error {
	b := &c.Build
	switch {
	case b.Tenant == "":
		return limitErrorf("tenant", "is missing")
	case b.ID == "" || b.TemplateID == "":
		return limitErrorf("id", "is missing")
	case b.Name == "" || len(b.Name) > MaxTemplateName || !clean(b.Name):
		return limitErrorf("name", "is not 1 to %d bytes of UTF-8", MaxTemplateName)
	case b.Status != BuildWaiting:
		return limitErrorf("status", "is %q, a new build is %q", b.Status, BuildWaiting)
	case b.CreatedAt.IsZero():
		return limitErrorf("created_at", "is missing")
	}
	return nil
}

func (c *BuildStart) check() error {
	if c.Creator == "" || c.At.IsZero() {
		return limitErrorf("creator", "or time is missing")
	}
	return nil
}

func (c *BuildLog) check() error {
	for i := range c.Entries {
		if !clean(c.Entries[i].Message) {
			return limitErrorf("entries", "has a message that is not UTF-8")
		}
	}
	return nil
}

func (c *BuildEnd) check() error {
	if !c.Status.Ended() {
		return limitErrorf("status", "is %q, which is no end of a build", c.Status)
	}
	if c.At.IsZero() {
		return limitErrorf("at", "is missing")
	}
	c.Reason = cut(c.Reason)
	return (&BuildLog{Entries: c.Entries}).check()
}
