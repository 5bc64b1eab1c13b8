package state

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Date(2026, 11, 1, 12, 0, 0, 123456789, time.UTC)

// at is n seconds after the tests' own beginning of time.
func at(n int) time.Time { return epoch.Add(time.Duration(n) * time.Second) }

// id is the n-th sandbox id of the tests.
func id(n int) api.SandboxID { return api.SandboxID(fmt.Sprintf("i%020d", n)) }

func starting(n int) Sandbox {
	return Sandbox{
		ID: id(n), Tenant: DefaultTenant, Template: "base", Digest: "sha256:abc", State: Starting,
		CreatedAt: at(n), EndAt: at(n + 300), MaxEndAt: at(n + 86400), CPUMillis: 1000, MemoryMB: 512, DiskMB: 1024,
		Metadata: map[string]string{"n": fmt.Sprint(n), "parity": fmt.Sprint(n % 2)}, Creator: "run",
	}
}

// script is a log with a command of each type, good ones and refused ones.
func script() []Command {
	no := false
	rich := starting(1)
	rich.EnvVars = map[string]string{"A": "1", "B": "2", "C": "3"}
	rich.Metadata = map[string]string{"z": "26", "a": "1", "ü": "ß"}
	rich.Network = []byte(`{"allowOut":["1.1.1.1"]}`)
	rich.AllowInternetAccess = &no
	rich.KeyID = "0123456789abcdef"
	key := Key{ID: "0123456789abcdef", Tenant: DefaultTenant, Name: "bootstrap", Hash: make([]byte, 32), CreatedAt: at(0), CreatedBy: "bootstrap"}
	other := key
	other.ID, other.Name = "fedcba9876543210", "other"
	made := Snapshot{
		ID: snapID(1), Tenant: DefaultTenant, Name: "warm", Tag: "default", Sandbox: id(1), Node: "n1", Memory: true, State: SnapshotMaking,
		Template: "base", Digest: "sha256:abc", Labels: map[string]string{"a": "1"}, CreatedAt: at(9), Creator: "run",
	}
	again, failed := made, made
	again.ID, failed.ID = snapID(2), snapID(3)
	child := starting(5)
	child.Origin = snapID(2)
	list := []Command{
		&KeyBootstrap{Key: key},
		&KeyBootstrap{Key: other}, // refused
		&KeyPut{Key: other},
		&TemplatePut{Template: Template{Tenant: DefaultTenant, Name: "base", Digest: "sha256:abc", Bytes: 5, Files: 2, Env: []string{"A=1"}, CreatedAt: at(0), UpdatedAt: at(0)}},
		&TemplatePut{Template: Template{Tenant: DefaultTenant, Name: "gone", Digest: "sha256:def", CreatedAt: at(0), UpdatedAt: at(0)}},
		&TemplateDelete{Tenant: DefaultTenant, Name: "gone"},
		&SandboxCreate{Sandbox: rich},
		&SandboxCreate{Sandbox: rich}, // refused
		&SandboxRunning{ID: id(1), Node: "n1", Digest: "sha256:abc", StartedAt: at(2)},
		&SandboxRunning{ID: id(1), Node: "n2", StartedAt: at(3)}, // refused
		&SandboxDeadline{ID: id(1), EndAt: at(1000), ExtendOnly: true},
		&SandboxDeadline{ID: id(1), EndAt: at(1_000_000)}, // cut to the maximum
		&SandboxCreate{Sandbox: starting(2)},
		&SandboxEnd{Ends: []End{{ID: id(2), State: Failed, Reason: "no room", At: at(5)}}},
		&SandboxCreate{Sandbox: starting(3)},
		&SandboxRunning{ID: id(3), Node: "n1", StartedAt: at(6)},
		&SandboxStopping{ID: id(3), Reason: "deleted"},
		&SandboxEnd{Ends: []End{{ID: id(3), State: Stopped, Reason: "deleted", At: at(7), Exit: &Exit{Reason: "stopped", Code: 143, Signal: 15}}}},
		&SandboxCreate{Sandbox: starting(4)},
		&SandboxEnd{Ends: []End{{ID: id(4), State: Lost, Reason: "node gone", At: at(8)}}},
		&SandboxPurge{IDs: []api.SandboxID{id(2), id(1), id(99)}},
		&KeyDelete{Tenant: DefaultTenant, ID: other.ID},
		&SandboxPaused{ID: id(1), Node: "n2", At: at(10)}, // refused
		&SandboxPaused{ID: id(1), Node: "n1", At: at(10)},
		&SnapshotPut{Snapshot: made},
		&SnapshotPut{Snapshot: made}, // refused
		&SnapshotEnd{ID: snapID(1), State: SnapshotReady, At: at(11), Bytes: 5 << 20, Stored: 1 << 20, Pages: 1000, Files: 3},
		&SnapshotPut{Snapshot: again},
		&SnapshotEnd{ID: snapID(2), State: SnapshotReady, At: at(12)}, // takes the name
		&SnapshotPut{Snapshot: failed},
		&SnapshotEnd{ID: snapID(3), State: SnapshotFailed, Reason: "disk full", At: at(13)},
		&SandboxCreate{Sandbox: child},
		&SnapshotDelete{Tenant: DefaultTenant, ID: snapID(2)}, // refused
		&SnapshotDelete{Tenant: "another", ID: snapID(3)},     // refused
		&SnapshotDelete{Tenant: DefaultTenant, ID: snapID(3)},
		&SandboxResumed{ID: id(1), Node: "n2", At: at(20), EndAt: at(500), MaxEnd: at(90_000), Timeout: time.Minute},
		&TemplatePublish{Tenant: DefaultTenant, Name: "base", Public: true},
		&TemplateNetwork{Tenant: DefaultTenant, Name: "base", Network: NetworkPolicy{Deny: []string{"198.51.100.0/24"}}},
	}
	list = append(list, identityScript(len(list))...)
	list = append(list, ringScript()...)
	list = append(list, clusterScript()...)
	list = append(list, quotaScript()...)
	list = append(list, poolScript()...)
	list = append(list, nodeScript()...)
	list = append(list, secretScript()...)
	return append(list, &TemplatePlacement{Tenant: DefaultTenant, Name: "base", Where: `{"strategy":"spread"}`})
}

// snapID is the n-th snapshot id of the tests.
func snapID(n int) api.SnapshotID { return api.SnapshotID(fmt.Sprintf("s%020d", n)) }

// replay applies a script to fresh tables, through the encoding of the log.
func replay(t testing.TB, commands []Command) *fsm {
	t.Helper()
	store, err := newStore()
	must.NoError(t, err)
	f := &fsm{store: store}
	for i, c := range commands {
		entry, err := encodeCommand(c)
		must.NoError(t, err)
		f.Apply(&raft.Log{Index: uint64(i + 10), Data: entry})
	}
	return f
}

func snapshotOf(t testing.TB, f *fsm) []byte {
	t.Helper()
	var b bytes.Buffer
	must.NoError(t, writeSnapshot(&b, f.store.read()))
	return b.Bytes()
}

func open(t testing.TB, cfg Config) *Server {
	t.Helper()
	s, err := Open(cfg)
	must.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	must.NoError(t, s.WaitLeader(ctx))
	if s.alone { // its first entry is there, too
		until(t, "the cluster to have an id", func() bool { return s.known.get() != "" })
	}
	return s
}

func mustApply(t testing.TB, s *Server, c Command) Result {
	t.Helper()
	r, err := s.Apply(context.Background(), c)
	must.NoError(t, err)
	return r
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not seen within 20 s: %s", what)
		}
	}
}
