package state

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/shoenig/test/must"
	"golang.org/x/sync/errgroup"

	"github.com/soulbox-dev/soulbox/control/api"
)

func dump(t testing.TB, s *Server) string {
	t.Helper()
	return string(snapshotOf(t, &fsm{store: s.Store}))
}

func TestServer_restartKeepsEverything(t *testing.T) {
	for name, snapshot := range map[string]bool{"from the log": false, "from a snapshot and the log behind it": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, Config{Dir: dir})
			for i, c := range script() {
				_, _ = s.Apply(t.Context(), c) // some are refused
				if snapshot && i == len(script())/2 {
					r, err := s.Snapshot()
					must.NoError(t, err)
					must.NoError(t, r.Close())
				}
			}
			want, id := dump(t, s), s.ServerID()
			must.NoError(t, s.Close())
			for range 2 {
				s = open(t, Config{Dir: dir})
				must.Eq(t, want, dump(t, s))
				must.Eq(t, id, s.ServerID())
				must.NoError(t, s.Close())
			}
		})
	}
}

// TestServer_killedBetweenEntries kills a process that commits as fast as it can: what it was told to be committed is
// there.
func TestServer_killedBetweenEntries(t *testing.T) {
	dir := t.TempDir()
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestServer_childCommitsUntilKilled$")
		cmd.Env = append(os.Environ(), "STATE_CHILD_DIR="+dir, "STATE_CHILD_FROM="+strconv.Itoa(round*100_000))
		out, err := cmd.StdoutPipe()
		must.NoError(t, err)
		must.NoError(t, cmd.Start())
		last := -1
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			n, ok := strings.CutPrefix(lines.Text(), "committed ")
			if !ok {
				continue
			}
			last, err = strconv.Atoi(n)
			must.NoError(t, err)
			if last == round*100_000+50+round*37 {
				must.NoError(t, cmd.Process.Kill())
			}
		}
		_ = cmd.Wait() // killed
		must.Positive(t, last)
		s := open(t, Config{Dir: dir})
		for n := round * 100_000; n <= last; n++ {
			_, err := s.Sandbox(id(n))
			must.NoError(t, err)
		}
		must.NoError(t, s.Close())
	}
}

func TestServer_childCommitsUntilKilled(t *testing.T) {
	dir := os.Getenv("STATE_CHILD_DIR")
	if dir == "" {
		t.Skip("it is the child of another test")
	}
	n, err := strconv.Atoi(os.Getenv("STATE_CHILD_FROM"))
	must.NoError(t, err)
	s := open(t, Config{Dir: dir})
	for ; ; n++ {
		mustApply(t, s, &SandboxCreate{Sandbox: starting(n)})
		fmt.Printf("committed %d\n", n)
	}
}

// TestServer_tornTailOfTheLogIsCut copies the folder of a running server and damages its last write, as a power loss would.
func TestServer_tornTailOfTheLogIsCut(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	for n := range 20 {
		mustApply(t, s, &SandboxCreate{Sandbox: starting(n)})
	}
	torn := t.TempDir()
	must.NoError(t, os.CopyFS(torn, os.DirFS(dir)))
	must.NoError(t, s.Close())
	files, err := filepath.Glob(filepath.Join(torn, dirWAL, "*.wal"))
	must.NoError(t, err)
	must.Len(t, 1, files)
	f, err := os.OpenFile(files[0], os.O_RDWR, 0)
	must.NoError(t, err)
	body, err := os.ReadFile(files[0])
	must.NoError(t, err)
	end := len(strings.TrimRight(string(body), "\x00"))
	_, err = f.WriteAt(make([]byte, 100), int64(end-100)) // the last write reached the disk in part
	must.NoError(t, err)
	must.NoError(t, f.Close())
	s = open(t, Config{Dir: torn})
	defer s.Close()
	_, err = s.Sandbox(id(18))
	must.NoError(t, err)
	mustApply(t, s, &SandboxCreate{Sandbox: starting(99)})
}

