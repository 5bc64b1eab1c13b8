package build

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/unpack"
)

// serveRegistry is a registry that asks for a password, with one image; wrap may change its answers.
func serveRegistry(t *testing.T, wrap func(http.Handler) http.Handler) (host string, img v1.Image) {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	locked := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pass, _ := r.BasicAuth(); pass != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	})
	var serve http.Handler = locked
	if wrap != nil {
		serve = wrap(locked)
	}
	srv := httptest.NewServer(serve)
	t.Cleanup(srv.Close)
	host = strings.TrimPrefix(srv.URL, "http://")

	var files bytes.Buffer
	w := tar.NewWriter(&files)
	must.NoError(t, w.WriteHeader(&tar.Header{Name: "etc/hello", Mode: 0o644, Size: 2, Typeflag: tar.TypeReg}))
	_, err := io.WriteString(w, "hi")
	must.NoError(t, err)
	must.NoError(t, w.Close())
	img, err = mutate.AppendLayers(empty.Image, static.NewLayer(files.Bytes(), types.OCIUncompressedLayer))
	must.NoError(t, err)
	img, err = mutate.Config(img, v1.Config{User: "root", WorkingDir: "/etc", Env: []string{"A=b"}})
	must.NoError(t, err)
	ref, err := name.ParseReference(host + "/some/image:1")
	must.NoError(t, err)
	must.NoError(t, remote.Write(ref, img, remote.WithAuth(imageRefOf(t, host).auth)))
	return host, img
}

func imageRefOf(t *testing.T, host string) imageRef {
	t.Helper()
	ref, err := parseImage(api.BuildInstructions{
		FromImage: host + "/some/image:1", FromImageRegistry: []byte(`{"type":"registry","username":"me","password":"secret"}`),
	})
	must.NoError(t, err)
	return ref
}

func TestImages_arePulledAsALayout(t *testing.T) {
	host, want := serveRegistry(t, nil)
	i := newImages([]string{host})
	t.Cleanup(i.close)
	img, err := i.find(t.Context(), imageRefOf(t, host))
	must.NoError(t, err)
	r, w := io.Pipe()
	go func() { w.CloseWithError(writeLayout(w, img)) }()
	res, err := unpack.Into(t.Context(), t.TempDir(), r, unpack.Options{})
	must.NoError(t, err)
	must.Eq(t, unpack.KindOCI, res.Kind)
	must.Eq(t, "/etc", res.Defaults.Cwd)
	got, err := img.Digest()
	must.NoError(t, err)
	digest, err := want.Digest()
	must.NoError(t, err)
	must.Eq(t, digest, got)

	open, err := parseImage(api.BuildInstructions{FromImage: host + "/some/image:1"})
	must.NoError(t, err)
	_, err = i.find(t.Context(), open)
	must.ErrorContains(t, err, "401")
	gone := imageRefOf(t, host)
	gone.Reference, err = name.ParseReference(host + "/no/such:1")
	must.NoError(t, err)
	_, err = i.find(t.Context(), gone)
	must.ErrorContains(t, err, host+"/no/such:1")
}

// A registry that says one thing and sends another makes no template.
func TestImages_areCheckedAgainstTheirDigests(t *testing.T) {
	host, _ := serveRegistry(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
				next.ServeHTTP(w, r)
				return
			}
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			b := rec.Body.Bytes()
			if len(b) > 600 && rec.Code == http.StatusOK { // the layer, not the configuration
				b[512] ^= 1
			}
			w.WriteHeader(rec.Code)
			_, _ = w.Write(b)
		})
	})
	i := newImages([]string{host})
	t.Cleanup(i.close)
	img, err := i.find(t.Context(), imageRefOf(t, host))
	must.NoError(t, err)
	must.ErrorContains(t, writeLayout(io.Discard, img), "error verifying sha256 checksum")
}

func TestImages_comeFromPublicAddressesOnly(t *testing.T) {
	host, _ := serveRegistry(t, nil)
	i := newImages(nil)
	t.Cleanup(i.close)
	_, err := i.find(t.Context(), imageRefOf(t, host))
	must.ErrorContains(t, err, "is no public address")
	for _, to := range []string{"127.0.0.1:80", "10.1.2.3:443", "169.254.169.254:80", "192.168.0.1:5000", "100.64.0.1:443", "[::1]:80", "[fd00::1]:443", "[::ffff:10.0.0.1]:80", "0.0.0.0:80"} {
		_, err := i.dial(t.Context(), "tcp", to)
		must.ErrorContains(t, err, "is no public address", must.Sprint(to))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = i.dial(ctx, "tcp", "192.0.2.1:443")
	must.True(t, errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "cancel"), must.Sprint(err))
}
