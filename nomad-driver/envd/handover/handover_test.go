package handover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/shoenig/test/wait"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve serves a handler on a unix socket and returns a client of it.
func serve(t *testing.T, h http.HandlerFunc, knows bool) *http.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	must.NoError(t, err)
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	if knows {
		srv.Config.ConnContext = WithConn
	}
	srv.Start()
	base := &http.Transport{ExpectContinueTimeout: time.Second, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		return NewConn(c.(*net.UnixConn)), nil
	}}
	t.Cleanup(func() {
		base.CloseIdleConnections()
		srv.Close()
	})
	return &http.Client{Transport: Transport{base}}
}

func content(n int) []byte { return bytes.Repeat([]byte("0123456789abcde\n"), n/16) }

func file(t *testing.T, b []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	must.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	_, err = f.Write(b)
	must.NoError(t, err)
	return f
}

// descriptors are those of this process that lead to path.
func descriptors(t *testing.T, path string) (n int) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	must.NoError(t, err)
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.TrimSuffix(to, " (deleted)") == path {
			n++
		}
	}
	return n
}

func TestDownload_aFileComesAsItsDescriptor(t *testing.T) {
	all := content(3 << 20)
	f := file(t, all)
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if !Welcome(r) {
			t.Error("not welcome")
		}
		w.Header().Set("X-Own", "1")
		if err := Offer(w, r, http.StatusPartialContent, f, 5, 2<<20); err != nil {
			t.Error(err)
		}
	}, true)
	for range 3 { // over the same connection
		resp, err := c.Get("http://x/files")
		must.NoError(t, err)
		_, handed := resp.Body.(*File)
		must.True(t, handed)
		must.Eq(t, http.StatusPartialContent, resp.StatusCode)
		must.Eq(t, 2<<20, resp.ContentLength)
		must.Eq(t, "1", resp.Header.Get("X-Own"))
		must.Eq(t, "", resp.Header.Get(Header))
		b, err := io.ReadAll(resp.Body)
		must.NoError(t, err)
		must.True(t, bytes.Equal(all[5:5+2<<20], b))
		must.NoError(t, resp.Body.Close())
		must.Eq(t, 1, descriptors(t, f.Name()))
	}
}

func TestDownload_bytesStayBytes(t *testing.T) {
	for name, knows := range map[string]bool{"a server that hands nothing over": false, "one that answers with bytes all the same": true} {
		t.Run(name, func(t *testing.T) {
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if Welcome(r) != knows {
					t.Error("welcome: ", Welcome(r))
				}
				_, _ = io.WriteString(w, "bytes")
			}, knows)
			resp, err := c.Get("http://x/files")
			must.NoError(t, err)
			b, err := io.ReadAll(resp.Body)
			must.NoError(t, err)
			must.Eq(t, "bytes", string(b))
			must.NoError(t, resp.Body.Close())
		})
	}
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, Welcome(r)) }, true)
	resp, err := c.Get("http://x/health")
	must.NoError(t, err)
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.Eq(t, "false", string(b), must.Sprint("only files are handed over"))
	must.NoError(t, resp.Body.Close())
}

// What runs in the sandbox may cut the file at any time: that ends the transfer, and nothing else.
func TestFile_oneThatBecomesShorterIsAnError(t *testing.T) {
	f := file(t, content(4<<20))
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if err := Offer(w, r, http.StatusOK, f, 0, 4<<20); err != nil {
			t.Error(err)
		}
	}, true)
	resp, err := c.Get("http://x/files")
	must.NoError(t, err)
	must.NoError(t, f.Truncate(1<<20))
	b, err := io.ReadAll(resp.Body)
	must.ErrorIs(t, err, io.ErrUnexpectedEOF)
	must.LessEq(t, 1<<20, len(b))
	must.NoError(t, resp.Body.Close())
}

