package api

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestAllowStale_readsSayHowOldTheyMayBe(t *testing.T) {
	ages := []string{"12", "340", ""}
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.Query().Get("stale"))
		if r.URL.Query().Get("stale") == "true" {
			w.Header().Set(AgeHeader, ages[0])
			ages = ages[1:]
		}
		_, _ = w.Write([]byte("[]"))
	}))
	defer srv.Close()
	c, err := New(Config{Address: srv.URL})
	must.NoError(t, err)
	defer c.Close()
	var s Stale
	ctx := AllowStale(t.Context(), &s)
	_, ok := s.Age()
	must.False(t, ok)
	for _, want := range []time.Duration{12 * time.Millisecond, 340 * time.Millisecond, 340 * time.Millisecond} {
		_, err = c.Nodes(ctx)
		must.NoError(t, err)
		age, ok := s.Age()
		must.True(t, ok)
		must.Eq(t, want, age, must.Sprint("the oldest counts"))
	}
	must.NoError(t, c.DeleteSandbox(ctx, "iabcdefghij0123456789"))
	_, err = c.Nodes(t.Context())
	must.NoError(t, err)
	must.Eq(t, []string{"GET true", "GET true", "GET true", "DELETE ", "GET "}, asked)
}
