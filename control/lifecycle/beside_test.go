package lifecycle_test

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
)

// joined asks for a sandbox in a private network.
func joined(network, name string) func(*lifecycle.CreateParams) {
	return func(p *lifecycle.CreateParams) {
		b, err := json.Marshal(api.NetworkConfig{SoulBox: &api.NetworkOptions{Join: []api.NetworkMember{{Network: network, Name: name}}}})
		if err != nil {
			panic(err)
		}
		p.Network, p.Timeout = b, time.Hour
	}
}

func TestPrivateNetwork_itsMembersAreOnOneNode(t *testing.T) {
	s, second, _ := twoNodes(t, true)
	db := running(t, s, joined("backend", "db"))
	must.NoError(t, s.Sandboxes.Move(t.Context(), db.ID, []api.NodeID{db.Node}))
	alone := running(t, s, nil)
	must.Eq(t, s.Node.ID(), alone.Node)
	web := running(t, s, joined("backend", "web"))
	must.Eq(t, second.ID(), web.Node, must.Sprint("it is put beside the other member"))
	other := running(t, s, joined("other", "web"))
	must.Eq(t, s.Node.ID(), other.Node)

	join := []api.NetworkMember{{Network: "backend", Name: "late"}}
	err := s.Sandboxes.JoinNetworks(t.Context(), alone.Tenant, alone.ID, join)
	must.Eq(t, http.StatusConflict, api.StatusOf(err))
	must.ErrorContains(t, err, "network backend has a member")
	must.ErrorContains(t, err, "on node "+string(second.ID()))
	must.NoError(t, s.Sandboxes.JoinNetworks(t.Context(), alone.Tenant, alone.ID, []api.NetworkMember{{Network: "other", Name: "late"}}))

	_, _, err = s.Sandboxes.Create(t.Context(), func() lifecycle.CreateParams {
		p := coretest.Params()
		b, err := json.Marshal(api.NetworkConfig{SoulBox: &api.NetworkOptions{Join: []api.NetworkMember{{Network: "backend"}, {Network: "other"}}}})
		must.NoError(t, err)
		p.Network = b
		return p
	}())
	must.Eq(t, http.StatusConflict, api.StatusOf(err), must.Sprint("there is no node for both"))

	// What had to leave its node says whom it does not reach any more.
	must.NoError(t, s.Sandboxes.Move(t.Context(), web.ID, []api.NodeID{web.Node}))
	list, err := s.Sandboxes.Elsewhere(web.Tenant, web.ID)
	must.NoError(t, err)
	must.Eq(t, []api.NetworkMember{{Network: "backend", Name: "db", Node: second.ID()}}, list)
}

func TestPublished_portsFollowASandboxToAnotherNode(t *testing.T) {
	s, second, _ := twoNodes(t, true)
	sb := running(t, s, func(p *lifecycle.CreateParams) { p.Timeout = time.Hour })
	list, err := s.Sandboxes.SetPublished(t.Context(), sb.Tenant, sb.ID, []api.PublishedPort{
		{Proto: "tcp", Port: 80}, {Proto: "tcp", Port: 81, NodePort: 20081}, {Proto: "udp", Port: 82, NodePort: 20082},
	})
	must.NoError(t, err)
	chosen := list[0].NodePort
	must.Positive(t, chosen)
	must.Eq(t, []api.PublishedPort{
		{Proto: "tcp", Port: 80, NodePort: chosen, Any: true, Node: sb.Node}, {Proto: "tcp", Port: 81, NodePort: 20081, Node: sb.Node},
		{Proto: "udp", Port: 82, NodePort: 20082, Node: sb.Node},
	}, list)
	again, err := s.Sandboxes.SetPublished(t.Context(), sb.Tenant, sb.ID, list)
	must.NoError(t, err)
	must.Eq(t, list, again, must.Sprint("an answer is as good a request"))

	second.TakePort(chosen)
	second.TakePort(20081)
	must.NoError(t, s.Sandboxes.Move(t.Context(), sb.ID, []api.NodeID{sb.Node}))
	list, err = s.Sandboxes.Published(t.Context(), sb.Tenant, sb.ID)
	must.NoError(t, err)
	must.Len(t, 3, list)
	must.Eq(t, api.PublishedPort{Proto: "tcp", Port: 80, NodePort: list[0].NodePort, Any: true, Node: second.ID()}, list[0])
	must.NotEq(t, chosen, list[0].NodePort)
	must.Eq(t, api.PublishedPort{Proto: "udp", Port: 82, NodePort: 20082, Node: second.ID()}, list[1])
	must.Eq(t, 81, list[2].Port)
	must.StrContains(t, list[2].Error, "publish tcp port 81: address already in use")
}