func TestServer_goesOnWithABoltLog(t *testing.T) {
	dir := t.TempDir()
	db, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, fileBolt)})
	must.NoError(t, err)
	must.NoError(t, db.Close())
	s := open(t, Config{Dir: dir})
	mustApply(t, s, script()[0])
	must.NoError(t, s.Close())
	_, err = os.Stat(filepath.Join(dir, dirWAL))
	must.ErrorIs(t, err, os.ErrNotExist)
	s = open(t, Config{Dir: dir})
	defer s.Close()
	_, err = s.Key("0123456789abcdef")
	must.NoError(t, err)
}

func TestServer_leaderRunsAndEnds(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	s := open(t, Config{OnLeader: func(ctx context.Context) {
		close(began)
		<-ctx.Done()
		close(ended)
	}})
	<-began
	must.NoError(t, s.Close())
	<-ended
	_, err := s.Apply(t.Context(), script()[0])
	must.Error(t, err)
	must.True(t, errors.Is(err, ErrUnknownOutcome) || errors.Is(err, ErrNoLeader))
}

func TestServer_manyWritersOneOrder(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	defer s.Close()
	const writers, each = 16, 20
	var g errgroup.Group
	for w := range writers {
		g.Go(func() error {
			for i := range each {
				if _, err := s.Apply(t.Context(), &SandboxCreate{Sandbox: starting(w*each + i)}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	must.NoError(t, g.Wait())
	live, err := s.Live()
	must.NoError(t, err)
	must.Len(t, writers*each, live)
	indexes := map[uint64]bool{}
	for _, sb := range live {
		indexes[sb.CreateIndex] = true
	}
	must.MapLen(t, writers*each, indexes)
}

// three is a cluster of three servers on in-memory transports.
type three struct {
	servers    []*Server
	transports []*raft.InmemTransport
}

func openThree(t *testing.T) *three {
	c := &three{}
	var peers []Peer
	for i := range 3 {
		addr, tr := raft.NewInmemTransport(raft.ServerAddress(fmt.Sprintf("s%d", i)))
		c.transports = append(c.transports, tr)
		peers = append(peers, Peer{ID: fmt.Sprintf("id%d", i), Addr: string(addr)})
	}
	for i, tr := range c.transports {
		for j, other := range c.transports {
			if i != j {
				tr.Connect(other.LocalAddr(), other)
			}
		}
		s, err := Open(Config{Dir: t.TempDir(), ServerID: peers[i].ID, Peers: peers, transport: tr, fast: true})
		must.NoError(t, err)
		c.servers = append(c.servers, s)
	}
	t.Cleanup(func() {
		var wg sync.WaitGroup
		for _, s := range c.servers {
			wg.Go(func() { _ = s.Close() })
		}
		wg.Wait()
	})
	return c
}

// write applies a command on whichever server leads.
func (c *three) write(t *testing.T, command Command, among []*Server) {
	t.Helper()
	until(t, "the command is committed", func() bool {
		for _, s := range among {
			if _, err := s.Apply(t.Context(), command); err == nil || errors.Is(err, ErrExists) {
				return true
			}
		}
		return false
	})
}

func TestThreeServers_surviveTheLeader(t *testing.T) {
	c := openThree(t)
	for n := range 30 {
		c.write(t, &SandboxCreate{Sandbox: starting(n)}, c.servers)
	}
	lead := slices.IndexFunc(c.servers, (*Server).Leads)
	must.NotEq(t, -1, lead)
	c.transports[lead].DisconnectAll() // cut off, as by a kill
	rest := slices.Delete(slices.Clone(c.servers), lead, lead+1)
	for i, tr := range c.transports {
		if i != lead {
			tr.Disconnect(c.transports[lead].LocalAddr())
		}
	}
	for n := 30; n < 60; n++ {
		c.write(t, &SandboxCreate{Sandbox: starting(n)}, rest)
	}
	until(t, "the old leader knows that it leads no more", func() bool { return !c.servers[lead].Leads() })
	_, err := c.servers[lead].Apply(t.Context(), &SandboxCreate{Sandbox: starting(1000)})
	must.ErrorIs(t, err, ErrNoLeader)

	for i, tr := range c.transports {
		if i != lead {
			tr.Connect(c.transports[lead].LocalAddr(), c.transports[lead])
			c.transports[lead].Connect(tr.LocalAddr(), tr)
		}
	}
	until(t, "all three have the same tables", func() bool {
		first := dump(t, c.servers[0])
		live, err := c.servers[0].Live()
		return err == nil && len(live) == 60 && first == dump(t, c.servers[1]) && first == dump(t, c.servers[2])
	})
	ids := map[api.SandboxID]bool{}
	live, err := c.servers[lead].Live()
	must.NoError(t, err)
	for _, sb := range live {
		ids[sb.ID] = true
	}
	must.MapLen(t, 60, ids)
}

func TestThreeServers_lateOneGetsASnapshot(t *testing.T) {
	c := openThree(t)
	c.write(t, &SandboxCreate{Sandbox: starting(0)}, c.servers)
	late := slices.IndexFunc(c.servers, func(s *Server) bool { return !s.Leads() })
	lead := slices.IndexFunc(c.servers, (*Server).Leads)
	c.transports[late].DisconnectAll()
	for i, tr := range c.transports {
		if i != late {
			tr.Disconnect(c.transports[late].LocalAddr())
		}
	}
	rc := c.servers[lead].raft.ReloadableConfig()
	rc.TrailingLogs = 1
	must.NoError(t, c.servers[lead].raft.ReloadConfig(rc))
	for n := 1; n < 50; n++ {
		c.write(t, &SandboxCreate{Sandbox: starting(n)}, []*Server{c.servers[lead]})
	}
	r, err := c.servers[lead].Snapshot()
	must.NoError(t, err)
	must.NoError(t, r.Close())
	for i, tr := range c.transports {
		if i != late {
			tr.Connect(c.transports[late].LocalAddr(), c.transports[late])
			c.transports[late].Connect(tr.LocalAddr(), tr)
		}
	}
	until(t, "the late one has everything", func() bool {
		live, err := c.servers[late].Live()
		return err == nil && len(live) == 50
	})
}

func TestConfig_refusesNonsense(t *testing.T) {
	for name, cfg := range map[string]Config{
		"peers without address": {ServerID: "a", Peers: []Peer{{ID: "a"}, {ID: "b"}}},
		"peers without id":      {Peers: []Peer{{ID: "a"}}},
		"peers without self":    {ServerID: "c", Peers: []Peer{{ID: "a"}}},
		"all interfaces":        {Bind: "0.0.0.0:0"},
		"bad address":           {Bind: "nonsense"},
	} {
		_, err := Open(cfg)
		must.Error(t, err, must.Sprint(name))
	}
}

// BenchmarkCommit is one commit on one server: encode, log, sync, apply.
func BenchmarkCommit_oneServer(b *testing.B) {
	s := open(b, Config{Dir: b.TempDir()})
	defer s.Close()
	n := 0
	for b.Loop() {
		n++
		mustApply(b, s, &SandboxCreate{Sandbox: starting(n)})
	}
}

// BenchmarkCommit_floor is raft's own part of a commit: the same bytes, the same log, no tables.
func BenchmarkCommit_floor(b *testing.B) {
	cfg := Config{Dir: b.TempDir(), ServerID: "floor"}
	must.NoError(b, cfg.check())
	st, err := openStores(&cfg)
	must.NoError(b, err)
	defer st.close()
	_, tr := raft.NewInmemTransport("floor")
	rc := cfg.raftConfig(1, nil)
	must.NoError(b, raft.BootstrapCluster(rc, st.log, st.stable, st.snaps, tr,
		raft.Configuration{Servers: []raft.Server{{ID: "floor", Address: "floor"}}}))
	r, err := raft.NewRaft(rc, skipFSM{}, st.log, st.stable, st.snaps, tr)
	must.NoError(b, err)
	defer func() { must.NoError(b, r.Shutdown().Error()) }()
	until(b, "it leads", func() bool { return r.State() == raft.Leader })
	entry, err := encodeCommand(&SandboxCreate{Sandbox: starting(1)})
	must.NoError(b, err)
	for b.Loop() {
		must.NoError(b, r.Apply(entry, applyTimeout).Error())
	}
}
