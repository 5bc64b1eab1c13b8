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

func TestFiles(t *testing.T) {
	h, node := withNode(t)
	c := h.client()
	want := api.File{Name: "f", Path: "/f", Type: "file", Size: 7, Mode: 0o644, UID: 1000, GID: 1000, Owner: "user", Group: "user", ModTime: testTime}
	opts := api.FileOptions{User: "root", Mode: 0o750}

	body, f, err := c.ReadFile(t.Context(), testID, "/f", opts)
	must.NoError(t, err)
	b, err := io.ReadAll(body)
	must.NoError(t, err)
	must.NoError(t, body.Close())
	must.Eq(t, "content", string(b))
	must.Eq(t, want, f)

	f, err = c.WriteFile(t.Context(), testID, "dir/a b&c", strings.NewReader("data"), opts)
	must.NoError(t, err)
	must.Eq(t, want, f)
	base := "/v1/sandboxes/" + string(testID)
	must.Eq(t, "data", node.body["PUT "+base+"/files"])
	must.Eq(t, "PUT "+base+"/files?mode=750&path=dir%2Fa+b%26c&user=root", node.seen[len(node.seen)-1])

	f, err = c.Stat(t.Context(), testID, "/f", opts)
	must.NoError(t, err)
	must.Eq(t, want, f)
	fs, err := c.ReadDir(t.Context(), testID, "/", opts)
	must.NoError(t, err)
	must.Eq(t, []api.File{want}, fs)
	f, err = c.Mkdir(t.Context(), testID, "/d", opts)
	must.NoError(t, err)
	must.Eq(t, want, f)
	must.NoError(t, c.Remove(t.Context(), testID, "/d", opts))
	must.NoError(t, c.Rename(t.Context(), testID, "/d", "/e", opts))
	must.Eq(t, "POST "+base+"/rename?mode=750&path=%2Fd&target=%2Fe&user=root", node.seen[len(node.seen)-1])

	must.NoError(t, c.WriteArchive(t.Context(), testID, "/d", strings.NewReader("a tar"), api.FileOptions{}))
	must.Eq(t, "a tar", node.body["PUT "+base+"/archive"])
	body, err = c.ReadArchive(t.Context(), testID, "/d", api.FileOptions{})
	must.NoError(t, err)
	b, err = io.ReadAll(body)
	must.NoError(t, err)
	must.Eq(t, "tar bytes", string(b))
	must.NoError(t, body.Close())
}

func TestFiles_errors(t *testing.T) {
	h, _ := withNode(t)
	c := h.client()
	_, _, err := c.ReadFile(t.Context(), testID, "/missing", api.FileOptions{})
	must.True(t, api.IsNotFound(err), must.Sprint(err))
	must.EqError(t, err, "path '/missing' does not exist")

	body, err := c.ReadArchive(t.Context(), testID, "/breaks", api.FileOptions{})
	must.NoError(t, err)
	defer body.Close()
	b, err := io.ReadAll(body)
	must.Eq(t, "tar bytes", string(b))
	var e *api.Error
	must.True(t, errors.As(err, &e), must.Sprint("an error in the middle of a body must reach the client: ", err))
	must.Eq(t, api.CodeNoSpace, e.ErrorCode)

	broken := io.MultiReader(strings.NewReader("some"), errReader{})
	_, err = c.WriteFile(t.Context(), testID, "/f", broken, api.FileOptions{})
	must.ErrorIs(t, err, errBroken)

	base := "/v1/sandboxes/" + string(testID)
	for path, field := range map[string]string{
		"/files":               "path",
		"/files?path=":         "path",
		"/files?path=a%00b":    "path",
		"/files?path=a&path=b": "path",
		"/files?path=" + strings.Repeat("a", 4097):       "path",
		"/files?path=%ff":                                "path",
		"/files?path=a&mode=999":                         "mode",
		"/files?path=a&mode=-1":                          "mode",
		"/files?path=a&mode=17777":                       "mode",
		"/files?path=a&user=" + strings.Repeat("u", 300): "user",
		"/logs?tail=-1":                                  "tail",
		"/logs?offset=abc":                               "offset",
		"/logs?follow=maybe":                             "follow",
		"/logs?stream=x":                                 "stream",
	} {
		must.StrContains(t, h.do("GET", base+path, "").mustFail(t, 400, api.CodeInvalid), field)
	}
	h.do("POST", base+"/rename?path=a", "").mustFail(t, 400, api.CodeInvalid)
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
