package core_test

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/shoenig/test/wait"

	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func versionsOf(key nodeapi.SnapshotKey) (out []keys.KeyVersion) {
	for _, v := range key.Versions {
		out = append(out, keys.KeyVersion(v.Version))
	}
	return out
}

func TestNodeKeys_aNodeHasTheKeyBeforeItIsConnected(t *testing.T) {
	s := coretest.New(t, func(s *coretest.Server) { s.Node.Self(func(n *nodeapi.Node) { n.TakesSnapshotKey = true }) })
	must.NoError(t, s.ConnectNodes(t.Context(), 1))
	key, times := s.Node.SnapshotKey()
	must.Eq(t, 1, times)
	list, err := s.SnapshotKeys.Keys()
	must.NoError(t, err)
	must.Len(t, 1, list)
	must.Eq(t, []nodeapi.SnapshotKeyVersion{{Version: int(list[0].Version), Secret: list[0].Secret}}, key.Versions)
}

func TestNodeKeys_changesReachNodesThatAreConnected(t *testing.T) {
	s := coretest.New(t, func(s *coretest.Server) { s.Node.Self(func(n *nodeapi.Node) { n.TakesSnapshotKey = true }) })
	must.NoError(t, s.ConnectNodes(t.Context(), 1))
	has := func(want ...keys.KeyVersion) {
		t.Helper()
		must.Wait(t, wait.InitialSuccess(wait.TestFunc(func() (bool, error) {
			key, _ := s.Node.SnapshotKey()
			got := versionsOf(key)
			return len(got) == len(want) && got[0] == want[0] && got[len(got)-1] == want[len(want)-1], nil
		}), wait.Timeout(30*time.Second), wait.Gap(50*time.Millisecond)))
	}
	two, err := s.SnapshotKeys.Rotate(t.Context())
	must.NoError(t, err)
	has(1, two.Version)
	must.NoError(t, s.SnapshotKeys.Revoke(t.Context(), 1))
	has(two.Version)
}

func TestNodeKeys_nodesWithAKeyOfTheirOwnAreGivenNone(t *testing.T) {
	s := coretest.New(t, nil)
	must.NoError(t, s.ConnectNodes(t.Context(), 1))
	_, times := s.Node.SnapshotKey()
	must.Zero(t, times)
}
