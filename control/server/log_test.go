package server

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/coder/websocket"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/state"
)

func withID(path string) string { return strings.ReplaceAll(path, "{id}", string(testID)) }

func TestLogStream_saysThatItIsAlive(t *testing.T) {
	h, _ := withNode(t)
	a := h.do("GET", "/v1/sandboxes/"+string(testID)+"/log/stream", "")
	must.Eq(t, 200, a.status)
	must.Eq(t, "id: 2026-11-23T20:00:00Z\ndata: {\"time\":\"2026-11-23T20:00:00Z\",\"level\":\"info\",\"source\":\"stdout\",\"message\":\"hello\"}\n\n"+
		":\n\n:\n\nevent: end\ndata: {}\n\n", a.body)

	var pings atomic.Int32
	c, _, err := websocket.Dial(t.Context(), h.http.URL+"/v1/sandboxes/"+string(testID)+"/log/stream", &websocket.DialOptions{
		HTTPHeader:     map[string][]string{"X-Api-Key": {keyA}},
		OnPingReceived: func(context.Context, []byte) bool { pings.Add(1); return true },
	})
	must.NoError(t, err)
	defer c.CloseNow()
	_, msg, err := c.Read(t.Context())
	must.NoError(t, err)
	must.StrContains(t, string(msg), `"message":"hello"`)
	_, _, err = c.Read(t.Context())
	must.Eq(t, websocket.StatusNormalClosure, websocket.CloseStatus(err))
	must.Eq(t, 2, pings.Load())
}

// TestLogs_ofAnEndedSandbox are read as long as its node keeps them; what its terminals were is said.
func TestLogs_ofAnEndedSandbox(t *testing.T) {
	h, f := withNode(t)
	f.tag = terminalTag + "00000000000000000000"
	sb := h.life.sandboxes[testID]
	sb.State = state.Stopped
	h.life.sandboxes[testID] = sb
	for _, path := range []string{"/v1/sandboxes/{id}/log", "/v1/sandboxes/{id}/log/stream", "/sandboxes/{id}/logs", "/v2/sandboxes/{id}/logs"} {
		a := h.do("GET", withID(path), "")
		must.Eq(t, 200, a.status, must.Sprint(path, a.body))
		must.StrContains(t, a.body, "hello")
	}
	for _, path := range []string{"/v1/terminals/{id}-00000000000000000000", "/v1/terminals?sandbox_id={id}"} {
		said := h.do("GET", withID(path), "").mustFail(t, 409, "sandbox_not_running")
		must.StrContains(t, said, "in its log")
	}
}

// TestE2BLogs_countTimesInMilliseconds: the first one is wanted, and pages end between two.
func TestE2BLogs_countTimesInMilliseconds(t *testing.T) {
	h, f := withNode(t)
	for path, want := range map[string]string{
		"/sandboxes/{id}/logs?start=1000":                        "after=1970-01-01T00%3A00%3A00.999999999Z&limit=1000",
		"/v2/sandboxes/{id}/logs?cursor=1000":                    "after=1970-01-01T00%3A00%3A00.999999999Z&limit=1000&whole_millis=true",
		"/v2/sandboxes/{id}/logs?cursor=1000&direction=backward": "before=1970-01-01T00%3A00%3A01Z&direction=backward&limit=1000&whole_millis=true",
	} {
		must.Eq(t, 200, h.do("GET", withID(path), "").status)
		must.Eq(t, "GET "+withID("/v1/sandboxes/{id}/logbook?")+want, f.seen[len(f.seen)-1])
	}
}
