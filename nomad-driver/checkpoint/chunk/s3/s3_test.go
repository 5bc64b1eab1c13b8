package s3

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk/chunktest"
)

// serve starts an S3 server in this process, with a bucket.
func serve(t *testing.T) (endpoint string) {
	t.Helper()
	back := s3mem.New()
	must.NoError(t, back.CreateBucket("snapshots"))
	srv := httptest.NewServer(gofakes3.New(back).Server())
	t.Cleanup(srv.Close)
	return srv.URL
}

func config(t *testing.T, endpoint string) Config {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "secret")
	must.NoError(t, os.WriteFile(secret, []byte("of nobody\n"), 0o600))
	return Config{Endpoint: endpoint, Bucket: "snapshots", Prefix: "soulbox/a", Region: "us-east-1", AccessKey: "nobody", SecretKeyFile: secret}
}

func TestBackend_conforms(t *testing.T) {
	b, err := Open(config(t, serve(t)))
	must.NoError(t, err)
	chunktest.Conform(t, b)
}

func TestBackend_prefixesAreApart(t *testing.T) {
	c := config(t, serve(t))
	a, err := Open(c)
	must.NoError(t, err)
	c.Prefix = "soulbox/b"
	b, err := Open(c)
	must.NoError(t, err)
	must.NoError(t, a.Put(t.Context(), "t/x/y", []byte("of a")))
	_, err = b.Get(t.Context(), "t/x/y", 10)
	must.ErrorIs(t, err, chunk.ErrNotFound)
	all, err := b.List(t.Context(), "t/x/")
	must.NoError(t, err)
	must.SliceEmpty(t, all)
}

func TestBackend_isRepeatedWhereTheServerFailsForAMoment(t *testing.T) {
	back := s3mem.New()
	must.NoError(t, back.CreateBucket("snapshots"))
	good := gofakes3.New(back).Server()
	var mu sync.Mutex
	failures := 2
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		fail := failures > 0
		failures--
		mu.Unlock()
		if fail {
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		good.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	b, err := Open(config(t, srv.URL))
	must.NoError(t, err)
	must.NoError(t, b.Put(t.Context(), "t/x/y", []byte("1")))
	got, err := b.Get(t.Context(), "t/x/y", 1)
	must.NoError(t, err)
	must.True(t, bytes.Equal([]byte("1"), got))
}

func TestBackend_saysThatTheServerIsAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	endpoint := "http://" + l.Addr().String()
	must.NoError(t, l.Close())
	b, err := Open(config(t, endpoint))
	must.NoError(t, err, must.Sprint("a node starts without it"))
	_, err = b.Get(t.Context(), "t/x/y", 1)
	must.ErrorIs(t, err, chunk.ErrUnavailable)
	must.False(t, errors.Is(err, chunk.ErrNotFound))
	c := config(t, serve(t))
	c.Bucket = "another"
	b, err = Open(c)
	must.NoError(t, err)
	_, err = b.Get(t.Context(), "t/x/y", 1)
	must.Error(t, err)
	must.False(t, errors.Is(err, chunk.ErrNotFound), must.Sprint("a bucket that is missing is not an object that is missing"))
}

func TestOpen_refusesWhatIsNoBucket(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"endpoint without a scheme": func(c *Config) { c.Endpoint = "host:9000" },
		"endpoint with a path":      func(c *Config) { c.Endpoint = "https://host/path" },
		"endpoint with a password":  func(c *Config) { c.Endpoint = "https://a:b@host" },
		"no bucket":                 func(c *Config) { c.Bucket = "" },
		"prefix that is no name":    func(c *Config) { c.Prefix = "../x" },
		"secret without a key":      func(c *Config) { c.AccessKey = "" },
		"secret that is not there":  func(c *Config) { c.SecretKeyFile = "/nonexistent" },
		"certificates of nobody":    func(c *Config) { c.CAFile = c.SecretKeyFile },
	} {
		t.Run(name, func(t *testing.T) {
			c := config(t, "https://host:9000")
			change(&c)
			_, err := Open(c)
			must.ErrorContains(t, err, "snapshot store in S3")
		})
	}
}
