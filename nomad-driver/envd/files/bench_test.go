package files

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/envdtest"
)

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// BenchmarkFiles uploads and downloads 64 MiB through a unix socket, and compares with a plain server that sends as many.
func BenchmarkFiles(b *testing.B) {
	const transfer = 64 << 20
	h := New(Config{})
	s := envdtest.Start(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/floor" {
			_, _ = io.CopyBuffer(struct{ io.Writer }{w}, io.LimitReader(zeros{}, transfer), make([]byte, 64<<10))
			return
		}
		h.ServeHTTP(w, r)
	}))
	get := func(path string) time.Duration {
		begin := time.Now()
		resp, err := s.Client.Get(s.URL + path)
		must.NoError(b, err)
		n, err := io.Copy(io.Discard, resp.Body)
		must.NoError(b, err)
		must.Eq(b, transfer, n)
		must.NoError(b, resp.Body.Close())
		return time.Since(begin)
	}
	var up, down, floor time.Duration
	for b.Loop() {
		begin := time.Now()
		resp, err := s.Client.Post(s.URL+"/files?path=big", "application/octet-stream", io.LimitReader(zeros{}, transfer))
		must.NoError(b, err)
		must.Eq(b, 200, resp.StatusCode)
		must.NoError(b, resp.Body.Close())
		up += time.Since(begin)
		down += get("/files?path=big")
		floor += get("/floor")
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(b.N)*transfer/float64(floor.Microseconds()), "floor-MB/s")
	b.ReportMetric(100*float64(floor)/float64(up), "up-%")
	b.ReportMetric(100*float64(floor)/float64(down), "down-%")
}
