package files

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// folder is a guest whose files are all in one folder of the test's; only what an upload asks for is there.
type folder struct {
	scope.Guest
	dir   string
	begun map[string]*os.File // temporary files that are neither renamed nor removed
	files int                 // that are in their places
}

func (g *folder) LookupUser(context.Context, string) (guest.UserInfo, error) {
	return guest.UserInfo{Name: "user", UID: 1000, GID: 1000, Home: "/home/user"}, nil
}

func (g *folder) Entry(context.Context, guest.FileRequest) (guest.Entry, error) {
	return guest.Entry{}, &frame.ErrorBody{Code: guest.CodeNotFound}
}

func (g *folder) Open(_ context.Context, r guest.FileRequest) (*os.File, guest.FileInfo, error) {
	if !strings.HasPrefix(r.Path, "/") || strings.IndexByte(r.Path, 0) >= 0 || g.begun[r.Path] != nil {
		return nil, guest.FileInfo{}, &frame.ErrorBody{Code: guest.CodeBadRequest, Message: "odd path"}
	}
	f, err := os.CreateTemp(g.dir, "f")
	g.begun[r.Path] = f
	return f, guest.FileInfo{}, err
}

func (g *folder) Rename(_ context.Context, r guest.FileRequest) error {
	g.files++
	delete(g.begun, r.Path)
	return nil
}

func (g *folder) Remove(_ context.Context, r guest.FileRequest) error {
	delete(g.begun, r.Path)
	return nil
}

// answered is a recorder that takes deadlines, as a connection does.
type answered struct{ *httptest.ResponseRecorder }

func (answered) SetReadDeadline(time.Time) error  { return nil }
func (answered) SetWriteDeadline(time.Time) error { return nil }

// Whatever a multipart body is, it is taken whole, with each of its files in its place, or refused with nothing left of it.
func FuzzMultipart(f *testing.F) {
	part := "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a/b.txt\"\r\nContent-Type: text/plain\r\n\r\nhello\r\n"
	f.Add("b", "", []byte(part+"--b--\r\n"))
	f.Add("b", "", []byte(part+part+"--b--"))
	f.Add("b", "named", []byte(part))
	f.Add("b", "", []byte(strings.Replace(part, "a/b.txt", "../../etc/%22%0D%0Ax", 1)+"--b--"))
	f.Add("b", "", []byte(strings.Replace(part, `name="file"`, `name="other"`, 1)+"--b--"))
	f.Add("b", "", []byte(strings.Replace(part, "form-data", "attachment; filename*=utf-8''x", 1)+"--b--"))
	f.Add("--", "", []byte("----\r\n\r\n------"))
	f.Fuzz(func(t *testing.T, boundary, path string, body []byte) {
		g := &folder{dir: t.TempDir(), begun: map[string]*os.File{}}
		r := httptest.NewRequestWithContext(scope.With(t.Context(), scope.Sandbox{ID: "iaaaaaaaaaaaaaaaaaaaa", Guest: g}), http.MethodPost, "/files", bytes.NewReader(body))
		q := r.URL.Query()
		q.Set("path", path)
		r.URL.RawQuery = q.Encode()
		r.Header.Set("Content-Type", "multipart/form-data; boundary=\""+strings.NewReplacer(`"`, "", `\`, "").Replace(boundary)+"\"")
		w := answered{httptest.NewRecorder()}
		New(Config{MaxBytes: 1 << 20}).ServeHTTP(w, r)
		must.MapEmpty(t, g.begun)
		switch w.Code {
		case http.StatusOK:
			must.Positive(t, g.files)
		case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType:
			must.Zero(t, g.files)
		default:
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	})
}