func TestUpload_theClientWritesIntoTheFile(t *testing.T) {
	f := file(t, nil)
	ended := make(chan error, 1)
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) { ended <- Fill(r, f, 1<<20) }, true)
	all := content(1 << 20)
	for name, body := range map[string]io.Reader{"a length": bytes.NewReader(all), "chunks": struct{ io.Reader }{bytes.NewReader(all)}} {
		must.NoError(t, f.Truncate(0))
		_, err := f.Seek(0, io.SeekStart)
		must.NoError(t, err)
		resp, err := c.Post("http://x/files", "application/octet-stream", body)
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
		must.NoError(t, <-ended, must.Sprint(name))
		b, err := os.ReadFile(f.Name())
		must.NoError(t, err)
		must.True(t, bytes.Equal(all, b), must.Sprint(name))
		must.Eq(t, 1, descriptors(t, f.Name()), must.Sprint(name))
	}
	resp, err := c.Post("http://x/files", "application/octet-stream", bytes.NewReader(content(1<<20+16)))
	must.NoError(t, err)
	must.NoError(t, resp.Body.Close())
	must.ErrorIs(t, <-ended, ErrTooLong)
}

func TestUpload_aServerThatHandsNothingOverGetsTheBytes(t *testing.T) {
	for _, knows := range []bool{true, false} {
		got := make(chan []byte, 1)
		c := serve(t, func(_ http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			got <- b
		}, knows)
		all := content(MinBytes * 2)
		resp, err := c.Post("http://x/files", "application/octet-stream", bytes.NewReader(all))
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
		must.True(t, bytes.Equal(all, <-got))
	}
}

// smallDisk is a folder for 512 KiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	sandboxtest.RequireRoot(t) // it mounts
	dir := t.TempDir()
	must.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"))
	// Detached: whoever makes a mount namespace meanwhile, as every sandbox does, holds a copy for a moment.
	t.Cleanup(func() { must.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

func TestUpload_aFullDiskIsToldAsOne(t *testing.T) {
	dir := smallDisk(t)
	f, err := os.Create(filepath.Join(dir, "f"))
	must.NoError(t, err)
	defer f.Close()
	ended := make(chan error, 1)
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) { ended <- Fill(r, f, 1<<30) }, true)
	resp, err := c.Post("http://x/files", "application/octet-stream", bytes.NewReader(content(1<<20)))
	must.NoError(t, err)
	must.NoError(t, resp.Body.Close())
	must.ErrorIs(t, <-ended, unix.ENOSPC)
}

func TestUpload_aBodyThatBreaksOffIsNeverComplete(t *testing.T) {
	f := file(t, nil)
	ended := make(chan error, 1)
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) { ended <- Fill(r, f, 1<<30) }, true)
	broken := errors.New("broken")
	_, err := c.Post("http://x/files", "application/octet-stream", io.MultiReader(bytes.NewReader(content(1<<20)), faulty{broken}))
	must.ErrorIs(t, err, broken)
	must.Error(t, <-ended)
	must.Wait(t, wait.InitialSuccess(wait.BoolFunc(func() bool { return descriptors(t, f.Name()) == 1 }), wait.Timeout(10*time.Second)))
}

type faulty struct{ err error }

func (f faulty) Read([]byte) (int, error) { return 0, f.err }

// A client that is refused, or gives up, keeps no descriptor.
func TestUpload_anAnswerBeforeTheBodyEndsIt(t *testing.T) {
	f := file(t, nil)
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("give") {
			if err := give(r, f, "100"); err != nil {
				t.Error(err)
			}
		}
		w.WriteHeader(http.StatusForbidden)
	}, true)
	for _, q := range []string{"", "?give"} {
		body, w := io.Pipe()
		resp, err := c.Post("http://x/files"+q, "application/octet-stream", body)
		must.NoError(t, err)
		must.Eq(t, http.StatusForbidden, resp.StatusCode)
		must.NoError(t, resp.Body.Close())
		must.NoError(t, w.Close())
		must.Wait(t, wait.InitialSuccess(wait.BoolFunc(func() bool { return descriptors(t, f.Name()) == 1 }), wait.Timeout(10*time.Second)))
	}
}
