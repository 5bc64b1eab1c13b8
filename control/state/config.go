package state

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Peer is a control server of the first configuration of a cluster.
type Peer struct {
	ID   string
	Addr string // host:port of its Raft listener
}

// Config says how a control server keeps its state.
type Config struct {
	// Dir holds the log and the snapshots. Empty: everything in memory, for tests.
	Dir string
	// ServerID names this server for its whole life. Empty: a random one that Dir keeps.
	ServerID string
	// Bind is the host:port to listen on for the other servers. Empty: no listener, a cluster of one.
	Bind string
	// Advertise is the host:port that the other servers reach; Bind where it is empty.
	Advertise string
	// Peers are the servers of a new cluster, this one included; every one of them is started with the same list. It
	// counts only where Dir is fresh. Empty: this server alone, or, with Others, none: it joins one that there is.
	Peers []Peer
	// Others returns where other servers may be, as host:port of their Raft listeners. They are asked to let this one in while nobody leads that it
	// hears of. It is called from one goroutine. nil: only Peers are asked.
	Others func(ctx context.Context) ([]string, error)
	// Autopilot says how the server that leads keeps the cluster well. nil: DefaultAutopilot.
	Autopilot *Autopilot
	// OnMember is told, on the server that leads, of servers that come and go without a request. It must not block. nil: nobody is.
	OnMember func(MemberChange)
	// TLS protects the connections between the servers. nil: plain TCP, for a loopback or a test.
	TLS *TLS
	// OnLeader runs while this server leads and its tables hold everything that was ever committed. Its context ends with
	// the leadership; it must return soon then.
	OnLeader func(ctx context.Context)
	// Quiet returns when no request to a sandbox is under way at this server, or ctx ends. It is called from many goroutines. nil: there never is one.
	Quiet   func(ctx context.Context, id api.SandboxID)
	Counter Counter // is told what tenants may use and do use; nil: nobody
	Logger  hclog.Logger

	// SegmentBytes is the size of one file of the log; 0 means 16 MiB.
	SegmentBytes int
	// SnapshotEntries is how many log entries may pass until a snapshot is made; 0 means 8192.
	SnapshotEntries uint64

	transport raft.Transport // tests: instead of Bind
	fast      bool           // tests: short timeouts for a cluster of several
}

const (
	defaultSegmentBytes    = 16 << 20
	defaultSnapshotEntries = 8192
	snapshotsKept          = 2
	logCacheEntries        = 512
	applyTimeout           = 5 * time.Second // until a command enters the log's queue
	// aloneTimeout is the election timeout of a server without a listener: there is nobody whose heartbeats could be late, and nobody can join it.
	aloneTimeout = 20 * time.Millisecond
	// severalTimeout is after how much silence of the one that leads, at least, another server wants to: up to twice that, and an election of about that. It is
	// longer than raft's lease (500 ms), after which one that leads and hears nobody steps down.
	severalTimeout = 750 * time.Millisecond
	fastTimeout    = 100 * time.Millisecond
)

func (c *Config) check() error {
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.SegmentBytes == 0 {
		c.SegmentBytes = defaultSegmentBytes
	}
	if c.SnapshotEntries == 0 {
		c.SnapshotEntries = defaultSnapshotEntries
	}
	if c.Autopilot == nil {
		a := DefaultAutopilot()
		c.Autopilot = &a
	}
	if err := c.Autopilot.Check(); err != nil {
		return err
	}
	if c.Others != nil && c.Bind == "" {
		return errors.New("raft: a server that joins others needs an address to listen on")
	}
	if c.Others != nil && c.ServerID == "" {
		return errors.New("raft: a server that joins others needs an id of its own")
	}
	if len(c.Peers) > 1 && c.Bind == "" && c.transport == nil {
		return errors.New("raft: several servers need an address to listen on")
	}
	if len(c.Peers) > 0 {
		if c.ServerID == "" {
			return errors.New("raft: a list of servers needs this server's own id")
		}
		found := false
		for _, p := range c.Peers {
			found = found || p.ID == c.ServerID
		}
		if !found {
			return fmt.Errorf("raft: the list of servers lacks this server, %s", c.ServerID)
		}
	}
	return nil
}

// raftConfig returns the settings of raft for a cluster of so many servers.
func (c *Config) raftConfig(servers int, notify chan<- bool) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(c.ServerID)
	rc.Logger = c.Logger.Named("raft")
	rc.NotifyCh = notify
	rc.ShutdownOnRemove = false // a shutdown is for Close alone
	rc.BatchApplyCh = true
	rc.SnapshotThreshold = c.SnapshotEntries
	switch {
	case servers == 1 && c.Bind == "" && c.transport == nil:
		rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = aloneTimeout, aloneTimeout, aloneTimeout
		rc.Logger = aloneLogger{rc.Logger}
	case c.fast:
		rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = fastTimeout, fastTimeout, fastTimeout
	default:
		rc.HeartbeatTimeout, rc.ElectionTimeout = severalTimeout, severalTimeout
		if servers == 1 {
			rc.Logger = aloneLogger{rc.Logger}
		}
	}
	return rc
}

// aloneLogger takes the alarm out of what every start of a cluster of one logs: there is no leader to hear from.
type aloneLogger struct{ hclog.Logger }

// Warn implements hclog.Logger.
func (l aloneLogger) Warn(msg string, args ...any) {
	if strings.HasPrefix(msg, "heartbeat timeout reached") {
		l.Debug(msg, args...)
		return
	}
	l.Logger.Warn(msg, args...)
}
