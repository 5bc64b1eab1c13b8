package faults

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

// TestFaults_killsWhileMuchIsUnderWay kills the control service, the node or both at any moment, while sandboxes are made, from a pool and not, paused, resumed,
// copied and deleted side by side. What anybody was told of is there once and whole, and the two sides agree.
func TestFaults_killsWhileMuchIsUnderWay(t *testing.T) {
	s := start(t)
	const boxes, creators, killsOfARound = 3, 2, 8
	_, err := s.client.CreatePool(t.Context(), api.NewPool{Name: "warm", PoolSpec: api.PoolSpec{
		Template: new("base"), CPUMillis: new(int64(100)), MemoryMB: new(int64(64)), Min: new(4),
	}})
	must.NoError(t, err)
	all := []*busy{{service: s, sb: s.sb}}
	for range boxes - 1 {
		all = append(all, &busy{service: s, sb: s.counting()})
	}
	for range creators {
		all = append(all, &busy{service: s})
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	for _, b := range all {
		b.outcomes = map[string]int{}
		wg.Go(func() { b.work(ctx) })
	}
	killed := map[string]int{}
	for range *faults * killsOfARound {
		time.Sleep(time.Duration(rand.IntN(800)) * time.Millisecond) // any moment
		who := []string{"control service", "node", "both"}[rand.IntN(3)]
		killed[who]++
		if who != "node" {
			must.NoError(t, s.server.Signal(syscall.SIGKILL))
			<-s.server.Done()
		}
		if who != "control service" {
			must.NoError(t, s.daemon.Signal(syscall.SIGKILL))
			<-s.daemon.Done()
			s.startNode()
		}
		if who != "node" {
			s.startServer()
		}
	}
	stop()
	wg.Wait()
	t.Logf("killed: %v", killed)
	for _, b := range all {
		for _, what := range slices.Sorted(maps.Keys(b.outcomes)) {
			t.Logf("%s %s: %d", b.sb, what, b.outcomes[what])
		}
	}
	must.NoError(t, s.client.DeletePool(t.Context(), "warm"))
	s.until("record and node to agree", s.agree)
	for _, b := range all {
		must.NoError(t, b.err)
		if b.sb != "" {
			must.NoError(t, b.runs(t.Context()))
			s.counts(b.sb)
		}
		for _, id := range b.made {
			sb, err := s.client.GetSandbox(t.Context(), id)
			must.NoError(t, err)
			must.Eq(t, "running", string(sb.State), must.Sprint(id))
		}
	}
	for _, sn := range s.settledSnapshots() {
		must.NoError(t, s.client.DeleteSnapshot(t.Context(), string(sn.ID), true))
	}
}

// counting makes a sandbox that counts.
func (s *service) counting() api.SandboxID {
	s.t.Helper()
	timeout := int64(12 * 3600)
	made, err := s.client.CreateSandbox(s.t.Context(), api.CreateRequest{Template: "base", Timeout: &timeout})
	must.NoError(s.t, err)
	_, err = s.client.StartProcess(s.t.Context(), made.ID, api.ExecRequest{Argv: []string{"bash", "-c", counter}})
	must.NoError(s.t, err)
	return made.ID
}

// busy is somebody who does something all the time: with one sandbox, or with a new one each time.
type busy struct {
	*service
	sb       api.SandboxID
	made     []api.SandboxID // that are to be there at the end
	err      error           // what must not have happened
	outcomes map[string]int
}

func (b *busy) work(ctx context.Context) {
	for ctx.Err() == nil && b.err == nil {
		do := b.change
		if b.sb == "" {
			do = b.create
		}
		what, err := do(ctx)
		switch {
		case err == nil:
			b.outcomes[what]++
		case ctx.Err() != nil:
		case api.IsNotFound(err):
			b.err = fmt.Errorf("%s %s: %w", what, b.sb, err)
		default: // somebody was killed: nobody answered, or the one said that the other did not
			b.outcomes[what+" failed"]++
			var e *api.Error
			if errors.As(err, &e) && e.Code == http.StatusInternalServerError {
				b.outcomes[what+": "+err.Error()]++
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// change does something with the sandbox.
func (b *busy) change(ctx context.Context) (what string, err error) {
	switch rand.IntN(6) {
	case 0:
		copies, err := b.client.ForkSandbox(ctx, b.sb, 2, time.Hour)
		for _, c := range copies {
			if c.Sandbox != nil {
				err = errors.Join(err, b.deleted(ctx, c.Sandbox.SandboxID))
			}
		}
		return "fork", err
	case 1:
		_, err := b.client.CreateSnapshot(ctx, api.SnapshotRequest{SandboxID: b.sb})
		return "snapshot", err
	}
	if err := b.client.PauseSandbox(ctx, b.sb, false); err != nil && api.StatusOf(err) != http.StatusConflict {
		return "pause", err
	}
	return "resume", b.runs(ctx)
}

// deleted deletes a sandbox that may be gone already, by a delete that was cut off.
func (b *busy) deleted(ctx context.Context, id api.SandboxID) error {
	if err := b.client.DeleteSandbox(ctx, id); !api.IsNotFound(err) {
		return err
	}
	return nil
}

// create makes a sandbox, and keeps it or deletes it.
func (b *busy) create(ctx context.Context) (what string, err error) {
	made, err := b.client.CreateSandbox(ctx, api.CreateRequest{Template: "base", Timeout: new(int64(3600)), CreateOptions: api.CreateOptions{CPUMillis: new(int64(100)), MemoryMB: new(int64(64))}})
	if err != nil {
		return "create", err
	}
	if len(b.made) < 10 && rand.IntN(4) == 0 {
		b.made = append(b.made, made.ID)
		return "create", nil
	}
	return "create and delete", b.deleted(ctx, made.ID)
}

// runs has the sandbox run.
func (b *busy) runs(ctx context.Context) error {
	sb, err := b.client.GetSandbox(ctx, b.sb)
	if err != nil || sb.State == "running" {
		return err
	}
	if _, err = b.client.ResumeSandbox(ctx, b.sb, 12*time.Hour, false); api.StatusOf(err) == http.StatusConflict {
		return nil // it runs by now
	}
	return err
}
