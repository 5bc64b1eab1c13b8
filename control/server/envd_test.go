package server

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/proto"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/edge"
	"github.com/soulbox-dev/soulbox/control/rbac"
	"github.com/soulbox-dev/soulbox/control/state"
	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/filesystem"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// reach finds the sandboxes of a fake lifecycle for the edge.
type reach struct{ life *fakeLifecycle }

func (r reach) Find(id api.SandboxID) (edge.Sandbox, error) {
	r.life.mu.Lock()
	defer r.life.mu.Unlock()
	sb, ok := r.life.sandboxes[id]
	if !ok || sb.State != state.Running {
		return edge.Sandbox{}, edge.ErrNotFound
	}
	return edge.Sandbox{ID: id, Tenant: sb.Tenant, EnvdToken: "the sandbox's token", Node: nodeWay{r.life.node}}, nil
}

func (r reach) Wake(_ context.Context, id api.SandboxID) (edge.Sandbox, error) { return r.Find(id) }

func (reach) Each(func(edge.Sandbox) bool) {}

type nodeWay struct{ client *nodeapi.Client }

func (w nodeWay) DialPort(context.Context, api.SandboxID, int) (net.Conn, error) {
	return nil, edge.ErrPortClosed
}

func (w nodeWay) Envd(id api.SandboxID) (http.RoundTripper, string) {
	return w.client.Transport(), nodeapi.EnvdPath(id)
}

func (nodeWay) URL() string { return "" }

// envd answers every call with what came; a file may hang, or come late.
func envd(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	w.Header().Set("Soulbox-Mode", "644")
	switch r.URL.Query().Get("path") {
	case "/hangs":
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return
	case "/late":
		_ = http.NewResponseController(w).Flush()
		time.Sleep(250 * time.Millisecond)
		_, _ = io.WriteString(w, "late")
		return
	}
	user, _, _ := r.BasicAuth()
	w.Header().Set("Content-Type", "text/plain")
	_, _ = fmt.Fprintf(w, "%s %s token=%q user=%q key=%q bearer=%t mode=%q own=%q body=%q", r.Method, r.URL, r.Header.Get("X-Access-Token"), user,
		r.Header.Get("X-Api-Key"), strings.HasPrefix(r.Header.Get("Authorization"), "Bearer"), r.Header.Get("Soulbox-Mode"), r.Header.Get("Soulbox-Authorized"), b)
}

func TestEnvd_isReachedByWhoHasAnIdentity(t *testing.T) {
	h, _ := withNode(t)
	base := "/v1/sandboxes/" + string(testID) + "/envd"
	for name, header := range map[string][]string{"key": {"X-API-Key", keyA}, "bearer": {"Authorization", "Bearer " + keyA}} {
		t.Run(name, func(t *testing.T) {
			a := h.do("POST", base+"/files?path=/a", "data", append(header, "Soulbox-User", "root", "Soulbox-Mode", "600", "Soulbox-Authorized", "files", "X-Access-Token", "mine")...)
			must.Eq(t, 200, a.status, must.Sprint(a.body))
			must.Eq(t, "POST /v1/sandboxes/"+string(testID)+`/envd/files?path=/a token="the sandbox's token" user="root" key="" bearer=false mode="600" own="" body="data"`, a.body)
		})
	}
	must.Eq(t, 401, h.do("GET", base+"/files?path=/a", "", "X-API-Key", "", "X-Access-Token", "the sandbox's token").status)
	h.do("GET", base+"/files?path=/a", "", "X-API-Key", keyB).mustFail(t, 404, api.CodeNotFound)
	must.Eq(t, 200, h.do("POST", base+"/filesystem.Filesystem/Stat", `{"path":"x"}`, "Content-Type", "application/json").status)
	for _, path := range []string{"/files?path=", "/files", "/files?path=a&path=b", "/files?path=a%00"} {
		must.StrContains(t, h.do("GET", base+path, "").mustFail(t, 400, api.CodeInvalid), "path")
	}
	for _, path := range []string{"/init", "/health", "/filesystem.Filesystem/CreateWatcher", "/files/../init"} {
		must.Eq(t, 404, h.do("POST", base+path, "").status, must.Sprint(path))
	}
	box := h.life.sandboxes[testID]
	box.State = state.Starting
	h.life.sandboxes[testID] = box
	h.do("GET", base+"/files?path=/a", "").mustFail(t, 409, api.CodeNotRunning)
}

func TestEnvd_callsNeedTheirPermissions(t *testing.T) {
	x := withRights(t)
	viewer := x.key("acme", rbac.RoleViewer)
	box := sandbox(testID)
	box.Tenant = "acme"
	x.life.sandboxes[testID] = box
	base := "/v1/sandboxes/" + string(testID) + "/envd"
	for call, allowed := range map[string]bool{
		"GET /files?path=/a": false, "POST /files?path=/a": false,
		"POST /process.Process/List": true, "POST /process.Process/Start": false, "POST /process.Process/Connect": false,
		"POST /process.Process/StreamInput": false, "POST /process.Process/SendInput": false, "POST /process.Process/CloseStdin": false,
		"POST /process.Process/SendSignal": false, "POST /process.Process/Update": false,
		"POST /filesystem.Filesystem/Stat": false, "POST /filesystem.Filesystem/MakeDir": false, "POST /filesystem.Filesystem/Move": false,
		"POST /filesystem.Filesystem/Remove": false, "POST /filesystem.Filesystem/ListDir": false, "POST /filesystem.Filesystem/WatchDir": false,
	} {
		method, path, _ := strings.Cut(call, " ")
		a := x.as(viewer, method, base+path, "{}")
		must.Eq(t, allowed, a.status != 403, must.Sprintf("%s: %d %s", call, a.status, a.body))
	}
}

