package state

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
)

// member is a server that serves what others ask it, as a program does.
type member struct {
	*Server
	http *http.Server
	done chan struct{}

	mu   sync.Mutex
	said []MemberChange
}

// joins opens a server of a cluster over mutual TLS. names are in its certificate, beside its id where there are none.
func (a *authority) joins(t *testing.T, id, dir string, others []string, names ...string) *member {
	t.Helper()
	return a.member(t, id, dir, others, nil, names...)
}

// member is joins, with a change of its settings.
func (a *authority) member(t *testing.T, id, dir string, others []string, change func(*Config), names ...string) *member {
	t.Helper()
	if names == nil {
		names = []string{raftName, id}
	}
	m := &member{done: make(chan struct{})}
	settings := a.tls(a.issue(t, names...))
	settings.Name = func(c *x509.Certificate) (string, error) { return c.DNSNames[len(c.DNSNames)-1], nil }
	pilot := DefaultAutopilot()
	pilot.DeadAfter, pilot.LastContact, pilot.Stabilization = 3*time.Second, time.Second, time.Second
	cfg := Config{
		Dir: dir, ServerID: id, Bind: "127.0.0.1:0", TLS: settings, Autopilot: &pilot, Logger: hclog.New(&hclog.LoggerOptions{Name: id, Level: hclog.Info, Output: t.Output()}),
		OnMember: func(c MemberChange) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.said = append(m.said, c)
		},
	}
	if others != nil {
		cfg.Others = func(context.Context) ([]string, error) { return others, nil }
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	m.Server, err = Open(cfg)
	must.NoError(t, err)
	m.http = &http.Server{Handler: http.HandlerFunc(m.Called), ConnContext: ConnContext}
	l := m.Requests()
	go func() { defer close(m.done); _ = m.http.Serve(l) }()
	t.Cleanup(func() { m.stop(t) })
	return m
}

func (m *member) stop(t *testing.T) {
	t.Helper()
	must.NoError(t, m.Close())
	must.NoError(t, m.http.Close())
	<-m.done
}

// changes are what the server was told of another while it led.
func (m *member) changes(id string) (out []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.said {
		if c.ID == id {
			out = append(out, c.What)
		}
	}
	return out
}

// healthy waits until the one that leads sees these servers, healthy and with votes, and no others.
func (m *member) healthy(t *testing.T, ids ...string) {
	t.Helper()
	var last string
	defer func() {
		if t.Failed() {
			t.Log(last)
		}
	}()
	until(t, fmt.Sprint(ids, " to be healthy voters"), func() bool {
		st, err := m.AutopilotState()
		last = fmt.Sprintf("%+v %v", st, err)
		got := slices.Sorted(slices.Values(st.Voters))
		return err == nil && st.Healthy && slices.Equal(got, ids) && len(st.Servers) == len(ids) && st.FailureTolerance == (len(ids)-1)/2
	})
}

