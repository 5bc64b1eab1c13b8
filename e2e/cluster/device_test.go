package cluster

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/e2e/binaries"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// fakeGPUs makes n device nodes for the plugin of tests. Their number is FUSE's: sandboxes are denied it, and to open it does nothing.
func fakeGPUs(t *testing.T, n int) map[string]agent.NomadPlugin {
	t.Helper()
	dir := t.TempDir()
	must.NoError(t, os.MkdirAll(filepath.Join(dir, "driver"), 0o755))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "driver", "version"), []byte("fake 1\n"), 0o644))
	for i := range n {
		node := filepath.Join(dir, "fake"+string(rune('a'+i)))
		must.NoError(t, unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))))
		must.NoError(t, os.Chmod(node, 0o666))
		f, err := os.OpenFile(node, os.O_RDWR, 0)
		if err != nil {
			t.Skipf("this kernel has no device for the test: %v", err)
		}
		must.NoError(t, f.Close())
	}
	return map[string]agent.NomadPlugin{
		binaries.Path(t, "fakegpu"): {Name: "fakegpu", Device: "soulbox/gpu/fake", Config: map[string]any{"dir": dir}},
	}
}

// withDevices is a request for devices.
func (s *service) withDevices(d ...api.DeviceRequest) api.CreateRequest {
	req := s.request(time.Hour)
	req.Placement = &api.Placement{Devices: d}
	return req
}

// says runs a script in a sandbox.
func (s *service) says(t *testing.T, id api.SandboxID, script string) string {
	t.Helper()
	var out bytes.Buffer
	_, err := s.client.Run(t.Context(), id, api.ExecRequest{Argv: []string{"bash", "-c", script}}, nil, &out, &out)
	must.NoError(t, err)
	return out.String()
}

// TestDevices reserves devices of a real Nomad: who asked has them alone, and what there is no more of is refused with Nomad's own words.
func TestDevices(t *testing.T) {
	s := startWith(t, fakeGPUs(t, 2)).serve(t)
	has, err := s.client.CreateSandbox(t.Context(), s.withDevices(api.DeviceRequest{Name: "soulbox/gpu", Constraints: []api.PlacementRule{
		{Attribute: "attr.memory", Operator: ">=", Value: "4 GiB"}, {Attribute: "model", Value: "fake"},
	}}))
	must.NoError(t, err)
	neighbour := s.create(t, time.Hour)
	const look = `(exec 3<>/dev/gpu0) 2>/dev/null && echo opens; ls /dev | grep -c gpu; cat /opt/fakegpu/version 2>/dev/null; echo "[${FAKE_VISIBLE_DEVICES%?}]"`
	must.Eq(t, "opens\n1\nfake 1\n[fake]\n", s.says(t, has.ID, look))
	must.Eq(t, "0\n[]\n", s.says(t, neighbour.id, look))

	t.Run("there are no two more", func(t *testing.T) {
		_, err := s.client.CreateSandbox(t.Context(), s.withDevices(api.DeviceRequest{Name: "gpu", Count: 2}))
		must.Eq(t, api.CodeCapacity, api.CodeOf(err))
		must.ErrorContains(t, err, "devices: no devices match request")
		t.Log(err)
	})
	t.Run("there are none of the kind", func(t *testing.T) {
		for _, d := range []api.DeviceRequest{{Name: "nvidia/gpu"}, {Name: "gpu", Constraints: []api.PlacementRule{{Attribute: "attr.memory", Operator: ">", Value: "4 GiB"}}}} {
			_, err := s.client.CreateSandbox(t.Context(), s.withDevices(d))
			must.Eq(t, api.CodeCapacity, api.CodeOf(err))
			must.ErrorContains(t, err, "missing devices")
			t.Log(err)
		}
	})
	t.Run("it stays with its processes", func(t *testing.T) {
		err := s.client.PauseSandbox(t.Context(), has.ID, false)
		must.Eq(t, nodeapi.CodeUncheckpointable, api.CodeOf(err))
		must.ErrorContains(t, err, "/dev/gpu0")
		must.StrContains(t, s.says(t, has.ID, look), "opens")
	})
	t.Run("a slot of a pool has one", func(t *testing.T) {
		_, err := s.client.CreatePool(t.Context(), api.NewPool{Name: "gpus", PoolSpec: api.PoolSpec{
			Template: new("base"), Min: new(1), CPUMillis: new(int64(100)), MemoryMB: new(int64(32)), Placement: &api.Placement{Devices: []api.DeviceRequest{{Name: "gpu"}}},
		}})
		must.NoError(t, err)
		s.until(t, "the slot", func() error {
			p, err := s.client.Pool(t.Context(), "gpus")
			if err == nil && p.Status.Ready == 0 {
				err = fmt.Errorf("%+v", p.Status)
			}
			return err
		})
		warm, err := s.client.CreateSandbox(t.Context(), s.withDevices(api.DeviceRequest{Name: "gpu"}))
		must.NoError(t, err)
		must.True(t, warm.Warm)
		must.Eq(t, "opens\n1\nfake 1\n[fake]\n", s.says(t, warm.ID, look))
		must.NoError(t, s.client.DeletePool(t.Context(), "gpus"))
		must.NoError(t, s.client.DeleteSandbox(t.Context(), warm.ID))
	})
	t.Run("who comes after its end has it", func(t *testing.T) {
		must.NoError(t, s.client.DeleteSandbox(t.Context(), has.ID))
		s.until(t, "both to be free", func() error {
			sb, err := s.client.CreateSandbox(t.Context(), s.withDevices(api.DeviceRequest{Name: "gpu", Count: 2}))
			if err == nil {
				must.Eq(t, "2\n", s.says(t, sb.ID, "ls /dev | grep -c gpu"))
				err = s.client.DeleteSandbox(t.Context(), sb.ID)
			}
			return err
		})
	})
	must.NoError(t, s.client.DeleteSandbox(t.Context(), neighbour.id))
}
