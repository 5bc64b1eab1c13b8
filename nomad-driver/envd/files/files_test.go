package files

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/envdtest"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { sandboxtest.Main(m) }

func guestFile(path string) guest.FileRequest { return guest.FileRequest{Path: path, User: "user"} }

type reply struct {
	status int
	header http.Header
	body   string
}

func do(t *testing.T, s *envdtest.Server, method, query string, body io.Reader, headers ...string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+query, body)
	must.NoError(t, err)
	if body != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := s.Client.Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	return reply{resp.StatusCode, resp.Header, string(b)}
}

func message(r reply) string {
	var e Error
	if json.Unmarshal([]byte(r.body), &e) != nil || e.Code != r.status {
		return "no error: " + r.body
	}
	return e.Message
}

func zipped(b []byte) *bytes.Buffer {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, _ = w.Write(b)
	_ = w.Close()
	return &z
}

func TestReal_uploadAndDownload(t *testing.T) {
	s := envdtest.Start(t, New(Config{}))
	r := do(t, s, "POST", "/files?path=a/b.txt", strings.NewReader("hello"), "X-Metadata-Kind", "greeting")
	must.Eq(t, `[{"path":"/home/user/a/b.txt","name":"b.txt","type":"file","metadata":{"kind":"greeting"}}]`+"\n", r.body)
	must.Eq(t, "user user 644 user 755\n", s.Shell(t, "user", "stat -c '%U %G %a' ~/a/b.txt | tr '\\n' ' '; stat -c '%U %a' ~/a"))
	e, err := s.Scope.Guest.Entry(t.Context(), guestFile("/home/user/a/b.txt"))
	must.NoError(t, err)
	must.Eq(t, map[string]string{"kind": "greeting"}, e.Metadata)
	r = do(t, s, "GET", "/files?path=a/b.txt", nil)
	must.Eq(t, 200, r.status)
	must.Eq(t, "hello", r.body)
	must.Eq(t, `inline; filename=b.txt`, r.header.Get("Content-Disposition"))
	must.Eq(t, "Accept-Encoding", r.header.Get("Vary"))
	tag := r.header.Get("Etag")
	must.Eq(t, 304, do(t, s, "GET", "/files?path=a/b.txt", nil, "If-None-Match", tag).status)
	r = do(t, s, "GET", "/files?path=a/b.txt", nil, "Range", "bytes=1-3", "Accept-Encoding", "gzip", "If-Range", tag)
	must.Eq(t, 206, r.status)
	must.Eq(t, "ell", r.body)
	r = do(t, s, "GET", "/files?path=a/b.txt", nil, "Accept-Encoding", "gzip;q=0.8, identity;q=0.5")
	must.Eq(t, "gzip", r.header.Get("Content-Encoding"))
	z, err := gzip.NewReader(strings.NewReader(r.body))
	must.NoError(t, err)
	b, err := io.ReadAll(z)
	must.NoError(t, err)
	must.Eq(t, "hello", string(b))
	must.Eq(t, 406, do(t, s, "GET", "/files?path=a/b.txt", nil, "Accept-Encoding", "br, *;q=0").status)

	// The mode stays, the metadata is replaced as a whole.
	s.Shell(t, "user", "chmod 750 ~/a/b.txt; ln -s a/b.txt ~/link")
	r = do(t, s, "POST", "/files?path=link", zipped([]byte("changed")), "Content-Encoding", "gzip")
	must.Eq(t, 200, r.status, must.Sprint(r.body))
	must.Eq(t, "changed 750 a/b.txt\nb.txt\n", s.Shell(t, "user", "cat ~/a/b.txt; stat -c ' %a' ~/a/b.txt | tr '\\n' ' '; readlink ~/link; ls -A ~/a"))
	e, err = s.Scope.Guest.Entry(t.Context(), guestFile("/home/user/a/b.txt"))
	must.NoError(t, err)
	must.MapEmpty(t, e.Metadata)
	must.StrContains(t, do(t, s, "GET", "/files?path=/proc/meminfo", nil).body, "MemTotal")

	var form bytes.Buffer
	m := multipart.NewWriter(&form)
	for _, name := range []string{"m/one", "/tmp/two"} {
		p, err := m.CreatePart(textproto.MIMEHeader{"Content-Disposition": {`form-data; name="file"; filename="` + name + `"`}})
		must.NoError(t, err)
		fmt.Fprint(p, name)
	}
	must.NoError(t, m.Close())
	full := form.String()
	r = do(t, s, "POST", "/files", strings.NewReader(full), "Content-Type", m.FormDataContentType())
	must.Eq(t, 200, r.status, must.Sprint(r.body))
	must.Eq(t, "m/one/tmp/two", s.Shell(t, "user", "cat ~/m/one /tmp/two"))
	r = do(t, s, "POST", "/files?path=same", strings.NewReader(full), "Content-Type", m.FormDataContentType())
	must.Eq(t, 400, r.status)
	r = do(t, s, "POST", "/files", strings.NewReader(full[:len(full)-20]), "Content-Type", m.FormDataContentType())
	must.Eq(t, 400, r.status, must.Sprint(r.body))

	r = do(t, s, "POST", "/files/compose", strings.NewReader(`{"source_paths":["m/one","/tmp/two"],"destination":"all"}`), "Content-Type", "application/json")
	must.Eq(t, 200, r.status, must.Sprint(r.body))
	must.Eq(t, "m/one/tmp/two", s.Shell(t, "user", "cat ~/all; ls ~/m"))
	must.Eq(t, "", s.Shell(t, "user", "find ~ /tmp -name '.soulbox*'"))
}

