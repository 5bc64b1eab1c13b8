package envd

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/shoenig/test/must"
)

func TestUnlimited_isATimeOfZero(t *testing.T) {
	for sent, want := range map[string]string{"": "", "0": "", "000": "", "10": "10", "01": "01", "-0": "-0", "x": "x"} {
		r := httptest.NewRequest(http.MethodPost, "/process.Process/List", nil)
		if sent != "" {
			r.Header.Set(timeoutHeader, sent)
		}
		got := "not called"
		unlimited(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Get(timeoutHeader) })).ServeHTTP(httptest.NewRecorder(), r)
		must.Eq(t, want, got, must.Sprint(sent))
	}
}
