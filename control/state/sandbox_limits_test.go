package state

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestSandboxLimits_areKeptWithWhatWasReserved(t *testing.T) {
	asked := starting(1)
	asked.QoS, asked.Limits = "guaranteed", Limits{DiskBytes: 1 << 30}
	enforced := Limits{PIDs: 1024, DiskBytes: 1 << 30}
	f := replay(t, []Command{&SandboxCreate{Sandbox: asked}, &SandboxRunning{ID: id(1), Node: "n", StartedAt: at(2), Limits: &enforced}})
	sb, err := f.store.Sandbox(id(1))
	must.NoError(t, err)
	must.Eq(t, enforced, sb.Limits)
	for _, c := range []struct{ cpu, memory int64 }{{250, 1024}, {500, 64}} {
		entry, err := encodeCommand(&SandboxLimits{ID: id(1), CPUMillis: c.cpu, MemoryMB: c.memory, Limits: Limits{PIDs: 9, DiskBytes: 2 << 30}})
		must.NoError(t, err)
		command, err := decodeCommand(entry)
		must.NoError(t, err)
		_, err = f.store.apply(30, command)
		must.NoError(t, err)
		sb, err = f.store.Sandbox(id(1))
		must.NoError(t, err)
		must.Eq(t, []int64{c.cpu, c.memory, 2048}, []int64{sb.CPUMillis, sb.MemoryMB, sb.DiskMB})
		must.True(t, sb.Limits.Same(Limits{PIDs: 9, DiskBytes: 2 << 30}))
		cpu, memory := sb.Reserved()
		must.Eq(t, []int64{1000, 512}, []int64{cpu, memory}, must.Sprint("the second change does not take the first for what was placed"))
		must.Eq(t, "guaranteed", sb.QoS)
	}
	_, err = f.store.apply(40, &SandboxEnd{Ends: []End{{ID: id(1), State: Stopped, At: at(5)}}})
	must.NoError(t, err)
	_, err = f.store.apply(41, &SandboxLimits{ID: id(1), CPUMillis: 1, MemoryMB: 1})
	must.ErrorIs(t, err, ErrState)
	_, err = f.store.apply(42, &SandboxLimits{ID: id(9), CPUMillis: 1, MemoryMB: 1})
	must.ErrorIs(t, err, ErrNotFound)
	must.Error(t, (&SandboxLimits{ID: id(1)}).check())
}