func TestReal_refuses(t *testing.T) {
	s := envdtest.Start(t, New(Config{IdleTimeout: 300 * time.Millisecond}))
	s.Shell(t, "user", "mkdir ~/dir; mkfifo ~/fifo; echo 12345 > ~/f; ln -s / ~/all")
	host := "/etc/cron.d"
	s.Shell(t, "root", "mkdir -p /pub/closed; chmod 700 /pub/closed; echo old > /pub/roots; ln -s /pub /home/user/srv")
	for _, tc := range []struct {
		name, method, query string
		body                string
		headers             []string
		status              int
		text                string
	}{
		{"nothing", "GET", "/files?path=no", "", nil, 404, "path '/home/user/no' does not exist"},
		{"directory", "GET", "/files?path=dir", "", nil, 400, "path '/home/user/dir' is a directory"},
		{"user", "GET", "/files?path=f&username=who", "", nil, 401, "invalid username: 'who'"},
		{"FIFO", "GET", "/files?path=fifo", "", nil, 400, ""},
		{"device", "GET", "/files?path=/dev/zero", "", nil, 400, ""},
		{"A04 magic link", "GET", "/files?path=/proc/self/root/etc/passwd&username=root", "", nil, 400, ""},
		{"A10 many ranges", "GET", "/files?path=f", "", []string{"Range", "bytes=0-0" + strings.Repeat(",0-0", 10_000)}, 416, ""},
		{"A10 negative", "GET", "/files?path=f", "", []string{"Range", "bytes=--5"}, 416, ""},
		{"A10 overflow", "GET", "/files?path=f", "", []string{"Range", "bytes=99999999999999999999-"}, 416, ""},
		{"upload to a directory", "POST", "/files?path=dir", "x", nil, 400, "path '/home/user/dir' is a directory"},
		{"upload to a FIFO", "POST", "/files?path=fifo", "x", nil, 400, ""},
		{"upload without path", "POST", "/files", "x", nil, 400, ""},
		{"A01 parents", "POST", "/files?path=../.." + host + "/x", "x", nil, 403, ""},
		{"A02 link to the root", "POST", "/files?path=all" + host + "/x", "x", nil, 403, ""},
		{"a closed directory", "POST", "/files?path=/pub/closed/x", "x", nil, 403, ""},
		{"another's file", "POST", "/files?path=/pub/roots", "x", nil, 403, ""},
		{"a link to where others may not write", "POST", "/files?path=srv/x", "x", nil, 403, ""},
		{"root's home", "POST", "/files?path=%2Froot%2Fx", "x", nil, 403, ""},
		{"the kernel's files", "POST", "/files?path=/proc/x", "x", nil, 404, ""},
		{"bad gzip", "POST", "/files?path=g", "x", []string{"Content-Encoding", "gzip"}, 400, ""},
		{"A07 bomb", "POST", "/files?path=bomb", zipped(make([]byte, 80<<20)).String(), []string{"Content-Encoding", "gzip"}, 413, ""},
		{"metadata", "POST", "/files?path=g", "x", []string{"X-Metadata-A", strings.Repeat("x", 5000)}, 400, ""},
		{"method", "PUT", "/files?path=g", "x", nil, 405, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var body io.Reader
			if tc.body != "" {
				body = strings.NewReader(tc.body)
			}
			r := do(t, s, tc.method, tc.query, body, tc.headers...)
			must.Eq(t, tc.status, r.status, must.Sprint(r.body))
			if tc.text != "" {
				must.Eq(t, tc.text, message(r))
			}
		})
	}
	// A08, and a length that lies: nothing is left of either.
	for _, close := range []bool{false, true} {
		c := s.Dial(t)
		fmt.Fprint(c, "POST /files?path=slow HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: 1000\r\n\r\nabc")
		if close {
			_ = c.Close()
		} else {
			b, err := io.ReadAll(c)
			must.NoError(t, err)
			must.StrHasPrefix(t, "HTTP/1.1 408", string(b))
		}
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if out := s.Shell(t, "user", "cd; find . -name '.soulbox*' -o -name slow -o -name bomb"); out == "" {
			break
		} else if time.Now().After(end) {
			t.Fatalf("left: %s", out)
		}
	}
}

