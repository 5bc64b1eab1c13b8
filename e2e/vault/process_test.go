package vault

import (
	"context"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/vault/sdk/helper/pluginutil"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/plugin"
	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/control/keys/vault"
	"github.com/soulbox-dev/soulbox/e2e/binaries"
)

// pluginProcess is the plugin's program, started as Vault starts it.
type pluginProcess struct {
	t        *testing.T
	client   *goplugin.Client
	protocol goplugin.ClientProtocol
	cmd      *exec.Cmd
}

func runPlugin(t *testing.T) *pluginProcess {
	t.Helper()
	cmd := exec.Command(binaries.Path(t, vault.EngineType))
	client := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig: plugin.HandshakeConfig, VersionedPlugins: plugin.PluginSet, Cmd: cmd, AutoMTLS: true,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC}, Logger: hclog.New(&hclog.LoggerOptions{Output: io.Discard}),
	})
	t.Cleanup(client.Kill)
	protocol, err := client.Client()
	must.NoError(t, err)
	return &pluginProcess{t: t, client: client, protocol: protocol, cmd: cmd}
}

// mounted is one of the mounts that share the process.
type mounted struct {
	logical.Backend
	t       *testing.T
	storage logical.Storage
}

// mount sets up a backend with an id of its own, as each mount of Vault has.
func (p *pluginProcess) mount(id string, storage logical.Storage) *mounted {
	p.t.Helper()
	b, err := plugin.Dispense(p.protocol, &named{ClientProtocol: p.protocol, conn: muxed{p.protocol.(*goplugin.GRPCClient).Conn, id}})
	must.NoError(p.t, err)
	must.NoError(p.t, b.Setup(p.t.Context(), &logical.BackendConfig{
		Logger: hclog.New(&hclog.LoggerOptions{Output: io.Discard}), StorageView: storage, BackendUUID: id,
		System: &logical.StaticSystemView{DefaultLeaseTTLVal: time.Hour, MaxLeaseTTLVal: 24 * time.Hour},
	}))
	must.NoError(p.t, b.Initialize(p.t.Context(), &logical.InitializationRequest{Storage: storage}))
	return &mounted{b, p.t, storage}
}

// named is a client of one mount.
type named struct {
	goplugin.ClientProtocol
	conn muxed
}

func (n *named) Conn() grpc.ClientConnInterface { return n.conn }
func (n *named) Reload() error                  { return nil }

// Close ends nothing: other mounts use the process.
func (n *named) Close() error { return nil }

var _ pluginutil.PluginClient = (*named)(nil)

// muxed says in each call which mount it is for.
type muxed struct {
	*grpc.ClientConn
	id string
}

func (m muxed) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return m.ClientConn.Invoke(metadata.AppendToOutgoingContext(ctx, pluginutil.MultiplexingCtxKey, m.id), method, args, reply, opts...)
}

func (m *mounted) do(op logical.Operation, path string, data map[string]any) (*logical.Response, error) {
	resp, err := m.HandleRequest(m.t.Context(), &logical.Request{Operation: op, Path: path, Data: data, Storage: m.storage})
	if err == nil && resp != nil {
		err = resp.Error()
	}
	return resp, err
}

func (m *mounted) ok(op logical.Operation, path string, data map[string]any) *logical.Response {
	m.t.Helper()
	resp, err := m.do(op, path, data)
	must.NoError(m.t, err, must.Sprint(path))
	return resp
}

// configure gives a mount a control service, and the role dev.
func (m *mounted) configure(address, key string) {
	m.t.Helper()
	m.ok(logical.UpdateOperation, "config", map[string]any{"address": address, "api_key": key})
	m.ok(logical.CreateOperation, "roles/dev", map[string]any{"tenant": "default", "roles": "developer", "ttl": "10m", "max_ttl": "1h"})
}

func TestPlugin_oneProcessServesManyMounts(t *testing.T) {
	c := startControl(t, nil)
	p := runPlugin(t)
	one, two := p.mount("one", &logical.InmemStorage{}), p.mount("two", &logical.InmemStorage{})
	versioned, ok := one.Backend.(logical.PluginVersioner)
	must.True(t, ok)
	must.Eq(t, "v"+version.Version, versioned.PluginVersion().Version)
	one.configure(c.Address(), c.key)
	_, err := two.do(logical.ReadOperation, "creds/dev", nil)
	must.ErrorContains(t, err, "does not exist", must.Sprint("another mount's role"))
	two.configure(c.Address(), c.key)
	for _, m := range []*mounted{one, two} {
		resp := m.ok(logical.ReadOperation, "creds/dev", nil)
		key, _ := resp.Data["api_key"].(string)
		must.Eq(t, http.StatusOK, c.status(key))
		_, err := m.HandleRequest(t.Context(), &logical.Request{Operation: logical.RevokeOperation, Path: "creds/dev", Storage: m.storage, Secret: resp.Secret})
		must.NoError(t, err)
		must.Eq(t, http.StatusUnauthorized, c.status(key))
	}
	one.Cleanup(t.Context())
	must.NotNil(t, two.ok(logical.ReadOperation, "config", nil))
}

func TestPlugin_killedWhileItMakesAKeyTheNextProcessTakesItBack(t *testing.T) {
	c := startControl(t, nil)
	h := hold(t, c.Address())
	storage := &logical.InmemStorage{} // Vault's, which outlives the plugin
	first := runPlugin(t)
	m := first.mount("one", storage)
	m.configure(h.address, c.key)
	h.hold <- struct{}{}
	failed := make(chan error, 1)
	go func() {
		_, err := m.do(logical.ReadOperation, "creds/dev", nil)
		failed <- err
	}()
	<-h.made
	must.Eq(t, 1, c.made(t), must.Sprint("the key is made, and nobody has it"))
	must.NoError(t, first.cmd.Process.Signal(syscall.SIGKILL))
	must.Error(t, <-failed)
	close(h.release)
	entries, err := storage.List(t.Context(), "wal/")
	must.NoError(t, err)
	must.Len(t, 1, entries)

	second := runPlugin(t).mount("one", storage)
	_, err = second.do(logical.RollbackOperation, "", map[string]any{"immediate": true})
	must.NoError(t, err)
	must.Eq(t, 0, c.made(t))
	entries, err = storage.List(t.Context(), "wal/")
	must.NoError(t, err)
	must.SliceEmpty(t, entries)
	resp := second.ok(logical.ReadOperation, "creds/dev", nil)
	key, _ := resp.Data["api_key"].(string)
	must.Eq(t, http.StatusOK, c.status(key))
}

func TestPlugin_saysWhatItIs(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), binaries.Path(t, vault.EngineType), "version").CombinedOutput()
	must.NoError(t, err)
	must.Eq(t, "vault-plugin-secrets-soulbox v"+version.Version, strings.TrimSpace(string(out)))
	// By hand it says that Vault starts it, and ends.
	out, err = exec.CommandContext(t.Context(), binaries.Path(t, vault.EngineType)).CombinedOutput()
	must.Error(t, err)
	must.StrContains(t, string(out), "plugin")
}

// made counts the keys that the role dev has made and that are there.
func (c *control) made(t *testing.T) int {
	t.Helper()
	list, err := c.client.Keys(t.Context())
	must.NoError(t, err)
	n := 0
	for _, k := range list {
		if strings.HasPrefix(k.Name, "vault-dev-") {
			n++
		}
	}
	return n
}
