package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// TestSnapshotKey_rotatedInVaultReachesTheNode follows the key of snapshots from Vault through the control service to the node: what is stored after a rotation is
// of the new version, what was stored before is restored until its version is taken back, and then refused with a reason.
func TestSnapshotKey_rotatedInVaultReachesTheNode(t *testing.T) {
	c := startWith(t, nil, fmt.Sprintf("criu_path = %q\n", sandboxtest.CRIU(t)))
	s := c.serve(t)
	sb, err := s.client.CreateSandbox(t.Context(), api.CreateRequest{Template: "base", CreateOptions: api.CreateOptions{CPUMillis: new(int64(100)), MemoryMB: new(int64(128))}})
	must.NoError(t, err)
	snapshot := func() (id string, version int) {
		snap, err := s.client.CreateSnapshot(t.Context(), api.SnapshotRequest{SandboxID: sb.ID})
		must.NoError(t, err)
		return string(snap.ID), c.keyVersion(t, string(snap.ID))
	}
	restore := func(id string) error {
		made, err := s.client.CreateSandbox(t.Context(), api.CreateRequest{Template: id})
		if err == nil {
			must.NoError(t, s.client.DeleteSandbox(t.Context(), made.ID))
		}
		return err
	}
	before, version := snapshot()
	must.Eq(t, 1, version)
	must.NoError(t, restore(before))

	c.vault(t, "keys/snapshots/rotate", nil)
	var after string
	s.until(t, "the node to store with the new version", func() error {
		if after, version = snapshot(); version != 2 {
			return fmt.Errorf("it stores with version %d", version)
		}
		return nil
	})
	must.NoError(t, restore(before), must.Sprint("the old version is good until it is taken back"))
	must.NoError(t, restore(after))

	c.vault(t, "keys/snapshots/config", map[string]any{"min_decryption_version": 2})
	s.until(t, "the node to refuse the old version", func() error {
		err := restore(before)
		if err == nil {
			return fmt.Errorf("it restores snapshot %s", before)
		}
		t.Logf("refused: %v", err)
		must.Eq(t, nodeapi.CodeBadSnapshot, api.CodeOf(err))
		must.ErrorContains(t, err, "the version of the snapshot key is revoked: 1")
		return nil
	})
	must.NoError(t, restore(after))
	_, version = snapshot()
	must.Eq(t, 2, version)
}

// keyVersion reads which version of the key a snapshot was stored with, which is in the clear.
func (c *cluster) keyVersion(t *testing.T, id string) int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(c.dir, "node/state/snapshots/t/*/manifests", id))
	must.NoError(t, err)
	must.Len(t, 1, files)
	b, err := os.ReadFile(files[0])
	must.NoError(t, err)
	var sealed struct{ Key int }
	must.NoError(t, json.Unmarshal(b, &sealed))
	return sealed.Key
}

// vault writes to Vault's transit engine, as an operator does.
func (c *cluster) vault(t *testing.T, path string, body any) {
	t.Helper()
	b, err := json.Marshal(body)
	must.NoError(t, err)
	v := c.VaultConfig()
	must.StrHasPrefix(t, "soulbox-transit/", string(dev.SnapshotKey))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, v.Address+"/v1/soulbox-transit/"+path, bytes.NewReader(b))
	must.NoError(t, err)
	req.Header.Set("X-Vault-Token", v.Token)
	resp, err := http.DefaultClient.Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	must.Less(t, 300, resp.StatusCode)
}
