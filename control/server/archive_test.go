package server

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

func TestArchives(t *testing.T) {
	h, node := withNode(t)
	c := h.client()
	base := "/v1/sandboxes/" + string(testID)
	must.NoError(t, c.WriteArchive(t.Context(), testID, "/d", strings.NewReader("a tar"), api.FileOptions{}))
	must.Eq(t, "a tar", node.body["PUT "+base+"/archive"])
	body, err := c.ReadArchive(t.Context(), testID, "/d", api.FileOptions{})
	must.NoError(t, err)
	b, err := io.ReadAll(body)
	must.NoError(t, err)
	must.Eq(t, "tar bytes", string(b))
	must.NoError(t, body.Close())
}

func TestArchives_errors(t *testing.T) {
	h, _ := withNode(t)
	c := h.client()
	body, err := c.ReadArchive(t.Context(), testID, "/breaks", api.FileOptions{})
	must.NoError(t, err)
	defer body.Close()
	b, err := io.ReadAll(body)
	must.Eq(t, "tar bytes", string(b))
	var e *api.Error
	must.True(t, errors.As(err, &e), must.Sprint("an error in the middle of a body must reach the client: ", err))
	must.Eq(t, api.CodeNoSpace, e.ErrorCode)

	broken := io.MultiReader(strings.NewReader("some"), errReader{})
	err = c.WriteArchive(t.Context(), testID, "/f", broken, api.FileOptions{})
	must.ErrorIs(t, err, errBroken)

	base := "/v1/sandboxes/" + string(testID)
	for path, field := range map[string]string{
		"/archive":               "path",
		"/archive?path=":         "path",
		"/archive?path=a%00b":    "path",
		"/archive?path=a&path=b": "path",
		"/archive?path=" + strings.Repeat("a", 4097):       "path",
		"/archive?path=%ff":                                "path",
		"/archive?path=a&user=" + strings.Repeat("u", 300): "user",
		"/logs?tail=-1":                                    "tail",
		"/logs?offset=abc":                                 "offset",
		"/logs?follow=maybe":                               "follow",
		"/logs?stream=x":                                   "stream",
	} {
		must.StrContains(t, h.do("GET", base+path, "").mustFail(t, 400, api.CodeInvalid), field)
	}
}

var errBroken = errors.New("broken")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

func TestLogs(t *testing.T) {
	h, node := withNode(t)
	c := h.client()
	body, off, err := c.Logs(t.Context(), testID, api.LogOptions{Stream: "stderr", Offset: 3, Tail: 9})
	must.NoError(t, err)
	b, err := io.ReadAll(body)
	must.NoError(t, err)
	must.NoError(t, body.Close())
	must.Eq(t, "log line\n", string(b))
	must.Eq(t, 5, off)
	must.Eq(t, "GET /v1/sandboxes/"+string(testID)+"/logs?offset=3&stream=stderr&tail=9", node.seen[0])

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	body, _, err = c.Logs(ctx, testID, api.LogOptions{Follow: true})
	must.NoError(t, err)
	defer body.Close()
	buf := make([]byte, 9)
	_, err = io.ReadFull(body, buf)
	must.NoError(t, err, must.Sprint("what is there must come at once"))
	cancel()
	_, err = body.Read(buf)
	must.Error(t, err)
}

func TestStats(t *testing.T) {
	h, _ := withNode(t)
	s, err := h.client().Stats(t.Context(), testID)
	must.NoError(t, err)
	must.Eq(t, api.Stats{Time: testTime, CPUNanos: 1, MemoryBytes: 2, Measured: []string{"cpu_nanos"}}, s)
}