func TestEnvd_rightsByPathHoldForMessages(t *testing.T) {
	x := withRights(t)
	tenantAdmin := x.key("acme", rbac.RoleTenantAdmin)
	must.Eq(t, 200, x.as(tenantAdmin, "PUT", "/v1/roles/home-only", `{"rules":[
		{"resources":["sandbox"],"actions":["*"]},
		{"resources":["file"],"actions":["*"],"paths":["/home/**"]},
		{"effect":"deny","resources":["file"],"actions":["*"],"paths":["/home/user/secret/**"]}]}`).status)
	dev := x.key("acme", "home-only")
	box := sandbox(testID)
	box.Tenant = "acme"
	x.life.sandboxes[testID] = box
	base := "/v1/sandboxes/" + string(testID) + "/envd"
	message := func(m proto.Message) string { b, _ := proto.Marshal(m); return string(b) }
	envelope := func(flags byte, s string) string {
		return string(flags) + string(binary.BigEndian.AppendUint32(nil, uint32(len(s)))) + s
	}
	const allowed = 501 // there is no way to sandboxes in this one
	for _, tc := range []struct {
		call, kind, body string
		want             int
	}{
		{"Stat", "application/json", `{"path":"/home/user/a"}`, allowed},
		{"Stat", "application/json", `{"path":"/etc/passwd"}`, 403},
		{"Stat", "application/json", `{"path":"/home/../etc/passwd"}`, 403},
		{"Stat", "application/json", `{"path":"/home/user/secret/key"}`, 403},
		{"Stat", "application/json", `{"path":"secret/key"}`, 400},
		{"Stat", "application/json", `{"path":"~/secret/key"}`, 400},
		{"Stat", "application/json", `{}`, 400},
		{"Stat", "application/json", `{"path":`, 400},
		{"Stat", "application/proto", message(&wire.StatRequest{Path: "/home/user/a"}), allowed},
		{"Stat", "application/proto", message(&wire.StatRequest{Path: "/etc/a"}), 403},
		{"Stat", "text/plain", `{"path":"/home/user/a"}`, 400},
		{"Move", "application/json", `{"source":"/home/a","destination":"/home/b"}`, allowed},
		{"Move", "application/json", `{"source":"/home/a","destination":"/etc/b"}`, 403},
		{"Move", "application/json", `{"source":"/home/user","destination":"/home/b"}`, 403}, // what may not be seen goes with it
		{"Remove", "application/json", `{"path":"/home/user"}`, 403},
		{"Remove", "application/json", `{"path":"/home/user/a"}`, allowed},
		{"MakeDir", "application/json", `{"path":"/opt/a"}`, 403},
		{"ListDir", "application/json", `{"path":"/home/user"}`, allowed},
		{"ListDir", "application/json", `{"path":"/home/user","depth":3}`, 403},
		{"WatchDir", "application/connect+json", envelope(0, `{"path":"/home/user/a","recursive":true}`), allowed},
		{"WatchDir", "application/connect+json", envelope(0, `{"path":"/home/user","recursive":true}`), 403},
		{"WatchDir", "application/connect+proto", envelope(0, message(&wire.WatchDirRequest{Path: "/etc"})), 403},
		{"WatchDir", "application/connect+json", envelope(1, `{"path":"/home/user/a"}`), 400},
		{"WatchDir", "application/connect+json", envelope(0, `{"path":"/home/user/a"}`) + envelope(0, `{"path":"/etc"}`), 400},
		{"WatchDir", "application/connect+json", "", 400},
	} {
		a := x.as(dev, "POST", base+"/filesystem.Filesystem/"+tc.call, tc.body, "Content-Type", tc.kind)
		must.Eq(t, tc.want, a.status, must.Sprintf("%s %s %q: %s", tc.call, tc.kind, tc.body, a.body))
	}
	a := x.as(dev, "POST", base+"/filesystem.Filesystem/Stat", `{"path":"/home/a"}`, "Content-Type", "application/json", "Content-Encoding", "gzip")
	must.StrContains(t, a.mustFail(t, 400, api.CodeInvalid), "compressed")
	for path, want := range map[string]int{"/home/user/a": allowed, "/etc/passwd": 403, "/home/../etc/passwd": 403, "/home/user/secret/a": 403, "secret/a": 400} {
		must.Eq(t, want, x.as(dev, "GET", base+"/files?path="+path, "").status, must.Sprint(path))
	}
}

func FuzzDecodeCall(f *testing.F) {
	f.Add("application/json", []byte(`{"path":"/a"}`))
	f.Add("application/connect+json", append([]byte{0, 0, 0, 0, 2}, "{}"...))
	f.Add("application/proto", []byte{0x0a, 0x02, '/', 'a'})
	f.Add("application/connect+proto", []byte{0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		err := decodeCall(http.Header{"Content-Type": {kind}}, body, &wire.MoveRequest{})
		if e, told := mapError(err); err != nil && (!told || e.Code != 400) {
			t.Fatalf("%q %q: %v", kind, body, err)
		}
	})
}
