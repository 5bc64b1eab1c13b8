package state

import (
	"errors"
	"testing"

	"github.com/shoenig/test/must"
)

// refusal applies a command on top of the script and returns what the tables said.
func refusal(t *testing.T, f *fsm, c Command) error {
	t.Helper()
	_, err := f.store.apply(1000, c)
	return err
}

func TestSandboxPaused_keepsToTheNodeAndTheState(t *testing.T) {
	f := replay(t, script()[:9]) // sandbox 1 runs on n1
	must.ErrorIs(t, refusal(t, f, &SandboxPaused{ID: id(1), Node: "n2", At: at(1)}), ErrConflict)
	must.ErrorIs(t, refusal(t, f, &SandboxPaused{ID: id(7), Node: "n1", At: at(1)}), ErrNotFound)
	must.ErrorIs(t, refusal(t, f, &SandboxResumed{ID: id(1), Node: "n1", At: at(1), EndAt: at(1), MaxEnd: at(2)}), ErrState)
	must.NoError(t, refusal(t, f, &SandboxPaused{ID: id(1), Node: "n1", At: at(1)}))
	r, err := f.store.apply(1001, &SandboxPaused{ID: id(1), Node: "n1", At: at(5)})
	must.NoError(t, err)
	must.Eq(t, 0, r.Changed, must.Sprint("a repeated report changes nothing"))
	must.True(t, r.Sandbox.PausedAt.Equal(at(1)))
	must.NoError(t, refusal(t, f, &SandboxResumed{ID: id(1), Node: "n3", At: at(9), EndAt: at(100), MaxEnd: at(200)}))
	sb, err := f.store.Sandbox(id(1))
	must.NoError(t, err)
	must.Eq(t, Running, sb.State)
	must.Eq(t, "n3", sb.Node, must.Sprint("it may come back on another node"))
	must.True(t, sb.PausedAt.IsZero())
}

func TestSnapshot_nameBelongsToTheLastOneReady(t *testing.T) {
	f := replay(t, script())
	first, err := f.store.SnapshotByID(snapID(1))
	must.NoError(t, err)
	must.Eq(t, "", first.Name)
	named, err := f.store.SnapshotNamed(DefaultTenant, "warm", "default")
	must.NoError(t, err)
	must.Eq(t, snapID(2), named.ID)
	_, err = f.store.SnapshotNamed("another", "warm", "default")
	must.ErrorIs(t, err, ErrNotFound)
	_, err = f.store.SnapshotNamed(DefaultTenant, "", "")
	must.ErrorIs(t, err, ErrNotFound, must.Sprint("one without a name is not found by none"))
}

func TestSnapshotDelete_refusesWhileSandboxesNeedIt(t *testing.T) {
	f := replay(t, script())
	err := refusal(t, f, &SnapshotDelete{Tenant: DefaultTenant, ID: snapID(2)})
	must.ErrorIs(t, err, ErrState)
	must.ErrorContains(t, err, string(id(5)))
	must.NoError(t, refusal(t, f, &SandboxEnd{Ends: []End{{ID: id(5), State: Stopped, At: at(50)}}}))
	must.NoError(t, refusal(t, f, &SnapshotDelete{Tenant: DefaultTenant, ID: snapID(2)}))
	_, err = f.store.SnapshotByID(snapID(2))
	must.True(t, errors.Is(err, ErrNotFound))
}

func TestSandboxMove_isKeptUntilItRunsAgain(t *testing.T) {
	f := replay(t, script()[:9]) // sandbox 1 runs on n1
	must.ErrorIs(t, refusal(t, f, &SandboxMove{ID: id(7), Moving: true}), ErrNotFound)
	r, err := f.store.apply(1000, &SandboxMove{ID: id(1), Moving: true})
	must.NoError(t, err)
	must.True(t, r.Sandbox.Leaving())
	must.False(t, r.Sandbox.Wakes(), must.Sprint("it runs yet"))
	r, err = f.store.apply(1001, &SandboxMove{ID: id(1), Moving: true})
	must.NoError(t, err)
	must.Eq(t, 0, r.Changed)
	// The reconciler sees it paused first, and does not know why.
	r, err = f.store.apply(1002, &SandboxPaused{ID: id(1), Node: "n1", At: at(1)})
	must.NoError(t, err)
	must.True(t, r.Sandbox.Moving && r.Sandbox.Wakes())
	must.ErrorIs(t, refusal(t, f, &SandboxMove{ID: id(1)}), ErrState)
	r, err = f.store.apply(1003, &SandboxResumed{ID: id(1), Node: "n2", At: at(9), EndAt: at(100), MaxEnd: at(200)})
	must.NoError(t, err)
	must.False(t, r.Sandbox.Moving)
}