func TestJoin_byListThenDeadServerIsReplaced(t *testing.T) {
	ca := newAuthority(t)
	a := ca.joins(t, "a", t.TempDir(), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must.NoError(t, a.WaitLeader(ctx))
	mustApply(t, a.Server, &SandboxCreate{Sandbox: starting(1)})

	// The first address is of nobody: it asks the next.
	list := []string{"127.0.0.1:1", a.RaftAddr()}
	b := ca.joins(t, "b", t.TempDir(), list)
	must.NoError(t, b.WaitLeader(ctx))
	_, err := b.Sandbox(id(1))
	must.NoError(t, err, must.Sprint("who has joined knows what there is"))
	dir := t.TempDir()
	c := ca.joins(t, "c", dir, []string{b.RaftAddr()}) // which says that a leads
	a.healthy(t, "a", "b", "c")
	must.Eq(t, []string{MemberJoined, MemberPromoted}, a.changes("c"))

	// One that is gone stays while fewer than three would be left, and goes when there is another.
	c.stop(t)
	until(t, "the silence to be seen", func() bool {
		st, err := a.AutopilotState()
		i := slices.IndexFunc(st.Servers, func(p ServerHealth) bool { return p.ID == "c" })
		return err == nil && !st.Healthy && i >= 0 && !st.Servers[i].Healthy && a.silent.since("c") > a.AutopilotConfig().DeadAfter
	})
	d := ca.joins(t, "d", t.TempDir(), list)
	a.healthy(t, "a", "b", "d")
	must.Eq(t, []string{MemberJoined, MemberPromoted, MemberRemoved}, a.changes("c"))
	must.NoError(t, d.WaitLeader(ctx))

	// It comes back by itself, as a new one, once it is there again.
	c = ca.joins(t, "c", dir, []string{a.RaftAddr(), b.RaftAddr()})
	until(t, "it to be in again", func() bool { return len(a.changes("c")) > 3 })
	a.healthy(t, "a", "b", "c", "d")
	must.Eq(t, []string{MemberJoined, MemberPromoted, MemberRemoved, MemberJoined, MemberPromoted}, a.changes("c"))
	_, err = c.Sandbox(id(1))
	must.NoError(t, err)
}

// TestJoin_lostFolderLosesTheVote wipes a server: it may have voted for what it does not know any more.
func TestJoin_lostFolderLosesTheVote(t *testing.T) {
	ca := newAuthority(t)
	a := ca.joins(t, "a", t.TempDir(), nil)
	list := []string{a.RaftAddr()}
	b := ca.joins(t, "b", t.TempDir(), list)
	ca.joins(t, "c", t.TempDir(), list)
	a.healthy(t, "a", "b", "c")
	mustApply(t, a.Server, &SandboxCreate{Sandbox: starting(1)})
	b.stop(t)
	b = ca.joins(t, "b", t.TempDir(), list) // at another port, too
	until(t, "its first life to be seen as over", func() bool { return len(a.changes("b")) > 2 })
	a.healthy(t, "a", "b", "c")
	until(t, "it to have its vote again", func() bool {
		return slices.Equal(a.changes("b"), []string{MemberJoined, MemberPromoted, MemberJoined, MemberPromoted})
	})
	until(t, "it to have everything", func() bool {
		_, err := b.Sandbox(id(1))
		return err == nil
	})
}

func TestJoin_refusals(t *testing.T) {
	ca := newAuthority(t)
	a := ca.joins(t, "a", t.TempDir(), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must.NoError(t, a.WaitLeader(ctx))
	list := []string{a.RaftAddr()}
	b := ca.joins(t, "b", t.TempDir(), list)
	must.NoError(t, b.WaitLeader(ctx))
	for name, tc := range map[string]struct {
		id    string
		names []string
		want  string
	}{
		"certificate of another server":      {"c", []string{raftName, "x"}, "its certificate is of server x, not of c"},
		"no certificate of a server":         {"c", []string{"node.soulbox", "c"}, "remote error: tls"},
		"id of the one that leads":           {"a", nil, "a is the id of the server that leads"},
		"id of one that answers":             {"b", nil, "another server b answers at " + b.RaftAddr()},
		"a certificate of another authority": {"c", []string{"strange"}, "certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			from := ca
			if slices.Equal(tc.names, []string{"strange"}) {
				from, tc.names = newAuthority(t), []string{raftName, "c"}
			}
			x := from.joins(t, tc.id, t.TempDir(), list, tc.names...)
			_, err := x.askToJoin(t.Context())
			must.ErrorContains(t, err, tc.want)
		})
	}
	for addr, want := range map[string]string{"0.0.0.0:7301": "no address", "nonsense": "no address", "127.0.0.1:1": "cannot reach it", a.RaftAddr(): "of server a"} {
		_, err := b.askJoin(t.Context(), a.RaftAddr(), joinRequest{ID: "b", Addr: addr})
		must.ErrorContains(t, err, want)
	}
	_, err := b.call(t.Context(), "GET", a.RaftAddr(), "/raft/nothing", nil, nil)
	must.ErrorContains(t, err, "nothing that servers ask")
	_, err = b.AutopilotState()
	must.ErrorIs(t, err, ErrNoLeader)
	must.True(t, errors.Is(b.AddServer(t.Context(), "z", "127.0.0.1:1", true), ErrNoLeader))
	members, err := a.Servers()
	must.NoError(t, err)
	must.Len(t, 2, members)
}

func TestAutopilot_oneServerAlone(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	defer s.Close()
	st, err := s.AutopilotState()
	must.NoError(t, err)
	must.True(t, st.Healthy)
	must.Len(t, 1, st.Servers)
	must.Positive(t, st.Servers[0].LastIndex)
}

func TestAutopilot_settingsThatContradict(t *testing.T) {
	for name, change := range map[string]func(*Autopilot){
		"dead before it is unhealthy": func(a *Autopilot) { a.DeadAfter = a.LastContact },
		"no quorum":                   func(a *Autopilot) { a.MinQuorum = 1 },
		"unhealthy at once":           func(a *Autopilot) { a.LastContact = 0 },
		"no lag at all":               func(a *Autopilot) { a.MaxTrailingLogs = 0 },
	} {
		a := DefaultAutopilot()
		must.NoError(t, a.Check())
		change(&a)
		must.Error(t, a.Check(), must.Sprint(name))
	}
}
