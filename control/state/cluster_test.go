package state

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// clusterScript is the part of script that is about the cluster itself.
func clusterScript() []Command {
	pilot := DefaultAutopilot()
	return []Command{
		&ClusterPut{ID: strings.Repeat("a", 32)},
		&ClusterPut{ID: strings.Repeat("b", 32)}, // it has one
		&ClusterPut{ID: strings.Repeat("c", 32), Again: true},
		&AutopilotPut{Settings: pilot},
		&AutopilotPut{Settings: pilot}, // refused
	}
}

// TestJoin_otherClustersStateIsRefused has a server with a cluster's state meet another cluster: before it starts, where somebody can be asked, and
// when it asks to be let in.
func TestJoin_otherClustersStateIsRefused(t *testing.T) {
	ca := newAuthority(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	a := ca.joins(t, "a", t.TempDir(), nil)
	must.NoError(t, a.WaitLeader(ctx))
	dir := t.TempDir()
	foreign := ca.joins(t, "b", dir, nil)
	must.NoError(t, foreign.WaitLeader(ctx))
	ids := func() (own, other string) {
		until(t, "both clusters to have an id", func() bool { return a.known.get() != "" && foreign.known.get() != "" })
		return a.known.get(), foreign.known.get()
	}
	own, other := ids()
	must.NotEq(t, own, other)

	// Nobody could be asked when it began: whom it asks later refuses it.
	_, err := foreign.askJoin(ctx, a.RaftAddr(), joinRequest{ID: "b", Addr: foreign.RaftAddr(), Cluster: other})
	must.ErrorContains(t, err, own)
	must.ErrorContains(t, err, other)
	list, err := a.Servers()
	must.NoError(t, err)
	must.Len(t, 1, list)

	foreign.stop(t)
	settings := ca.tls(ca.issue(t, raftName, "b"))
	cfg := Config{
		Dir: dir, ServerID: "b", Bind: "127.0.0.1:0", TLS: settings,
		Others: func(context.Context) ([]string, error) { return []string{"127.0.0.1:1", a.RaftAddr()}, nil },
	}
	_, err = Open(cfg)
	must.ErrorIs(t, err, ErrCluster)
	must.ErrorContains(t, err, own)
	must.ErrorContains(t, err, other)
	must.ErrorContains(t, err, "empty data_dir")

	// With an empty folder it joins, and its folder says then whose it is.
	dir = t.TempDir()
	b := ca.joins(t, "b", dir, []string{a.RaftAddr()})
	must.NoError(t, b.WaitLeader(ctx))
	a.healthy(t, "a", "b")
	until(t, "the folder to say it", func() bool {
		said, err := os.ReadFile(filepath.Join(dir, fileClusterID))
		return err == nil && string(said) == own+"\n"
	})
	b.stop(t)
	b = ca.joins(t, "b", dir, []string{a.RaftAddr()})
	must.Eq(t, own, b.known.get())
	must.NoError(t, b.WaitLeader(ctx))
}

// TestRestore_keepsTheClustersID restores another cluster's backup.
func TestRestore_keepsTheClustersID(t *testing.T) {
	a, b := open(t, Config{}), open(t, Config{})
	for _, s := range []*Server{a, b} {
		t.Cleanup(func() { must.NoError(t, s.Close()) })
		until(t, "an id", func() bool { return s.known.get() != "" })
	}
	own := a.known.get()
	must.NotEq(t, own, b.known.get())
	mustApply(t, b, &SandboxCreate{Sandbox: starting(1)})
	_, write, err := b.Save(t.Context())
	must.NoError(t, err)
	var backup strings.Builder
	must.NoError(t, write(&backup))
	_, err = a.Restore(t.Context(), strings.NewReader(backup.String()))
	must.NoError(t, err)
	_, err = a.Sandbox(id(1))
	must.NoError(t, err)
	must.Eq(t, own, a.known.get())
	said, err := a.clusterID()
	must.NoError(t, err)
	must.Eq(t, own, said)
}

func TestAutopilot_settingsOutliveTheLeaderAndItsFile(t *testing.T) {
	ca := newAuthority(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	a := ca.joins(t, "a", t.TempDir(), nil)
	must.NoError(t, a.WaitLeader(ctx))
	b := ca.joins(t, "b", t.TempDir(), []string{a.RaftAddr()})
	must.NoError(t, b.WaitLeader(ctx))
	file := a.AutopilotConfig()
	got, err := a.SetAutopilot(ctx, func(p *Autopilot) { p.DeadAfter = time.Hour })
	must.NoError(t, err)
	want := file
	want.DeadAfter = time.Hour
	must.Eq(t, want, got)
	must.Eq(t, want, a.AutopilotConfig())
	until(t, "the other to know", func() bool { return b.AutopilotConfig() == want })
	must.Eq(t, file.LastContact, delegate{a.Server, ctx}.AutopilotConfig().LastContactThreshold)

	_, err = a.SetAutopilot(ctx, func(p *Autopilot) { p.DeadAfter = 0 })
	must.ErrorContains(t, err, "dead_server_last_contact_threshold")
	must.Eq(t, want, a.AutopilotConfig())

	// One that starts anew has them, too.
	dir := t.TempDir()
	c := open(t, Config{Dir: dir})
	until(t, "it to lead", c.Leads)
	_, err = c.SetAutopilot(ctx, func(p *Autopilot) { p.MinQuorum = 5 })
	must.NoError(t, err)
	must.NoError(t, c.Close())
	c = open(t, Config{Dir: dir})
	t.Cleanup(func() { must.NoError(t, c.Close()) })
	until(t, "its tables", func() bool { return c.AutopilotConfig().MinQuorum == 5 })
}