// A12, for signatures of the first kind.
func TestReal_signatures(t *testing.T) {
	const token = "0123456789abcdef"
	s := envdtest.Start(t, New(Config{}), func(_ *sandbox.Config, sc *scope.Sandbox) { sc.AccessToken = token })
	s.Shell(t, "user", "echo x > ~/f")
	past, later := fmt.Sprint(time.Now().Unix()-5), fmt.Sprint(time.Now().Unix()+60)
	q := func(path, sig, exp string) string {
		v := url.Values{"path": {path}, "signature": {sig}}
		if exp != "" {
			v.Set("signature_expiration", exp)
		}
		return "/files?" + v.Encode()
	}
	for _, tc := range []struct {
		name, method, query string
		headers             []string
		status              int
		text                string
	}{
		{"token", "GET", "/files?path=f", []string{"X-Access-Token", token}, 200, ""},
		{"edge", "GET", "/files?path=f", []string{trusted, "files"}, 200, ""},
		{"none", "GET", "/files?path=f", nil, 401, "missing signature query parameter"},
		{"wrong token", "GET", "/files?path=f", []string{"X-Access-Token", "x"}, 401, "missing signature query parameter"},
		{"good", "GET", q("f", sign("f", "read", "", token, ""), ""), nil, 200, ""},
		{"good for now", "GET", q("f", sign("f", "read", "", token, later), later), nil, 200, ""},
		{"expired", "GET", q("f", sign("f", "read", "", token, past), past), nil, 401, "signature is already expired"},
		{"expiration left out", "GET", q("f", sign("f", "read", "", token, later), ""), nil, 401, "invalid signature"},
		{"other method", "POST", q("f", sign("f", "read", "", token, ""), ""), nil, 401, "invalid signature"},
		{"other path", "GET", q("../user/f", sign("f", "read", "", token, ""), ""), nil, 401, "invalid signature"},
		{"encoded twice", "GET", q("%66", sign("f", "read", "", token, ""), ""), nil, 401, "invalid signature"},
		{"compose", "POST", "/files/compose", []string{trusted, "files"}, 401, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var body io.Reader
			if tc.method == "POST" {
				body = strings.NewReader("y")
			}
			r := do(t, s, tc.method, tc.query, body, tc.headers...)
			must.Eq(t, tc.status, r.status, must.Sprint(r.body))
			if tc.text != "" {
				must.Eq(t, tc.text, message(r))
			}
		})
	}
}

// TestReal_newFilesWhereTheUserMayOnlyLook is what E2B's clients take for granted: that /app is theirs when they upload to it.
func TestReal_newFilesWhereTheUserMayOnlyLook(t *testing.T) {
	s := envdtest.Start(t, New(Config{}))
	must.Eq(t, 200, do(t, s, "POST", "/files?path=/app/src/main.py", strings.NewReader("1")).status)
	must.Eq(t, "755 user user 755 user user 644 user user \n", s.Shell(t, "user", "stat -c '%a %U %G' /app /app/src /app/src/main.py | tr '\\n' ' '; echo"))
	s.Shell(t, "root", "mkdir -p /pub/d; echo old > /pub/d/shared; chown root:user /pub/d/shared; chmod 660 /pub/d/shared")
	must.Eq(t, 200, do(t, s, "POST", "/files?path=/pub/d/new", strings.NewReader("2")).status)
	must.Eq(t, 200, do(t, s, "POST", "/files?path=/pub/d/new", strings.NewReader("3")).status)
	must.Eq(t, "3 644 user\n", s.Shell(t, "user", "cat /pub/d/new; stat -c ' %a %U' /pub/d/new"))

	// A file that the user may write, in a directory that is root's: whole or not at all, and its owner's as before.
	r := do(t, s, "POST", "/files?path=/pub/d/shared", zipped(make([]byte, 80<<20)), "Content-Encoding", "gzip")
	must.Eq(t, 413, r.status, must.Sprint(r.body))
	must.Eq(t, "old\n", s.Shell(t, "user", "cat /pub/d/shared"), must.Sprint("what failed has not touched it"))
	must.Eq(t, 200, do(t, s, "POST", "/files?path=/pub/d/shared", strings.NewReader("new")).status)
	must.Eq(t, "new 660 root user\n", s.Shell(t, "user", "cat /pub/d/shared; stat -c ' %a %U %G' /pub/d/shared"))
	must.Eq(t, "new\nshared\n", s.Shell(t, "user", "ls -A /pub/d"))
}
